"""Escaping of text from the store, so that Streamlit and HTML show it literally."""

from __future__ import annotations

import re
from html import escape as escape_html

FRAME_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def escape_markdown(text: str) -> str:
    """Escape every ASCII punctuation character, and join lines, so that Markdown shows the text unchanged.

    Streamlit renders labels, captions and alerts as Markdown. Without escaping, a name from the store could
    load images from another host or imitate parts of the page.
    """
    return re.sub(r"([!-/:-@\[-`{-~])", r"\\\1", " ".join(text.split()))


def sandboxed_page(html: str, title: str) -> str:
    """Wrap an HTML page from the store in a frame without any permission.

    Streamlit's own frames run scripts with the page's origin. The empty `sandbox` of the inner frame forbids scripts,
    forms, popups and navigation, and removes the origin. The content security policy of the outer document, which the
    inner one inherits, forbids network requests.
    """
    return (
        "<!doctype html><meta charset=utf-8>"
        f'<meta http-equiv="Content-Security-Policy" content="{FRAME_POLICY}">'
        "<style>html,body,iframe{margin:0;border:0;width:100%;height:100vh;display:block}body{overflow:hidden}</style>"
        f'<iframe sandbox="" title="{escape_html(title)}" srcdoc="{escape_html(html)}"></iframe>'
    )

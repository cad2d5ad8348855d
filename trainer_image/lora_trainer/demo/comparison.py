"""HTML page with two images on top of each other and a slider that moves the line between them."""

from __future__ import annotations

import base64
import io

from PIL import Image

PAGE = """<!doctype html><meta charset=utf-8><style>
body{{margin:0;font:14px system-ui,sans-serif;color-scheme:light dark}}
.stage{{position:relative;max-width:{width}px;aspect-ratio:{ratio};--at:50%}}
img{{position:absolute;inset:0;width:100%;height:100%}}
.top{{clip-path:inset(0 calc(100% - var(--at)) 0 0)}}
.line{{position:absolute;top:0;bottom:0;left:var(--at);width:2px;background:#fff;box-shadow:0 0 4px #000}}
input{{position:absolute;inset:0;width:100%;height:100%;margin:0;opacity:0;cursor:ew-resize}}
input:focus-visible ~ .line{{background:#b4472b}}
</style><div class="stage"><img src="{after}" alt="With the adapter"><img class="top" src="{before}" alt="Base model">
<input type="range" min="0" max="100" value="50" aria-label="Base model on the left, adapter on the right"
oninput="this.parentElement.style.setProperty('--at', this.value + '%')"><div class="line"></div></div>"""


def comparison_page(before: Image.Image, after: Image.Image, max_width: int = 768) -> str:
    """Build the page. `before` is shown left of the line, `after` right of it.

    Args:
        after: an image of the same size as `before`.
        max_width: largest width of the page, in pixels.
    """
    return PAGE.format(
        width=max_width,
        ratio=f"{before.width}/{before.height}",
        before=_data_uri(before),
        after=_data_uri(after),
    )


def _data_uri(image: Image.Image) -> str:
    out = io.BytesIO()
    image.save(out, "png")
    return f"data:image/png;base64,{base64.b64encode(out.getvalue()).decode()}"

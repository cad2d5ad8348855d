"""Files of the repository that a page links to become pages of the site, so that no link leads out of it."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
LINK = re.compile(r"(?<=\]\()(\.\./[^)#\s]+)")
VALUES = "charts/lora-training-operator/README.md"
"""The chart's README is in the reference."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add a page for each file or folder outside of docs that is linked; called by MkDocs."""
    for file in list(files.documentation_pages()):
        if file.generated_by:
            continue
        for link in LINK.findall(file.content_string):
            target = outside(file.src_uri, link)
            if target and target != VALUES and f"source/{target}.md" not in files.src_uris:
                text = show(target)
                files.append(File.generated(config, f"source/{target}.md", content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let links that lead out of docs lead to those pages; called by MkDocs."""
    here = page.file.src_uri

    def lead(found: re.Match[str]) -> str:
        target = outside(here, found[1])
        if target is None or page.file.generated_by:
            return found[1]
        page_of = "reference/values.md" if target == VALUES else f"source/{target}.md"
        return posixpath.relpath(page_of, posixpath.dirname(here) or ".")

    return LINK.sub(lead, markdown)


def outside(page: str, link: str) -> str | None:
    """A link's path from the repository's root, when it leads out of docs."""
    path = posixpath.normpath(posixpath.join("docs", posixpath.dirname(page), link))
    return None if path.startswith("docs/") else path


def show(target: str) -> str:
    """A file, or all files of a folder, as a page.

    Raises:
        FileNotFoundError: for a link that leads nowhere; the build ends with it.
    """
    path = ROOT / target
    if not path.exists():
        raise FileNotFoundError(f"a page links to {target}, which is not in the repository")
    files = sorted(child for child in path.iterdir() if child.is_file()) if path.is_dir() else [path]
    parts = [f"# {target}\n"]
    for file in files:
        title = f"\n## {file.name}\n" if path.is_dir() else ""
        parts.append(f"{title}\n````{file.suffix.removeprefix('.')}\n{file.read_text().rstrip()}\n````\n")
    return "".join(parts)

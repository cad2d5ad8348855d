"""Add a page to the site for each file of the repository that the docs link to, so that no link leaves the site."""

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
"""The chart's README, which is a page of the reference."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add a page for each linked file or folder outside of docs; called by MkDocs."""
    for file in list(files.documentation_pages()):
        if file.generated_by:
            continue
        for link in LINK.findall(file.content_string):
            target = outside(file.src_uri, link)
            if target and target != VALUES and f"source/{target}.md" not in files.src_uris:
                text = render(target)
                files.append(File.generated(config, f"source/{target}.md", content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Replace links to files outside of docs by links to those pages; called by MkDocs."""
    here = page.file.src_uri

    def replace(match: re.Match[str]) -> str:
        target = outside(here, match[1])
        if target is None or page.file.generated_by:
            return match[1]
        page_of = "reference/values.md" if target == VALUES else f"source/{target}.md"
        return posixpath.relpath(page_of, posixpath.dirname(here) or ".")

    return LINK.sub(replace, markdown)


def outside(page: str, link: str) -> str | None:
    """Return the path from the repository's root of a link that leaves docs; None for other links."""
    path = posixpath.normpath(posixpath.join("docs", posixpath.dirname(page), link))
    return None if path.startswith("docs/") else path


def render(target: str) -> str:
    """Return a page with the content of a file, or of all files of a folder.

    Raises:
        FileNotFoundError: if the target does not exist. The build then fails.
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

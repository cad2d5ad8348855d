"""Add pages that mkdocs.yml does not list to the section of their folder, so that a new page needs no entry."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig

SECTIONS = {
    "Tutorial": "tutorial",
    "How-to guides": "how-to",
    "Reference": "reference",
    "Explanation": "explanation",
    "Decisions": "adr",
    "Contributing": "contributing",
}


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Complete the navigation; called by MkDocs."""
    _complete(config.nav or [], Path(config.docs_dir))
    return config


def _complete(entries: list[Any], docs: Path) -> None:
    for entry in entries:
        for title, children in entry.items() if isinstance(entry, dict) else ():
            if isinstance(children, list):
                _complete(children, docs)
                folder = docs / SECTIONS.get(title, "-")
                pages = sorted(str(path.relative_to(docs)) for path in folder.glob("*.md"))
                children += [page for page in pages if page not in children]

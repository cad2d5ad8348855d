"""Print the section of a release in the changelog: `make release-notes TAG=v0.1.0`.

It fails unless the tag is the version of the code and the changelog has a section for it.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from lora_api import __version__


def release_notes(tag: str, version: str, changelog: str) -> str:
    """Return the section of a version, without its heading.

    Raises:
        SystemExit: with what to change.
    """
    if tag != f"v{version}":
        sys.exit(
            f"the tag {tag!r} is not v{version}: set __version__ in crds/lora_api/__init__.py, or tag again"
        )
    section = re.search(
        rf"^## \[{re.escape(version)}\][^\n]*\n(.*?)(?=^## |\Z)", changelog, re.DOTALL | re.MULTILINE
    )
    if not section or not section[1].strip():
        sys.exit(f"CHANGELOG.md has nothing under '## [{version}]': rename the heading [Unreleased]")
    return section[1].strip() + "\n"


if __name__ == "__main__":
    changelog = Path(__file__).parents[1] / "CHANGELOG.md"
    print(release_notes(" ".join(sys.argv[1:]), __version__, changelog.read_text()), end="")

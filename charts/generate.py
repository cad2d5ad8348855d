"""What the chart has from elsewhere: `make chart`.

values.schema.json comes from values_schema.py and the profile models, the README's table from the comments in
values.yaml, the CRD from crds/ and the quickstart's pictures and captions from examples/.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from values_schema import build_schema

ROOT = Path(__file__).parents[1]
CHART = ROOT / "charts" / "lora-training-operator"
MARK = "<!-- from values.yaml, by `make chart` -->\n"


def generated() -> dict[Path, bytes]:
    """Every generated file with what it should hold."""
    values = (CHART / "values.yaml").read_text()
    readme = (CHART / "README.md").read_text()
    quickstart = (ROOT / "examples" / "quickstart" / "images").iterdir()
    return {
        CHART / "values.schema.json": (json.dumps(build_schema(), indent=2) + "\n").encode(),
        CHART / "README.md": (readme.partition(MARK)[0] + MARK + values_table(values)).encode(),
        CHART / "files/loratrainingjobs.yaml": (ROOT / "crds" / "loratrainingjobs.yaml").read_bytes(),
        **{CHART / "files" / "quickstart" / path.name: path.read_bytes() for path in sorted(quickstart)},
    }


def values_table(text: str) -> str:
    """A Markdown table of every value: its path, default and `# --` comment (helm-docs' convention).

    A map with no documented value inside is one row.
    """
    comments = dict(_comments(text))
    rows = _rows(yaml.safe_load(text), (), comments)
    head = "| Value | Default | |\n|---|---|---|\n"
    return head + "".join(f"| `{path}` | {_default(value)} | {words} |\n" for path, value, words in rows)


def _comments(text: str) -> Iterator[tuple[tuple[str, ...], str]]:
    """(path, words) of each key that a `# --` comment precedes."""
    parents: list[tuple[int, str]] = []
    words: list[str] = []
    for line in text.splitlines():
        indent = len(line) - len(line.lstrip())
        if comment := re.fullmatch(r"\s*# (.*)", line):
            if comment[1].startswith("-- "):
                words = [comment[1][3:]]
            elif words:
                words.append(comment[1])
        elif key := re.match(r"\s*([A-Za-z]\w*):", line):
            parents = [parent for parent in parents if parent[0] < indent] + [(indent, key[1])]
            if words:
                yield tuple(name for _, name in parents), " ".join(words)
            words = []
        else:
            words = []


def _rows(
    value: dict[str, Any], path: tuple[str, ...], comments: dict[tuple[str, ...], str]
) -> Iterator[tuple[str, Any, str]]:
    for name, child in value.items():
        here = (*path, name)
        if any(other[: len(here)] == here and other != here for other in comments):
            yield from _rows(child, here, comments)
        else:
            yield ".".join(here), child, comments.get(here, "")


def _default(value: Any) -> str:
    text = json.dumps(value)
    return f"`{text}`" if len(text) <= 60 else "see values.yaml"


def main() -> None:
    for path, content in generated().items():
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)


if __name__ == "__main__":
    main()

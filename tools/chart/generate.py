"""Generation of the chart's derived files. It is run by `make chart`.

values.schema.json is built from values_schema.py and the profile models, and the table in the README from the comments
in values.yaml. The CRD is copied from crds/, and the quickstart's images and captions from examples/. The default
profile of local runs is copied from values.yaml to the command's package.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from .values_schema import build_schema

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts" / "lora-training-operator"
DEFAULT_PROFILE = ROOT / "operator" / "lora_cli" / "default_profile.yaml"
MARK = "<!-- from values.yaml, by `make chart` -->\n"
"""The line in the README below which everything is generated."""


def generated() -> dict[Path, bytes]:
    """Return the content of every generated file, by path."""
    values = (CHART / "values.yaml").read_text()
    readme = (CHART / "README.md").read_text()
    quickstart = (ROOT / "examples" / "quickstart" / "images").iterdir()
    return {
        CHART / "values.schema.json": (json.dumps(build_schema(), indent=2) + "\n").encode(),
        CHART / "README.md": (readme.partition(MARK)[0] + MARK + values_table(values)).encode(),
        CHART / "files/loratrainingjobs.yaml": (ROOT / "crds" / "loratrainingjobs.yaml").read_bytes(),
        DEFAULT_PROFILE: default_profile(values).encode(),
        **{CHART / "files" / "quickstart" / path.name: path.read_bytes() for path in sorted(quickstart)},
    }


def default_profile(text: str) -> str:
    """Write the profile of local runs: the chart's default, with the local store in place of the cluster's."""
    profile = yaml.safe_load(text)["profiles"]["default"] | {"store": {"endpoint": "local"}}
    head = "# Copied from profiles.default in the chart's values.yaml by `make chart`; do not edit.\n"
    return head + yaml.safe_dump(profile, sort_keys=False)


def values_table(text: str) -> str:
    """Build a Markdown table of all values: path, default and `# --` comment (the convention of helm-docs).

    A map without documented values in it is one row.
    """
    comments = dict(_comments(text))
    rows = _rows(yaml.safe_load(text), (), comments)
    head = "| Value | Default | |\n|---|---|---|\n"
    return head + "".join(f"| `{path}` | {_default(value)} | {comment} |\n" for path, value, comment in rows)


def _comments(text: str) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield the path and the comment of each key that follows a `# --` comment."""
    # The keys above the current line, outermost first, with their indentation.
    parents: list[tuple[int, str]] = []
    lines: list[str] = []
    for line in text.splitlines():
        indent = len(line) - len(line.lstrip())
        if comment := re.fullmatch(r"\s*# (.*)", line):
            if comment[1].startswith("-- "):
                lines = [comment[1][3:]]
            elif lines:
                lines.append(comment[1])
        elif key := re.match(r"\s*([A-Za-z]\w*):", line):
            parents = [parent for parent in parents if parent[0] < indent] + [(indent, key[1])]
            if lines:
                yield tuple(name for _, name in parents), " ".join(lines)
            lines = []
        else:
            lines = []


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

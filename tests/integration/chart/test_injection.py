"""No value can inject YAML: the schema refuses it, or it stays a string."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.helm import CHART, VALUE_SETS, helm, render

HOSTILE = "x\"}] y: {a}\n  injected: 1 #'{{ .Release }}"
EVERYTHING: dict[str, Any] = VALUE_SETS["everything"] | {
    "rbac": {"scope": "cluster"},
    "metrics": {"authentication": "Token"},
    "admissionPolicy": {"enabled": True, "nodeSelectorKeys": ["a"]},
}
SCHEMA = json.loads((CHART / "values.schema.json").read_text())
Path = tuple[str, ...]


def texts(schema: dict[str, Any], path: Path = ()) -> Iterator[tuple[Path, bool]]:
    """Yield the path of every string among the values, and whether any string is allowed. `*` is an item, `+` a value of a map."""
    if "properties" in schema:
        for name, child in schema["properties"].items():
            yield from texts(child, (*path, name))
    elif isinstance(schema.get("additionalProperties"), dict):
        yield from texts(schema["additionalProperties"], (*path, "+"))
    elif schema.get("items", {}).get("type") == "string":
        yield from texts(schema["items"], (*path, "*"))
    elif schema.get("type") == "string":
        yield path, not {"pattern", "enum", "const"} & schema.keys()


def put(values: dict[str, Any], path: Path, value: str) -> None:
    name, *rest = path
    if rest == ["*"]:
        values[name] = [value]
    elif rest == ["+"]:
        values[name] = {**values.get(name, {}), "k": value}
    elif rest:
        put(values.setdefault(name, {}), tuple(rest), value)
    else:
        values[name] = value


PROFILES = (("demo", "profile"), ("trialStore", "profile"))
"""Names of profiles, which change what is rendered. They are written by `toYaml`."""
FREE = [path for path, free in texts(SCHEMA) if free and path not in PROFILES]
BOUND = [path for path, free in texts(SCHEMA) if not free]


def keys(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield str(key)
            yield from keys(item)
    elif isinstance(value, list):
        for item in value:
            yield from keys(item)


def test_the_texts_are_found() -> None:
    assert ("image", "repository") in BOUND
    assert ("admissionPolicy", "approvers", "users", "*") in FREE
    assert len(FREE) + len(BOUND) > 30


def test_free_texts_stay_texts() -> None:
    values = copy.deepcopy(EVERYTHING)
    for path in FREE:
        put(values, path, HOSTILE)
    plain, hostile = render(EVERYTHING), render(values)
    named = [
        [(found["kind"], found["metadata"]["name"]) for found in objects] for objects in (plain, hostile)
    ]
    assert named[0] == named[1]
    assert not [key for found in hostile for key in keys(found) if "injected" in key]
    assert HOSTILE in json.dumps(hostile, ensure_ascii=False).encode().decode("unicode_escape")


@pytest.mark.parametrize("path", BOUND, ids=".".join)
def test_other_texts_are_refused(path: Path) -> None:
    values = copy.deepcopy(EVERYTHING)
    put(values, path, HOSTILE)
    ran = helm("template", "lora", str(CHART), values=values, check=False)
    assert "don't meet the specifications of the schema" in ran.stderr

"""Hostile values for property tests: what a tenant, a pod, a file or a service can write."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import strategies as st

from lora_api.job import JobSpec
from lora_api.stages import StageResult
from lora_api.status import JobStatus, Progress

NUMBERS = st.sampled_from(
    [0, -1, 1, 2**31 - 1, 2**31, 2**63, 10**30, -(10**30), 1.5, 1e308, float("inf"), True]
)
TEXTS = st.one_of(
    st.text(max_size=20),
    st.sampled_from(
        [
            "",
            "x" * 5000,
            "\x1b[2J\u202e\x00",
            "../../etc",
            "a//b",
            "9999-12-31T23:59:59Z",
            "0001-01-01T00:00:00+23:59",
            "1e999999999",
            "NaN",
            "-0",
            "\ud800",
            "sha256:" + "a" * 64,
        ]
    ),
)
LEAVES = st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS)
JSON = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=12,
)


def shaped(schema: dict[str, Any], definitions: dict[str, Any], depth: int = 0) -> st.SearchStrategy[Any]:
    """Values of the shape of a model's JSON schema, with a hostile value here and there."""
    return st.one_of(_valid_shape(schema, definitions, depth), _valid_shape(schema, definitions, depth), JSON)


def _valid_shape(schema: dict[str, Any], definitions: dict[str, Any], depth: int) -> st.SearchStrategy[Any]:
    if "$ref" in schema:
        return _valid_shape(definitions[schema["$ref"].rsplit("/", 1)[1]], definitions, depth)
    if options := schema.get("anyOf"):
        return st.one_of(*(_valid_shape(option, definitions, depth) for option in options))
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    if "const" in schema:
        return st.just(schema["const"])
    match schema.get("type"):
        case "object" if "properties" in schema and depth < 4:
            fields = {
                name: shaped(child, definitions, depth + 1) for name, child in schema["properties"].items()
            }
            return st.fixed_dictionaries({}, optional=fields)
        case "array":
            return st.lists(shaped(schema.get("items", {}), definitions, depth + 1), max_size=3)
        case "integer" | "number":
            low = int(schema.get("minimum", -5))
            return st.integers(low, min(int(schema.get("maximum", low + 1000)), 2**53))
        case "boolean":
            return st.booleans()
        case "string":
            return TEXTS | st.sampled_from(
                ["2026-03-01T12:00:00Z", "a" * 64, "s3://loras/a/b", "0.5", "500m", "p/"]
            )
        case "null":
            return st.none()
    return JSON


def of_model(
    model: type[JobSpec] | type[JobStatus] | type[StageResult] | type[Progress],
) -> st.SearchStrategy[Any]:
    """Values of a model's shape."""
    schema = model.model_json_schema(by_alias=True)
    return shaped(schema, schema.get("$defs", {}))


@st.composite
def changed(draw: st.DrawFn, valid: Any, times: int = 3) -> Any:
    """A valid value, of JSON, with up to a few parts replaced, added or removed."""
    value = json.loads(json.dumps(valid))
    for _ in range(draw(st.integers(0, times))):
        value = _change(draw, value)
    return value


def _change(draw: st.DrawFn, value: Any) -> Any:
    if isinstance(value, dict) and value and draw(st.integers(0, 5)):
        name = draw(st.sampled_from(sorted(value)))
        return {**value, name: _change(draw, value[name])}
    if isinstance(value, list) and value and draw(st.integers(0, 3)):
        index = draw(st.integers(0, len(value) - 1))
        return [*value[:index], _change(draw, value[index]), *value[index + 1 :]]
    return draw(JSON)

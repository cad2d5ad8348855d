"""Check a job's manifest for everything that the API server would refuse, with a message for each field."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

from pydantic import BaseModel, ValidationError

from lora_api import API_VERSION, KIND
from lora_api.job import InvalidResourceError, JobSpec, parse_spec
from lora_api.status import JobStatus

from .metadata import check_metadata
from .problems import Problem, did_you_mean, quote_hint, show, type_name, unknown_fields
from .reader import Path

TOP_LEVEL = ("apiVersion", "kind", "metadata", "spec", "status")


def find_problems(document: Any) -> list[Problem]:
    """Find every field of a manifest that the API server would refuse, in the order of the top-level fields."""
    if not isinstance(document, Mapping):
        return [Problem((), f"must be a {KIND}, a mapping of fields, not {type_name(document)}")]
    problems = [*_check_kind(document), *unknown_fields(document, TOP_LEVEL, ())]
    problems += check_metadata(document.get("metadata"))
    problems += check_spec(document.get("spec"))
    status = document.get("status") or {}
    if isinstance(status, Mapping):
        problems += _unknown_below(status, ("status",), JobStatus)
    else:
        problems.append(
            Problem(("status",), "must be a mapping of fields; the operator writes it, remove it")
        )
    return problems


def check_spec(spec: Any) -> list[Problem]:
    """Find the problems of `spec`, with the rules of `JobSpec`. Field names must be in camelCase, as in the CRD."""
    if spec is None:
        return [Problem(("spec",), "is missing")]
    spec = without_nulls(spec)
    try:
        JobSpec.model_validate(spec, by_alias=True, by_name=False)
        parse_spec(spec)  # limits of the whole spec, such as its size
    except ValidationError as error:
        return list(explain(error, JobSpec, spec, ("spec",)))
    except InvalidResourceError as error:
        return [Problem((), str(error))]
    return []


def without_nulls(value: Any, path: Path = ()) -> Any:
    """Copy a spec without the known fields that are null. The API server drops these, and their defaults apply.

    Unknown fields stay, so that they are reported even if they are null.
    """
    if isinstance(value, Mapping):
        known = schema_at(path)
        open_ended = "additionalProperties" in known and known["additionalProperties"] is not False
        return {
            key: without_nulls(item, (*path, key))
            for key, item in value.items()
            if item is not None or not (open_ended or key in known.get("properties", {}))
        }
    if isinstance(value, list):
        return [without_nulls(item, (*path, index)) for index, item in enumerate(value)]
    return value


def _check_kind(document: Mapping[str, Any]) -> Iterator[Problem]:
    for field, expected in (("apiVersion", API_VERSION), ("kind", KIND)):
        given = document.get(field)
        if given != expected:
            state = "is missing" if given is None else f"is {show(given)}"
            yield Problem((field,), f"{state}; it must be {expected}")


def _unknown_below(value: Any, path: Path, model: type[BaseModel]) -> Iterator[Problem]:
    """Yield the unknown fields of an object and of all objects in it.

    Args:
        path: path of the object in the document. Its first part is the object of the model.
    """
    if isinstance(value, list):
        for index, item in enumerate(value):
            yield from _unknown_below(item, (*path, index), model)
    if not isinstance(value, Mapping) or "properties" not in schema_at(path[1:], model):
        return
    yield from unknown_fields(value, fields_at(path[1:], model), path)
    for name, item in value.items():
        yield from _unknown_below(item, (*path, name), model)


def explain(error: ValidationError, model: type[BaseModel], data: Any, root: Path = ()) -> Iterator[Problem]:
    """Yield the problems of an object.

    Args:
        error: what pydantic found.
        model: the model of the object.
        data: the object as it was given.
        root: path of the object in its document.
    """
    for item in error.errors(include_url=False):
        path = _without_tags(item["loc"], data)
        yield Problem((*root, *path), _message(item, path, model))


def _without_tags(path: Path, data: Any) -> Path:
    """Leave out of pydantic's path the parts that name the member of a union, which are no fields of the document."""
    kept: list[str | int] = []
    for index, part in enumerate(path):
        if index < len(path) - 1 and isinstance(data, Mapping) and part not in data:
            continue
        kept.append(part)
        if isinstance(data, Mapping):
            data = data.get(part)
        elif isinstance(data, list) and isinstance(part, int) and part < len(data):
            data = data[part]
    return tuple(kept)


def _message(item: Any, path: Path, model: type[BaseModel]) -> str:
    """Describe a pydantic error: the given value, and what the field must be."""
    kind, context, given = item["type"], item.get("ctx", {}), item.get("input")
    match kind:
        case "extra_forbidden":
            return f"is not a field{did_you_mean(str(path[-1]), fields_at(path[:-1], model))}"
        case "missing":
            return "is missing"
        case "union_tag_not_found":
            return f"lacks the field {_names(context['discriminator'])[0]}"
        case "union_tag_invalid":
            (field,), choices = _names(context["discriminator"]), _names(context["expected_tags"])
            return f"{field} is {show(context['tag'])}; it must be one of {', '.join(choices)}"
        case "enum" | "literal_error":
            choices = _names(context["expected"])
            return (
                f"is {show(given)}; it must be one of {', '.join(choices)}{did_you_mean(str(given), choices)}"
            )
        case "value_error" if "in quotes" in item["msg"] and isinstance(given, int | float):
            return (
                f'is a number without quotes; write "{given:g}"'
                if not isinstance(given, bool)
                else _bool(given)
            )
        case "value_error":
            text = item["msg"].removeprefix("Value error, ")
            return f"is {show(given)}; {text}" if isinstance(given, str | int | float) else text
    if kind == "string_pattern_mismatch" and (words := _patterns().get(context["pattern"])):
        return f"is {show(given)}; it must be {words}"
    if kind not in EXPECTED:
        return f"is {show(given)}: {item['msg']}"
    expected = EXPECTED[kind].format(**context)
    return (
        f"is {show(given)}; it must be {expected}{quote_hint(given, str if kind == 'string_type' else None)}"
    )


def _names(text: str) -> list[str]:
    """Return the quoted words of a message."""
    return re.findall(r"'([^']*)'", text)


def _bool(given: bool) -> str:
    return f"is {show(given)}; it must be a number in quotes"


EXPECTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "int_parsing": "a whole number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "text",
    "list_type": "a list",
    "dict_type": "a mapping of fields",
    "model_type": "a mapping of fields",
    "model_attributes_type": "a mapping of fields",
    "greater_than_equal": "at least {ge}",
    "greater_than": "above {gt}",
    "less_than_equal": "at most {le}",
    "less_than": "below {lt}",
    "multiple_of": "a multiple of {multiple_of}",
    "string_too_short": "at least {min_length} characters long",
    "string_too_long": "at most {max_length} characters long",
    "too_long": "at most {max_length} entries long",
    "too_short": "at least {min_length} entries long",
    "string_pattern_mismatch": "text that matches {pattern}",
}
"""Description of valid values, by the type of pydantic's error. Placeholders are filled from the error's context."""
EXAMPLES = {
    (
        "concept",
        "token",
    ): "letters from A to Z, digits, spaces, '-' and '_', beginning with a letter or digit",
    ("concept", "className"): "letters, digits, spaces, '-' and '_', beginning with a letter or digit",
    ("dataset", "prefix"): "a folder without a slash at its beginning and without control characters",
    ("baseModel",): "one line without control characters",
    ("annotation", "instructions"): "text without control characters",
    ("annotation", "approvedCaptions"): "a sha256 of 64 hexadecimal digits",
}
"""Descriptions of texts, by a field with their pattern. They apply to all fields with that pattern."""


@cache
def _schema(model: type[BaseModel]) -> dict[str, Any]:
    return model.model_json_schema(by_alias=True)


def schema_at(path: Path, model: type[BaseModel] = JobSpec) -> dict[str, Any]:
    """Return the JSON schema of a field of a model, by default of `spec`; empty for an unknown field."""
    schema = _schema(model)
    definitions = schema.get("$defs", {})
    for part in path:
        schema = _dereference(schema, definitions)
        if isinstance(part, int):
            schema = schema.get("items", {})
        else:
            rest = schema.get("additionalProperties")
            schema = schema.get("properties", {}).get(part, rest if isinstance(rest, dict) else {})
    return _dereference(schema, definitions)


@cache
def _patterns() -> dict[str, str]:
    """Return the descriptions of texts by their pattern."""
    return {schema_at(path)["pattern"]: words for path, words in EXAMPLES.items()}


def fields_at(path: Path, model: type[BaseModel] = JobSpec) -> list[str]:
    """Return the names of the fields of an object of a model, by default of `spec`; of a union those of all members."""
    schema = schema_at(path, model)
    definitions = _schema(model).get("$defs", {})
    members = [_dereference(member, definitions) for member in schema.get("oneOf", [schema])]
    return list(dict.fromkeys(name for member in members for name in member.get("properties", {})))


def _dereference(schema: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    """Resolve references, and choose the only option of an `anyOf` that allows null."""
    # Each round resolves one level. Eight are more than the schema nests; the limit guards against a cycle.
    for _ in range(8):
        options = [option for option in schema.get("anyOf", []) if option.get("type") != "null"]
        if "$ref" in schema:
            schema = definitions[schema["$ref"].rpartition("/")[2]]
        elif len(options) == 1:
            schema = options[0]
    return schema

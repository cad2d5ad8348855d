"""Check a job's manifest for everything that the API server would refuse, with a message for each field."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from pydantic import BaseModel, ValidationError

from lora_api import API_VERSION, KIND
from lora_api.fields import is_label_key
from lora_api.job import InvalidResourceError, JobSpec, check_name, check_namespace, parse_spec

from .reader import SHOWN, Path

TOP_LEVEL = ("apiVersion", "kind", "metadata", "spec", "status")
METADATA = {
    "name": str, "generateName": str, "namespace": str, "labels": dict, "annotations": dict, "finalizers": list,
    "ownerReferences": list, "managedFields": list, "uid": str, "resourceVersion": str, "generation": int,
    "creationTimestamp": str, "deletionTimestamp": str, "deletionGracePeriodSeconds": int, "selfLink": str,
}  # fmt: skip
"""Fields of metadata and their types."""
LABEL_VALUE = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")
MAX_ANNOTATIONS = 256 << 10
"""Bytes of all annotations together, a limit of Kubernetes."""


@dataclass(frozen=True)
class Problem:
    """One field that the API server would refuse."""

    path: Path
    """Path of the field from the root of the resource; empty for a problem of the whole."""
    message: str

    @property
    def field(self) -> str:
        return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in self.path).lstrip(".")

    def __str__(self) -> str:
        return f"{self.field}: {self.message}" if self.path else self.message


def find_problems(document: Any) -> list[Problem]:
    """Find every field of a manifest that the API server would refuse, in the order of the top-level fields."""
    if not isinstance(document, Mapping):
        return [Problem((), f"must be a {KIND}, a mapping of fields, not {_type(document)}")]
    problems = [*_check_kind(document), *_unknown(document, TOP_LEVEL, ())]
    problems += _check_metadata(document.get("metadata"))
    problems += check_spec(document.get("spec"))
    if not isinstance(document.get("status") or {}, Mapping):
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
            state = "is missing" if given is None else f"is {_show(given)}"
            yield Problem((field,), f"{state}; it must be {expected}")


def _check_metadata(metadata: Any) -> Iterator[Problem]:
    root: Path = ("metadata",)
    if not isinstance(metadata, Mapping):
        yield Problem(root, "is missing" if metadata is None else "must be a mapping of fields")
        return
    yield from _unknown(metadata, METADATA, root)
    for name, kind in METADATA.items():
        value = metadata.get(name)
        if value is not None and (not isinstance(value, kind) or isinstance(value, bool)):
            yield Problem(
                (*root, name), f"must be {_type(kind())}, not {_show(value)}{_quote_hint(value, kind)}"
            )
    if metadata.get("name") is None:
        yield Problem((*root, "name"), "is missing")
    # An empty namespace is valid; an empty name is not.
    for name, check in (("name", check_name), ("namespace", check_namespace)):
        value = metadata.get(name)
        if isinstance(value, str) and (value or name == "name"):
            try:
                check(value, name)
            except InvalidResourceError as error:
                yield Problem((*root, name), f"{_show(value)} {str(error).partition(': ')[2]}")
    yield from _check_labels(metadata)


def _check_labels(metadata: Mapping[str, Any]) -> Iterator[Problem]:
    for field in ("labels", "annotations"):
        values = metadata.get(field)
        if not isinstance(values, dict):
            continue
        for key, value in values.items():
            path = ("metadata", field, key)
            if not is_label_key(key):
                yield Problem(
                    path, "the key must be [PREFIX/]NAME, at most 63 letters, digits, '-', '_' and '.'"
                )
            if value is not None and not isinstance(value, str):
                yield Problem(path, f"must be text, not {_show(value)}{_quote_hint(value, str)}")
            elif field == "labels" and not LABEL_VALUE.fullmatch(value or ""):
                yield Problem(path, f"{_show(value)} must be at most 63 letters, digits, '-', '_' and '.'")
        if field == "annotations":
            texts = [text for pair in values.items() for text in pair if isinstance(text, str)]
            size = sum(len(text.encode(errors="replace")) for text in texts)
            if size > MAX_ANNOTATIONS:
                yield Problem(
                    ("metadata", field), f"must be at most {MAX_ANNOTATIONS} bytes; they are {size}"
                )


def _unknown(values: Mapping[str, Any], known: Collection[str], root: Path) -> Iterator[Problem]:
    for key in values:
        if key not in known:
            yield Problem((*root, key), f"is not a field{did_you_mean(str(key), known)}")


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
            return f"{field} is {_show(context['tag'])}; it must be one of {', '.join(choices)}"
        case "enum" | "literal_error":
            choices = _names(context["expected"])
            return f"is {_show(given)}; it must be one of {', '.join(choices)}{did_you_mean(str(given), choices)}"
        case "value_error" if "in quotes" in item["msg"] and isinstance(given, int | float):
            return (
                f'is a number without quotes; write "{given:g}"'
                if not isinstance(given, bool)
                else _bool(given)
            )
        case "value_error":
            text = item["msg"].removeprefix("Value error, ")
            return f"is {_show(given)}; {text}" if isinstance(given, str | int | float) else text
    if kind == "string_pattern_mismatch" and (words := _patterns().get(context["pattern"])):
        return f"is {_show(given)}; it must be {words}"
    if kind not in EXPECTED:
        return f"is {_show(given)}: {item['msg']}"
    expected = EXPECTED[kind].format(**context)
    return f"is {_show(given)}; it must be {expected}{_quote_hint(given, str if kind == 'string_type' else None)}"


def _names(text: str) -> list[str]:
    """Return the quoted words of a message."""
    return re.findall(r"'([^']*)'", text)


def _bool(given: bool) -> str:
    return f"is {_show(given)}; it must be a number in quotes"


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


def did_you_mean(given: str, known: Collection[str]) -> str:
    """Return a hint with the most similar known name; empty if none is similar. Case, `_` and `-` do not count."""
    by_letters = {name.replace("_", "").lower(): name for name in known}
    near = by_letters.get(given.replace("_", "").replace("-", "").lower())
    if near is None:
        matches = difflib.get_close_matches(given, list(known), 1, 0.6)
        near = matches[0] if matches else None
    return f"; did you mean {near}?" if near and near != given else ""


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


def _type(value: Any) -> str:
    match value:
        case None:
            return "nothing"
        case bool():
            return "true or false"
        case str():
            return "text"
        case int() | float():
            return "a number"
        case list():
            return "a list"
    return "a mapping of fields"


def _show(value: Any) -> str:
    if isinstance(value, dict | list):
        return _type(value)
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def _quote_hint(value: Any, kind: type | None) -> str:
    """Return a hint to quote the value, where text is expected and YAML has read another type."""
    if kind is str and isinstance(value, bool | int | float):
        return "; put it in quotes"
    return ""

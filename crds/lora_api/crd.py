"""The CustomResourceDefinition, made from the models: `python -m lora_api.crd > crds/loratrainingjobs.yaml`.

pydantic's JSON schema is converted to a structural schema: references are resolved, and defaults are omitted
(`job` explains why). Every string, list and map has a bound, because the API server rejects CEL rules whose cost it
cannot estimate.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from . import API_VERSION, GROUP, KIND, PLURAL, VERSION
from .base import Model
from .job import MUTABLE, JobSpec
from .rules import cel_rules, unique_lists
from .status import JobStatus

HEADER = "# Generated from lora_api by `make crds`; do not edit.\n"

COLUMNS = [
    ("Phase", "string", ".status.phase", 0),
    ("Reason", "string", ".status.conditions[?(@.type=='Succeeded')].reason", 0),
    ("Progress", "string", ".status.progress.display", 0),
    ("ETA", "integer", ".status.progress.etaSeconds", 0),
    ("Loss", "string", ".status.progress.loss", 0),
    ("Adapter", "string", ".status.adapter.uri", 1),
    ("Age", "date", ".metadata.creationTimestamp", 0),
]
"""Columns of `kubectl get`: name, type, JSON path and priority. Those of priority 1 are shown with `-o wide` only."""


def build_crd() -> dict[str, Any]:
    """Build the whole CustomResourceDefinition as JSON-ready data."""
    spec = structural_schema(JobSpec)
    whole, inner = cel_rules(JobSpec)
    spec["x-kubernetes-validations"] = [*immutability_rules(), *whole]
    spec["properties"]["training"]["x-kubernetes-validations"] = inner
    for path, key in unique_lists().items():
        field = spec
        for part in path.split("."):
            field = field["properties"][part]
        field["x-kubernetes-list-type"] = "map" if key else "set"
        if key:
            field["x-kubernetes-list-map-keys"] = [key]
    status = structural_schema(JobStatus)
    status["properties"]["conditions"] |= {
        "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": ["type"],
    }
    # Only the operator writes the status. Without this, metadata.managedFields lists each field of it, which is nearly half
    # of a stored job, and the API server compares them all at each write.
    status["x-kubernetes-map-type"] = "atomic"
    schema = {
        "type": "object",
        "required": ["spec"],
        "description": "A job that trains a Stable Diffusion XL LoRA adapter from a few images.",
        "properties": {
            "apiVersion": {"type": "string", "description": f"Version of this schema: {API_VERSION}."},
            "kind": {"type": "string", "description": f"Kind of this resource: {KIND}."},
            # the API server has its own schema for metadata and does not accept another one
            "metadata": {"type": "object"},
            "spec": spec,
            "status": status,
        },
    }
    columns = [
        {"name": name, "type": kind, "jsonPath": path, **({"priority": priority} if priority else {})}
        for name, kind, path, priority in COLUMNS
    ]
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{PLURAL}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": KIND,
                "listKind": f"{KIND}List",
                "plural": PLURAL,
                "singular": KIND.lower(),
                "shortNames": ["ltj"],
            },
            "versions": [
                {
                    "name": VERSION,
                    "served": True,
                    "storage": True,
                    "subresources": {"status": {}},
                    "additionalPrinterColumns": columns,
                    "schema": {"openAPIV3Schema": schema},
                }
            ],
        },
    }


def structural_schema(model: type[Model]) -> dict[str, Any]:
    """Convert a model's JSON schema to Kubernetes' structural schema."""
    schema = model.model_json_schema(by_alias=True)
    definitions = schema.pop("$defs", {})
    result = _structural(schema, definitions)
    assert isinstance(result, dict)
    return result


def _structural(schema: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    """Convert a JSON schema and, recursively, its children; `definitions` resolve the references."""
    schema = dict(schema)
    if reference := schema.pop("$ref", None):
        target = definitions[reference.rsplit("/", 1)[1]]
        schema = {**target, **schema}
    if options := schema.pop("anyOf", None):
        kinds = [option for option in options if option.get("type") != "null"]
        # the last alternative describes a union, so `Reason | Short` is a string; `X | None` is a nullable X
        schema = {**kinds[-1], **schema}
        if len(kinds) < len(options):
            schema["nullable"] = True
        return _structural(schema, definitions)
    schema.pop("title", None)
    schema.pop("default", None)
    # in JSON Schema an exclusive bound is a number; in OpenAPI 3.0 it is a flag beside the bound
    for bound, flag in (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")):
        if bound in schema:
            schema[flag] = schema.pop(bound)
            schema[bound] = True
    if "pattern" in schema:
        schema["pattern"] = _ascii_pattern(schema["pattern"])
    if rules := schema.get("x-kubernetes-validations"):
        schema["x-kubernetes-validations"] = [
            {**rule, "rule": _ascii_pattern(rule["rule"])} for rule in rules
        ]
    if schema.get("type") == "integer":
        schema["format"] = "int64"
    if "properties" in schema:
        schema.pop("additionalProperties", None)
        schema["properties"] = {
            name: _structural(child, definitions) for name, child in schema["properties"].items()
        }
    elif isinstance(schema.get("additionalProperties"), dict):
        schema["additionalProperties"] = _structural(schema["additionalProperties"], definitions)
    elif schema.pop("additionalProperties", None) is True:
        schema["x-kubernetes-preserve-unknown-fields"] = True
    if "items" in schema:
        schema["items"] = _structural(schema["items"], definitions)
    return schema


def _ascii_pattern(pattern: str) -> str:
    """Escape the characters outside ASCII for the API server, because Helm cannot write some of them as YAML."""
    return "".join(char if char.isascii() else f"\\x{{{ord(char):X}}}" for char in pattern)


def immutability_rules() -> list[dict[str, str]]:
    """Write one CEL rule for each immutable field, so that the message names the field."""
    schema = JobSpec.model_json_schema(by_alias=True)
    rules = []
    for name, field in schema["properties"].items():
        if name not in MUTABLE:
            rules.append(_frozen(name))
            continue
        model = schema["$defs"][field["$ref"].rsplit("/", 1)[1]]
        rules += [_frozen(name, child) for child in model["properties"] if child not in MUTABLE[name]]
    return rules


def _frozen(*path: str) -> dict[str, str]:
    """Write the rule that a field stays absent, or stays present and equal.

    Comparing CEL's optionals would be shorter, but the API server cannot bound its cost.
    """

    def present(root: str) -> str:
        return f"{root}.?{'.?'.join(path)}.hasValue()" if path[1:] else f"has({root}.{path[0]})"

    now, before, field = present("self"), present("oldSelf"), ".".join(path)
    return {
        "rule": f"{now} == {before} && (!{now} || self.{field} == oldSelf.{field})",
        "message": f"{field} cannot be changed: create a new object",
    }


def main() -> None:
    import yaml

    # A copy without shared parts, which YAML would write as aliases.
    plain = json.loads(json.dumps(build_crd()))
    sys.stdout.write(HEADER + yaml.safe_dump(plain, sort_keys=False, width=110))


if __name__ == "__main__":
    main()

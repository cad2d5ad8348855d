"""The CustomResourceDefinition, made from the models: `python -m lora_api.crd > crds/loratrainingjobs.yaml`.

pydantic's JSON schema becomes a structural one: references are resolved, defaults are left out (they live
in the models), and every string, list and map keeps a bound, without which the API server refuses to
estimate the cost of the CEL rules.
"""

from __future__ import annotations

import sys
from typing import Any

from . import GROUP, KIND, PLURAL, VERSION
from .base import Model
from .job import MUTABLE, JobSpec
from .status import JobStatus

HEADER = "# Generated from lora_api by `make crds`; do not edit.\n"

COLUMNS = [
    ("Phase", "string", ".status.phase", 0),
    ("Progress", "string", ".status.progress.display", 0),
    ("ETA", "integer", ".status.progress.etaSeconds", 0),
    ("Loss", "string", ".status.progress.loss", 0),
    ("Reason", "string", ".status.conditions[?(@.type=='Succeeded')].reason", 1),
    ("Adapter", "string", ".status.adapter.uri", 1),
    ("Age", "date", ".metadata.creationTimestamp", 0),
]


def build_crd() -> dict[str, Any]:
    """The whole CustomResourceDefinition as JSON-ready data."""
    spec = structural_schema(JobSpec)
    spec["x-kubernetes-validations"] = [*immutability_rules(), *cross_field_rules()]
    status = structural_schema(JobStatus)
    status["properties"]["conditions"] |= {
        "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": ["type"],
    }
    schema = {
        "type": "object",
        "required": ["spec"],
        "description": "A handful of photographs in, a Stable Diffusion XL LoRA adapter out.",
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
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
    """A model's JSON schema as Kubernetes' structural schema."""
    schema = model.model_json_schema(by_alias=True)
    definitions = schema.pop("$defs", {})
    result = _structural(schema, definitions)
    assert isinstance(result, dict)
    return result


def _structural(schema: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    schema = dict(schema)
    if reference := schema.pop("$ref", None):
        target = definitions[reference.rsplit("/", 1)[1]]
        schema = {**target, **schema}
    if options := schema.pop("anyOf", None):
        kinds = [option for option in options if option.get("type") != "null"]
        # `Reason | str` reads as a plain string; `X | None` as a nullable X
        schema = {**kinds[-1], **schema}
        if len(kinds) < len(options):
            schema["nullable"] = True
        return _structural(schema, definitions)
    schema.pop("title", None)
    schema.pop("default", None)
    for bound, flag in (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")):
        if bound in schema:
            schema[flag] = schema.pop(bound)
            schema[bound] = True
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


def immutability_rules() -> list[dict[str, str]]:
    """One CEL rule a field, so that the message names the field; the fields in `MUTABLE` have none."""
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
    """Absent before and after, or there and equal. (CEL's optionals would say it shorter, but the API
    server cannot bound what comparing them costs.)"""

    def present(root: str) -> str:
        return " && ".join(f"has({root}.{'.'.join(path[: depth + 1])})" for depth in range(len(path)))

    now, before, field = present("self"), present("oldSelf"), ".".join(path)
    return {
        "rule": f"({now}) == ({before}) && (!({now}) || self.{field} == oldSelf.{field})",
        "message": f"{field} cannot be changed: create a new object",
    }


def cross_field_rules() -> list[dict[str, str]]:
    return [
        {
            "rule": "self.dataset.?minImages.orValue(5) <= self.dataset.?maxImages.orValue(20)",
            "message": "dataset.minImages must not be above dataset.maxImages",
        },
        {
            "rule": "self.?training.?validation.?everySteps.orValue(0) > 0 || "
            "(self.?training.?validation.?patience.orValue(0) == 0 && "
            "self.?training.?validation.?publish.orValue('Last') == 'Last')",
            "message": "training.validation: patience and publish need everySteps above 0",
        },
        {
            "rule": "self.?training.?adapter.?type.orValue('LoRA') == 'LoRA' || "
            "(!self.?training.?adapter.?useDoRA.orValue(false) && "
            "!self.?training.?adapter.?useRSLoRA.orValue(false))",
            "message": "training.adapter: useDoRA and useRSLoRA are for type LoRA",
        },
        {
            "rule": "self.?training.?adapter.?type.orValue('LoRA') == 'LoRA' || "
            "self.?output.?formats.orValue(['diffusers', 'kohya']) == ['kohya']",
            "message": "output.formats must be [kohya]: diffusers has no format for LoKr and LoHa",
        },
        {
            "rule": "self.?training.?extraction.?factorSteps.orValue(0) < self.?training.?maxSteps.orValue(500)",
            "message": "training.extraction.factorSteps must be below maxSteps",
        },
    ]


def main() -> None:
    import yaml

    sys.stdout.write(HEADER + yaml.safe_dump(build_crd(), sort_keys=False, width=110))


if __name__ == "__main__":
    main()

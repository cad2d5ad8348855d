"""The CRD in the repository is the one that the models make, and it fits where it must fit."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from lora_api.crd import build_crd
from lora_api.job import MUTABLE, JobSpec

ROOT = Path(__file__).parents[3]
COPIES = ["crds/loratrainingjobs.yaml", "charts/lora-training-operator/files/loratrainingjobs.yaml"]


def test_the_generated_files_are_up_to_date() -> None:
    for copy in COPIES:
        assert yaml.safe_load((ROOT / copy).read_text()) == build_crd(), f"{copy}: run `make crds`"


def test_it_stays_small_enough_for_client_side_apply() -> None:
    """kubectl keeps it as JSON in an annotation, of which there can be 262,144 bytes. Three versions have to fit."""
    assert len(json.dumps(build_crd())) < 262_144 / 3, "shorten descriptions, messages or rules"


def schemas(schema: dict[str, Any], path: str = "spec") -> Iterator[tuple[str, dict[str, Any]]]:
    yield path, schema
    for name, child in schema.get("properties", {}).items():
        yield from schemas(child, f"{path}.{name}")
    if isinstance(schema.get("items"), dict):
        yield from schemas(schema["items"], f"{path}[]")


def spec_schema() -> dict[str, Any]:
    version = build_crd()["spec"]["versions"][0]
    found: dict[str, Any] = version["schema"]["openAPIV3Schema"]["properties"]["spec"]
    return found


def whole_schema() -> dict[str, Any]:
    found: dict[str, Any] = build_crd()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    return found


def test_every_field_and_object_has_a_description_for_kubectl_explain() -> None:
    """Scalar items of a list are described by their list, and metadata by the API server."""
    for path, schema in schemas(whole_schema(), "job"):
        if path == "job.metadata" or (path.endswith("[]") and schema.get("type") != "object"):
            continue
        text = schema.get("description", "")
        assert len(text) >= 10, f"{path}: no description"
        assert text[0].isupper(), f"{path}: {text}"
        assert text.endswith("."), f"{path}: {text}"
        assert not re.match(r"(Of|By|Its|As|For) ", text), f"{path}: {text}"
        assert "\n" not in text, f"{path}: {text}"


def test_nothing_in_spec_has_a_server_side_default() -> None:
    assert [path for path, schema in schemas(spec_schema()) if "default" in schema] == []


def is_loose(schema: dict[str, Any]) -> bool:
    kind = schema.get("type")
    if kind == "string":
        return not {"enum", "maxLength", "format"} & schema.keys()
    if kind == "object" and "properties" not in schema:
        return "maxProperties" not in schema and not schema.get("x-kubernetes-preserve-unknown-fields")
    return (kind == "array" and "maxItems" not in schema) or (kind == "integer" and "maximum" not in schema)


def test_everything_in_spec_and_status_is_bounded() -> None:
    properties = whole_schema()["properties"]
    for part in ("spec", "status"):
        assert [path for path, schema in schemas(properties[part], part) if is_loose(schema)] == []


def test_every_field_but_the_mutable_ones_is_frozen() -> None:
    rules = " ".join(rule["rule"] for rule in spec_schema()["x-kubernetes-validations"])
    for name in JobSpec.model_json_schema(by_alias=True)["properties"]:
        assert (f"self.{name} == oldSelf.{name}" in rules) == (name not in MUTABLE)
    for name, fields in MUTABLE.items():
        for field in fields:
            assert f"{name}.{field}" not in rules


def test_the_status_is_one_field_to_the_api_server() -> None:
    """Else metadata.managedFields lists its hundred fields, and each status write compares them."""
    version = build_crd()["spec"]["versions"][0]
    status = version["schema"]["openAPIV3Schema"]["properties"]["status"]
    assert status["x-kubernetes-map-type"] == "atomic"

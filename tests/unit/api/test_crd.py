"""The CRD in the repository is the one that the models make, and it fits where it must fit."""

from __future__ import annotations

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
    assert (ROOT / COPIES[0]).stat().st_size < 262_144 / 4


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


def test_nothing_in_spec_has_a_server_side_default() -> None:
    assert [path for path, schema in schemas(spec_schema()) if "default" in schema] == []


def test_everything_in_spec_is_bounded() -> None:
    loose = [
        path
        for path, schema in schemas(spec_schema())
        if (schema.get("type") == "string" and "enum" not in schema and "maxLength" not in schema)
        or (schema.get("type") == "array" and "maxItems" not in schema)
    ]
    assert loose == []


def test_every_field_but_the_mutable_ones_is_frozen() -> None:
    rules = " ".join(rule["rule"] for rule in spec_schema()["x-kubernetes-validations"])
    for name in JobSpec.model_json_schema(by_alias=True)["properties"]:
        assert (f"self.{name} == oldSelf.{name}" in rules) == (name not in MUTABLE)
    for name, fields in MUTABLE.items():
        for field in fields:
            assert f"{name}.{field}" not in rules

"""What the docs show can be used as it stands."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from lora_api.exits import ExitCode
from lora_api.job import parse_spec
from lora_api.prefetch import PrefetchConfig
from lora_api.profile import Profiles, StoreProfile
from tests.conftest import make_spec

ROOT = Path(__file__).parents[2]
DOCS = sorted([*(ROOT / "docs").rglob("*.md"), ROOT / "README.md"])
VALUES = json.loads((ROOT / "charts/lora-training-operator/values.schema.json").read_text())
STORE = {"endpoint": "minio:9000"}


def blocks(language: str) -> Iterator[tuple[str, str]]:
    for path in DOCS:
        for text in re.findall(rf"^```{language}\n(.*?)^```", path.read_text(), re.DOTALL | re.MULTILINE):
            yield path.name, text


def documents() -> list[tuple[str, dict[str, Any]]]:
    loaded = [(name, found) for name, text in blocks("yaml") for found in yaml.safe_load_all(text)]
    return [(name, found) for name, found in loaded if isinstance(found, dict)]


@pytest.mark.parametrize("path", DOCS, ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    for link in re.findall(r"\]\(([^)#\s]+)", path.read_text()):
        target = (path.parent / link).resolve()
        assert link.startswith("http") or target.exists(), link


def test_pieces_of_a_job_fit_the_resource() -> None:
    pieces = [found["spec"] for _, found in documents() if set(found) == {"spec"}]
    assert len(pieces) >= 3
    for piece in pieces:
        parse_spec(make_spec(**piece))


def test_pieces_of_values_fit_the_chart() -> None:
    known = set(VALUES["properties"])
    pieces = [(name, found) for name, found in documents() if set(found) <= known]
    assert len(pieces) >= 5
    for _, piece in pieces:
        given = piece.get("profiles", {"default": {}})
        profiles = {name: {"store": STORE, "models": {}, **profile} for name, profile in given.items()}
        jsonschema.validate(piece | {"profiles": profiles}, VALUES | {"required": []})
        Profiles.model_validate({"profiles": profiles})


def test_the_prefetch_file_is_one() -> None:
    (config,) = [json.loads(text) for _, text in blocks("json") if '"cache"' in text]
    assert PrefetchConfig.model_validate(config).model.source == "hub"


def test_the_stores_policy_names_the_default_buckets() -> None:
    (policy,) = [json.loads(text) for _, text in blocks("json") if '"Statement"' in text]
    resources = json.dumps([statement["Resource"] for statement in policy["Statement"]])
    store = StoreProfile.model_validate(STORE)
    assert set(re.findall(r"arn:aws:s3:::(\w+)", resources)) == {store.input_bucket, store.output_bucket}


def test_every_exit_code_is_explained() -> None:
    text = (ROOT / "docs/how-to/troubleshooting.md").read_text()
    section = text.partition("## Exit codes\n")[2].partition("\n## ")[0]
    codes = re.findall(r"^\| (\d+) \|", section, re.MULTILINE)
    assert sorted(int(code) for code in codes) == sorted(int(code) for code in ExitCode)

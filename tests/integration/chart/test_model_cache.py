"""The model cache: one claim for each namespace, one prefetch Job for each model, and a new Job after each change."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from lora_api.profile import BaseModelSource, StoreModel, StoreProfile
from tests.support.helm import CHART, render

VALUES: dict[str, Any] = {
    "modelCache": {"enabled": True, "namespaces": ["studio", "atelier"]},
    "profiles": {
        "default": {
            "namespaces": ["studio"],
            "store": {"caConfigMap": "store-ca"},
            "models": {"house-model": {"source": "store", "key": "models/house-xl/"}},
            "modelCache": {"persistentVolumeClaim": "lora-models"},
        },
        "other": {
            "namespaces": ["atelier"],
            "store": {"endpoint": "minio:9000"},
            "models": {"tiny": {"source": "hub", "repo": "a/tiny"}},
            "modelCache": {"persistentVolumeClaim": "lora-models"},
        },
        "uncached": {
            "store": {"endpoint": "minio:9000"},
            "models": {"not-this": {"source": "hub", "repo": "a/b"}},
        },
    },
}


def prefetches(
    values: dict[str, Any], **options: Any
) -> dict[tuple[str, str], tuple[dict[str, Any], dict[str, Any]]]:
    """Return the configuration and the Job of each prefetch, by namespace and model."""
    objects = render(values, **options)
    configs = {
        (found["metadata"]["namespace"], found["metadata"]["name"]): json.loads(
            found["data"]["prefetch.json"]
        )
        for found in objects
        if found["kind"] == "ConfigMap" and "prefetch.json" in found["data"]
    }
    jobs = {(j["metadata"]["namespace"], j["metadata"]["name"]): j for j in objects if j["kind"] == "Job"}
    assert set(configs) == set(jobs)
    return {(where, config["name"]): (config, jobs[where, name]) for (where, name), config in configs.items()}


def test_each_cached_model_is_fetched_where_its_profile_may_be_used() -> None:
    found = prefetches(VALUES)
    assert set(found) == {("studio", "sdxl-base-1.0"), ("studio", "house-model"), ("atelier", "tiny")}
    claims = [o for o in render(VALUES) if o["kind"] == "PersistentVolumeClaim"]
    assert {(c["metadata"]["namespace"], c["metadata"]["name"]) for c in claims} == {
        ("studio", "lora-models"),
        ("atelier", "lora-models"),
    }
    assert all(c["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"} for c in claims)


def test_the_store_and_its_keys_are_for_models_of_the_store_only() -> None:
    for (_, name), (config, job) in prefetches(VALUES).items():
        model = TypeAdapter(BaseModelSource).validate_python(config["model"])
        volumes = {volume["name"] for volume in job["spec"]["template"]["spec"]["volumes"]}
        assert config["cache"] == "/cache"
        if isinstance(model, StoreModel):
            assert name == "house-model"
            assert StoreProfile.model_validate(config["store"]).ca_config_map == "store-ca"
            assert {"store", "ca"} <= volumes
        else:
            assert config["store"] is None
            assert not {"store", "ca"} & volumes


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("profiles", "default", "models", "house-model", "key"), "models/house-xl-2/"),
        (("profiles", "default", "store", "endpoint"), "elsewhere:9000"),
        (("profiles", "default", "store", "caConfigMap"), ""),
        (("trainImage",), {"tag": "next"}),
        (("modelCache", "resources"), {"limits": {"memory": "8Gi"}}),
        (("imagePullSecrets",), ["registry"]),
    ],
)
def test_a_job_that_would_differ_has_another_name(path: tuple[str, ...], value: Any) -> None:
    """The spec of a Job is immutable, so an upgrade that changed it would fail."""
    changed = copy.deepcopy(VALUES)
    at = changed
    for step in path[:-1]:
        at = at[step]
    at[path[-1]] = value
    before, after = (prefetches(values)["studio", "house-model"][1] for values in (VALUES, changed))
    assert before["spec"] != after["spec"] or path[-1] in ("key", "endpoint")
    assert before["metadata"]["name"] != after["metadata"]["name"]


def test_a_job_of_another_chart_version_has_another_name(tmp_path: Path) -> None:
    """The Job differs at least by its labels, even if the image is pinned."""
    newer = shutil.copytree(CHART, tmp_path / "chart")
    about = newer / "Chart.yaml"
    about.write_text(about.read_text().replace("ersion: 0.", "ersion: 9."))
    pinned = VALUES | {"trainImage": {"tag": "pinned"}}
    before = prefetches(pinned)["studio", "house-model"][1]
    after = prefetches(pinned, chart=newer)["studio", "house-model"][1]
    assert before["spec"]["template"]["metadata"] != after["spec"]["template"]["metadata"]
    assert before["metadata"]["name"] != after["metadata"]["name"]


def test_an_unrelated_upgrade_keeps_the_job() -> None:
    before, after = (
        prefetches(values)["studio", "house-model"][1] for values in (VALUES, VALUES | {"replicas": 2})
    )
    assert before == after

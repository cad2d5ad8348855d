"""What an administrator sets for the pods of a profile, and what a job may change of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from lora_api.profile import Profile
from lora_api.reasons import Reason
from lora_operator import names
from lora_operator.decide import StartAnnotation, StartTraining, decide
from lora_operator.manifests import CLUSTER, build_job, build_stage_config
from lora_operator.quantities import parse_quantity
from lora_operator.settings import Images
from lora_operator.snapshot import Snapshot
from tests.support.builders import CAPTIONS_SHA, HASH, NOW, PROFILE, condition, message, snapshot

ANNOTATE, TRAIN = StartAnnotation(1), StartTraining(1, CAPTIONS_SHA, HASH)


def profile(**fields: Any) -> Profile:
    return Profile.model_validate({**PROFILE.to_wire(), **fields})


def template(case: Snapshot, start: StartAnnotation | StartTraining) -> dict[str, Any]:
    job = build_job(case, build_stage_config(case, start, CLUSTER), Images("a", "t", pull_secrets=("own",)))
    found: dict[str, Any] = job["spec"]["template"]
    return found


def test_labels_and_annotations_reach_the_pods_of_their_stage_and_replace_none_of_the_operators() -> None:
    pods = {
        "annotate": {
            "labels": {"sidecar.istio.io/inject": "false", names.JOB_UID: "forged"},
            "annotations": {"team": "media", names.OWNER_NAME: "forged"},
        }
    }
    case = snapshot(profile=profile(pods=pods))
    metadata = template(case, ANNOTATE)["metadata"]
    assert metadata["labels"]["sidecar.istio.io/inject"] == "false"
    assert metadata["labels"][names.JOB_UID] == case.uid
    assert metadata["annotations"]["team"] == "media"
    assert metadata["annotations"][names.OWNER_NAME] == case.name
    assert "sidecar.istio.io/inject" not in template(case, TRAIN)["metadata"]["labels"]


def test_scheduling_of_profile_and_job_is_joined() -> None:
    spot = {"key": "spot", "operator": "Exists"}
    pods = {
        "train": {
            "nodeSelector": {"pool": "gpu"},
            "tolerations": [spot],
            "imagePullSecrets": ["registry", "own"],
        }
    }
    asked = {
        "nodeSelector": {"pool": "other", "zone": "b"},
        "tolerations": [{"key": "x", "operator": "Exists"}],
    }
    case = snapshot(spec={"scheduling": asked}, profile=profile(pods=pods))
    pod = template(case, TRAIN)["spec"]
    assert pod["nodeSelector"] == {"pool": "gpu", "zone": "b"}
    assert pod["tolerations"] == [spot, {"key": "x", "operator": "Exists"}]
    assert pod["imagePullSecrets"] == [{"name": "own"}, {"name": "registry"}]
    assert "nodeSelector" not in template(case, ANNOTATE)["spec"]


def resources(case: Snapshot, start: StartAnnotation | StartTraining) -> dict[str, Any]:
    found: dict[str, Any] = template(case, start)["spec"]["containers"][0]["resources"]
    return found


@pytest.mark.parametrize(("start", "stage"), [(ANNOTATE, "annotate"), (TRAIN, "train")])
def test_a_job_sets_limits_and_a_profile_has_them_where_it_does_not(
    start: StartAnnotation | StartTraining, stage: str
) -> None:
    assert "cpu" not in resources(snapshot(), start)["limits"]
    given = profile(pods={stage: {"cpuLimit": "2", "ephemeralStorage": "4Gi"}})
    found = resources(snapshot(profile=given), start)
    assert (found["limits"]["cpu"], found["limits"]["ephemeral-storage"]) == ("2", "4Gi")
    assert found["requests"]["ephemeral-storage"] == "4Gi"
    assert parse_quantity(found["requests"]["cpu"]) <= 2, "a request above the limit would be refused"
    asked = {stage: {"cpu": "1", "cpuLimit": "3", "ephemeralStorage": "5Gi"}}
    found = resources(snapshot(spec={"resources": asked}, profile=given), start)
    assert (found["limits"]["cpu"], found["limits"]["ephemeral-storage"]) == ("3", "5Gi")


def test_a_model_that_is_downloaded_asks_for_its_size() -> None:
    models = {"sdxl-base-1.0": {"source": "store", "key": "models/sdxl/", "size": "8Gi"}}
    found = resources(snapshot(profile=profile(models=models)), TRAIN)
    assert found["requests"]["ephemeral-storage"] == "8Gi"
    assert "ephemeral-storage" not in found["limits"]
    cached = profile(models=models, modelCache={"persistentVolumeClaim": "models"})
    assert "ephemeral-storage" not in resources(snapshot(profile=cached), TRAIN)["requests"]


@pytest.mark.parametrize(
    ("field", "most", "asked"), [("cpuLimit", "4", "4500m"), ("ephemeralStorage", "1Gi", "2G")]
)
def test_more_than_a_profile_allows_is_refused_and_names_the_field(field: str, most: str, asked: str) -> None:
    bounded = profile(pods={"train": {f"max{field[0].upper()}{field[1:]}": most}})
    case = snapshot(spec={"resources": {"train": {field: asked}}}, profile=bounded)
    decision = decide(case, NOW)
    assert condition(decision, "Succeeded") == ("False", Reason.CONFIGURATION_INVALID)
    assert (
        f"spec.resources.train.{field}: {asked} is above the maximum of profile 'default', {most}"
        in message(decision)
    )
    within = replace(case, spec=snapshot(spec={"resources": {"train": {field: most}}}).spec)
    assert decide(within, NOW).actions == (ANNOTATE,)


def test_a_limit_below_the_request_is_refused_and_names_both() -> None:
    case = snapshot(spec={"resources": {"train": {"cpu": "4", "cpuLimit": "2"}}})
    decision = decide(case, NOW)
    assert condition(decision, "Succeeded") == ("False", Reason.CONFIGURATION_INVALID)
    assert "spec.resources.train.cpuLimit: 2 is below the request, spec.resources.train.cpu: 4" in message(
        decision
    )


def test_quantities() -> None:
    ordered = ["1m", "0.5", "1", "1k", "1Ki", "1M", "1Mi", "1G", "1Gi", "1T", "1Ti"]
    assert sorted(ordered, key=parse_quantity) == ordered

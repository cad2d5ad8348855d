"""Each setting that the operator reads changes what it does with a job.

The settings of the stages are in tests/integration/annotate/test_settings.py and tests/integration/train/test_matrix.py.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from lora_api import rules
from lora_api.job import JobSpec
from lora_api.profile import Profile
from lora_api.stages import StageName
from lora_api.status import Phase
from lora_operator import names
from lora_operator.decide import StartAnnotation, StartTraining, decide
from lora_operator.manifests import CLUSTER, build_job, build_stage_config
from lora_operator.settings import Images
from lora_operator.snapshot import Snapshot
from tests.support.builders import (
    CAPTIONS_SHA,
    HASH,
    NOW,
    PROFILE,
    annotated,
    child,
    pod,
    seconds,
    snapshot,
    training,
)

IMAGES = Images(annotate="annotate:1", train="train:1")
MODELS = {"llm": {"models": ["claude-haiku-5-5", "claude-opus-5"]}}
PROFILES = Profile.model_validate(
    {
        **PROFILE.to_wire(),
        **MODELS,
        "models": {
            **PROFILE.to_wire()["models"],
            "other": {"source": "store", "key": "models/other/"},
        },
    }
)
HOUR = 3600
SECTIONS = ("baseModel", "resources", "scheduling", "runPolicy")
"""All but those of the stages, and `profile`, which `observe` looks up before."""
VALUES: dict[str, Any] = {
    "baseModel": "other",
    "annotation.model": "claude-opus-5",
    "annotation.approval": "Required",
    "annotation.approvedCaptions": "sha256:" + "e" * 64,
    "resources.annotate.cpu": "3",
    "resources.annotate.memory": "3Gi",
    "resources.annotate.cpuLimit": "4",
    "resources.annotate.ephemeralStorage": "3Gi",
    "resources.train.gpus": 2,
    "resources.train.gpuResource": "amd.com/gpu",
    "resources.train.cpu": "3",
    "resources.train.memory": "33Gi",
    "resources.train.cpuLimit": "8",
    "resources.train.ephemeralStorage": "33Gi",
    "scheduling.queueName": "night",
    "scheduling.priorityClassName": "low",
    "scheduling.runtimeClassName": "nvidia",
    "scheduling.nodeSelector": {"gpu": "l4"},
    "scheduling.tolerations": [{"key": "gpu", "operator": "Exists"}],
    "runPolicy.suspend": True,
    "runPolicy.backoffLimit": 0,
    "runPolicy.disruptionLimit": 1,
    "runPolicy.retry": 1,
    "runPolicy.startDeadlineSeconds": HOUR,
    "runPolicy.activeDeadlineSeconds": HOUR,
    "runPolicy.childTTLSecondsAfterFinished": HOUR,
    "runPolicy.ttlSecondsAfterFinished": HOUR,
}
"""A value that is not the default for each setting."""
COMPANIONS: dict[str, Any] = {"annotation.approvedCaptions": {"annotation": {"approval": "Required"}}}
"""Settings under which a setting counts."""


def nested(path: str, value: Any) -> dict[str, Any]:
    for part in reversed(path.split(".")):
        value = {part: value}
    found: dict[str, Any] = value
    return found


def merged(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    both = {
        key: merged(one[key], other[key]) for key in one.keys() & other.keys() if isinstance(one[key], dict)
    }
    return {**one, **other, **both}


def situations(spec: dict[str, Any]) -> Iterator[Snapshot]:
    """Yield a job in the situations in which the operator decides."""

    def job(**fields: Any) -> Snapshot:
        return snapshot(spec=spec, profile=PROFILES, **fields)

    lost = pod("Failed", disrupted="EvictionByEvictionAPI")
    yield job()
    yield job(status=annotated())
    # A pod that does not start, one that is lost, and one that fails, each for two hours.
    created = {"created_at": NOW - seconds(2 * HOUR)}
    started = training().model_copy(update={"start_time": NOW - seconds(2 * HOUR)})
    yield job(status=started, children=(child(StageName.TRAIN, pod("Pending"), **created),))
    yield job(status=started, children=(child(StageName.TRAIN, lost, lost, **created),))
    yield job(status=started, children=(child(StageName.TRAIN, pod("Running"), **created),))
    ended = started.model_copy(update={"phase": Phase.FAILED, "finish_time": NOW - seconds(2 * HOUR)})
    yield job(status=ended)


def plan(spec: dict[str, Any]) -> str:
    """Return what the operator does with a job: decisions, child Jobs, and what it adds to a stage's configuration."""
    done: list[Any] = []
    for situation in situations(spec):
        decision = decide(situation, NOW)
        # `effective` has every setting.
        done.append(repr(replace(decision, status=decision.status.model_copy(update={"effective": None}))))
    first = next(situations(spec))
    for start in (StartAnnotation(1), StartTraining(1, CAPTIONS_SHA, HASH)):
        config = build_stage_config(first, start, CLUSTER)
        body = build_job(first, config, IMAGES)
        del body["spec"]["template"]["metadata"]["annotations"][names.STAGE_CONFIG]
        wire = config.to_wire()
        del wire["spec"]  # it has every setting
        done += [body, wire]
    return json.dumps(done, sort_keys=True, default=str)


def test_every_setting_of_the_operator_is_tried() -> None:
    of_sections = {path for section in SECTIONS for path in rules.leaves(JobSpec, section)}
    assert of_sections <= VALUES.keys()


@pytest.mark.parametrize("path", VALUES)
def test_another_value_changes_what_the_operator_does(path: str) -> None:
    base = COMPANIONS.get(path, {})
    assert plan(merged(base, nested(path, VALUES[path]))) != plan(base)


def test_a_setting_of_a_stage_alone_changes_nothing_here() -> None:
    """Otherwise the test above would pass for a setting without effect."""
    assert plan({"training": {"seed": 7}}) == plan({})

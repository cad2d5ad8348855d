"""From the API server's objects to what a decision sees."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from builders import NOW, child, pod, seconds, snapshot, training, wire_spec
from lora_api.reasons import Reason
from lora_api.steps import StepName
from lora_operator import names
from lora_operator.apply import merge_patch
from lora_operator.observe import (
    Resource,
    observe_hint,
    observe_job,
    observe_step_pod,
    read_snapshot,
    unexplained,
)

LABELS = {
    names.JOB_UID: "u",
    names.STEP: "train",
    names.ATTEMPT: "2",
    "batch.kubernetes.io/job-name": "statue-train-1",
}


def resource(**fields: Any) -> Resource:
    metadata = {
        "namespace": "studio",
        "name": "statue",
        "uid": "u",
        "generation": 3,
        "creationTimestamp": "2026-03-01T12:00:00Z",
        "resourceVersion": "77",
    }
    return Resource.of({"metadata": metadata, "spec": wire_spec(), **fields})


def raw_pod(**status: Any) -> dict[str, Any]:
    metadata = {
        "name": "p",
        "uid": "pu",
        "namespace": "studio",
        "labels": LABELS,
        "annotations": {names.JOB_NAME: "statue"},
    }
    return {"metadata": metadata, "spec": {"nodeName": "gpu-1"}, "status": status}


def terminated(**fields: Any) -> list[dict[str, Any]]:
    return [{"state": {"terminated": {"exitCode": 0, "finishedAt": "2026-03-01T12:01:00Z", **fields}}}]


def test_a_job() -> None:
    body = {
        "metadata": {"name": "j", "uid": "ju", "labels": LABELS, "creationTimestamp": "2026-03-01T12:00:00Z"},
        "spec": {"suspend": True},
        "status": {"conditions": [{"type": "Failed", "status": "True", "reason": "PodFailurePolicy"}]},
    }
    found = observe_job(body)
    assert (found.step, found.attempt, found.suspended, found.failed) == (
        StepName.TRAIN,
        2,
        True,
        "PodFailurePolicy",
    )
    assert found.created_at == NOW


def test_a_pod_that_was_killed_for_memory() -> None:
    found = observe_step_pod(
        raw_pod(phase="Failed", containerStatuses=terminated(exitCode=137, reason="OOMKilled", message="x"))
    )
    assert found.pod.oom_killed
    assert found.pod.exit_code == 137
    assert found.pod.message == "x"
    assert found.pod.finished_at == NOW + seconds(60)
    assert (found.job_name, found.resource_name) == ("statue-train-1", "statue")


def test_a_pod_that_was_preempted_and_one_that_cannot_be_placed() -> None:
    condition = {"type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler"}
    assert observe_step_pod(raw_pod(phase="Failed", conditions=[condition])).pod.disrupted
    condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "no GPU"}
    assert observe_step_pod(raw_pod(conditions=[condition])).pod.unschedulable == "no GPU"


def test_a_pod_that_waits() -> None:
    status = [{"state": {"waiting": {"reason": "ImagePullBackOff", "message": "nope"}}}]
    assert observe_step_pod(raw_pod(containerStatuses=status)).pod.waiting == ("ImagePullBackOff", "nope")


def test_a_snapshot_of_what_cannot_be_read() -> None:
    bad = read_snapshot(resource(spec={"dataset": {}}), (), (), {})
    assert bad.spec is None
    assert "spec.concept" in bad.spec_error
    mangled = read_snapshot(resource(status={"phase": "Nonsense"}), (), (), {})
    assert "phase" in mangled.status_error
    newer = read_snapshot(resource(status={"phase": "Pending", "fieldOfTomorrow": 1}), (), (), {})
    assert newer.status_error == ""


def test_pods_are_joined_to_their_jobs_and_orphans_are_noticed() -> None:
    job = replace(child(StepName.TRAIN), name="statue-train-1")
    item = observe_step_pod(raw_pod(phase="Running"))
    joined = read_snapshot(resource(), [job], [item], {})
    assert [p.name for p in joined.children[0].pods] == ["p"]
    assert joined.leftovers == frozenset()
    assert read_snapshot(resource(), [], [item], {}).leftovers == {StepName.TRAIN}
    ended = observe_step_pod(raw_pod(phase="Failed"))
    assert read_snapshot(resource(), [], [ended], {}).leftovers == frozenset()


HINTS = [
    ("FailedCreate", 'pods "x" is forbidden: exceeded quota: gpus', Reason.QUOTA_EXCEEDED),
    ("FailedMount", 'MountVolume.SetUp failed: secret "lora-store" not found', Reason.SECRET_NOT_FOUND),
    ("FailedMount", 'configmap "ca" not found', Reason.CONFIGURATION_INVALID),
    ("FailedCreate", "violates PodSecurity", Reason.CONFIGURATION_INVALID),
]


@pytest.mark.parametrize(("reason", "message", "expected"), HINTS)
def test_events_explain_what_nothing_else_does(reason: str, message: str, expected: Reason) -> None:
    older = {"reason": "FailedMount", "note": "older", "deprecatedLastTimestamp": "2026-03-01T11:00:00Z"}
    newer = {"reason": reason, "note": message, "deprecatedLastTimestamp": "2026-03-01T12:00:00Z"}
    hint = observe_hint([older, newer])
    assert hint is not None
    assert hint.reason == expected
    assert message in hint.message
    assert observe_hint([{"reason": "Scheduled", "note": "fine"}]) is None


def test_events_are_asked_for_only_where_nothing_else_explains() -> None:
    later = NOW + seconds(5)

    def asked(*children: Any) -> str:
        return unexplained(snapshot(status=training(), children=children), later)

    no_pod = child(StepName.TRAIN)
    assert asked(no_pod) == no_pod.uid
    assert asked(child(StepName.TRAIN, pod("Pending"))) == "pod-1"
    assert asked(child(StepName.TRAIN, pod())) == ""
    assert asked(child(StepName.TRAIN, pod("Pending", unschedulable="no GPU"))) == ""
    assert asked(child(StepName.TRAIN, suspended=True)) == ""
    assert asked(child(StepName.TRAIN, complete=True)) == ""
    assert unexplained(snapshot(children=(no_pod,)), NOW + seconds(1)) == ""


@pytest.mark.parametrize(
    ("before", "after", "patch"),
    [
        ({}, {}, {}),
        ({"a": 1}, {"a": 1}, {}),
        ({"a": 1}, {"a": 2}, {"a": 2}),
        ({"a": 1}, {}, {"a": None}),
        ({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3}}, {"a": {"c": 3}}),
        ({"a": {"b": 1}}, {"a": {}}, {"a": {"b": None}}),
        ({"a": [1, 2]}, {"a": [1]}, {"a": [1]}),
    ],
)
def test_merge_patch(before: dict[str, Any], after: dict[str, Any], patch: dict[str, Any]) -> None:
    assert merge_patch(before, after) == patch

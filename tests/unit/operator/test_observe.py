"""From the API server's objects to what a decision sees."""

from __future__ import annotations

from typing import Any

import pytest

from lora_api.reasons import Reason
from lora_api.stages import StageName
from lora_operator.apply import merge_patch
from lora_operator.observe import (
    Resource,
    find_unexplained,
    observe_hint,
    observe_job,
    observe_stage_pod,
    read_snapshot,
)
from lora_operator.ownership import job_lineage
from tests.support.builders import NOW, child, pod, seconds, snapshot, training, wire_spec
from tests.support.raw_children import raw_job, raw_pod


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


def terminated(**fields: Any) -> list[dict[str, Any]]:
    return [
        {
            "name": "stage",
            "state": {"terminated": {"exitCode": 0, "finishedAt": "2026-03-01T12:01:00Z", **fields}},
        }
    ]


def test_a_job() -> None:
    conditions = [{"type": "Failed", "status": "True", "reason": "PodFailurePolicy"}]
    body = raw_job(attempt=2, spec={"suspend": True}, status={"conditions": conditions})
    found = observe_job(body)
    assert (found.stage, found.attempt, found.suspended, found.failed) == (
        StageName.TRAIN,
        2,
        True,
        "PodFailurePolicy",
    )
    assert found.created_at == NOW


def test_only_finalizers_of_other_programs_are_kept_and_few_of_them() -> None:
    body = raw_job()
    body["metadata"]["finalizers"] = [
        "foregroundDeletion",
        *(f"{n}.example.com/{'x' * 900}" for n in range(9)),
    ]
    found = observe_job(body).finalizers
    assert len(found) == 3
    assert all(len(name) == 100 and "example.com" in name for name in found)


def test_a_pod_that_was_killed_for_memory() -> None:
    found = observe_stage_pod(
        raw_pod(phase="Failed", containerStatuses=terminated(exitCode=137, reason="OOMKilled", message="x"))
    )
    assert found.pod.oom_killed
    assert found.pod.exit_code == 137
    assert found.pod.message == "x"
    assert found.pod.finished_at == NOW + seconds(60)
    assert found.lineage == job_lineage(raw_job())


def test_a_pod_that_was_preempted_and_one_that_cannot_be_placed() -> None:
    condition = {"type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler"}
    assert observe_stage_pod(raw_pod(phase="Failed", conditions=[condition])).pod.disrupted
    condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "no GPU"}
    assert observe_stage_pod(raw_pod(conditions=[condition])).pod.unschedulable == "no GPU"


def test_a_pod_that_waits() -> None:
    status = [{"name": "stage", "state": {"waiting": {"reason": "ImagePullBackOff", "message": "nope"}}}]
    assert observe_stage_pod(raw_pod(containerStatuses=status)).pod.waiting == ("ImagePullBackOff", "nope")


def test_a_snapshot_of_what_cannot_be_read() -> None:
    bad = read_snapshot(resource(spec={"dataset": {}}), (), (), {})
    assert bad.spec is None
    assert "spec.concept" in bad.spec_error
    mangled = read_snapshot(resource(status={"phase": "Nonsense"}), (), (), {})
    assert "phase" in mangled.status_error
    newer = read_snapshot(resource(status={"phase": "Pending", "fieldOfTomorrow": 1}), (), (), {})
    assert newer.status_error == ""


def test_pods_are_joined_to_their_jobs_and_orphans_are_noticed() -> None:
    job = child(StageName.TRAIN)
    item = observe_stage_pod(raw_pod(phase="Running"))
    joined = read_snapshot(resource(), [job], [item], {})
    assert [p.name for p in joined.children[0].pods] == ["p"]
    assert joined.orphaned_pods == {}
    assert read_snapshot(resource(), [], [item], {}).orphaned_pods == {StageName.TRAIN: item.pod.name}
    ended = observe_stage_pod(raw_pod(phase="Failed"))
    assert read_snapshot(resource(), [], [ended], {}).orphaned_pods == {}


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


def test_every_missing_secret_is_named_at_once() -> None:
    def event(name: str, minute: int) -> dict[str, str]:
        return {
            "reason": "FailedMount",
            "note": f'MountVolume.SetUp failed for volume "{name}" : secret "{name}" not found',
            "deprecatedLastTimestamp": f"2026-03-01T12:{minute:02d}:00Z",
        }

    hints = [
        observe_hint([event("store", first), event("anthropic", second), event("created-since", 1)])
        for first, second in ((10, 9), (11, 12))
    ]
    assert hints[0] is not None
    assert hints[1] is not None
    assert hints[0].message == hints[1].message, "a write for each of the kubelet's attempts"
    assert '"anthropic" not found; ' in hints[0].message
    assert '"store" not found' in hints[0].message
    assert "created-since" not in hints[0].message


def test_events_are_read_only_if_nothing_else_explains_a_delay() -> None:
    later = NOW + seconds(5)

    def asked(*children: Any) -> str:
        return find_unexplained(snapshot(status=training(), children=children), later)

    no_pod = child(StageName.TRAIN)
    assert asked(no_pod) == no_pod.uid
    assert asked(child(StageName.TRAIN, pod("Pending"))) == "pod-1"
    assert asked(child(StageName.TRAIN, pod())) == ""
    assert asked(child(StageName.TRAIN, pod("Pending", unschedulable="no GPU"))) == ""
    assert asked(child(StageName.TRAIN, suspended=True)) == ""
    assert asked(child(StageName.TRAIN, complete=True)) == ""
    assert find_unexplained(snapshot(children=(no_pod,)), NOW + seconds(1)) == ""


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


def test_a_resource_that_is_too_large_is_not_kept_and_its_spec_is_invalid() -> None:
    many = {f"k{i}": "x" * 60 for i in range(20_000)}
    large = resource(spec=wire_spec(scheduling={"nodeSelector": many}))
    assert len(large.body) < 1000
    assert "at most 65536 bytes" in read_snapshot(large, (), (), {}).spec_error
    swollen = resource(status={"phase": "Training", "effective": {f"k{i}": "x" * 60 for i in range(20_000)}})
    assert len(swollen.body) < 1000
    assert "at most" in read_snapshot(swollen, (), (), {}).status_error


@pytest.mark.parametrize(
    "time", ["9999-12-31T23:59:59Z", "0001-01-01T00:00:00Z", "2026-01-01T00:00:00", "soon", 5, None]
)
def test_a_time_that_no_clock_has_is_none(time: object) -> None:
    status = raw_pod(phase="Failed", containerStatuses=terminated(finishedAt=time, startedAt=time))
    found = observe_stage_pod(status).pod
    assert (found.started_at, found.finished_at) == (None, None)

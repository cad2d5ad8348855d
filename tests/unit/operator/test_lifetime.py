"""Deletion and retry in place."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from lora_api.job import parse_spec
from lora_api.reasons import Reason
from lora_api.stages import StageName
from lora_api.status import JobStatus, Phase
from lora_operator.decide import Decision, DeleteChildJob, StartAnnotation, StartTraining, decide
from lora_operator.decide.admission import PROFILE_GRACE
from lora_operator.observe import Resource
from lora_operator.snapshot import Snapshot
from lora_operator.staleness import must_read_again
from tests.support.builders import (
    ADAPTER,
    CAPTIONED,
    CAPTIONS_SHA,
    HASH,
    NOW,
    TRAINED,
    annotated,
    child,
    condition,
    failed,
    pod,
    seconds,
    snapshot,
    training,
    wire_spec,
)

ANNOTATE, TRAIN = StageName.ANNOTATE, StageName.TRAIN

CASES = [
    ("new", snapshot()),
    ("annotating", snapshot(children=(child(ANNOTATE, pod()),))),
    ("annotated", snapshot(children=(child(ANNOTATE, pod("Succeeded", CAPTIONED), complete=True),))),
    ("training", snapshot(status=training(), children=(child(TRAIN, pod()),))),
    ("training is gone", snapshot(status=training())),
    (
        "trained",
        snapshot(status=training(), children=(child(TRAIN, pod("Succeeded", TRAINED), complete=True),)),
    ),
    ("spec not valid", replace(snapshot(), spec=None, spec_error="spec: no")),
    ("no profile", snapshot(profile=None)),
]


@pytest.mark.parametrize("case", [c[1] for c in CASES], ids=[c[0] for c in CASES])
def test_a_resource_that_is_being_deleted_stops_its_stages_and_starts_none(case: Snapshot) -> None:
    decision = decide(replace(case, deleting=True), NOW)
    active = [job for job in case.children if job.active]
    assert decision.actions == tuple(DeleteChildJob(job.name, job.uid) for job in active)
    assert decision.status.phase == Phase.TERMINATING
    assert condition(decision, "Succeeded") == ("Unknown", "Terminating")
    assert not must_read_again(replace(case, deleting=True), decision, unverified=True)


def test_an_end_is_not_undone_by_deletion() -> None:
    status = training().model_copy(update={"phase": Phase.SUCCEEDED, "finish_time": NOW})
    assert decide(snapshot(status=status, deleting=True), NOW).status == status


def test_a_deletion_is_seen_in_the_resource() -> None:
    metadata = {"namespace": "n", "name": "x", "uid": "u", "resourceVersion": "1", "generation": 1}
    body = {"metadata": metadata, "spec": {}}
    assert not Resource.of(body).deleting
    deleting = {**body, "metadata": metadata | {"deletionTimestamp": "2026-03-01T12:00:00Z"}}
    assert Resource.of(deleting).deleting


def failed_job(stage: StageName, **policy: int) -> tuple[Snapshot, Decision]:
    job = child(stage, pod("Failed", failed(Reason.DIVERGED), exit_code=65), failed="PodFailurePolicy")
    status = training() if stage == TRAIN else decide(snapshot(), NOW).status
    case = snapshot(spec={"runPolicy": policy} if policy else {}, status=status, children=(job,))
    return case, decide(case, NOW)


def retried(case: Snapshot, number: int, **policy_fields: Any) -> Snapshot:
    assert case.spec is not None
    policy = case.spec.run_policy.model_copy(update={"retry": number, **policy_fields})
    return replace(case, spec=case.spec.model_copy(update={"run_policy": policy}))


@pytest.mark.parametrize(
    ("stage", "start"),
    [(ANNOTATE, StartAnnotation(2)), (TRAIN, StartTraining(2, CAPTIONS_SHA, HASH))],
)
def test_a_failed_job_is_started_again_in_place(
    stage: StageName, start: StartAnnotation | StartTraining
) -> None:
    case, end = failed_job(stage)
    later = NOW + seconds(1000)
    assert decide(replace(case, status=end.status), later).actions == (), "nobody asked for it"
    decision = decide(replace(retried(case, 1), status=end.status), later)
    assert decision.actions == (start,)
    assert decision.status.retries == 1
    assert decision.status.finish_time is None
    assert decision.status.start_time == later, "deadlines count from here"
    assert condition(decision, "Stalled") is None
    assert condition(decision, "Finished") is not None
    assert condition(decision, "Finished")[0] == "False"  # type: ignore[index]
    if stage == TRAIN:
        assert decision.status.captions == annotated().captions
    # it fails again: the same number starts nothing, a higher one does
    job = child(stage, pod("Failed", exit_code=65), failed="PodFailurePolicy", attempt=2)
    again = replace(retried(case, 1), status=decision.status, children=(*case.children, job))
    end = decide(again, later)
    assert end.status.phase == Phase.FAILED
    assert decide(replace(again, status=end.status), later).actions == ()
    third = decide(replace(retried(again, 2), status=end.status), later)
    assert [action.attempt for action in third.actions] == [3]  # type: ignore[union-attr]


def test_a_job_that_was_not_accepted_is_checked_again() -> None:
    new = decide(snapshot(profile=None), NOW)
    end = decide(snapshot(profile=None, status=new.status), NOW + PROFILE_GRACE)
    assert condition(end, "Accepted") == ("False", "ProfileNotFound")
    decision = decide(retried(snapshot(status=end.status), 1), NOW + PROFILE_GRACE)
    assert decision.actions == (StartAnnotation(1),)
    assert condition(decision, "Accepted") == ("True", "Valid")


def refused_result(stage: StageName) -> tuple[Snapshot, Decision]:
    """Return a job that failed because its result was refused, for example that of a profile with another bucket."""
    captions = CAPTIONED.captions
    assert captions is not None
    if stage == TRAIN:
        adapter = ADAPTER.model_copy(update={"uri": ADAPTER.uri.replace("s3://loras/", "s3://other/")})
        result = TRAINED.model_copy(update={"adapter": adapter})
    else:
        foreign = captions.model_copy(update={"key": "another/job/captions/metadata.jsonl"})
        result = CAPTIONED.model_copy(update={"captions": foreign})
    status = training() if stage == TRAIN else decide(snapshot(), NOW).status
    case = snapshot(status=status, children=(child(stage, pod("Succeeded", result), complete=True),))
    end = decide(case, NOW)
    assert condition(end, "Succeeded") == ("False", "ResultRefused")
    return case, end


@pytest.mark.parametrize("stage", list(StageName))
def test_a_job_whose_result_was_refused_starts_a_new_attempt(stage: StageName) -> None:
    case, end = refused_result(stage)
    (start,) = decide(replace(retried(case, 1), status=end.status), NOW).actions
    assert isinstance(start, StartAnnotation | StartTraining)
    assert start.attempt == 2


@pytest.mark.parametrize("stage", list(StageName))
def test_a_job_whose_result_lacked_something_starts_a_new_attempt(stage: StageName) -> None:
    result = (TRAINED if stage == TRAIN else CAPTIONED).model_copy(update={"adapter": None, "captions": None})
    status = training() if stage == TRAIN else decide(snapshot(), NOW).status
    case = snapshot(status=status, children=(child(stage, pod("Succeeded", result), complete=True),))
    end = decide(case, NOW)
    assert condition(end, "Succeeded") == ("False", "InternalError")
    (start,) = decide(replace(retried(case, 1), status=end.status), NOW).actions
    assert isinstance(start, StartAnnotation | StartTraining)
    assert start.attempt == 2


@pytest.mark.parametrize("stage", list(StageName))
def test_a_refused_result_does_not_keep_a_retried_job_from_being_suspended(stage: StageName) -> None:
    case, end = refused_result(stage)
    decision = decide(replace(retried(case, 1, suspend=True), status=end.status), NOW)
    assert (decision.actions, decision.status.phase) == ((), Phase.SUSPENDED)


def test_a_refused_result_does_not_keep_a_retried_job_from_its_deadline() -> None:
    case, end = refused_result(TRAIN)
    limited = retried(case, 1, active_deadline_seconds=10)
    started = decide(replace(limited, status=end.status), NOW)
    assert started.actions == (StartTraining(2, CAPTIONS_SHA, HASH),)
    # the child Job of the second attempt is gone
    late = decide(replace(limited, status=started.status), NOW + seconds(20))
    assert condition(late, "Succeeded") == ("False", "DeadlineExceeded")


def test_only_a_failed_job_is_retried() -> None:
    status = training().model_copy(update={"phase": Phase.SUCCEEDED, "finish_time": NOW})
    assert decide(retried(snapshot(status=status), 5), NOW).actions == ()
    running = snapshot(status=training(), children=(child(TRAIN, pod()),))
    assert decide(retried(running, 5), NOW).actions == ()


def test_a_number_that_was_set_before_the_failure_starts_nothing() -> None:
    fresh = decide(retried(snapshot(), 3), NOW)
    assert fresh.status.retries == 3
    case, _ = failed_job(TRAIN)
    case = retried(replace(case, status=case.status.model_copy(update={"retries": 3})), 3)
    end = decide(case, NOW)
    assert end.status.phase == Phase.FAILED
    assert decide(replace(case, status=end.status), NOW).actions == ()
    assert decide(replace(retried(case, 4), status=end.status), NOW).actions == (
        StartTraining(2, CAPTIONS_SHA, HASH),
    )


@pytest.mark.parametrize(
    "case",
    [
        snapshot(spec={"resources": {"train": {"cpu": "2", "cpuLimit": "1"}}}),
        snapshot(status_error="status: no"),
    ],
)
def test_a_number_that_a_new_job_has_does_not_start_it_again(case: Snapshot) -> None:
    end = decide(retried(case, 3), NOW)
    assert (end.status.phase, end.status.retries) == (Phase.FAILED, 3)


def test_a_number_that_was_lowered_may_be_raised_again() -> None:
    case, end = failed_job(TRAIN)
    case = replace(case, status=end.status.model_copy(update={"retries": 3}))
    lowered = decide(retried(case, 0), NOW)
    assert (lowered.status.phase, lowered.actions) == (Phase.FAILED, ())
    raised = decide(retried(replace(case, status=lowered.status), 1), NOW)
    assert raised.actions == (StartTraining(2, CAPTIONS_SHA, HASH),)


def test_a_retry_that_was_requested_while_no_operator_ran_is_not_missed() -> None:
    metadata = {"namespace": "n", "name": "x", "uid": "u", "resourceVersion": "1", "generation": 1}
    spec = wire_spec(runPolicy={"retry": 2})
    for retries, expected in ((0, True), (1, True), (2, False)):
        status = {"phase": "Failed", "retries": retries}
        resource = Resource.of({"metadata": metadata, "spec": spec, "status": status})
        assert resource.needs_work is expected


def test_the_number_of_a_retry_may_be_raised_at_any_time() -> None:
    assert parse_spec(wire_spec(runPolicy={"retry": 3})).run_policy.retry == 3
    assert JobStatus().retries == 0

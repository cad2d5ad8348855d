"""Pods with containers that the operator did not put there: only the stage's own decides."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from lora_api.reasons import Reason
from lora_api.stages import Outcome, StageName, StageResult, encode_result
from lora_api.status import JobStatus, Phase
from lora_operator.decide import DeleteChildJob, StartAnnotation, StartTraining, decide
from lora_operator.decide.stages import HELD_OPEN_GRACE
from lora_operator.manifests import CLUSTER, build_job, build_stage_config
from lora_operator.observe import observe_stage_pod
from lora_operator.settings import Images
from lora_operator.snapshot import Pod, Snapshot
from tests.support.builders import (
    CAPTIONED,
    CAPTIONS_SHA,
    HASH,
    NOW,
    TRAINED,
    child,
    condition,
    failed,
    message,
    pod,
    seconds,
    snapshot,
    training,
)
from tests.support.raw_children import raw_pod

ANNOTATE, TRAIN = StageName.ANNOTATE, StageName.TRAIN
LATER = NOW + HELD_OPEN_GRACE
STARTS = {ANNOTATE: StartAnnotation(2), TRAIN: StartTraining(2, CAPTIONS_SHA, HASH)}
WELL = {ANNOTATE: CAPTIONED, TRAIN: TRAINED}


def status_of(name: str, **state: Any) -> dict[str, Any]:
    return {"name": name, "state": state}


def ended(code: int, words: str = "") -> dict[str, Any]:
    times = {"startedAt": "2026-03-01T12:00:00Z", "finishedAt": "2026-03-01T12:01:00Z"}
    return {"exitCode": code, "message": words, **times}


@pytest.mark.parametrize("name", ["a-first", "z-last"])
@pytest.mark.parametrize("field", ["containerStatuses", "initContainerStatuses"])
@pytest.mark.parametrize(
    "other", [{"running": {}}, {"terminated": ended(0, "bye")}, {"terminated": ended(9)}]
)
def test_the_stages_container_is_known_by_its_name(name: str, field: str, other: dict[str, Any]) -> None:
    own, beside = status_of("stage", terminated=ended(77, "words")), status_of(name, **other)
    status: dict[str, Any] = {"containerStatuses": [own]}
    status[field] = sorted([*status.get(field, []), beside], key=lambda item: item["name"])
    found = observe_stage_pod(raw_pod(phase="Failed", **status)).pod
    assert (found.exit_code, found.message) == (77, "words")


def test_a_sidecar_that_does_not_start_is_named() -> None:
    own = status_of("stage", waiting={"reason": "PodInitializing"})
    proxy = status_of("istio-proxy", waiting={"reason": "CrashLoopBackOff", "message": "back-off 10s"})
    body = raw_pod(phase="Pending", containerStatuses=[own], initContainerStatuses=[proxy])
    job = child(TRAIN, observe_stage_pod(body).pod)
    decision = decide(snapshot(status=training(), children=(job,)), NOW)
    assert condition(decision, "Succeeded") == ("Unknown", "ConfigurationInvalid")
    assert "container istio-proxy: CrashLoopBackOff: back-off 10s" in message(decision)


def test_an_init_container_that_fails_is_named() -> None:
    own = status_of("stage", waiting={"reason": "PodInitializing"})
    init = status_of("mesh-init", terminated=ended(3, "iptables: permission denied"))
    body = raw_pod(phase="Failed", containerStatuses=[own], initContainerStatuses=[init])
    job = child(TRAIN, observe_stage_pod(body).pod, failed="BackoffLimitExceeded")
    decision = decide(snapshot(status=training(), children=(job,)), NOW)
    assert condition(decision, "Succeeded") == ("False", "BackoffLimitExceeded")
    assert "container mesh-init ended with exit code 3: iptables: permission denied" in message(decision)


@pytest.mark.parametrize("stage", list(StageName))
def test_a_node_whose_clock_is_ahead_does_not_keep_a_pod_that_has_ended(stage: StageName) -> None:
    for code, result in ((0, WELL[stage]), (0, None), (69, None)):
        case = held_open(stage, code, result)
        (job,) = case.children
        ahead = replace(job.pods[0], finished_at=NOW + seconds(3600))
        case = replace(case, children=(replace(job, pods=(ahead,)),))
        assert DeleteChildJob(job.name, job.uid) in decide(case, NOW).actions


def started(stage: StageName) -> JobStatus:
    return training() if stage == TRAIN else decide(snapshot(), NOW).status


def held_open(stage: StageName, code: int, result: StageResult | None) -> Snapshot:
    """A stage that has ended in a pod that another container keeps running."""
    words = encode_result(result).decode() if result else "cut"
    open_pod = replace(pod("Running"), exit_code=code, message=words, finished_at=NOW)
    return snapshot(status=started(stage), children=(child(stage, open_pod),))


@pytest.mark.parametrize("stage", list(StageName))
def test_a_result_is_taken_while_another_container_runs_on_and_the_pod_is_stopped_a_moment_later(
    stage: StageName,
) -> None:
    case = held_open(stage, 0, WELL[stage])
    taken = decide(case, NOW)
    assert taken.status.phase == (Phase.SUCCEEDED if stage == TRAIN else Phase.QUEUED)
    assert not any(isinstance(action, DeleteChildJob) for action in taken.actions)
    assert taken.requeue_at is not None
    assert taken.requeue_at <= LATER
    stopped = decide(replace(case, status=taken.status), LATER)
    (job,) = case.children
    assert DeleteChildJob(job.name, job.uid) in stopped.actions


def test_a_replica_that_has_yet_to_see_the_pods_end_leaves_it_time_to_end() -> None:
    case = held_open(TRAIN, 0, WELL[TRAIN])
    taken = decide(case, NOW)
    (job,) = case.children
    behind = snapshot(status=taken.status, children=(child(TRAIN, pod("Running")),))
    waiting = decide(behind, NOW)
    assert (waiting.actions, waiting.requeue_at) == ((), LATER)
    assert decide(behind, LATER).actions == (DeleteChildJob(job.name, job.uid),)


@pytest.mark.parametrize("stage", list(StageName))
def test_a_sidecar_that_fails_does_not_fail_a_stage_that_has_ended_well(stage: StageName) -> None:
    bad = replace(pod("Failed", WELL[stage]), exit_code=0)
    for fields in ({}, {"failed": "BackoffLimitExceeded"}):
        case = snapshot(status=started(stage), children=(child(stage, bad, **fields),))
        phase = decide(case, NOW).status.phase
        assert phase == (Phase.SUCCEEDED if stage == TRAIN else Phase.QUEUED)


@pytest.mark.parametrize("stage", list(StageName))
def test_a_pod_that_a_sidecar_made_fail_after_the_stage_is_not_replaced(stage: StageName) -> None:
    # the Job controller makes the next pod ten seconds later
    bad = replace(pod("Failed", WELL[stage]), exit_code=0)
    job = child(stage, bad)
    before = training(job_uid=job.uid) if stage == TRAIN else started(stage)
    taken = decide(snapshot(status=before, children=(job,)), NOW)
    assert DeleteChildJob(job.name, job.uid) in taken.actions
    again = decide(snapshot(status=taken.status, children=(job,)), NOW)
    assert DeleteChildJob(job.name, job.uid) in again.actions


@pytest.mark.parametrize("stage", list(StageName))
def test_a_permanent_failure_does_not_wait_for_the_sidecar(stage: StageName) -> None:
    case = held_open(stage, 65, failed(Reason.DATASET_INVALID))
    decision = decide(case, NOW)
    assert condition(decision, "Succeeded") == ("False", "DatasetInvalid")
    (job,) = case.children
    assert decision.actions == (DeleteChildJob(job.name, job.uid),)


@pytest.mark.parametrize("stage", list(StageName))
@pytest.mark.parametrize(
    ("code", "result", "charged"),
    [(69, failed(Reason.STORE_UNAVAILABLE), 1), (0, None, 1), (75, failed(Reason.INTERRUPTED), 0)],
    ids=["transient", "no result", "interrupted"],
)
def test_what_kubernetes_would_retry_is_retried_although_the_pod_does_not_end(
    stage: StageName, code: int, result: StageResult | None, charged: int
) -> None:
    case = held_open(stage, code, result)
    waiting = decide(case, NOW)
    assert (waiting.actions, waiting.requeue_at) == ((), LATER), "it may still end by itself"
    given_up = decide(case, LATER)
    (job,) = case.children
    assert given_up.actions == (DeleteChildJob(job.name, job.uid),)
    again = decide(replace(case, status=given_up.status), LATER)
    assert again.actions == given_up.actions
    assert again.status == given_up.status, "a cache that lags behind charges nothing twice"
    gone = decide(replace(case, status=again.status, children=()), LATER)
    assert gone.actions == (STARTS[stage],)
    part = gone.status.training if stage == TRAIN else gone.status.captions
    assert part is not None
    assert part.failures == charged


@pytest.mark.parametrize("stage", list(StageName))
def test_lost_results_are_charged_and_end(stage: StageName) -> None:
    status, attempts = started(stage), []
    for attempt in range(1, 10):
        lost = child(stage, pod("Succeeded", message='{"outcome":"cap'), complete=True, attempt=attempt)
        decision = decide(snapshot(status=status, children=(lost,)), NOW)
        attempts.append(attempt)
        status = decision.status
        if status.phase == Phase.FAILED:
            break
        (start,) = decision.actions
        assert isinstance(start, StartAnnotation | StartTraining)
        assert start.attempt == attempt + 1
    assert attempts == [1, 2, 3], "runPolicy.backoffLimit is 2"
    assert condition(decision, "Succeeded") == ("False", "ResultLost")
    assert lost.name in message(decision)


@pytest.mark.parametrize("stage", list(StageName))
def test_a_charge_is_not_lost_with_the_status_write_that_recorded_it(stage: StageName) -> None:
    lost = child(stage, pod("Succeeded", message="cut"), complete=True)
    created = child(stage, pod(), attempt=2)
    decision = decide(snapshot(status=started(stage), children=(lost, created)), NOW)
    part = decision.status.training if stage == TRAIN else decision.status.captions
    assert part is not None
    assert (part.attempt, part.failures) == (2, 1)
    again = decide(snapshot(status=decision.status, children=(lost, created)), NOW)
    assert again.status == decision.status, "and not charged twice"


def test_failed_pods_of_earlier_attempts_leave_fewer_retries_to_the_next() -> None:
    lost = child(TRAIN, pod("Failed", exit_code=1), pod("Succeeded", message="x"), complete=True)
    decision = decide(snapshot(status=training(), children=(lost,)), NOW)
    (start,) = decision.actions
    assert isinstance(start, StartTraining)
    case = snapshot(status=decision.status)
    job = build_job(case, build_stage_config(case, start, CLUSTER), Images("a", "t"))
    assert job["spec"]["backoffLimit"] == 0, "one failed pod, one lost result, and a limit of 2"


def test_a_new_attempt_has_the_reason_of_the_previous_one() -> None:
    lost = child(TRAIN, complete=True)
    decision = decide(snapshot(status=training(), children=(lost,)), NOW)
    assert "could not be read" in message(decision)


def test_a_cut_message_is_enough_where_the_adapter_is_whole() -> None:
    whole = encode_result(TRAINED.model_copy(update={"message": "m" * 400})).decode()
    for length, phase in ((len(whole) - 200, Phase.SUCCEEDED), (60, Phase.QUEUED)):
        job = child(TRAIN, Pod("p", "u", "Succeeded", message=whole[:length]), complete=True)
        assert decide(snapshot(status=training(), children=(job,)), NOW).status.phase == phase


def test_a_result_of_a_failure_is_no_success() -> None:
    result = StageResult(outcome=Outcome.INTERRUPTED, reason=Reason.INTERRUPTED)
    case = snapshot(status=training(), children=(child(TRAIN, pod("Succeeded", result), complete=True),))
    assert decide(case, NOW + seconds(1)).actions == (STARTS[TRAIN],)


def pending(**own: Any) -> Pod:
    """A pod whose other container has no image: Kubernetes calls it Pending, whatever the stage's container does."""
    beside = status_of("a-proxy", waiting={"reason": "ImagePullBackOff", "message": "no such image"})
    return observe_stage_pod(
        raw_pod(phase="Pending", containerStatuses=[beside, status_of("stage", **own)])
    ).pod


def test_a_stage_runs_although_another_container_cannot_start() -> None:
    job = child(TRAIN, pending(running={"startedAt": "2026-03-01T12:00:00Z"}))
    decision = decide(snapshot(status=training(), children=(job,)), NOW)
    assert decision.status.phase == Phase.TRAINING
    assert condition(decision, "Succeeded") == ("Unknown", "Training")


def test_a_stage_that_failed_beside_a_container_that_cannot_start_is_tried_again() -> None:
    job = child(
        TRAIN, pending(terminated=ended(69, encode_result(failed(Reason.STORE_UNAVAILABLE)).decode()))
    )
    early = decide(snapshot(status=training(), children=(job,)), NOW)
    assert early.requeue_at is not None
    after = NOW + seconds(60) + HELD_OPEN_GRACE
    decision = decide(snapshot(status=training(), children=(job,)), after)
    assert decision.actions == (DeleteChildJob(job.name, job.uid),)
    assert decision.status.training is not None
    assert decision.status.training.failures == 1


def test_a_stage_that_ended_well_beside_a_container_that_cannot_start_is_done() -> None:
    job = child(TRAIN, pending(terminated=ended(0, encode_result(TRAINED).decode())))
    decision = decide(snapshot(status=training(), children=(job,)), NOW + seconds(60))
    assert decision.status.phase == Phase.SUCCEEDED

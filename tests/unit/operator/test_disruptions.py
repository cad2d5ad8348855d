"""Evictions, lost nodes and rotated keys: named in Kubernetes' words, and limited."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lora_api.reasons import Reason
from lora_api.stages import Outcome, StageName, TrainingResult
from lora_api.status import JobStatus, Phase, Progress
from lora_operator.decide import DeleteChildJob, StartTraining, decide
from lora_operator.observe import observe_stage_pod
from lora_operator.snapshot import Pod
from tests.support.builders import (
    CAPTIONS_SHA,
    HASH,
    NOW,
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
NODE_DISK = (
    "The node was low on resource: ephemeral-storage. Threshold quantity: 10Gi, available: 2Gi. "
    "Container stage was using 30Gi, request is 0, has larger consumption of ephemeral-storage. "
)
OWN_DISK = "Pod ephemeral local storage usage exceeds the total limit of containers 8Gi. "
VOLUME = 'Usage of EmptyDir volume "work" exceeds the limit "2Gi". '
NODE_MEMORY = "The node was low on resource: memory. Threshold quantity: 100Mi, available: 30Mi. "
EVICTIONS = [
    (NODE_DISK, "TerminationByKubelet", Reason.DISK_FULL),
    (OWN_DISK, "", Reason.DISK_FULL),
    (VOLUME, "", Reason.DISK_FULL),
    (NODE_MEMORY, "TerminationByKubelet", Reason.EVICTED),
]


@pytest.mark.parametrize(("words", "disrupted", "reason"), EVICTIONS, ids=[e[0][:24] for e in EVICTIONS])
@pytest.mark.parametrize("code", [137, 75, None])
def test_an_eviction_has_the_kubelets_message(
    words: str, disrupted: str, reason: Reason, code: int | None
) -> None:
    conditions = [{"type": "DisruptionTarget", "status": "True", "reason": disrupted}] if disrupted else []
    state = {"terminated": {"exitCode": code, "message": "told to stop"}} if code else {}
    body = raw_pod(
        phase="Failed",
        reason="Evicted",
        message=words,
        conditions=conditions,
        containerStatuses=[{"name": "stage", "state": state}],
    )
    job = child(TRAIN, observe_stage_pod(body).pod, pod())
    status = decide(snapshot(status=training(), children=(job,)), NOW).status
    assert status.training is not None
    assert status.training.last_failure is not None
    assert status.training.last_failure.reason == reason
    assert words in status.training.last_failure.message


@pytest.mark.parametrize("disrupted", ["PreemptionByScheduler", "EvictionByEvictionAPI"])
def test_the_cause_of_a_disruption_is_not_hidden_by_the_stages_own_words(disrupted: str) -> None:
    interrupted = failed(Reason.INTERRUPTED, "told to stop").model_copy(
        update={"outcome": Outcome.INTERRUPTED}
    )
    gone = pod("Failed", interrupted, exit_code=75, disrupted=disrupted)
    status = decide(snapshot(status=training(), children=(child(TRAIN, gone, pod()),)), NOW).status
    assert status.training is not None
    assert status.training.last_failure is not None
    assert disrupted in status.training.last_failure.message


def evicted(after: float) -> Pod:
    return replace(
        pod("Failed"),
        exit_code=137,
        disrupted="TerminationByKubelet",
        status_reason="Evicted",
        status_message=NODE_DISK,
        finished_at=NOW + seconds(after),
    )


@pytest.mark.parametrize("stage", list(StageName))
def test_disruptions_without_progress_end(stage: StageName) -> None:
    spec = {"runPolicy": {"disruptionLimit": 3}}
    status = training() if stage == TRAIN else decide(snapshot(spec=spec), NOW).status
    few = child(stage, evicted(1), evicted(2), pod())
    case = snapshot(spec=spec, status=status, children=(few,))
    assert decide(case, NOW + seconds(5)).status.phase != Phase.FAILED
    job = child(stage, evicted(1), evicted(2), evicted(3), pod())
    decision = decide(replace(case, children=(job,)), NOW + seconds(5))
    assert condition(decision, "Succeeded") == ("False", "DisruptionLimitExceeded")
    assert NODE_DISK in message(decision)
    assert decision.actions == (DeleteChildJob(job.name, job.uid),)


@pytest.mark.parametrize("stage", list(StageName))
def test_a_pod_that_exceeds_its_own_limit_is_charged_although_it_ends_as_interrupted(
    stage: StageName,
) -> None:
    own = replace(evicted(1), disrupted="", exit_code=75, status_message=OWN_DISK)
    status = training() if stage == TRAIN else decide(snapshot(), NOW).status
    twice = snapshot(status=status, children=(child(stage, own, own, pod()),))
    assert decide(twice, NOW).status.phase != Phase.FAILED, "runPolicy.backoffLimit is 2"
    job = child(stage, own, own, own, pod())
    decision = decide(replace(twice, children=(job,)), NOW)
    assert condition(decision, "Succeeded") == ("False", "DiskFull")
    assert OWN_DISK.strip() in message(decision)
    assert decision.actions == (DeleteChildJob(job.name, job.uid),)


def test_progress_in_between_starts_the_count_again() -> None:
    spec = {"runPolicy": {"disruptionLimit": 2}}
    running = snapshot(spec=spec, status=training(), children=(child(TRAIN, evicted(1), pod()),))
    reported = decide(replace(running, progress=Progress(step=40, total_steps=500)), NOW + seconds(10))
    later = child(TRAIN, evicted(1), evicted(20), pod())
    status = decide(replace(running, status=reported.status, children=(later,)), NOW + seconds(30)).status
    assert status.phase == Phase.TRAINING
    assert status.training is not None
    assert (status.training.disruptions, status.training.furthest_step) == (2, 40)
    worse = child(TRAIN, evicted(1), evicted(20), evicted(25), pod())
    ended = decide(replace(running, status=status, children=(worse,)), NOW + seconds(30)).status
    assert ended.phase == Phase.FAILED


def test_gpu_seconds_include_those_of_pods_that_are_gone() -> None:
    first = pod(uid="pod-1", started_at=NOW)
    leaving = replace(first, deleting=True, disrupted="EvictionByEvictionAPI")
    ended = replace(leaving, phase="Failed", exit_code=75, finished_at=NOW + seconds(1000))
    second = pod(uid="pod-2", started_at=NOW + seconds(1100))
    status, counts = training(), []
    for at, pods in (
        (900, (first,)),
        (990, (leaving,)),
        (1000, (ended, replace(pod("Pending"), uid="pod-2"))),
        (1001, (replace(pod("Pending"), uid="pod-2"),)),
        (1002, (replace(pod("Pending"), uid="pod-2"),)),
        (1200, (second,)),
    ):
        report = Progress(step=at, total_steps=5000) if pods[0].running else None
        case = snapshot(status=status, children=(child(TRAIN, *pods),), progress=report)
        status = decide(case, NOW + seconds(at)).status
        assert status.training is not None
        counts.append(status.training.gpu_seconds)
    assert counts == [900, 900, 1000, 1000, 1000, 1100]


def test_an_annotation_that_gets_further_between_disruptions_goes_on() -> None:
    spec = {"runPolicy": {"disruptionLimit": 2}}
    status, phases = decide(snapshot(spec=spec), NOW).status, []
    for number, steps in enumerate((40, 80, 120, 60, 60), start=1):
        running = pod(uid=f"pod-{number}", created_at=NOW + seconds(100 * number))
        lost = replace(running, phase="Failed", disrupted="EvictionByEvictionAPI", finished_at=NOW)
        for case in (
            snapshot(children=(child(ANNOTATE, running),), progress=Progress(step=steps, total_steps=500)),
            snapshot(children=(child(ANNOTATE, lost),)),
        ):
            later = NOW + seconds(100 * number + 50)
            status = decide(replace(case, spec=snapshot(spec=spec).spec, status=status), later).status
        phases.append(status.phase)
    assert phases == [Phase.ANNOTATING] * 3 + [Phase.FAILED] * 2
    assert status.captions is not None
    assert status.captions.done == 120


@pytest.mark.parametrize("stage", list(StageName))
def test_a_lost_pod_that_is_gone_was_counted_while_it_terminated(stage: StageName) -> None:
    """A drained or preempted pod is deleted. Only pods that the kubelet evicted stay."""
    spec = {"runPolicy": {"disruptionLimit": 3}}
    status = training() if stage == TRAIN else decide(snapshot(spec=spec), NOW).status
    counts, causes = [], []
    for number in range(1, 4):
        running = pod(uid=f"pod-{number}", created_at=NOW + seconds(10 * number))
        leaving = replace(running, deleting=True, disrupted="EvictionByEvictionAPI")
        gone = child(stage, replace(pod("Pending"), uid="next", created_at=NOW + seconds(10 * number + 5)))
        for job in (child(stage, running), child(stage, leaving), child(stage, leaving), gone):
            decision = decide(snapshot(spec=spec, status=status, children=(job,)), NOW + seconds(60))
            status = decision.status
        part = status.training if stage == TRAIN else status.captions
        assert part is not None
        counts.append((part.disruptions, part.disruptions_in_a_row))
        causes.append(condition(decision, "Succeeded"))
    assert counts == [(1, 1), (2, 2), (3, 3)]
    assert [str(each[1]) for each in causes if each][-1] == "DisruptionLimitExceeded"
    if stage == TRAIN:
        assert "EvictionByEvictionAPI" in message(decision)


@pytest.mark.parametrize("stage", list(StageName))
def test_the_start_deadline_does_not_apply_to_the_replacement_of_a_pod_that_is_gone(stage: StageName) -> None:
    spec = {"runPolicy": {"startDeadlineSeconds": 60}}
    status = decide(snapshot(spec=spec), NOW).status
    if stage == TRAIN:
        status = status.model_copy(update={"captions": training().captions, "training": training().training})
    leaving = pod(deleting=True, disrupted="EvictionByEvictionAPI")
    for job in (child(stage, pod()), child(stage, leaving), child(stage, pod("Pending")), child(stage)):
        decision = decide(snapshot(spec=spec, status=status, children=(job,)), NOW + seconds(7200))
        status = decision.status
        assert status.phase != Phase.FAILED, message(decision)


@pytest.mark.parametrize("stage", list(StageName))
def test_interruptions_in_pods_that_other_containers_keep_running_end(stage: StageName) -> None:
    spec = {"runPolicy": {"disruptionLimit": 3}}
    status = training() if stage == TRAIN else decide(snapshot(spec=spec), NOW).status
    for attempt in range(1, 9):
        stopped = replace(pod(), exit_code=75, message="", finished_at=NOW, uid=f"pod-{attempt}")
        job = child(stage, stopped, attempt=attempt)
        for children in ((job,), ()):
            decision = decide(snapshot(spec=spec, status=status, children=children), NOW + seconds(30))
            status = decision.status
        if status.phase == Phase.FAILED:
            break
    assert condition(decision, "Succeeded") == ("False", "DisruptionLimitExceeded")
    assert attempt == 3


def test_a_node_that_does_not_respond_is_reported() -> None:
    conditions = [{"type": "Ready", "status": "False"}, {"type": "ContainersReady", "status": "True"}]
    state = {"running": {"startedAt": "2026-03-01T12:00:00Z"}}
    containers = [{"name": "stage", "state": state}]
    lost = observe_stage_pod(
        raw_pod(phase="Running", conditions=conditions, containerStatuses=containers)
    ).pod
    decision = decide(snapshot(status=training(), children=(child(TRAIN, lost),)), NOW)
    assert condition(decision, "Succeeded") == ("Unknown", "NodeNotReady")
    assert "gpu-1" in decision.announcements[0].message
    assert decision.announcements[0].warning
    slow = [{"type": "Ready", "status": "False"}, {"type": "ContainersReady", "status": "False"}]
    body = raw_pod(phase="Running", conditions=slow, containerStatuses=containers)
    sidecar_not_ready = child(TRAIN, observe_stage_pod(body).pod)
    case = snapshot(status=training(), children=(sidecar_not_ready,))
    assert condition(decide(case, NOW), "Succeeded") == ("Unknown", "Training")


def refused(attempt: int = 1, step: int = 0) -> Pod:
    result = failed(Reason.CREDENTIALS_REFUSED, "the key was refused")
    if step:
        result = result.model_copy(update={"training": TrainingResult(final_step=step)})
    return pod("Failed", result, exit_code=77, uid=f"pod-{attempt}")


def trained_to(step: int) -> JobStatus:
    case = snapshot(
        status=training(), children=(child(TRAIN, pod()),), progress=Progress(step=step, total_steps=700)
    )
    return decide(case, NOW).status


def test_a_key_that_was_rotated_during_training_starts_a_new_pod() -> None:
    job = child(TRAIN, refused(), failed="PodFailurePolicy")
    decision = decide(snapshot(status=trained_to(496), children=(job,)), NOW)
    assert decision.actions == (StartTraining(2, CAPTIONS_SHA, HASH),)
    assert decision.status.training is not None
    assert decision.status.training.failures == 0, "it got further than any attempt before"
    assert "the key was refused" in message(decision)
    own_words = child(TRAIN, refused(step=12), failed="PodFailurePolicy")
    (start,) = decide(snapshot(status=training(), children=(own_words,)), NOW).actions
    assert start == StartTraining(2, CAPTIONS_SHA, HASH), "the pod itself says how far it came"


def test_a_key_that_never_worked_ends_the_job() -> None:
    job = child(TRAIN, refused(), failed="PodFailurePolicy")
    decision = decide(snapshot(status=training(), children=(job,)), NOW)
    assert condition(decision, "Succeeded") == ("False", "CredentialsRefused")


def test_refusals_without_getting_further_are_charged() -> None:
    status = trained_to(496)
    phases = []
    for attempt in range(1, 8):
        job = child(TRAIN, refused(attempt), failed="PodFailurePolicy", attempt=attempt)
        status = decide(snapshot(status=status, children=(job,)), NOW).status
        phases.append(status.phase)
        if status.phase == Phase.FAILED:
            break
        running = child(TRAIN, pod(), attempt=attempt + 1)
        report = Progress(step=450, total_steps=700)
        status = decide(snapshot(status=status, children=(running,), progress=report), NOW).status
    assert phases == [Phase.QUEUED] * 3 + [Phase.FAILED], "the first is free, then runPolicy.backoffLimit"


@pytest.mark.parametrize("disrupted", ["", "EvictionByEvictionAPI"])
def test_a_disrupted_pod_is_reported_while_it_terminates(disrupted: str) -> None:
    """The replacement is created when the pod has ended, which can take the two minutes of its grace period."""
    leaving = pod(deleting=True, disrupted=disrupted, node="gpu-1")
    decision = decide(snapshot(status=training(), children=(child(TRAIN, leaving),)), NOW)
    assert decision.status.phase == Phase.QUEUED
    cause = "on node gpu-1: EvictionByEvictionAPI" if disrupted else "is being deleted"
    assert cause in message(decision)
    assert message(decision).endswith("waiting for it to terminate")


@pytest.mark.parametrize("stage", list(StageName))
def test_a_pod_that_a_sidecar_keeps_after_its_eviction_is_counted_once(stage: StageName) -> None:
    # the stage ends at SIGTERM, and the sidecar stays until SIGKILL
    job = child(stage, pod(deleting=True, disrupted="EvictionByEvictionAPI", created_at=NOW))
    before = training() if stage == TRAIN else decide(snapshot(), NOW).status
    status = decide(snapshot(status=before, children=(job,)), NOW).status
    (leaving,) = job.pods
    stopped = replace(leaving, exit_code=75, finished_at=NOW + seconds(5))
    for later in (6, 60):
        case = snapshot(status=status, children=(replace(job, pods=(stopped,)),))
        decision = decide(case, NOW + seconds(later))
        assert decision.actions == (), "Kubernetes replaces it, and nobody can do that before"
        status = decision.status
        part = status.training if stage == TRAIN else status.captions
        assert part is not None
        assert (part.disruptions, part.disruptions_in_a_row) == (1, 1)
    assert "waiting for it to terminate" in message(decision)


@pytest.mark.parametrize("suspend", [False, True])
def test_gpu_seconds_do_not_grow_while_nothing_runs(suspend: bool) -> None:
    """A node that is lost never reports the end of its containers; a pod that saves a checkpoint takes minutes."""
    lost = pod("Failed", started_at=NOW, finished_at=None, disrupted="DeletionByPodGC", created_at=NOW)
    saving = pod(deleting=True, created_at=NOW)
    counted = training(gpu_seconds=90, started=True)
    for last in (lost, saving) if suspend else (lost,):
        case = snapshot(
            spec={"runPolicy": {"suspend": suspend}}, status=counted, children=(child(TRAIN, last),)
        )
        first = decide(case, NOW + seconds(100)).status
        again = decide(replace(case, status=first), NOW + seconds(4000)).status
        assert first.training is not None
        assert again == first, "each count is a write"
        assert first.training.gpu_seconds == (90 if last is lost else 100)

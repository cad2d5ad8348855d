"""Logic that both stages share: whether a child Job must be created or deleted, and which failures are charged."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar

from lora_api.reasons import Reason
from lora_api.stages import StageName
from lora_api.status import CaptionsStatus, ConditionType, Phase, TrainingStatus

from ..snapshot import Child, Pod
from .decision import DeleteChildJob
from .results import is_usable
from .stages import (
    Done,
    Ending,
    StageState,
    Starting,
    Unusable,
    charged_failures,
    creation,
    describe_held,
    ever_started,
    explain_pod,
    is_evicted_for_own_use,
    is_leaving,
    last_failed,
    lost_pods,
    read_stage,
)
from .status_draft import StatusDraft

AnyStageStatus = CaptionsStatus | TrainingStatus
S = TypeVar("S", CaptionsStatus, TrainingStatus)


@dataclass(frozen=True)
class Start:
    """The stage's child Job must be created, as this attempt."""

    attempt: int
    after: Unusable | None = None
    """How the previous attempt ended, if it has not been charged yet. None for a first attempt and for a child Job that
    is created again."""


@dataclass(frozen=True)
class GiveUp:
    """The stage's child Job must be deleted: its stage has ended without a result, but its pod has not."""

    child: Child
    state: Unusable


def locate_stage(
    draft: StatusDraft, stage: StageName, attempt: int, job_name: str
) -> Start | GiveUp | tuple[Child, StageState] | None:
    """Find out what a stage needs next.

    Args:
        draft: the job.
        stage: the stage.
        attempt: the newest attempt in the status; 0 before the first.
        job_name: that attempt's child Job in the status; empty when the attempt was given up.

    Returns:
        Start when a child Job must be created, GiveUp when it must be deleted, the newest child Job and its
        state, or None when a pod must terminate first.
    """
    child = draft.snapshot.child(stage)
    if child is None or child.attempt < attempt:
        if stage in draft.snapshot.orphaned_pods:
            return None
        # A missing child Job is created again under its own name, so that a cache that lags behind can never
        # lead to a second one.
        return Start(attempt if job_name else attempt + 1)
    state = read_stage(child, draft.snapshot.hint, draft.now, draft.has_progress(stage))
    given_up = child.attempt == attempt and not job_name
    if _has_result(draft, stage, state, given_up):
        return child, state
    # the child Job must end or be deleted before the next attempt
    if given_up:
        if child.ended:
            return Start(attempt + 1)
        if child.active:
            draft.actions.append(DeleteChildJob(child.name, child.uid))
        return None
    match state:
        case Ending():
            return None
        case Unusable() if child.ended:
            return Start(child.attempt + 1, state)
        case Unusable():
            return GiveUp(child, state)
    return child, state


def _has_result(draft: StatusDraft, stage: StageName, state: StageState, given_up: bool) -> bool:
    """Whether a stage has ended well, and its result is used.

    The result of an attempt that was given up is used too, if its pod published one while it terminated. If that
    result was refused or lacked something, a retry starts a new attempt.
    """
    return isinstance(state, Done) and (not given_up or is_usable(draft.snapshot, stage, state.result))


def is_training_done(draft: StatusDraft) -> bool:
    """Whether the newest training attempt has ended well, and its result must be taken: the adapter is published."""
    training, child = draft.status.training, draft.snapshot.child(StageName.TRAIN)
    if training is None or child is None or child.attempt < training.attempt:
        return False
    given_up = child.attempt == training.attempt and not training.job_name
    return _has_result(draft, StageName.TRAIN, read_stage(child, None, draft.now), given_up)


def previous_pod(draft: StatusDraft, stage: StageName) -> str:
    """Return the message while an earlier child Job of a stage and its pod terminate."""
    for child in draft.snapshot.children:
        if child.stage == stage and child.is_held:
            return describe_held(child)
    kind, name = draft.snapshot.pod_kind, draft.snapshot.orphaned_pods.get(stage)
    return f"waiting for the previous {kind}{f' {name}' if name else ''} to terminate"


def wait_for_previous_pod(draft: StatusDraft, stage: StageName, phase: Phase, reason: Reason) -> None:
    """Wait until the previous pod has terminated. A message that already says why it terminates is kept."""
    before, message = draft.status.condition(ConditionType.SUCCEEDED), previous_pod(draft, stage)
    explained = before is not None and before.reason == reason and before.message.endswith(message)
    draft.set_phase(phase, reason, before.message if before is not None and explained else message)


def charge(draft: StatusDraft, status: S, child: Child | None, state: Unusable) -> S | None:
    """Charge an attempt that ended without a result to `runPolicy.backoffLimit`.

    Returns:
        The stage's new status. None when the limit is exceeded, which has failed the job.
    """
    if not state.charged:
        lost = status.disruptions_in_a_row + 1
        if lost >= draft.spec.run_policy.disruption_limit:
            _fail_disrupted(draft, lost, state.message)
            return None
        return status.model_copy(update={"disruptions": status.disruptions + 1, "disruptions_in_a_row": lost})
    failures = status.failures + _count_failures(status, child, state)
    limit = draft.spec.run_policy.backoff_limit
    if failures > limit:
        draft.fail(
            state.reason, f"{state.message} (attempt {status.attempt}, runPolicy.backoffLimit {limit})"
        )
        return None
    return status.model_copy(update={"failures": failures})


def charge_replaced(draft: StatusDraft, status: S, child: Child) -> S | None:
    """Charge the attempt before this one if that was not recorded; None when that fails the job.

    A child Job is created before the status is written. If that write failed, the new child Job is there, but
    the status is still that of the attempt that it replaced.
    """
    if child.attempt <= status.attempt or not status.job_name:
        return status
    for previous in draft.snapshot.children:
        if (previous.stage, previous.attempt) == (child.stage, status.attempt):
            state = read_stage(previous, None, draft.now, draft.has_progress(child.stage))
            if isinstance(state, Unusable):
                return charge(draft, status, previous, state)
    return status


def _count_failures(status: AnyStageStatus, child: Child | None, state: Unusable) -> int:
    """Count the failures to charge for an attempt."""
    refused = state.reason == Reason.CREDENTIALS_REFUSED
    if refused and isinstance(status, TrainingStatus) and status.furthest_step > status.furthest_step_before:
        # keys may be rotated any number of times during a long training, as long as it makes progress in between
        return 0
    if child is None:
        return 1
    # The cause is one failure more, except in a failed child Job: there it is one of the pods that Kubernetes charged.
    return charged_failures(child) + (0 if child.failed else 1)


def count_disruptions(status: AnyStageStatus, child: Child, since: datetime | None) -> dict[str, Any]:
    """Count the pods that were lost since the last count.

    Most of them are gone a second after they have terminated, so each one is counted when it is seen first.

    Args:
        status: the stage's status.
        child: its child Job.
        since: time of the last progress. Pods that ended before it do not count towards the limit.

    Returns:
        The changes of the status.
    """
    counted = status.disruptions_counted_until
    lost = lost_pods(child, counted)
    if not lost:
        return {}
    in_a_row = sum(since is None or pod.finished_at is None or pod.finished_at > since for pod in lost)
    return {
        # a status of an earlier version has counted the pods that are still there
        "disruptions": status.disruptions + len(lost) if counted else max(status.disruptions, len(lost)),
        "disruptions_in_a_row": status.disruptions_in_a_row + in_a_row,
        "disruptions_counted_until": max(filter(None, map(creation, lost)), default=None),
    }


def enforce_disruption_limit(draft: StatusDraft, child: Child, status: AnyStageStatus) -> bool:
    """Fail the job when too many pods in a row were lost without progress.

    Kubernetes does not charge these pods to the child Job's backoffLimit. Without this limit, a pod that is evicted
    again and again would be replaced forever.
    """
    if child.ended:
        return False
    # A pod that used more disk than its own limit is evicted without a disruption. It gets SIGTERM first, so it
    # ends as interrupted and Kubernetes does not charge it either.
    evicted = [pod for pod in child.pods if pod.phase == "Failed" and is_evicted_for_own_use(pod)]
    if len(evicted) > draft.spec.run_policy.backoff_limit:
        reason, message = explain_pod(evicted[-1])
        draft.fail(reason, f"{message.strip()} ({len(evicted)} times, runPolicy.backoffLimit)")
        return True
    lost = status.disruptions_in_a_row
    # a pod that is still terminating may report progress in its termination message
    if lost < draft.spec.run_policy.disruption_limit or any(is_leaving(pod) for pod in child.pods):
        return False
    failure = status.last_failure if isinstance(status, TrainingStatus) else None
    if pod := last_failed(child):
        cause = ": ".join(explain_pod(pod))
    else:
        cause = f"{failure.reason}: {failure.message}" if failure else "its pods are gone"
    _fail_disrupted(draft, lost, cause)
    return True


def _fail_disrupted(draft: StatusDraft, lost: int, cause: str) -> None:
    draft.fail(
        Reason.DISRUPTION_LIMIT_EXCEEDED,
        f"the {draft.snapshot.pod_kind} was lost {lost} times in a row without progress (runPolicy.disruptionLimit); "
        f"the last time: {cause}",
    )


def report_starting(
    draft: StatusDraft, child: Child, state: Starting, phase: Phase, default: tuple[Reason, str]
) -> bool:
    """Report why the pod does not run yet, and reconcile again later: Events, which are not watched, may explain it.

    Args:
        draft: the job.
        child: the stage's child Job.
        state: what the child Job waits for.
        phase: the phase to be in meanwhile.
        default: reason and message when Kubernetes gives no cause.
    """
    reason, message = (
        (default[0] if state.reason == Reason.QUEUED else state.reason),
        state.message or default[1],
    )
    if ever_started(child):
        draft.mark_started(child.stage)
    if draft.has_started(child.stage):
        # the start deadline is for the first pod only, which may be gone
        draft.set_waiting_phase(phase, reason, message)
        draft.requeue_with_backoff(child.created_at)
    else:
        draft.wait_for_start(phase, reason, message, since=child.created_at)
    return True


def describe_running(attempt: int, pod: Pod) -> tuple[Reason | None, str]:
    """Return the reason and the message for a running pod. The reason is None unless something is wrong."""
    where = f" on node {pod.node}" if pod.node else ""
    if pod.node_not_ready:
        return Reason.NODE_NOT_READY, (
            f"attempt {attempt}{where}, which does not report. Kubernetes replaces the pod if the node stays away"
        )
    return None, f"attempt {attempt}{where}"

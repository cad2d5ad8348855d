"""The state of a stage, read from its child Job and the Job's pods. Policies decide what follows from it.

A pod may have containers that are not the stage's: service meshes and log shippers inject them. Only the
stage's own container decides how a stage ended. What the pod or the child Job says is used where that
container says nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from lora_api.exits import PERMANENT, ExitCode
from lora_api.reasons import Reason
from lora_api.stages import Outcome, StageResult, decode_result
from lora_api.status import DatasetStatus

from ..snapshot import Child, Hint, Pod

PULL_FAILURES = {"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull"}
CONFIG_FAILURES = {"CreateContainerConfigError", "CreateContainerError", "RunContainerError"}
CRASHES = {"CrashLoopBackOff"}
"""Reasons for which a container waits: its image, its configuration, or a crash. Only an injected container can wait
after a crash, because the stage's own is never restarted."""

EXIT_REASONS: dict[int, Reason] = {
    ExitCode.BAD_CONFIGURATION: Reason.CONFIGURATION_INVALID,
    ExitCode.BAD_DATA: Reason.DATASET_INVALID,
    ExitCode.NO_INPUT: Reason.DATASET_INVALID,
    ExitCode.UNAVAILABLE: Reason.STORE_UNAVAILABLE,
    ExitCode.REFUSED_CREDENTIALS: Reason.CREDENTIALS_REFUSED,
    ExitCode.BAD_SETUP: Reason.CONFIGURATION_INVALID,
}
DISRUPTIONS = {
    "PreemptionByScheduler": Reason.PREEMPTED,
    "DeletionByTaintManager": Reason.NODE_LOST,
    "DeletionByPodGC": Reason.NODE_LOST,
}
"""Reasons of the condition DisruptionTarget; the others are evictions."""

HELD_OPEN_GRACE = timedelta(seconds=20)
"""How long a pod may stay after its stage's container has ended. Sidecars that end by themselves do it in this time."""


@dataclass(frozen=True)
class Starting:
    """No pod runs yet. The reason is Queued, without a message, when Kubernetes gives no cause."""

    reason: Reason
    message: str


@dataclass(frozen=True)
class Running:
    """A pod runs, or has ended and the child Job does not show that yet."""

    pod: Pod
    check_at: datetime | None = None
    """Time at which the state changes without an event; None if it does not."""


@dataclass(frozen=True)
class Done:
    """The stage ended well, and its result was read."""

    result: StageResult


@dataclass(frozen=True)
class Ending:
    """The child Job is being deleted, and a pod of it has not terminated yet."""


@dataclass(frozen=True)
class Unusable:
    """The attempt has ended, and a new one must take its place."""

    reason: Reason
    message: str
    charged: bool = True
    """Whether the attempt counts towards `runPolicy.backoffLimit`. `locate.charge` counts its failures."""


@dataclass(frozen=True)
class Broken:
    """The stage failed permanently."""

    reason: Reason
    message: str
    dataset: DatasetStatus | None = None
    """The dataset's status from the stage's result, if it has one. It names the images that are the cause."""


StageState = Starting | Running | Done | Ending | Unusable | Broken


def read_stage(child: Child, hint: Hint | None, now: datetime, progressed: bool = False) -> StageState:
    """Read the state of a stage.

    Args:
        child: the stage's newest child Job with its pods.
        hint: why no pod starts, where only Events say so.
        now: the current time.
        progressed: this attempt did some of its work, so its credentials were valid once.
    """
    if result := _find_result(child):
        return Done(result)
    if child.deleting:
        return Ending()
    if child.complete:
        return Unusable(Reason.RESULT_LOST, f"the result of child Job {child.name} could not be read")
    if child.failed:
        return _read_failed(child, progressed)
    for pod in child.pods:
        # a pod that is being deleted ends in any case, and nothing can replace it before
        if pod.held_open and (not pod.deleting or pod.exit_code in PERMANENT):
            return _read_held_open(child, pod, now, progressed)
        # a pod that has succeeded belongs to a child Job that is complete a moment later
        if pod.running or pod.phase == "Succeeded":
            return Running(pod)
    return _read_waiting(child, hint)


def _find_result(child: Child) -> StageResult | None:
    """Find the result of a stage that ended well, even if another container keeps the pod or made it fail."""
    for pod in child.pods:
        if pod.phase == "Succeeded" or pod.exit_code == ExitCode.OK:
            result = decode_result(pod.message)
            if result is not None and result.outcome not in (Outcome.FAILED, Outcome.INTERRUPTED):
                return result
    return None


def _read_failed(child: Child, progressed: bool) -> Broken | Unusable:
    """Read the state of a failed child Job, by the pod that failed last."""
    pod = last_failed(child)
    if child.failed == "DeadlineExceeded":
        return Broken(Reason.DEADLINE_EXCEEDED, child.failed_message)
    if pod is None:
        return Broken(
            Reason.BACKOFF_LIMIT_EXCEEDED, child.failed_message or "no pod is left to give a reason"
        )
    return _read_failure(pod, progressed)


def _read_failure(pod: Pod, progressed: bool) -> Broken | Unusable:
    """Decide whether a failed stage can be tried again: only if credentials were refused that had been valid."""
    reason, message = explain_pod(pod)
    result = decode_result(pod.message)
    had_access = progressed or bool(result and result.training and result.training.final_step)
    if reason == Reason.CREDENTIALS_REFUSED and had_access:
        # keys that were valid before have been rotated: a new pod mounts the Secret as it is now
        return Unusable(reason, message)
    return Broken(reason, message, result.dataset if result else None)


def _read_held_open(child: Child, pod: Pod, now: datetime, progressed: bool) -> StageState:
    """Read a stage that ended without success in a pod that another container keeps running.

    Kubernetes decides about retries when the pod ends, which may be never.
    """
    if pod.exit_code in PERMANENT:
        return _read_failure(pod, progressed)
    due = held_open_until(pod.finished_at or now, now)
    if now < due:
        return Running(pod, check_at=due)
    if pod.exit_code == ExitCode.OK:
        return Unusable(Reason.RESULT_LOST, f"the result of {pod.kind} {pod.name} could not be read")
    reason, message = explain_pod(pod)
    return Unusable(reason, message, charged=pod.exit_code != ExitCode.INTERRUPTED)


def describe_held(child: Child) -> str:
    """Return the message while finalizers of other programs keep a child Job."""
    noun = "finalizer" if len(child.finalizers) == 1 else "finalizers"
    return f"waiting for Job {child.name} to be deleted, which has the {noun} {', '.join(child.finalizers)}"


def held_open_until(finished_at: datetime, now: datetime) -> datetime:
    """Return until when a pod may stay after its stage's container has ended.

    The time is the node's. A node whose clock is ahead by more than the grace gets none, instead of hours.
    """
    return finished_at + HELD_OPEN_GRACE if finished_at <= now + HELD_OPEN_GRACE else now


def explain_pod(pod: Pod) -> tuple[Reason, str]:
    """Explain why a pod failed: its own result, or else what Kubernetes reports, the most specific cause first."""
    result = decode_result(pod.message)
    if result is not None and result.outcome == Outcome.FAILED:
        return result.reason, result.message
    where = f"{pod.kind} {pod.name}" + (f" on node {pod.node}" if pod.node else "")
    if pod.status_reason == "Evicted":
        disk = "ephemeral" in pod.status_message or "EmptyDir" in pod.status_message
        return (Reason.DISK_FULL if disk else Reason.EVICTED), f"{where}: {pod.status_message}"
    if pod.oom_killed:
        return Reason.OUT_OF_MEMORY, (
            f"{pod.kind} {pod.name} ran out of memory. Lower training.batchSize or training.resolution, set "
            "training.gradientCheckpointing to Always, keep the optimizer AdamW8bit, "
            "or raise resources.train.memory"
        )
    if pod.disrupted:
        detail = pod.status_message or pod.disruption_message
        reason = DISRUPTIONS.get(pod.disrupted, Reason.EVICTED)
        return reason, f"{where}: {pod.disrupted}" + (f": {detail}" if detail else "")
    if result is not None and result.outcome == Outcome.INTERRUPTED:
        return result.reason, result.message
    code = pod.exit_code
    if code is None or code == ExitCode.OK:
        detail = pod.status_message or pod.failed_container or "a container beside the stage's failed"
        return Reason.BACKOFF_LIMIT_EXCEEDED, f"{where}: {detail}"
    reason = EXIT_REASONS.get(code, Reason.BACKOFF_LIMIT_EXCEEDED)
    return reason, f"{pod.kind} {pod.name} ended with exit code {code}; see its log"


def _read_waiting(child: Child, hint: Hint | None) -> Starting:
    """Explain why no pod runs yet, by the most specific evidence."""
    pod = next((p for p in child.pods if p.live and not p.deleting), None)
    if pod is not None and (state := _explain_waiting(pod)):
        return state
    if pod is not None and pod.unschedulable:
        return Starting(Reason.UNSCHEDULABLE, pod.unschedulable)
    failed = last_failed(child)
    if hint is not None and not _is_older(hint, failed):
        return Starting(hint.reason, hint.message)
    if child.suspended:
        return Starting(Reason.QUEUED, f"Job {child.name} is suspended by its queue")
    leaving = next((p for p in child.pods if p.live and p.deleting), None)
    if leaving is not None and pod is None:
        # it may take its whole grace period, and the child Job replaces it only then
        cause = explain_pod(leaving)[1] if leaving.disrupted else f"pod {leaving.name} is being deleted"
        return Starting(Reason.QUEUED, f"{cause}; waiting for it to terminate")
    if failed is not None and pod is None:
        reason, message = explain_pod(failed)
        return Starting(Reason.QUEUED, f"retrying after {reason}: {message}")
    return Starting(Reason.QUEUED, "")


def _is_older(hint: Hint, pod: Pod | None) -> bool:
    """Whether a hint is from before a pod ended, so that it explains an earlier wait. Kubernetes keeps Events for an hour."""
    ended = pod.finished_at if pod else None
    return ended is not None and hint.time is not None and hint.time < ended


def _explain_waiting(pod: Pod) -> Starting | None:
    """Explain why a container of a pod waits; None where its reason names no cause, such as ContainerCreating."""
    if pod.waiting is None:
        return None
    reason, message = pod.waiting
    container = f"container {pod.waiting_container}: " if pod.waiting_container else ""
    description = f"{container}{reason}: {message}"
    if reason in PULL_FAILURES:
        # between two tries, ImagePullBackOff repeats the failure: 'Back-off pulling image "x": ErrImagePull: ...'
        _, again, cause = message.partition(": ErrImagePull: ")
        return Starting(
            Reason.IMAGE_PULL_FAILED, f"{container}ErrImagePull: {cause}" if again else description
        )
    if reason == "CreateContainerError" and "deadline exceeded" in message:
        # the container runtime is slow, and the kubelet tries again
        return Starting(Reason.QUEUED, description)
    if reason in CONFIG_FAILURES:
        cause = Reason.SECRET_NOT_FOUND if "secret" in message.lower() else Reason.CONFIGURATION_INVALID
        return Starting(cause, description)
    if reason in CRASHES:
        return Starting(Reason.CONFIGURATION_INVALID, description)
    return None


def last_failed(child: Child) -> Pod | None:
    """Find the pod that failed last. A pod whose stage failed counts too, even if another container keeps it running."""
    failed = [pod for pod in child.pods if pod.phase == "Failed" or (pod.held_open and pod.exit_code)]
    return max(failed, key=lambda p: p.finished_at.timestamp() if p.finished_at else 0.0, default=None)


def lost_pods(child: Child, after: datetime | None) -> list[Pod]:
    """List the pods that the cluster ended, or is ending, of those that were created after a time; None for all.

    Pods of a Job are created one after another, and their times of creation come from one clock.
    """
    lost = [pod for pod in child.pods if is_disrupted(pod) or is_leaving(pod)]
    if after is None:
        return lost
    return [pod for pod in lost if (created := creation(pod)) is not None and created > after]


def creation(pod: Pod) -> datetime | None:
    """Return when a pod was created, or else when it ended."""
    return pod.created_at or pod.finished_at


def is_leaving(pod: Pod) -> bool:
    """Whether the cluster is ending a pod that has not terminated yet."""
    return pod.live and pod.deleting and bool(pod.disrupted)


def is_disrupted(pod: Pod) -> bool:
    """Whether the cluster ended a pod, so that Kubernetes does not charge it to the child Job's backoffLimit."""
    return pod.phase == "Failed" and bool(pod.disrupted or pod.exit_code == ExitCode.INTERRUPTED)


def is_evicted_for_own_use(pod: Pod) -> bool:
    """Whether a pod was evicted because it used more than its own limits, and not because its node ran low."""
    return pod.status_reason == "Evicted" and not pod.disrupted


def charged_failures(child: Child) -> int:
    """Count the failed pods that Kubernetes charged to the child Job's backoffLimit."""
    return sum(1 for pod in child.pods if pod.phase == "Failed" and not is_disrupted(pod))


def ever_started(child: Child) -> bool:
    """Whether the stage's container has started in any pod."""
    return any(pod.started_at is not None for pod in child.pods)


def holds_gpus(pod: Pod) -> bool:
    """Whether the stage's container has started in a pod that has not terminated."""
    return pod.live and pod.started_at is not None


def run_seconds(child: Child, now: datetime) -> int:
    """Return the seconds that the stage's containers ran, summed over the pods.

    A pod on a lost node ends without a time of its container's end. It adds nothing to what was counted while it ran.
    """
    return sum(
        max(0, int(((pod.finished_at or now) - pod.started_at).total_seconds()))
        for pod in child.pods
        if pod.started_at is not None and (pod.live or pod.finished_at is not None)
    )

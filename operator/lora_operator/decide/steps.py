"""What the Job of a step says: starting, running, done, or broken and why. Pure reading, no policy."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from lora_api.exits import ExitCode
from lora_api.reasons import Reason
from lora_api.status import DatasetStatus
from lora_api.steps import Outcome, StepResult, decode_result

from ..snapshot import Child, Hint, Pod

PULL_FAILURES = {"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull"}
CONFIG_FAILURES = {"CreateContainerConfigError", "CreateContainerError", "RunContainerError"}

EXIT_REASONS = {
    ExitCode.BAD_CONFIGURATION: Reason.CONFIGURATION_INVALID,
    ExitCode.BAD_DATA: Reason.DATASET_INVALID,
    ExitCode.NO_INPUT: Reason.DATASET_INVALID,
    ExitCode.UNAVAILABLE: Reason.STORE_UNAVAILABLE,
    ExitCode.REFUSED_CREDENTIALS: Reason.CREDENTIALS_REFUSED,
    ExitCode.BAD_SETUP: Reason.CONFIGURATION_INVALID,
}


@dataclass(frozen=True)
class Starting:
    """No pod runs yet, and why; Queued without a message when Kubernetes says nothing."""

    reason: Reason
    message: str


@dataclass(frozen=True)
class Running:
    pod: Pod


@dataclass(frozen=True)
class Done:
    """The step ended well and said so."""

    result: StepResult


@dataclass(frozen=True)
class Ending:
    """Its Job is being deleted, or a pod of it has not ended yet."""


@dataclass(frozen=True)
class Lost:
    """Complete, but its last words are gone with its pod: it must run again."""


@dataclass(frozen=True)
class Broken:
    """Failed for good."""

    reason: Reason
    message: str
    dataset: DatasetStatus | None = None
    """The outcome of the images, where they are what is wrong."""


StepState = Starting | Running | Done | Ending | Lost | Broken


def read_step(child: Child, hint: Hint | None) -> StepState:
    """The state of a step from its Job and the Job's pods."""
    if child.deleting:
        return Ending()
    if child.complete:
        return _read_complete(child)
    if child.failed:
        return _read_failed(child)
    for pod in child.pods:
        # a pod that has just succeeded is still its step's: its Job says so a moment later
        if pod.running or pod.phase == "Succeeded":
            return Running(pod)
    return _read_waiting(child, hint)


def _read_complete(child: Child) -> StepState:
    for pod in child.pods:
        result = decode_result(pod.message) if pod.phase == "Succeeded" else None
        if result is not None and result.outcome not in (Outcome.FAILED, Outcome.INTERRUPTED):
            return Done(result)
    return Lost()


def _read_failed(child: Child) -> Broken:
    pod = last_failed(child)
    if child.failed == "DeadlineExceeded":
        return Broken(Reason.DEADLINE_EXCEEDED, child.failed_message)
    if pod is None:
        return Broken(Reason.BACKOFF_LIMIT_EXCEEDED, child.failed_message or "no pod is left to say why")
    said = decode_result(pod.message)
    return Broken(*explain_pod(pod), said.dataset if said else None)


def explain_pod(pod: Pod) -> tuple[Reason, str]:
    """Why a pod failed: its own last words, or what Kubernetes saw."""
    result = decode_result(pod.message)
    if result is not None and result.outcome in (Outcome.FAILED, Outcome.INTERRUPTED):
        return result.reason, result.message
    if pod.oom_killed:
        return Reason.OUT_OF_MEMORY, (
            f"pod {pod.name} ran out of memory. Lower training.batchSize or training.resolution, set "
            "training.gradientCheckpointing to Always, keep the optimizer AdamW8bit, "
            "or raise resources.train.memory"
        )
    if pod.disrupted:
        lost = pod.disrupted == "DeletionByTaintManager"
        where = f" on node {pod.node}" if pod.node else ""
        return (Reason.NODE_LOST if lost else Reason.PREEMPTED), f"pod {pod.name}{where}: {pod.disrupted}"
    code = pod.exit_code
    if code in EXIT_REASONS:
        return EXIT_REASONS[ExitCode(code)], f"pod {pod.name} ended with exit code {code}; see its log"
    return Reason.BACKOFF_LIMIT_EXCEEDED, f"pod {pod.name} ended with exit code {code}; see its log"


def _read_waiting(child: Child, hint: Hint | None) -> Starting:
    pod = next((p for p in child.pods if p.live and not p.deleting), None)
    if pod is not None and pod.waiting is not None:
        reason, message = pod.waiting
        if reason in PULL_FAILURES:
            return Starting(Reason.IMAGE_PULL_FAILED, f"{reason}: {message}")
        if reason in CONFIG_FAILURES:
            missing = Reason.SECRET_NOT_FOUND if "secret" in message.lower() else Reason.CONFIGURATION_INVALID
            return Starting(missing, f"{reason}: {message}")
    if pod is not None and pod.unschedulable:
        return Starting(Reason.UNSCHEDULABLE, pod.unschedulable)
    if hint is not None:
        return Starting(hint.reason, hint.message)
    if child.suspended:
        return Starting(Reason.QUEUED, f"Job {child.name} is suspended by its queue")
    failed = last_failed(child)
    if failed is not None and pod is None:
        reason, message = explain_pod(failed)
        return Starting(Reason.QUEUED, f"tried again after {reason}: {message}")
    return Starting(Reason.QUEUED, "")


def last_failed(child: Child) -> Pod | None:
    """The pod that failed last."""
    failed = [pod for pod in child.pods if pod.phase == "Failed"]
    return max(failed, key=lambda p: p.finished_at.timestamp() if p.finished_at else 0.0, default=None)


def disruptions(child: Child) -> int:
    """Pods that ended through no fault of the step's own."""
    return sum(
        1
        for pod in child.pods
        if pod.phase == "Failed" and (pod.disrupted or pod.exit_code == ExitCode.INTERRUPTED)
    )


def ever_started(child: Child) -> bool:
    return any(pod.started_at is not None for pod in child.pods)


def run_seconds(child: Child, now: datetime) -> int:
    """Seconds that the step's pods ran, summed."""
    return sum(
        max(0, int(((pod.finished_at or now) - pod.started_at).total_seconds()))
        for pod in child.pods
        if pod.started_at is not None
    )

"""A job's story while it is being decided: the status as it will be written, and how one is moved on."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from lora_api.job import JobSpec
from lora_api.reasons import Reason
from lora_api.status import Condition, ConditionType, JobStatus, Phase
from lora_api.steps import StepName

from ..snapshot import Snapshot
from .decision import Action, Announcement, Decision, StopStep
from .steps import run_seconds

LOOK_AT_PROFILE_AGAIN = timedelta(minutes=1)
LOOK_AGAIN = (timedelta(seconds=3), timedelta(minutes=1))
"""What nobody pushes here must be looked at again: after as long as it has been waited for already, within
these bounds."""


@dataclass(frozen=True)
class Problem:
    """Why a job cannot go on as its profile stands."""

    reason: Reason
    message: str


@dataclass
class Story:
    """The draft of one decision. It lives inside one call of `decide` and is never shared."""

    snapshot: Snapshot
    now: datetime
    status: JobStatus = field(init=False)
    actions: list[Action] = field(default_factory=list)
    wakes: list[datetime] = field(default_factory=list)
    problem: Problem | None = None
    """Set where a job that was accepted has lost its profile since."""

    def __post_init__(self) -> None:
        self.status = self.snapshot.status

    @property
    def spec(self) -> JobSpec:
        """The spec, once `understand` has let the job through."""
        assert self.snapshot.spec is not None
        return self.snapshot.spec

    def blocked(self, phase: Phase) -> bool:
        """Whether a step that must start now cannot; then the status says why, and it is tried again."""
        refusal = self.snapshot.refusal
        if refusal is not None and refusal.final:
            self.fail(refusal.reason, refusal.message)
        elif refusal is not None:
            self.wait(phase, refusal.reason, refusal.message, self._last_moved())
        elif self.problem is not None:
            self.go(phase, self.problem.reason, self.problem.message)
            self.wake(self.now + LOOK_AT_PROFILE_AGAIN)
        else:
            return False
        return True

    def wait(self, phase: Phase, reason: Reason, message: str, since: datetime) -> None:
        """Wait for a step to start, until `runPolicy.startDeadlineSeconds` after `since` at the latest."""
        limit = self.spec.run_policy.start_deadline_seconds
        if limit is not None:
            due = since + timedelta(seconds=limit)
            if self.now >= due:
                self.fail(
                    Reason.START_DEADLINE_EXCEEDED,
                    f"no pod started within runPolicy.startDeadlineSeconds ({limit} s): {message}",
                )
                return
            self.wake(due)
        self.go(phase, reason, message)
        self.look_again(since)

    def look_again(self, since: datetime) -> None:
        soonest, latest = LOOK_AGAIN
        self.wake(self.now + min(max(self.now - since, soonest), latest))

    def _last_moved(self) -> datetime:
        """When the step before ended, or the job began."""
        ends = [pod.finished_at for child in self.snapshot.children for pod in child.pods if pod.finished_at]
        return max([self.status.start_time or self.now, *ends])

    def write(self, **changes: Any) -> None:
        """Set fields of the status."""
        self.status = self.status.model_copy(update=changes)

    def wake(self, at: datetime | None) -> None:
        if at is not None:
            self.wakes.append(at)

    def condition(self, kind: ConditionType, value: str, reason: Reason, message: str = "") -> None:
        """Set a condition; its time moves only when its value does."""
        before = self.status.condition(kind)
        moved = before is None or before.status != value
        after = Condition.model_validate(
            {
                "type": kind,
                "status": value,
                "observed_generation": self.snapshot.generation,
                "last_transition_time": self.now if moved or before is None else before.last_transition_time,
                "reason": reason,
                "message": message,
            }
        )
        others = [c for c in self.status.conditions if c.type != kind]
        order = list(ConditionType)
        self.write(conditions=sorted([*others, after], key=lambda c: order.index(c.type)))

    def drop_condition(self, kind: ConditionType) -> None:
        self.write(conditions=[c for c in self.status.conditions if c.type != kind])

    def go(self, phase: Phase, reason: Reason, message: str = "") -> None:
        """Be in a phase that has not ended, for a reason."""
        self.write(phase=phase)
        self.condition(ConditionType.SUCCEEDED, "Unknown", reason, message)
        self.condition(ConditionType.FINISHED, "False", reason)

    def fail(self, reason: Reason, message: str) -> None:
        """End as Failed and stop whatever still runs."""
        self.count_gpu_seconds()
        self.write(phase=Phase.FAILED, finish_time=self.now)
        self.condition(ConditionType.SUCCEEDED, "False", reason, message)
        self.condition(ConditionType.FINISHED, "True", reason)
        self.condition(ConditionType.STALLED, "True", reason, message)
        self.drop_condition(ConditionType.SUSPENDED)
        self.stop_all()

    def succeed(self, reason: Reason, message: str) -> None:
        self.write(phase=Phase.SUCCEEDED, finish_time=self.now)
        self.condition(ConditionType.SUCCEEDED, "True", reason, message)
        self.condition(ConditionType.FINISHED, "True", reason)
        self.drop_condition(ConditionType.SUSPENDED)
        self.stop_all()

    def count_gpu_seconds(self) -> None:
        """Bring `training.gpuSeconds` up to now. Not at every look: each change of it is a write."""
        spec, training = self.snapshot.spec, self.status.training
        child = self.snapshot.child(StepName.TRAIN)
        if spec is None or training is None or child is None or child.attempt != training.attempt:
            return
        held = spec.resources.train.gpus * run_seconds(child, self.now)
        total = max(training.gpu_seconds or 0, training.gpu_seconds_before + held)
        self.write(training=training.model_copy(update={"gpu_seconds": total}))

    def stop_all(self) -> None:
        """Delete every Job that has not ended (ended ones are kept for their logs)."""
        for child in self.snapshot.children:
            if child.active:
                self.actions.append(StopStep(child.name, child.uid))

    def decision(self) -> Decision:
        return Decision(
            status=self.status,
            actions=tuple(self.actions),
            announcements=self._announcements(),
            wake_at=min(self.wakes, default=None),
        )

    def _announcements(self) -> tuple[Announcement, ...]:
        """One Event when the phase or the reason for it changes; none for mere progress."""
        before = self.snapshot.status.condition(ConditionType.SUCCEEDED)
        after = self.status.condition(ConditionType.SUCCEEDED)
        if after is None or (
            before is not None
            and before.reason == after.reason
            and self.snapshot.status.phase == self.status.phase
        ):
            return ()
        reason = Reason(after.reason)
        warning = self.status.phase == Phase.FAILED or reason in WORRYING
        if self.status.phase in QUIET and not warning:
            return ()
        return (Announcement(reason, after.message or f"{self.status.phase}", warning),)


QUIET = (Phase.PENDING, Phase.QUEUED)
WORRYING = frozenset(
    {Reason.IMAGE_PULL_FAILED, Reason.SECRET_NOT_FOUND, Reason.QUOTA_EXCEEDED, Reason.UNSCHEDULABLE}
)

"""The draft of a decision: the status as it will be written, and the methods with which policies change it."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from lora_api.exits import ExitCode
from lora_api.job import JobSpec
from lora_api.reasons import Reason
from lora_api.stages import StageName
from lora_api.status import MAX_ATTEMPT, Condition, ConditionType, JobStatus, Phase

from ..snapshot import Child, Snapshot, stage_status, update_stage
from .decision import Action, Announcement, Decision, DeleteChildJob, RestoreChildJob
from .stages import held_open_until, run_seconds

PROFILE_RETRY = timedelta(minutes=1)
"""Time until a job checks again whether its profile allows it: no watch reports an edit of the profiles file."""
RETRY_INTERVALS = (timedelta(seconds=3), timedelta(minutes=1))
"""Shortest and longest interval at which something that no watch reports is checked again (see `requeue_with_backoff`)."""
RECHECK = timedelta(minutes=5)
"""The longest time that a job which has not ended goes without a reconcile."""
ANNOUNCED_PHASES = (Phase.AWAITING_APPROVAL, Phase.SUSPENDED, Phase.SUCCEEDED, Phase.FAILED)
"""Phases that a person may want to act on. The others are in the status, and an Event is a write for each job."""
NOT_WAITING = (Phase.SUSPENDED, Phase.AWAITING_APPROVAL, Phase.TRAINING)
"""Phases in which a job does not wait for a stage to start."""
PROFILE_REASONS = (Reason.PROFILE_NOT_FOUND, Reason.MODEL_NOT_ALLOWED)
"""Reasons for which a job waits for its profile, which the start deadline does not limit."""
WARNING_REASONS = frozenset(
    {
        Reason.IMAGE_PULL_FAILED,
        Reason.SECRET_NOT_FOUND,
        Reason.QUOTA_EXCEEDED,
        Reason.UNSCHEDULABLE,
        Reason.NODE_NOT_READY,
    }
)
"""Reasons for an Event of type Warning while a job has not ended."""


@dataclass(frozen=True)
class Problem:
    """Why a job cannot continue under its profile as it is now."""

    reason: Reason
    message: str


@dataclass
class StatusDraft:
    """A mutable draft of one decision. Each call of `decide` creates its own."""

    snapshot: Snapshot
    now: datetime
    status: JobStatus = field(init=False)
    actions: list[Action] = field(default_factory=list)
    requeue_times: list[datetime] = field(default_factory=list)
    problem: Problem | None = None
    """Set when a job was accepted, but its profile does not allow it any more."""

    def __post_init__(self) -> None:
        self.status = self.snapshot.status
        if not self.status.phase.terminal:
            self.write(waiting_since=None)  # `record_blockers` sets it again

    @property
    def spec(self) -> JobSpec:
        """The spec. Only for policies after `validate_resource`."""
        assert self.snapshot.spec is not None
        return self.snapshot.spec

    def record_blockers(self, phase: Phase, attempt: int) -> bool:
        """Write to the status what prevents a stage from starting now, if anything does.

        A final refusal fails the job, and so does an attempt above the highest number, which only a status that was
        edited can lead to. In all other cases the start is retried later.

        Args:
            phase: the phase to wait in.
            attempt: the attempt to start.

        Returns:
            Whether something prevents the start.
        """
        refusal = self.snapshot.refusal
        if attempt > MAX_ATTEMPT:
            self.fail(
                Reason.STATUS_INVALID, f"no attempt can follow number {MAX_ATTEMPT}: create a new object"
            )
        elif refusal is not None and refusal.final:
            self.fail(refusal.reason, refusal.message)
        elif refusal is not None:
            self._wait_for_child(phase, refusal.reason, refusal.message)
        elif self.problem is not None:
            self.set_phase(phase, self.problem.reason, self.problem.message)
            self.requeue_at(self.now + PROFILE_RETRY)
        elif self.snapshot.capacity:
            self._wait_for_child(phase, Reason.QUEUED, self.snapshot.capacity)
        else:
            return False
        return True

    def _wait_for_child(self, phase: Phase, reason: Reason, message: str) -> None:
        """Wait until the child Job can be created. The time since when is kept: its evidence may be deleted."""
        # a time in the future is from another clock
        since = min(self.snapshot.status.waiting_since or self._waiting_since(), self.now)
        self.write(waiting_since=since)
        self.wait_for_start(phase, reason, message, since)

    def _waiting_since(self) -> datetime:
        """Return when the wait for the next stage began: the end of the previous stage, or else the start of the job.

        It begins now for a job that had another reason not to start until now, and for one whose stage ran until now.
        Times in the future, from another clock, are ignored.
        """
        before = self.snapshot.status.condition(ConditionType.SUCCEEDED)
        if self.snapshot.status.phase in NOT_WAITING or (before and before.reason in PROFILE_REASONS):
            return self.now
        ends = [pod.finished_at for child in self.snapshot.children for pod in child.pods if pod.finished_at]
        start = self.status.start_time or self.now
        return max([start, *(end for end in ends if end <= self.now)])

    def wait_for_start(self, phase: Phase, reason: Reason, message: str, since: datetime) -> None:
        """Wait for a stage to start, until `runPolicy.startDeadlineSeconds` after `since` at most."""
        limit = self.spec.run_policy.start_deadline_seconds
        if limit is not None:
            due = since + timedelta(seconds=limit)
            if self.now >= due:
                self.fail(
                    Reason.START_DEADLINE_EXCEEDED,
                    f"no pod started within runPolicy.startDeadlineSeconds ({limit} s): {message}",
                )
                return
            self.requeue_at(due)
        self.set_waiting_phase(phase, reason, message)
        self.requeue_with_backoff(since)

    def requeue_after_start(self) -> None:
        """Reconcile again soon after a stage was started, because no event reports a child Job that gets no pod."""
        self.requeue_with_backoff(self.now)
        limit = self.spec.run_policy.start_deadline_seconds
        if limit is not None:
            self.requeue_at(self.now + timedelta(seconds=limit))

    def requeue_with_backoff(self, since: datetime) -> None:
        """Reconcile again after as much time as has passed since `since`, within `RETRY_INTERVALS`."""
        shortest, longest = RETRY_INTERVALS
        self.requeue_at(self.now + min(max(self.now - since, shortest), longest))

    def write(self, **changes: Any) -> None:
        """Set fields of the status."""
        self.status = self.status.model_copy(update=changes)

    def requeue_at(self, at: datetime | None) -> None:
        if at is not None:
            self.requeue_times.append(at)

    def set_condition(self, kind: ConditionType, value: str, reason: Reason, message: str = "") -> None:
        """Set a condition. Its lastTransitionTime changes only with its status."""
        before = self.status.condition(kind)
        changed = before is None or before.status != value
        after = Condition.model_validate(
            {
                "type": kind,
                "status": value,
                "observed_generation": self.snapshot.generation,
                "last_transition_time": self.now
                if changed or before is None
                else before.last_transition_time,
                "reason": reason,
                "message": message,
            }
        )
        others = [c for c in self.status.conditions if c.type != kind]
        order = list(ConditionType)
        self.write(conditions=sorted([*others, after], key=lambda c: order.index(c.type)))

    def remove_condition(self, kind: ConditionType) -> None:
        self.write(conditions=[c for c in self.status.conditions if c.type != kind])

    def set_phase(self, phase: Phase, reason: Reason, message: str = "") -> None:
        """Set a phase other than Succeeded and Failed, and the conditions that go with it."""
        self.write(phase=phase)
        self.set_condition(ConditionType.SUCCEEDED, "Unknown", reason, message)
        self.set_condition(ConditionType.FINISHED, "False", reason)

    def set_waiting_phase(self, phase: Phase, reason: Reason, message: str) -> None:
        """Set a phase in which the job waits. A message that differs from the stored one in numbers alone is not written.

        Schedulers and quotas count other pods in their messages, so these change all the time without a new
        meaning, and each change would be a write for each waiting job.
        """
        before = self.status.condition(ConditionType.SUCCEEDED)
        same_reason = before is not None and (before.status, before.reason) == ("Unknown", reason)
        if (
            before is not None
            and same_reason
            and _without_numbers(before.message) == _without_numbers(message)
        ):
            message = before.message
        self.set_phase(phase, reason, message)

    def fail(self, reason: Reason, message: str) -> None:
        """End as Failed and stop whatever still runs."""
        self.count_gpu_seconds()
        self.write(phase=Phase.FAILED, finish_time=self.now, waiting_since=None)
        self.set_condition(ConditionType.SUCCEEDED, "False", reason, message)
        self.set_condition(ConditionType.FINISHED, "True", reason)
        self.set_condition(ConditionType.STALLED, "True", reason, message)
        self.remove_condition(ConditionType.SUSPENDED)
        self.actions.clear()
        self.stop_all()

    def succeed(self, reason: Reason, message: str) -> None:
        """End as Succeeded and stop whatever still runs, after its time to terminate by itself."""
        self.write(phase=Phase.SUCCEEDED, finish_time=self.now)
        self.set_condition(ConditionType.SUCCEEDED, "True", reason, message)
        self.set_condition(ConditionType.FINISHED, "True", reason)
        self.remove_condition(ConditionType.SUSPENDED)
        self.stop_finished()

    def has_progress(self, stage: StageName) -> bool:
        """Whether the current attempt of a stage has done some of its work."""
        # before the first training, the progress is that of the annotation stage
        running = self.status.training is not None if stage == StageName.TRAIN else True
        reports = (self.status.progress, self.snapshot.progress)
        return running and any(report is not None and report.step > 0 for report in reports)

    def mark_started(self, stage: StageName) -> None:
        """Record that a pod of a stage's current attempt has started."""
        self.status = update_stage(self.status, stage, started=True)

    def has_started(self, stage: StageName) -> bool:
        """Whether a pod of a stage's current attempt is known to have started. It may be gone."""
        known = stage_status(self.status, stage)
        return known is not None and known.started

    def count_gpu_seconds(self) -> None:
        """Update `training.gpuSeconds`. Not called at every reconcile, because each change is a status write."""
        spec, training = self.snapshot.spec, self.status.training
        child = self.snapshot.child(StageName.TRAIN)
        if spec is None or training is None or child is None or child.attempt != training.attempt:
            return
        held = spec.resources.train.gpus * run_seconds(child, self.now)
        total = max(training.gpu_seconds or 0, training.gpu_seconds_before + held)
        self.write(training=training.model_copy(update={"gpu_seconds": total}))

    def stop_all(self) -> None:
        """Delete every child Job that has not ended and is not about to complete. Ended ones are kept for their logs."""
        for child in self.snapshot.children:
            if child.active and not _completes_by_itself(child):
                self.actions.append(DeleteChildJob(child.name, child.uid))

    def stop_finished(self, stage: StageName | None = None) -> None:
        """Stop what still runs after a stage or the job has ended.

        A pod whose stage has just ended well gets some time to terminate by itself, so that its child Job
        completes and is kept for its logs.

        Args:
            stage: the stage; None for all.
        """
        for child in self.snapshot.children:
            if (
                not child.active
                or (stage is not None and child.stage != stage)
                or _completes_by_itself(child)
            ):
                continue
            ended = [pod.finished_at for pod in child.pods if pod.held_open and pod.finished_at]
            # Kubernetes soon replaces a pod that another container made fail
            fails = any(pod.phase == "Failed" and pod.exit_code == ExitCode.OK for pod in child.pods)
            if not ended and not fails and self._has_result_of(child) and self.status.finish_time:
                # the status is another replica's, and this one's watch has not reported the end of the pod
                ended = [self.status.finish_time]
            due = held_open_until(max(ended), self.now) if ended else self.now
            if self.now < due:
                self.requeue_at(due)
            else:
                self.actions.append(DeleteChildJob(child.name, child.uid))

    def _has_result_of(self, child: Child) -> bool:
        """Return whether the job has succeeded by this child Job."""
        training = self.status.training
        return self.status.phase is Phase.SUCCEEDED and training is not None and training.job_uid == child.uid

    def _restore_children(self) -> None:
        """Restore the labels and the owner of a child Job that has a pod but is not reported: a person may have removed them.

        If the child Job has been deleted instead, nothing happens, and its pod is about to terminate.
        """
        for stage in self.snapshot.orphaned_pods:
            known = stage_status(self.snapshot.status, stage)
            if known is None or not known.job_uid:
                continue
            if all(child.uid != known.job_uid for child in self.snapshot.children):
                self.actions.append(RestoreChildJob(stage, known.attempt, known.job_uid))

    def decision(self) -> Decision:
        self._restore_children()
        if not self.status.phase.terminal:
            self.requeue_at(self.now + RECHECK)
        if self.snapshot.spec is not None and not self.snapshot.status.phase.terminal:
            # a number that is there before the job fails is no request to start it again
            self.write(retries=self.snapshot.spec.run_policy.retry)
        return Decision(
            status=self.status,
            actions=tuple(self.actions),
            announcements=self._announcements(),
            requeue_at=min(self.requeue_times, default=None),
        )

    def _announcements(self) -> tuple[Announcement, ...]:
        """Return an Event when the phase or its reason has changed, if a person may want to act on it."""
        before = self.snapshot.status.condition(ConditionType.SUCCEEDED)
        after = self.status.condition(ConditionType.SUCCEEDED)
        if after is None or (
            before is not None
            and before.reason == after.reason
            and self.snapshot.status.phase == self.status.phase
        ):
            return ()
        reason = Reason(after.reason)
        warning = self.status.phase == Phase.FAILED or reason in WARNING_REASONS
        if not (warning or self.status.phase in ANNOUNCED_PHASES):
            return ()
        return (Announcement(reason, after.message or f"{self.status.phase}", warning),)


def _without_numbers(message: str) -> str:
    """Replace numbers by 0, with the suffixes of quantities: Kubernetes writes 7900m, but 8 and not 8000m."""
    return re.sub(r"\d+(?:m|k|[KMGTPE]i?)?\b|\d+", "0", message)


def _completes_by_itself(child: Child) -> bool:
    """Whether a pod has succeeded, so that Kubernetes is about to mark the child Job complete."""
    return any(pod.phase == "Succeeded" for pod in child.pods)

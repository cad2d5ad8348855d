"""Driving one step, whichever it is: when its Job must be made, and what the Job's state means."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from lora_api.reasons import Reason
from lora_api.status import Phase
from lora_api.steps import StepName

from ..snapshot import Child
from .steps import Ending, Lost, Starting, StepState, ever_started, read_step
from .story import Story

LOOK_AGAIN = (timedelta(seconds=3), timedelta(minutes=1))
"""A pod that does not start may have its reason only in Events, which nobody pushes here: look again
after as long as it has waited already, within these bounds."""


@dataclass(frozen=True)
class Start:
    """The step's Job must be made, as this attempt."""

    attempt: int


def drive(
    story: Story, step: StepName, attempt: int, job_name: str
) -> Start | tuple[Child, StepState] | None:
    """Where a step stands.

    Args:
        attempt: the newest attempt that the status knows of, 0 before the first.
        job_name: its Job's name in the status; empty when no Job is expected to exist.

    Returns:
        Start when a Job must be made; the newest Job and its state; None when an old pod must end first.
    """
    child = story.snapshot.child(step)
    if child is None or child.attempt < attempt:
        if step in story.snapshot.leftovers:
            return None
        # a Job that should be there and is not is made again under its own name, so that a view of the
        # cluster that lags behind can never lead to a second one
        return Start(attempt if job_name else attempt + 1)
    state = read_step(child, story.snapshot.hint)
    if isinstance(state, Ending):
        return None
    if isinstance(state, Lost):
        return Start(child.attempt + 1)
    return child, state


def wait_for_start(
    story: Story, child: Child, state: Starting, phase: Phase, usual: tuple[Reason, str]
) -> bool:
    """Say why the pod does not run yet, and give up at `runPolicy.startDeadlineSeconds`.

    Args:
        usual: the reason and the message when nothing stands in the way.
    """
    reason, message = (usual[0] if state.reason == Reason.QUEUED else state.reason), state.message or usual[1]
    limit = story.spec.run_policy.start_deadline_seconds
    if limit is not None and not ever_started(child):
        due = child.created_at + timedelta(seconds=limit)
        if story.now >= due:
            story.fail(
                Reason.START_DEADLINE_EXCEEDED,
                f"no pod started within runPolicy.startDeadlineSeconds ({limit} s): {message}",
            )
            return True
        story.wake(due)
    story.go(phase, reason, message)
    soonest, latest = LOOK_AGAIN
    story.wake(story.now + min(max(story.now - child.created_at, soonest), latest))
    return True

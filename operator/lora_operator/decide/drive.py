"""Driving one step, whichever it is: when its Job must be made, and what the Job's state means."""

from __future__ import annotations

from dataclasses import dataclass

from lora_api.reasons import Reason
from lora_api.status import Phase
from lora_api.steps import StepName

from ..snapshot import Child
from .steps import Ending, Lost, Starting, StepState, ever_started, read_step
from .story import Story


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
    """Say why the pod does not run yet. Its reason may be in Events only, which nobody pushes here.

    Args:
        usual: the reason and the message when nothing stands in the way.
    """
    reason, message = (usual[0] if state.reason == Reason.QUEUED else state.reason), state.message or usual[1]
    if ever_started(child):
        story.go(phase, reason, message)
        story.look_again(child.created_at)
    else:
        story.wait(phase, reason, message, since=child.created_at)
    return True

"""Ends, pauses and deadlines: what holds whatever step a job is in."""

from __future__ import annotations

from datetime import timedelta

from lora_api.reasons import Reason
from lora_api.status import ConditionType, Phase
from lora_api.steps import StepName

from .decision import RemoveJob
from .steps import Done, read_step
from .story import Story


def latch(story: Story) -> bool:
    """A job that has ended stays as it is: nothing is created after it, and what still runs is stopped."""
    if not story.status.phase.terminal:
        return False
    story.stop_all()
    spec, finished = story.snapshot.spec, story.status.finish_time
    ttl = spec.run_policy.ttl_seconds_after_finished if spec else None
    if ttl is not None and finished is not None:
        due = finished + timedelta(seconds=ttl)
        if story.now >= due:
            story.actions.append(RemoveJob())
        else:
            story.wake(due)
    return True


def enforce_deadline(story: Story) -> bool:
    """`runPolicy.activeDeadlineSeconds`, counted from the job's start."""
    limit, start = story.spec.run_policy.active_deadline_seconds, story.status.start_time
    if limit is None or start is None:
        return False
    due = start + timedelta(seconds=limit)
    if story.now < due:
        story.wake(due)
        return False
    story.fail(Reason.DEADLINE_EXCEEDED, f"not finished within runPolicy.activeDeadlineSeconds ({limit} s)")
    return True


def suspend(story: Story) -> bool:
    """Stop the step that runs; what is published or about to be read as done is not undone."""
    training = story.snapshot.child(StepName.TRAIN)
    finished = training is not None and isinstance(read_step(training, None), Done)
    if not story.spec.run_policy.suspend or finished:
        story.drop_condition(ConditionType.SUSPENDED)
        return False
    stopping = story.snapshot.leftovers or any(not c.ended for c in story.snapshot.children)
    story.stop_all()
    if story.status.phase != Phase.SUSPENDED or not (training and any(pod.running for pod in training.pods)):
        story.count_gpu_seconds()
    message = (
        "waiting for the pod to save its work" if stopping else "set runPolicy.suspend to false to go on"
    )
    story.go(Phase.SUSPENDED, Reason.SUSPENDED, message)
    story.condition(ConditionType.SUSPENDED, "True", Reason.SUSPENDED, message)
    if not stopping and story.status.training is not None:
        # the next start is a new attempt, not the old one made again
        story.write(training=story.status.training.model_copy(update={"job_name": ""}))
    if not stopping and story.status.captions is not None:
        story.write(captions=story.status.captions.model_copy(update={"job_name": ""}))
    return True

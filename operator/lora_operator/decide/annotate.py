"""The annotation step: from nothing to captions, or straight to an adapter that is already there."""

from __future__ import annotations

from lora_api.job import Approval
from lora_api.reasons import Reason
from lora_api.status import CaptionsStatus, ConditionType, Phase
from lora_api.steps import Outcome, StepName, StepResult

from ..names import child_name
from .decision import StartAnnotation
from .drive import Start, drive, wait_for_start
from .steps import Broken, Done, Running, Starting
from .story import Story

WORKING = (Reason.ANNOTATING, "the images are cleaned and captioned")
"""One message from the Job's creation to its end: a pod that starts is no news here, and one write less."""


def annotate(story: Story) -> bool:
    captions = story.status.captions or CaptionsStatus()
    if captions.sha256:
        return False
    position = drive(story, StepName.ANNOTATE, captions.attempt, captions.job_name)
    if position is None:
        story.go(Phase.ANNOTATING, Reason.ANNOTATING, "waiting for the pod before to end")
        return True
    if isinstance(position, Start):
        return _start(story, captions, position.attempt)
    child, state = position
    story.write(captions=captions.model_copy(update={"attempt": child.attempt, "job_name": child.name}))
    match state:
        case Broken(reason, message, dataset):
            story.write(dataset=dataset)
            story.condition(ConditionType.CAPTIONS_READY, "False", reason, message)
            story.fail(reason, message)
            return True
        case Done(result):
            return _finish(story, result)
        case Running():
            _report(story)
            story.go(Phase.ANNOTATING, *WORKING)
            return True
        case Starting():
            return wait_for_start(story, child, state, Phase.ANNOTATING, WORKING)
    raise AssertionError(state)


def _start(story: Story, captions: CaptionsStatus, attempt: int) -> bool:
    if story.blocked(Phase.ANNOTATING if captions.attempt else Phase.PENDING):
        return True
    name = child_name(story.snapshot.name, story.snapshot.uid, StepName.ANNOTATE, attempt)
    story.actions.append(StartAnnotation(attempt))
    story.write(captions=captions.model_copy(update={"attempt": attempt, "job_name": name}))
    story.go(Phase.ANNOTATING, *WORKING)
    return True


def _report(story: Story) -> None:
    progress, captions = story.snapshot.progress, story.status.captions
    if progress is not None and captions is not None:
        counted = {"done": progress.step, "total": progress.total_steps}
        story.write(progress=progress, captions=captions.model_copy(update=counted))


def _finish(story: Story, result: StepResult) -> bool:
    """Take over what the step found; True when the job ends with it."""
    captions = story.status.captions or CaptionsStatus()
    if result.captions is not None:
        found = result.captions
        captions = captions.model_copy(
            update={
                "key": found.key,
                "sha256": found.sha256,
                "dataset_sha256": found.dataset_sha256,
                "total": found.total,
                "done": found.total,
                "usage": found.usage,
            }
        )
    story.write(dataset=result.dataset, input_hash=result.input_hash, captions=captions, progress=None)
    if result.outcome == Outcome.REUSED and result.adapter is not None:
        story.condition(ConditionType.CAPTIONS_READY, "True", Reason.CAPTIONED)
        story.write(adapter=result.adapter, previews=result.previews)
        story.succeed(Reason.REUSED, f"nothing has changed since {result.adapter.uri} was trained")
        return True
    if result.captions is None:
        story.fail(Reason.INTERNAL_ERROR, "the annotation step ended without captions")
        return True
    story.condition(ConditionType.CAPTIONS_READY, "True", Reason.CAPTIONED, f"{captions.total} captions")
    return False


def await_approval(story: Story) -> bool:
    """`annotation.approval: Required` holds the job until a reviewer names the captions."""
    annotation, captions = story.spec.annotation, story.status.captions
    if annotation.approval != Approval.REQUIRED or annotation.approved_captions:
        return False
    assert captions is not None
    story.go(
        Phase.AWAITING_APPROVAL,
        Reason.AWAITING_APPROVAL,
        f"review {captions.key} and set spec.annotation.approvedCaptions to sha256:{captions.sha256}",
    )
    return True

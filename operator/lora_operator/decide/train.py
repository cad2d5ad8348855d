"""The training step: from approved captions to a verified adapter."""

from __future__ import annotations

from lora_api import __version__
from lora_api.job import Approval
from lora_api.manifest import input_hash
from lora_api.reasons import Reason
from lora_api.status import CaptionsStatus, Failure, Phase, Progress, TrainingStatus
from lora_api.steps import Outcome, StepName, StepResult

from ..names import child_name
from ..snapshot import Child
from .decision import StartTraining
from .drive import Start, drive, wait_for_start
from .steps import Broken, Done, Running, Starting, disruptions, explain_pod, last_failed
from .story import Story

WAITING = (Reason.QUEUED, "waiting for the pod to start")


def train(story: Story) -> bool:
    training = story.status.training or TrainingStatus()
    position = drive(story, StepName.TRAIN, training.attempt, training.job_name)
    if position is None:
        story.go(Phase.QUEUED, Reason.QUEUED, "waiting for the pod before to end")
        return True
    if isinstance(position, Start):
        return _start(story, training, position.attempt)
    child, state = position
    story.write(training=_observed(training, child))
    if child.ended:
        story.count_gpu_seconds()
    match state:
        case Broken(reason, message):
            story.fail(reason, message)
        case Done(result):
            _finish(story, result)
        case Running(pod):
            if story.snapshot.progress not in (None, story.status.progress):
                story.write(progress=story.snapshot.progress)
                story.count_gpu_seconds()
            where = f" on node {pod.node}" if pod.node else ""
            story.go(Phase.TRAINING, Reason.TRAINING, f"attempt {child.attempt}{where}")
        case Starting():
            wait_for_start(story, child, state, Phase.QUEUED, WAITING)
    return True


def _start(story: Story, training: TrainingStatus, attempt: int) -> bool:
    if story.blocked(Phase.QUEUED):
        return True
    sha256, hashed = _approved_inputs(story)
    name = child_name(story.snapshot.name, story.snapshot.uid, StepName.TRAIN, attempt)
    story.actions.append(StartTraining(attempt, sha256, hashed))
    story.write(
        training=training.model_copy(
            update={"attempt": attempt, "job_name": name, "gpu_seconds_before": training.gpu_seconds or 0}
        ),
        input_hash=hashed,
        progress=None,
    )
    story.go(Phase.QUEUED, *WAITING)
    return True


def _approved_inputs(story: Story) -> tuple[str, str]:
    """The captions to train on and the input hash that goes with them."""
    captions = story.status.captions or CaptionsStatus()
    annotation = story.spec.annotation
    if annotation.approval != Approval.REQUIRED:
        return captions.sha256, story.status.input_hash
    approved = annotation.approved_captions.removeprefix("sha256:")
    profile = story.snapshot.profile
    assert profile is not None  # `blocked` has seen to it
    return approved, input_hash(
        dataset=captions.dataset_sha256,
        captions=approved,
        concept=story.spec.concept,
        training=story.spec.training,
        formats=list(story.spec.output.formats),
        base_model=profile.models[story.spec.base_model].identity(),
        trainer_version=__version__,
    )


def _observed(training: TrainingStatus, child: Child) -> TrainingStatus:
    """What the Job's pods tell, beside whether the step is done."""
    changes: dict[str, object] = {"attempt": child.attempt, "job_name": child.name}
    changes["disruptions"] = max(training.disruptions, disruptions(child))
    pod = last_failed(child)
    if pod is not None:
        reason, message = explain_pod(pod)
        changes["last_failure"] = Failure(reason=reason, message=message, node=pod.node, time=pod.finished_at)
    return training.model_copy(update=changes)


def _finish(story: Story, result: StepResult) -> None:
    if result.outcome != Outcome.TRAINED or result.adapter is None:
        story.fail(Reason.INTERNAL_ERROR, "the training step ended without a verified adapter")
        return
    said = result.training
    training = story.status.training
    if said is not None and training is not None:
        story.write(
            training=training.model_copy(update={"resumed_from_step": said.resumed_from_step}),
            progress=Progress(
                step=said.final_step,
                total_steps=said.final_step,
                percent=100,
                loss=said.final_loss,
                display=f"{said.final_step}/{said.final_step}",
                reported_at=story.now,
            ),
        )
    story.write(adapter=result.adapter, previews=result.previews)
    story.succeed(Reason.TRAINED, f"the adapter is at {result.adapter.uri}")

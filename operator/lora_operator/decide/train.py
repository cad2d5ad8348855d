"""The policy of the training stage, which ends with a verified adapter."""

from __future__ import annotations

from datetime import datetime, timedelta

from lora_api import __version__
from lora_api.job import Approval, Recipe
from lora_api.manifest import input_hash, models_identity
from lora_api.reasons import Reason
from lora_api.stages import Outcome, StageName, StageResult, decode_result
from lora_api.status import CaptionsStatus, Failure, Phase, Progress, TrainingStatus

from ..names import child_name
from ..snapshot import Child, Pod
from .admission import write_effective
from .decision import DeleteChildJob, StartTraining
from .locate import (
    GiveUp,
    Start,
    charge,
    charge_replaced,
    count_disruptions,
    describe_running,
    enforce_disruption_limit,
    locate_stage,
    previous_pod,
    report_starting,
    wait_for_previous_pod,
)
from .results import find_foreign
from .stages import (
    Broken,
    Done,
    Running,
    StageState,
    Starting,
    Unusable,
    explain_pod,
    holds_gpus,
    is_leaving,
    last_failed,
    run_seconds,
)
from .status_draft import StatusDraft

SHORT_RUN = timedelta(seconds=2)
"""Time from the start of a pod, which Kubernetes gives in whole seconds, until the phase Training is written."""


def waiting(draft: StatusDraft) -> tuple[Reason, str]:
    """Return the reason and the message until the pod runs."""
    return Reason.QUEUED, f"waiting for the {draft.snapshot.pod_kind} to start"


def train(draft: StatusDraft) -> bool:
    """Run the training stage until there is an adapter."""
    training = draft.status.training or TrainingStatus()
    match locate_stage(draft, StageName.TRAIN, training.attempt, training.job_name):
        case None:
            wait_for_previous_pod(draft, StageName.TRAIN, Phase.QUEUED, Reason.QUEUED)
        case Start() as start:
            _start(draft, training, start)
        case GiveUp(child, state):
            draft.write(training=_observe_child(draft, training, child))
            draft.count_gpu_seconds()
            _give_up(draft, child, state)
        case (child, state):
            charged = charge_replaced(draft, training, child)
            if charged is not None:
                draft.write(training=_observe_child(draft, charged, child))
                _update_from_child(draft, child, state)
    return True


def _update_from_child(draft: StatusDraft, child: Child, state: StageState) -> None:
    """Update the status from the state of the child Job."""
    training = draft.status.training
    assert training is not None
    if child.ended:
        draft.count_gpu_seconds()
    match state:
        case Broken(reason, message):
            draft.fail(reason, message)
        case Done(result):
            _finish(draft, result)
        case _ if enforce_disruption_limit(draft, child, training):
            pass
        case Running(pod):
            if draft.snapshot.progress not in (None, draft.status.progress):
                draft.write(progress=draft.snapshot.progress)
                draft.count_gpu_seconds()
            problem, message = describe_running(child.attempt, pod)
            due = _first_report_due(draft, pod)
            if problem is None and due is not None:
                draft.requeue_at(due)
            else:
                draft.mark_started(StageName.TRAIN)
                draft.set_phase(Phase.TRAINING, problem or Reason.TRAINING, message)
            draft.requeue_at(state.check_at)
        case Starting():
            if draft.has_started(StageName.TRAIN):
                _count_ended_gpu_seconds(draft, child)
            report_starting(draft, child, state, Phase.QUEUED, waiting(draft))


def _count_ended_gpu_seconds(draft: StatusDraft, child: Child) -> None:
    """Update `training.gpuSeconds` between two pods, and keep what pods that are gone have used."""
    if any(map(holds_gpus, child.pods)):
        return
    draft.count_gpu_seconds()
    training = draft.status.training
    if training is not None:
        held = draft.spec.resources.train.gpus * run_seconds(child, draft.now)
        gone = max(training.gpu_seconds_before, (training.gpu_seconds or 0) - held)
        draft.write(training=training.model_copy(update={"gpu_seconds_before": gone}))


def _first_report_due(draft: StatusDraft, pod: Pod) -> datetime | None:
    """Return when to report a pod that has just started; None for now. One that ends before saves a status write."""
    if draft.status.phase != Phase.QUEUED or draft.snapshot.progress is not None or pod.started_at is None:
        return None
    due = pod.started_at + SHORT_RUN
    # the node's clock may be ahead of this one
    return due if pod.started_at <= draft.now < due else None


def _start(draft: StatusDraft, training: TrainingStatus, start: Start) -> None:
    """Start an attempt, unless something prevents it."""
    if draft.record_blockers(Phase.QUEUED, start.attempt):
        return
    if start.after is not None:
        child = draft.snapshot.child(StageName.TRAIN)
        if child is not None:
            draft.write(training=_observe_child(draft, training, child))
            draft.count_gpu_seconds()
            training = draft.status.training or training
        charged = charge(draft, training, child, start.after)
        if charged is None:
            return
        training = charged
    captions_sha256, job_hash = _approved_inputs(draft)
    name = child_name(draft.snapshot.name, draft.snapshot.uid, StageName.TRAIN, start.attempt)
    images = None if draft.spec.training.recipe is Recipe.NONE else _images(draft)
    draft.actions.append(StartTraining(start.attempt, captions_sha256, job_hash, images))
    write_effective(draft)  # the operator may have been upgraded since
    draft.write(
        training=training.model_copy(
            update={
                "attempt": start.attempt,
                "job_name": name,
                "job_uid": "",
                "started": False,
                "gpu_seconds_before": training.gpu_seconds or 0,
                "furthest_step_before": training.furthest_step,
            }
        ),
        input_hash=job_hash,
        progress=None,
    )
    reason, message = waiting(draft)
    draft.set_phase(Phase.QUEUED, reason, f"{message}; {start.after.message}" if start.after else message)
    draft.requeue_after_start()


def _give_up(draft: StatusDraft, child: Child, state: Unusable) -> None:
    """Charge an attempt without a result and delete its child Job. The next attempt starts when its pod is gone."""
    training = draft.status.training
    assert training is not None
    charged = charge(draft, training, child, state)
    if charged is None:
        return
    draft.actions.append(DeleteChildJob(child.name, child.uid))
    draft.write(training=charged.model_copy(update={"job_name": ""}))
    draft.set_phase(Phase.QUEUED, Reason.QUEUED, f"{state.message}; {previous_pod(draft, StageName.TRAIN)}")


def _approved_inputs(draft: StatusDraft) -> tuple[str, str]:
    """Return the sha256 of the captions to train on, and the input hash that belongs to them."""
    captions = draft.status.captions or CaptionsStatus()
    annotation = draft.spec.annotation
    if annotation.approval != Approval.REQUIRED:
        return captions.sha256, draft.status.input_hash
    # a reviewer may have changed the captions, so the hash of the annotation stage may not hold
    approved = annotation.approved_captions.removeprefix("sha256:")
    profile = draft.snapshot.profile
    assert profile is not None  # `record_blockers` has checked it
    training = draft.spec.with_recipe(_images(draft)).training
    return approved, input_hash(
        dataset=captions.dataset_sha256,
        captions=approved,
        concept=draft.spec.concept,
        training=training,
        formats=list(draft.spec.output.formats),
        captions_published=draft.spec.output.captions,
        base_model=models_identity(profile.models[draft.spec.base_model], profile.scoring, training),
        trainer_version=__version__,
    )


def _images(draft: StatusDraft) -> int:
    """Return the number of images that the annotation stage captioned. A review does not change it."""
    return (draft.status.captions or CaptionsStatus()).total


def _observe_child(draft: StatusDraft, training: TrainingStatus, child: Child) -> TrainingStatus:
    """Update the training's status from the child Job's pods: disruptions, the last failure and progress."""
    changes: dict[str, object] = {"attempt": child.attempt, "job_name": child.name, "job_uid": child.uid}
    changes |= count_disruptions(training, child, training.last_progress_time)
    pod = next(filter(is_leaving, child.pods), None) or last_failed(child)
    if pod is not None:
        reason, message = explain_pod(pod)
        changes["last_failure"] = Failure(reason=reason, message=message, node=pod.node, time=pod.finished_at)
    step = max([_reported_step(draft), *(_final_step(pod) for pod in child.pods)])
    if step > training.furthest_step:
        changes |= {"furthest_step": step, "last_progress_time": draft.now, "disruptions_in_a_row": 0}
    return training.model_copy(update=changes)


def _reported_step(draft: StatusDraft) -> int:
    """Return the step of a new progress report; 0 if there is none."""
    progress = draft.snapshot.progress
    # furthestStep already includes a report that is in the status
    return progress.step if progress is not None and progress != draft.status.progress else 0


def _final_step(pod: Pod) -> int:
    """Return the last step that a failed pod's result names; 0 if there is none."""
    result = decode_result(pod.message) if pod.phase == "Failed" else None
    return result.training.final_step if result and result.training else 0


def _finish(draft: StatusDraft, result: StageResult) -> None:
    """Write the stage's result to the status and end the job."""
    if result.outcome != Outcome.TRAINED or result.adapter is None:
        draft.fail(Reason.INTERNAL_ERROR, "the training stage ended without a verified adapter")
        return
    if foreign := find_foreign(draft.snapshot, result):
        draft.fail(
            Reason.RESULT_REFUSED, f"the training stage reported a result that is not this job's: {foreign}"
        )
        return
    summary, training = result.training, draft.status.training
    if summary is not None and training is not None:
        draft.write(
            training=training.model_copy(update={"resumed_from_step": summary.resumed_from_step}),
            progress=Progress(
                step=summary.final_step,
                total_steps=summary.final_step,
                percent=100,
                loss=summary.final_loss,
                display=f"{summary.final_step}/{summary.final_step}",
                reported_at=draft.now,
            ),
        )
    draft.count_gpu_seconds()
    draft.write(adapter=result.adapter, previews=result.previews)
    draft.succeed(Reason.TRAINED, f"the adapter is at {result.adapter.uri}")

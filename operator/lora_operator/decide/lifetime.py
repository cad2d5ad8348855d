"""Policies that apply in every stage: deletion, the end of a job, retries, deadlines and suspension."""

from __future__ import annotations

from datetime import timedelta

from lora_api.reasons import Reason
from lora_api.stages import StageName
from lora_api.status import ConditionType, Phase

from .decision import DeleteResource, SendWebhook
from .locate import is_training_done
from .stages import describe_held, holds_gpus
from .status_draft import StatusDraft

RESUME_HINT = "set runPolicy.suspend to false to resume"
"""Message of a suspended job whose stages have stopped."""
WEBHOOK_GRACE = timedelta(minutes=5)
"""Time after the last attempt of a webhook in which its result is recorded, or another operator makes an attempt."""


def terminate(draft: StatusDraft) -> bool:
    """Stop the stages of a resource that is being deleted, and start none.

    Kubernetes deletes the children with their owner, but not before the last finalizer is gone, and a
    finalizer of another controller may hold the resource for hours.
    """
    if not draft.snapshot.deleting:
        return False
    draft.stop_all()
    if not draft.status.phase.terminal:
        message = "the resource is being deleted, and its stages are stopped"
        draft.set_phase(Phase.TERMINATING, Reason.TERMINATING, message)
    return True


def finish_terminal(draft: StatusDraft) -> bool:
    """Clean up after a job that has ended, or reset a failed job whose `runPolicy.retry` was raised.

    Cleaning up stops what still runs, announces the end at the profile's webhook, and deletes the resource after its time
    to live.
    """
    if not draft.status.phase.terminal:
        return False
    spec, finished = draft.snapshot.spec, draft.status.finish_time
    if draft.snapshot.retry_requested:
        _reset(draft)
        return False
    if spec is not None and spec.run_policy.retry < draft.status.retries:
        # a number that was lowered may be raised again from there
        draft.write(retries=spec.run_policy.retry)
    draft.stop_finished()
    announcing = _announce_end(draft)
    ttl = spec.run_policy.ttl_seconds_after_finished if spec else None
    if ttl is not None and finished is not None:
        due = finished + timedelta(seconds=ttl)
        if draft.now >= due and not announcing:
            draft.actions.append(DeleteResource())
        else:
            draft.requeue_at(max(due, draft.now + WEBHOOK_GRACE) if announcing else due)
    return True


def _announce_end(draft: StatusDraft) -> bool:
    """Send the profile's webhook, or record its result. Return whether the result is not known yet.

    A job that ended long ago is not announced: its profile may have got the webhook since.
    """
    profile, finished = draft.snapshot.profile, draft.status.finish_time
    webhook = profile.webhook if profile else None
    if webhook is None or finished is None or draft.status.webhook is not None:
        return False
    if draft.snapshot.delivery is not None:
        draft.write(webhook=draft.snapshot.delivery)
        return False
    deadline = finished + timedelta(seconds=webhook.retry_seconds)
    if draft.now >= deadline + WEBHOOK_GRACE:
        return False
    draft.actions.append(SendWebhook(webhook, deadline))
    return True


def _reset(draft: StatusDraft) -> None:
    """Start a failed job again. Captions, checkpoints and the numbers of attempts stay."""
    status = draft.status
    captions = status.captions
    if captions is not None and not captions.sha256:
        captions = captions.model_copy(update={"job_name": "", "failures": 0, "disruptions_in_a_row": 0})
    draft.write(
        phase=Phase.PENDING,
        retries=draft.spec.run_policy.retry,
        start_time=draft.now,
        finish_time=None,
        webhook=None,
        # without a Job name the next start is a new attempt
        captions=captions,
        training=status.training
        and status.training.model_copy(
            update={
                "job_name": "",
                "failures": 0,
                "disruptions_in_a_row": 0,
                "last_progress_time": draft.now,
            }
        ),
    )
    draft.remove_condition(ConditionType.STALLED)
    for kind in (ConditionType.ACCEPTED, ConditionType.CAPTIONS_READY):
        condition = status.condition(kind)
        if condition is not None and condition.status == "False":
            draft.remove_condition(kind)


def enforce_deadline(draft: StatusDraft) -> bool:
    """Fail the job after `runPolicy.activeDeadlineSeconds`, counted from its start.

    A training that has just finished keeps its result. It may have ended in time while no operator ran.
    """
    limit, start = draft.spec.run_policy.active_deadline_seconds, draft.status.start_time
    if limit is None or start is None:
        return False
    due = start + timedelta(seconds=limit)
    if draft.now < due:
        draft.requeue_at(due)
        return False
    if is_training_done(draft):
        return False
    draft.fail(Reason.DEADLINE_EXCEEDED, f"not finished within runPolicy.activeDeadlineSeconds ({limit} s)")
    return True


def suspend(draft: StatusDraft) -> bool:
    """Stop the current stage while `runPolicy.suspend` is set. A training that has just finished keeps its result.

    The start time is set again when the job is resumed, as that of a Kubernetes Job is, and deadlines count from there.
    """
    training = draft.snapshot.child(StageName.TRAIN)
    if not draft.spec.run_policy.suspend or is_training_done(draft):
        draft.remove_condition(ConditionType.SUSPENDED)
        return False
    stopping = draft.snapshot.orphaned_pods or any(not c.ended for c in draft.snapshot.children)
    draft.write(start_time=None)
    draft.stop_all()
    # GPU time is counted when the job is suspended and again when the pod has ended. Each count is a status write,
    # so it is not counted at every reconcile in between, in which the pod terminates.
    if draft.status.phase != Phase.SUSPENDED or not (training and any(map(holds_gpus, training.pods))):
        draft.count_gpu_seconds()
    saving = f"waiting for the {draft.snapshot.pod_kind} to save a checkpoint"
    held = next((child for child in draft.snapshot.children if child.is_held), None)
    message = (describe_held(held) if held else saving) if stopping else RESUME_HINT
    draft.set_phase(Phase.SUSPENDED, Reason.SUSPENDED, message)
    draft.set_condition(ConditionType.SUSPENDED, "True", Reason.SUSPENDED, message)
    # without a Job name the next start is a new attempt, and not the old one created again
    if not stopping and draft.status.training is not None:
        draft.write(training=draft.status.training.model_copy(update={"job_name": ""}))
    if not stopping and draft.status.captions is not None:
        draft.write(captions=draft.status.captions.model_copy(update={"job_name": ""}))
    return True

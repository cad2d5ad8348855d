"""Policies of the annotation stage, which ends with captions or with an earlier adapter that is reused."""

from __future__ import annotations

from lora_api.job import Approval
from lora_api.reasons import Reason
from lora_api.stages import Outcome, StageName, StageResult
from lora_api.status import CaptionsStatus, ConditionType, Phase

from ..names import child_name
from ..snapshot import Child
from .admission import write_effective
from .decision import DeleteChildJob, StartAnnotation
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
from .stages import Broken, Done, Running, StageState, Starting
from .status_draft import StatusDraft

IN_PROGRESS = (Reason.ANNOTATING, "the images are cleaned and captioned")
"""Reason and message from the child Job's creation to its end. They do not change when a pod starts, which saves a
status write."""


def annotate(draft: StatusDraft) -> bool:
    """Run the annotation stage. Returns True until there are captions."""
    captions = draft.status.captions or CaptionsStatus()
    if captions.sha256:
        draft.stop_finished(StageName.ANNOTATE)
        return False
    match locate_stage(draft, StageName.ANNOTATE, captions.attempt, captions.job_name):
        case None:
            wait_for_previous_pod(draft, StageName.ANNOTATE, Phase.ANNOTATING, Reason.ANNOTATING)
            return True
        case Start() as start:
            return _start(draft, captions, start)
        case GiveUp(child, state):
            charged = charge(draft, captions, child, state)
            if charged is not None:
                draft.actions.append(DeleteChildJob(child.name, child.uid))
                draft.write(captions=charged.model_copy(update={"job_name": ""}))
                message = f"{state.message}; {previous_pod(draft, StageName.ANNOTATE)}"
                draft.set_phase(Phase.ANNOTATING, Reason.ANNOTATING, message)
            return True
        case (child, state):
            return _update_from_child(draft, captions, child, state)


def _update_from_child(draft: StatusDraft, captions: CaptionsStatus, child: Child, state: StageState) -> bool:
    """Update the status from the state of the child Job. Returns False when the captions are ready."""
    charged = charge_replaced(draft, captions, child)
    if charged is None:
        return True
    known = {"attempt": child.attempt, "job_name": child.name, "job_uid": child.uid}
    captions = charged.model_copy(update=known | count_disruptions(charged, child, None))
    draft.write(captions=captions)
    match state:
        case Broken(reason, message, dataset):
            draft.write(dataset=dataset)
            draft.set_condition(ConditionType.CAPTIONS_READY, "False", reason, message)
            draft.fail(reason, message)
            return True
        case Done(result):
            return _finish(draft, result)
        case _ if enforce_disruption_limit(draft, child, captions):
            return True
        case Running(pod):
            _write_progress(draft)
            problem, message = describe_running(child.attempt, pod)
            draft.set_phase(Phase.ANNOTATING, *((problem, message) if problem else IN_PROGRESS))
            draft.requeue_at(state.check_at)
            return True
        case Starting():
            return report_starting(draft, child, state, Phase.ANNOTATING, IN_PROGRESS)
    raise AssertionError(state)


def _start(draft: StatusDraft, captions: CaptionsStatus, start: Start) -> bool:
    """Start an attempt, unless something prevents it. Always returns True: there are no captions yet."""
    if draft.record_blockers(Phase.ANNOTATING if captions.attempt else Phase.PENDING, start.attempt):
        return True
    if start.after is not None:
        charged = charge(draft, captions, draft.snapshot.child(StageName.ANNOTATE), start.after)
        if charged is None:
            return True
        captions = charged
    name = child_name(draft.snapshot.name, draft.snapshot.uid, StageName.ANNOTATE, start.attempt)
    draft.actions.append(StartAnnotation(start.attempt))
    draft.write(
        captions=captions.model_copy(
            update={
                "attempt": start.attempt,
                "job_name": name,
                "job_uid": "",
                "disruptions": 0,
                "started": False,
            }
        )
    )
    draft.set_phase(Phase.ANNOTATING, *IN_PROGRESS)
    draft.requeue_after_start()
    return True


def _write_progress(draft: StatusDraft) -> None:
    """Write the progress of the running pod."""
    progress, captions = draft.snapshot.progress, draft.status.captions
    if progress is not None and captions is not None:
        # a new pod counts from the start again, over captions that an earlier one has stored
        counts = {
            "done": max(progress.step, captions.done),
            "total": progress.total_steps,
            "started": True,
        }
        if progress.step > captions.done:
            counts["disruptions_in_a_row"] = 0
        draft.write(progress=progress, captions=captions.model_copy(update=counts))


def _finish(draft: StatusDraft, result: StageResult) -> bool:
    """Write the stage's result to the status. Returns True when the job ends with it."""
    if foreign := find_foreign(draft.snapshot, result):
        draft.fail(
            Reason.RESULT_REFUSED, f"the annotation stage reported a result that is not this job's: {foreign}"
        )
        return True
    captions = draft.status.captions or CaptionsStatus()
    if result.captions is not None:
        update = {
            "key": result.captions.key,
            "sha256": result.captions.sha256,
            "dataset_sha256": result.captions.dataset_sha256,
            "total": result.captions.total,
            "done": result.captions.total,
            "usage": result.captions.usage,
        }
        captions = captions.model_copy(update=update)
    draft.write(dataset=result.dataset, input_hash=result.input_hash, captions=captions, progress=None)
    if result.outcome == Outcome.REUSED and result.adapter is not None:
        draft.set_condition(ConditionType.CAPTIONS_READY, "True", Reason.CAPTIONED)
        draft.write(adapter=result.adapter, previews=result.previews)
        draft.succeed(Reason.REUSED, f"nothing has changed since {result.adapter.uri} was trained")
        return True
    if result.captions is None:
        draft.fail(Reason.INTERNAL_ERROR, "the annotation stage ended without captions")
        return True
    write_effective(draft)
    draft.set_condition(ConditionType.CAPTIONS_READY, "True", Reason.CAPTIONED, f"{captions.total} captions")
    draft.stop_finished(StageName.ANNOTATE)
    return False


def await_approval(draft: StatusDraft) -> bool:
    """Wait until a reviewer sets `annotation.approvedCaptions`, if `annotation.approval` is Required."""
    annotation, captions = draft.spec.annotation, draft.status.captions
    if annotation.approval != Approval.REQUIRED or annotation.approved_captions:
        return False
    assert captions is not None
    draft.set_phase(
        Phase.AWAITING_APPROVAL,
        Reason.AWAITING_APPROVAL,
        f"review {captions.key} and set spec.annotation.approvedCaptions to sha256:{captions.sha256}",
    )
    return True

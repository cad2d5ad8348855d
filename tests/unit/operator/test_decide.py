"""Tests of every phase change and every failure that `decide` handles, mostly as tables.

They are one module because `decide` is one function: its cases are complete only if they are read together.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from lora_api.reasons import Reason
from lora_api.stages import StageName
from lora_api.status import (
    MAX_ATTEMPT,
    CaptionsStatus,
    DatasetStatus,
    JobStatus,
    Phase,
    Progress,
    SkippedImage,
    TrainingStatus,
)
from lora_operator.decide import DeleteChildJob, DeleteResource, StartAnnotation, StartTraining, decide
from lora_operator.decide.admission import PROFILE_GRACE
from lora_operator.decide.status_draft import RECHECK
from lora_operator.names import child_name
from lora_operator.snapshot import Hint, Pod, Refusal, Snapshot
from tests.support.builders import (
    ADAPTER,
    CAPTIONED,
    CAPTIONS_SHA,
    HASH,
    NOW,
    PROFILE,
    REUSED,
    TRAINED,
    annotated,
    child,
    condition,
    failed,
    message,
    pod,
    seconds,
    snapshot,
    training,
)

ANNOTATE, TRAIN = StageName.ANNOTATE, StageName.TRAIN


def test_a_new_job_is_accepted_and_its_annotation_starts() -> None:
    decision = decide(snapshot(), NOW)
    assert decision.actions == (StartAnnotation(1),)
    assert decision.status.phase == Phase.ANNOTATING
    assert condition(decision, "Accepted") == ("True", "Valid")
    assert condition(decision, "Succeeded") == ("Unknown", "Annotating")
    assert condition(decision, "Finished") == ("False", "Annotating")
    assert decision.status.start_time == NOW
    assert decision.status.effective is not None
    assert decision.status.effective["training"]["learningRate"] == "0.0001"
    assert decision.announcements == (), "its status tells that, and an Event is a write"


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ({}, "Auto"),
        ({"resources": {"train": {"gpus": 0}}, "training": {"mixedPrecision": "bf16"}}, "Never"),
        ({"training": {"textEncoder": {"train": True}}}, "Never"),
        ({"training": {"tokenEmbeddings": {"train": True}}}, "Never"),
        ({"training": {"adapter": {"rankDropout": "0.1"}}}, "Never"),
        ({"training": {"compile": "Always"}}, "Always"),
    ],
)
def test_the_status_says_where_no_step_is_a_cuda_graph(spec: dict[str, Any], expected: str) -> None:
    status = decide(snapshot(spec=spec), NOW).status
    assert status.effective is not None
    assert status.effective["training"]["compile"] == expected


REFUSED = [
    ("no profile", {"profile": None}, Reason.PROFILE_NOT_FOUND),
    ("a namespace the profile does not allow", {"namespace": "elsewhere"}, Reason.PROFILE_NOT_FOUND),
    ("an unknown base model", {"spec": {"baseModel": "nope"}}, Reason.MODEL_NOT_ALLOWED),
    ("an LLM not allowed", {"spec": {"annotation": {"model": "gpt-9"}}}, Reason.MODEL_NOT_ALLOWED),
    (
        "a limit without a price",
        {
            "spec": {"annotation": {"limits": {"maxCostUSD": "1"}}},
            "profile": PROFILE.model_copy(update={"llm": PROFILE.llm.model_copy(update={"prices": {}})}),
        },
        Reason.CONFIGURATION_INVALID,
    ),
    ("no LLM", {"profile": PROFILE.model_copy(update={"llm": None})}, Reason.MODEL_NOT_ALLOWED),
    ("no segmentation model", {"spec": {"annotation": {"masks": "Model"}}}, Reason.MODEL_NOT_ALLOWED),
]


@pytest.mark.parametrize(("fields", "reason"), [r[1:] for r in REFUSED], ids=[r[0] for r in REFUSED])
def test_what_is_not_accepted_ends_and_starts_nothing(fields: dict, reason: Reason) -> None:
    decision = decide(snapshot(**fields), NOW)
    assert decision.actions == ()
    if reason is not Reason.CONFIGURATION_INVALID:
        # its profile may have been applied together with it
        assert decision.status.phase == Phase.PENDING
        assert condition(decision, "Accepted") == ("Unknown", reason)
        assert condition(decision, "Succeeded") == ("Unknown", reason)
        due = NOW + PROFILE_GRACE
        assert decision.requeue_at is not None
        assert decision.requeue_at <= due
        decision = decide(replace(snapshot(**fields), status=decision.status), due)
        assert decision.actions == ()
    assert decision.status.phase == Phase.FAILED
    assert condition(decision, "Accepted") == ("False", reason)
    assert condition(decision, "Succeeded") == ("False", reason)
    assert condition(decision, "Finished") == ("True", reason)
    assert condition(decision, "Stalled") == ("True", reason)
    assert decision.announcements[0].warning


def test_a_job_that_is_applied_before_its_profile_starts_with_it() -> None:
    waiting = decide(snapshot(profile=None), NOW)
    assert waiting.requeue_at is not None
    assert waiting.requeue_at <= NOW + seconds(5), "no watch reports the profile"
    decision = decide(snapshot(status=waiting.status), NOW + seconds(90))
    assert decision.actions == (StartAnnotation(1),)
    assert condition(decision, "Accepted") == ("True", "Valid")


def test_a_suspended_job_without_its_profile_is_not_polled_and_waits_for_it_once_resumed() -> None:
    case = suspended(snapshot(profile=None))
    decision = decide(case, NOW)
    later = NOW + seconds(3600)
    decision = decide(replace(case, status=decision.status), later)
    assert (decision.status.phase, condition(decision, "Accepted")) == (
        Phase.SUSPENDED,
        ("Unknown", "ProfileNotFound"),
    )
    assert decision.requeue_at == later + RECHECK
    resumed = decide(snapshot(profile=None, status=decision.status), later)
    assert resumed.status.phase == Phase.PENDING
    end = decide(snapshot(profile=None, status=resumed.status), later + PROFILE_GRACE)
    assert condition(end, "Succeeded") == ("False", "ProfileNotFound")


def test_a_spec_or_a_status_that_cannot_be_read_is_named() -> None:
    unreadable = replace(snapshot(), spec=None, spec_error="spec.training.rank: must be a number")
    assert condition(decide(unreadable, NOW), "Succeeded") == ("False", "SpecInvalid")
    mangled = snapshot(status_error="status.phase: nonsense")
    decision = decide(mangled, NOW)
    assert condition(decision, "Succeeded") == ("False", "StatusInvalid")
    assert "nonsense" in decision.status.conditions[1].message


def test_a_profile_that_goes_away_later_stops_no_job_that_runs() -> None:
    running = snapshot(status=training(), children=(child(TRAIN, pod()),), profile=None)
    assert decide(running, NOW).status.phase == Phase.TRAINING
    waiting = decide(snapshot(status=annotated(), profile=None), NOW)
    assert waiting.actions == ()
    assert waiting.status.phase == Phase.QUEUED
    assert condition(waiting, "Succeeded") == ("Unknown", "ProfileNotFound")
    assert waiting.requeue_at is not None


def test_captions_lead_to_training() -> None:
    done = child(ANNOTATE, pod("Succeeded", CAPTIONED), complete=True)
    decision = decide(snapshot(status=decide(snapshot(), NOW).status, children=(done,)), NOW)
    assert decision.actions == (StartTraining(1, CAPTIONS_SHA, HASH),)
    assert decision.status.phase == Phase.QUEUED
    assert condition(decision, "CaptionsReady") == ("True", "Captioned")
    assert decision.status.captions is not None
    assert (decision.status.captions.done, decision.status.captions.total) == (6, 6)
    assert decision.status.input_hash == HASH
    assert decision.status.training is not None
    assert decision.status.training.job_name == child_name("statue", snapshot().uid, TRAIN, 1)


def test_an_adapter_that_is_there_already_ends_the_job_without_a_gpu() -> None:
    done = child(ANNOTATE, pod("Succeeded", REUSED), complete=True)
    decision = decide(snapshot(children=(done,)), NOW)
    assert decision.actions == ()
    assert decision.status.phase == Phase.SUCCEEDED
    assert condition(decision, "Succeeded") == ("True", "Reused")
    assert decision.status.adapter == ADAPTER


APPROVED = "f" * 64


def test_approval_holds_the_job_until_captions_are_named() -> None:
    done = child(ANNOTATE, pod("Succeeded", CAPTIONED), complete=True)
    spec = {"annotation": {"approval": "Required"}}
    held = decide(snapshot(spec=spec, children=(done,)), NOW)
    assert held.actions == ()
    assert held.status.phase == Phase.AWAITING_APPROVAL
    assert CAPTIONS_SHA in held.announcements[0].message
    spec = {"annotation": {"approval": "Required", "approvedCaptions": f"sha256:{APPROVED}"}}
    (start,) = decide(snapshot(spec=spec, status=held.status, children=(done,)), NOW).actions
    assert isinstance(start, StartTraining)
    assert start.captions_sha256 == APPROVED
    assert start.input_hash not in ("", HASH)


RECIPE = {"training": {"recipe": "Auto", "rank": 8}}


def test_a_recipe_gets_its_values_when_the_images_are_captioned() -> None:
    first = decide(snapshot(spec=RECIPE), NOW).status
    assert first.effective is not None
    assert "maxSteps" not in first.effective["training"]
    # The total in the status is progress until the stage has ended.
    captions = CaptionsStatus(attempt=1, job_name="a", done=3, total=9)
    busy = decide(snapshot(spec=RECIPE, status=first.model_copy(update={"captions": captions})), NOW).status
    assert busy.effective == first.effective
    done = child(ANNOTATE, pod("Succeeded", CAPTIONED), complete=True)
    decision = decide(snapshot(spec=RECIPE, status=first, children=(done,)), NOW)
    assert decision.actions == (StartTraining(1, CAPTIONS_SHA, HASH, 6),)
    assert decision.status.effective is not None
    settings = decision.status.effective["training"]
    assert (settings["recipe"], settings["maxSteps"], settings["rank"]) == ("Subject", 600, 8)


def test_a_review_does_not_change_the_values_of_a_recipe_which_are_in_the_input_hash() -> None:
    def start(recipe: str, total: int) -> StartTraining:
        annotation = {"approval": "Required", "approvedCaptions": APPROVED}
        spec = {"annotation": annotation, "training": {"recipe": recipe}}
        status = annotated(spec=spec)
        assert status.captions is not None
        captions = status.captions.model_copy(update={"total": total})
        (action,) = decide(
            snapshot(spec=spec, status=status.model_copy(update={"captions": captions})), NOW
        ).actions
        assert isinstance(action, StartTraining)
        return action

    assert start("Auto", 6) == start("Subject", 6)
    assert start("Auto", 6).images == 6
    assert len({start(recipe, 8).input_hash for recipe in ("Subject", "Person", "Style", "None")}) == 4
    assert start("Auto", 6).input_hash != start("Auto", 8).input_hash
    assert start("None", 6) == start("None", 8)


WAITS = [
    ("nothing known", {}, None, Reason.QUEUED),
    ("pull", {"waiting": ("ImagePullBackOff", "no such image")}, None, Reason.IMAGE_PULL_FAILED),
    ("bad name", {"waiting": ("InvalidImageName", "x")}, None, Reason.IMAGE_PULL_FAILED),
    (
        "secret",
        {"waiting": ("CreateContainerConfigError", 'secret "x" not found')},
        None,
        Reason.SECRET_NOT_FOUND,
    ),
    (
        "slow node",
        {"waiting": ("CreateContainerError", "context deadline exceeded")},
        None,
        Reason.QUEUED,
    ),
    ("no node", {"unschedulable": "0/3 nodes have nvidia.com/gpu"}, None, Reason.UNSCHEDULABLE),
    ("mount", {}, Hint(Reason.SECRET_NOT_FOUND, "secret not found"), Reason.SECRET_NOT_FOUND),
    ("quota", {}, Hint(Reason.QUOTA_EXCEEDED, "exceeded quota"), Reason.QUOTA_EXCEEDED),
]


@pytest.mark.parametrize(("fields", "hint", "reason"), [w[1:] for w in WAITS], ids=[w[0] for w in WAITS])
def test_a_waiting_user_sees_why(fields: dict, hint: Hint | None, reason: Reason) -> None:
    job = child(TRAIN, pod("Pending", **fields))
    decision = decide(snapshot(status=training(), children=(job,), hint=hint), NOW)
    assert decision.actions == ()
    assert decision.status.phase == Phase.QUEUED
    assert condition(decision, "Succeeded") == ("Unknown", reason)
    assert decision.requeue_at is not None


def test_a_start_deadline_ends_the_wait_but_not_a_stage_that_ran() -> None:
    spec = {"runPolicy": {"startDeadlineSeconds": 60}}
    waiting = child(TRAIN, pod("Pending", unschedulable="no GPU"))
    case = snapshot(spec=spec, status=training(), children=(waiting,))
    assert decide(case, NOW + seconds(59)).status.phase == Phase.QUEUED
    late = decide(case, NOW + seconds(60))
    assert condition(late, "Succeeded") == ("False", "StartDeadlineExceeded")
    assert late.actions == (DeleteChildJob(waiting.name, waiting.uid),)
    again = child(TRAIN, pod("Failed", exit_code=70), pod("Pending"))
    assert decide(replace(case, children=(again,)), NOW + seconds(600)).status.phase == Phase.QUEUED


DEADLINE = {"runPolicy": {"startDeadlineSeconds": 60}}
REVIEWED = {"annotation": {"mode": "Template", "approval": "Required", "approvedCaptions": CAPTIONS_SHA}}


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"spec": {"runPolicy": {"suspend": True}}}, {}),
        (
            {"spec": {"annotation": {"mode": "Template", "approval": "Required"}}, "status": annotated()},
            REVIEWED,
        ),
        ({"status": annotated(), "profile": None}, {}),
        ({"status": training(), "children": (child(TRAIN, pod()),)}, {}),
    ],
    ids=["suspended", "awaiting approval", "without its profile", "training"],
)
@pytest.mark.parametrize(
    "blocker",
    [{"capacity": "full"}, {"refusal": Refusal(Reason.QUOTA_EXCEEDED, "exceeded quota", final=False)}],
)
def test_the_start_deadline_counts_only_the_wait_for_the_start(
    before: dict[str, Any], after: dict[str, Any], blocker: dict[str, Any]
) -> None:
    status = decide(snapshot(**before), NOW).status
    late = NOW + seconds(7200)
    case = snapshot(spec=DEADLINE | after, status=status, **blocker)
    first = decide(case, late)
    assert first.status.phase in (Phase.PENDING, Phase.QUEUED)
    assert first.status.waiting_since == late
    waiting = replace(case, status=first.status)
    assert decide(waiting, late + seconds(59)).status == first.status, "waiting costs no write"
    end = decide(waiting, late + seconds(60))
    assert condition(end, "Succeeded") == ("False", "StartDeadlineExceeded")
    # a clock that was set back does not prolong it
    assert decide(waiting, NOW).status.waiting_since == NOW
    # a job that may start is not waiting any more
    started = decide(replace(waiting, capacity="", refusal=None), late + seconds(30))
    assert started.actions
    assert started.status.waiting_since is None


def test_progress_is_shown_while_a_stage_runs() -> None:
    report = Progress(step=320, total_steps=500, display="320/500", loss="0.083")
    decision = decide(
        snapshot(status=training(), children=(child(TRAIN, pod(node="gpu-1")),), progress=report), NOW
    )
    assert decision.status.phase == Phase.TRAINING
    assert decision.status.progress == report
    assert "gpu-1" in message(decision)
    decision = decide(
        snapshot(children=(child(ANNOTATE, pod()),), progress=Progress(step=3, total_steps=12)), NOW
    )
    assert decision.status.captions is not None
    assert (decision.status.captions.done, decision.status.captions.total) == (3, 12)


def test_only_what_a_person_may_act_on_is_an_event() -> None:
    case = snapshot(status=training(), children=(child(TRAIN, pod()),))
    running = decide(case, NOW)
    report = Progress(step=1, total_steps=2)
    assert running.announcements == ()
    assert decide(replace(case, status=running.status, progress=report), NOW).announcements == ()
    done = child(TRAIN, pod("Succeeded", TRAINED), complete=True)
    assert [a.reason for a in decide(replace(case, children=(done,)), NOW).announcements] == [Reason.TRAINED]
    waiting = decide(replace(case, children=(child(TRAIN, pod("Pending", unschedulable="0/3 nodes")),)), NOW)
    assert [(a.reason, a.warning) for a in waiting.announcements] == [(Reason.UNSCHEDULABLE, True)]


def test_a_verified_adapter_ends_the_job() -> None:
    job = child(TRAIN, pod("Succeeded", TRAINED), complete=True)
    decision = decide(snapshot(status=training(), children=(job,)), NOW)
    assert decision.status.phase == Phase.SUCCEEDED
    assert condition(decision, "Succeeded") == ("True", "Trained")
    assert condition(decision, "Finished") == ("True", "Trained")
    assert decision.status.adapter == ADAPTER
    assert decision.status.finish_time == NOW
    assert decision.status.progress is not None
    assert decision.status.progress.display == "500/500"
    assert decision.status.training is not None
    assert decision.status.training.gpu_seconds == 60


def test_success_needs_a_manifest() -> None:
    claims = TRAINED.model_copy(update={"adapter": None})
    job = child(TRAIN, pod("Succeeded", claims), complete=True)
    decision = decide(snapshot(status=training(), children=(job,)), NOW)
    assert condition(decision, "Succeeded") == ("False", "InternalError")
    assert decision.status.adapter is None


FAILURES = [
    ("its own words", {"result": failed(Reason.DATASET_INVALID), "exit_code": 65}, Reason.DATASET_INVALID),
    ("diverged", {"result": failed(Reason.DIVERGED), "exit_code": 65}, Reason.DIVERGED),
    ("disk full", {"result": failed(Reason.DISK_FULL), "exit_code": 78}, Reason.DISK_FULL),
    (
        "credentials",
        {"result": failed(Reason.CREDENTIALS_REFUSED), "exit_code": 77},
        Reason.CREDENTIALS_REFUSED,
    ),
    ("store away", {"result": failed(Reason.STORE_UNAVAILABLE), "exit_code": 69}, Reason.STORE_UNAVAILABLE),
    ("out of memory", {"exit_code": 137, "oom_killed": True}, Reason.OUT_OF_MEMORY),
    ("preempted", {"exit_code": 143, "disrupted": "PreemptionByScheduler"}, Reason.PREEMPTED),
    ("node lost", {"exit_code": 137, "disrupted": "DeletionByTaintManager"}, Reason.NODE_LOST),
    ("silent 64", {"exit_code": 64}, Reason.CONFIGURATION_INVALID),
    ("silent 66", {"exit_code": 66}, Reason.DATASET_INVALID),
    ("silent 77", {"exit_code": 77}, Reason.CREDENTIALS_REFUSED),
    ("silent 1", {"exit_code": 1}, Reason.BACKOFF_LIMIT_EXCEEDED),
    ("garbage", {"exit_code": 70, "message": "{not json"}, Reason.BACKOFF_LIMIT_EXCEEDED),
]


@pytest.mark.parametrize("stage", list(StageName))
@pytest.mark.parametrize(("fields", "reason"), [f[1:] for f in FAILURES], ids=[f[0] for f in FAILURES])
def test_a_failed_step_fails_the_job_with_its_reason(stage: StageName, fields: dict, reason: Reason) -> None:
    job = child(stage, pod("Failed", **fields), failed="BackoffLimitExceeded")
    status = training() if stage == TRAIN else JobStatus()
    decision = decide(snapshot(status=status, children=(job,)), NOW)
    assert decision.status.phase == Phase.FAILED
    assert condition(decision, "Succeeded") == ("False", reason)
    assert decision.actions == ()
    if stage == TRAIN:
        assert decision.status.training is not None
        assert decision.status.training.last_failure is not None
        assert decision.status.training.last_failure.reason == reason


def test_the_images_that_fail_a_job_are_named_in_its_status() -> None:
    bad = DatasetStatus(images=0, skipped=[SkippedImage(key="p/a.jpg", reason="truncated")])
    result = failed(Reason.DATASET_INVALID).model_copy(update={"dataset": bad})
    job = child(ANNOTATE, pod("Failed", result, exit_code=65), failed="PodFailurePolicy")
    assert decide(snapshot(children=(job,)), NOW).status.dataset == bad


def test_a_failed_job_without_pods_has_a_message() -> None:
    job = child(TRAIN, failed="BackoffLimitExceeded", failed_message="Job has reached its limit")
    decision = decide(snapshot(status=training(), children=(job,)), NOW)
    assert condition(decision, "Succeeded") == ("False", "BackoffLimitExceeded")
    late = child(TRAIN, failed="DeadlineExceeded", failed_message="too long")
    assert condition(decide(snapshot(status=training(), children=(late,)), NOW), "Succeeded") == (
        "False",
        "DeadlineExceeded",
    )


def test_disruptions_are_counted_and_a_retry_is_not_a_failure() -> None:
    evicted = pod("Failed", exit_code=143, disrupted="EvictionByEvictionAPI", node="gpu-1")
    saved = pod("Failed", failed(Reason.INTERRUPTED), exit_code=75)
    job = child(TRAIN, evicted, saved, pod())
    decision = decide(snapshot(status=training(), children=(job,)), NOW)
    assert decision.status.phase == Phase.TRAINING
    assert decision.status.training is not None
    assert decision.status.training.disruptions == 2


def test_a_result_is_taken_as_soon_as_its_pod_has_ended() -> None:
    job = child(TRAIN, pod("Succeeded", TRAINED))
    decision = decide(snapshot(status=training(), children=(job,)), NOW)
    assert decision.status.phase == Phase.SUCCEEDED
    assert decision.actions == (), "its child Job completes by itself"


def test_a_pod_that_has_just_ended_without_a_result_does_not_send_the_job_back_to_the_queue() -> None:
    job = child(TRAIN, pod("Succeeded"))
    assert decide(snapshot(status=training(), children=(job,)), NOW).status.phase == Phase.TRAINING


def test_between_two_tries_the_first_one_is_explained() -> None:
    job = child(TRAIN, pod("Failed", failed(Reason.STORE_UNAVAILABLE, "no route"), exit_code=69))
    decision = decide(snapshot(status=training(), children=(job,)), NOW)
    assert decision.status.phase == Phase.QUEUED
    assert "StoreUnavailable: no route" in decision.status.conditions[-2].message


@pytest.mark.parametrize(
    "pods",
    [
        (),
        (pod("Succeeded"),),
        (pod("Succeeded", message="no result"),),
        (pod("Succeeded", failed(Reason.INTERRUPTED)),),
    ],
    ids=["no pod", "no words", "not ours", "not those of an end"],
)
def test_last_words_that_are_lost_mean_once_more(pods: tuple[Pod, ...]) -> None:
    gone = child(TRAIN, *pods, complete=True)
    decision = decide(snapshot(status=training(), children=(gone,)), NOW)
    assert decision.actions == (StartTraining(2, CAPTIONS_SHA, HASH),)


def test_a_job_that_somebody_deleted_is_made_again_under_its_own_name() -> None:
    decision = decide(snapshot(status=training()), NOW)
    assert decision.actions == (StartTraining(1, CAPTIONS_SHA, HASH),)


NOT_YET = [
    ("the Job is being deleted", {"children": (child(TRAIN, pod(), deleting=True),)}),
    ("its pod outlives it", {"orphaned_pods": {TRAIN: "train-1"}}),
]


@pytest.mark.parametrize("fields", [n[1] for n in NOT_YET], ids=[n[0] for n in NOT_YET])
def test_no_second_pod_starts_beside_the_first(fields: dict) -> None:
    decision = decide(snapshot(status=training(), **fields), NOW)
    assert decision.actions == ()
    assert decision.status.phase == Phase.QUEUED


def test_no_attempt_follows_the_highest_number() -> None:
    last = annotated(training=TrainingStatus(attempt=MAX_ATTEMPT))
    decision = decide(snapshot(status=last), NOW)
    assert decision.actions == ()
    assert condition(decision, "Succeeded") == ("False", Reason.STATUS_INVALID)


@pytest.mark.parametrize("suspend", [False, True])
def test_a_finalizer_that_keeps_a_child_job_is_named(suspend: bool) -> None:
    held = child(TRAIN, pod(phase="Failed"), deleting=True, finalizers=("audit.example.com/keep",))
    case = snapshot(status=training(), children=(held,))
    decision = decide(suspended(case) if suspend else case, NOW)
    assert decision.actions == ()
    expected = f"waiting for Job {held.name} to be deleted, which has the finalizer audit.example.com/keep"
    assert message(decision) == expected


def suspended(case: Snapshot) -> Snapshot:
    assert case.spec is not None
    policy = case.spec.run_policy.model_copy(update={"suspend": True})
    return replace(case, spec=case.spec.model_copy(update={"run_policy": policy}))


def test_suspend_stops_the_stage_and_resume_is_a_new_attempt() -> None:
    job = child(TRAIN, pod())
    stopping = decide(suspended(snapshot(status=training(), children=(job,))), NOW)
    assert stopping.actions == (DeleteChildJob(job.name, job.uid),)
    assert stopping.status.phase == Phase.SUSPENDED
    assert condition(stopping, "Suspended") == ("True", "Suspended")
    assert stopping.status.training is not None
    assert stopping.status.training.job_name == job.name
    stopped = decide(suspended(snapshot(status=stopping.status)), NOW)
    assert stopped.status.training is not None
    assert stopped.status.training.job_name == ""
    later = NOW + seconds(100)
    resumed = decide(snapshot(status=stopped.status), later)
    assert resumed.actions == (StartTraining(2, CAPTIONS_SHA, HASH),)
    assert condition(resumed, "Suspended") is None
    assert resumed.status.start_time == later


def test_gpu_seconds_are_of_all_attempts() -> None:
    job, later = child(TRAIN, pod()), NOW + seconds(40)
    running = decide(snapshot(status=training(), children=(job,)), later)
    assert running.status.training is not None
    assert running.status.training.gpu_seconds is None, "no write without news"
    stopping = decide(suspended(snapshot(status=running.status, children=(job,))), later)
    assert stopping.status.training is not None
    assert stopping.status.training.gpu_seconds == 40
    stopped = decide(suspended(snapshot(status=stopping.status)), later)
    resumed = decide(snapshot(status=stopped.status), later)
    again = child(TRAIN, pod(started_at=later), attempt=2)
    report = Progress(step=1, total_steps=2)
    case = snapshot(status=resumed.status, children=(again,), progress=report)
    reported = decide(case, later + seconds(7))
    assert reported.status.training is not None
    assert reported.status.training.gpu_seconds == 47
    same = decide(replace(case, status=reported.status), later + seconds(9))
    assert same.status == reported.status, "no write without news"


def test_suspend_does_not_undo_what_is_done() -> None:
    job = child(TRAIN, pod("Succeeded", TRAINED), complete=True)
    decision = decide(suspended(snapshot(status=training(), children=(job,))), NOW)
    assert decision.status.phase == Phase.SUCCEEDED


def test_suspend_before_the_start_starts_nothing() -> None:
    case = suspended(snapshot(spec={"runPolicy": {"activeDeadlineSeconds": 60}}))
    decision = decide(case, NOW)
    assert decision.actions == ()
    assert decision.status.phase == Phase.SUSPENDED
    assert decision.status.start_time is None
    # the deadline counts from its start, and not from its creation
    later = decide(replace(case, status=decision.status), NOW + seconds(100))
    assert later.status.phase == Phase.SUSPENDED
    resumed = snapshot(spec={"runPolicy": {"activeDeadlineSeconds": 60}}, status=later.status)
    assert decide(resumed, NOW + seconds(200)).actions == (StartAnnotation(1),)


def test_an_event_from_before_the_last_failure_does_not_explain_the_wait() -> None:
    job = child(TRAIN, pod("Failed", failed(Reason.STORE_UNAVAILABLE, "the store"), exit_code=69))
    for age, reason in ((60, "Queued"), (-1, "QuotaExceeded")):
        hint = Hint(Reason.QUOTA_EXCEEDED, "exceeded quota", NOW - seconds(age))
        decision = decide(snapshot(status=training(), children=(job,), hint=hint), NOW + seconds(5))
        assert condition(decision, "Succeeded") == ("Unknown", reason)
        assert ("retrying after StoreUnavailable" in message(decision)) is (reason == "Queued")


def test_the_active_deadline_stops_everything() -> None:
    spec = {"runPolicy": {"activeDeadlineSeconds": 100}}
    job = child(TRAIN, pod())
    case = snapshot(spec=spec, status=training(), children=(job,))
    early = decide(case, NOW + seconds(99))
    assert early.requeue_at == NOW + seconds(100)
    late = decide(case, NOW + seconds(100))
    assert late.actions == (DeleteChildJob(job.name, job.uid),)
    assert condition(late, "Succeeded") == ("False", "DeadlineExceeded")


def test_the_active_deadline_does_not_undo_what_is_done() -> None:
    job = child(TRAIN, pod("Succeeded", TRAINED), complete=True)
    spec = {"runPolicy": {"activeDeadlineSeconds": 100}}
    decision = decide(snapshot(spec=spec, status=training(), children=(job,)), NOW + seconds(200))
    assert decision.status.phase == Phase.SUCCEEDED


def test_a_stranger_with_our_name_is_a_conflict() -> None:
    decision = decide(snapshot(refusal=Refusal(Reason.NAME_CONFLICT, "it is taken", final=True)), NOW)
    assert condition(decision, "Succeeded") == ("False", "NameConflict")
    assert decision.actions == ()


@pytest.mark.parametrize(
    ("status", "phase"), [(JobStatus(start_time=NOW), Phase.PENDING), (annotated(), Phase.QUEUED)]
)
def test_a_quota_that_refuses_the_job_is_reported_and_waited_for(status: JobStatus, phase: Phase) -> None:
    refusal = Refusal(Reason.QUOTA_EXCEEDED, "exceeded quota: jobs", final=False)
    case = snapshot(status=status, refusal=refusal, spec={"runPolicy": {"startDeadlineSeconds": 60}})
    decision = decide(case, NOW + seconds(10))
    assert (decision.status.phase, decision.actions) == (phase, ())
    assert condition(decision, "Succeeded") == ("Unknown", "QuotaExceeded")
    assert decision.requeue_at == NOW + seconds(20)
    late = decide(case, NOW + seconds(60))
    assert condition(late, "Succeeded") == ("False", "StartDeadlineExceeded")


def test_a_stage_that_starts_again_and_is_refused_goes_back_to_no_earlier_phase() -> None:
    refusal = Refusal(Reason.QUOTA_EXCEEDED, "exceeded quota: jobs", final=False)
    captions = CaptionsStatus(attempt=1, job_name=child(ANNOTATE).name)
    status = JobStatus(phase=Phase.ANNOTATING, start_time=NOW, captions=captions)
    assert decide(snapshot(status=status, refusal=refusal), NOW).status.phase == Phase.ANNOTATING


def test_a_child_that_is_invalid_ends_the_job() -> None:
    refusal = Refusal(Reason.CONFIGURATION_INVALID, "nodeSelector: Invalid value", final=True)
    decision = decide(snapshot(refusal=refusal), NOW)
    assert condition(decision, "Succeeded") == ("False", "ConfigurationInvalid")


@pytest.mark.parametrize("phase", [Phase.SUCCEEDED, Phase.FAILED])
def test_terminal_phases_latch(phase: Phase) -> None:
    status = training().model_copy(update={"phase": phase, "finish_time": NOW})
    decision = decide(snapshot(status=status), NOW + seconds(1_000_000))
    assert decision.actions == ()
    assert decision.status == status
    assert decision.requeue_at is None
    still_there = child(TRAIN, pod())
    stopping = decide(snapshot(status=status, children=(still_there,)), NOW)
    assert stopping.actions == (DeleteChildJob(still_there.name, still_there.uid),)


def test_a_time_to_live_removes_the_resource_when_it_is_over() -> None:
    spec = {"runPolicy": {"ttlSecondsAfterFinished": 60}}
    status = training().model_copy(update={"phase": Phase.SUCCEEDED, "finish_time": NOW})
    case = snapshot(spec=spec, status=status)
    assert decide(case, NOW).requeue_at == NOW + seconds(60)
    assert decide(case, NOW - seconds(3600)).actions == ()
    assert decide(case, NOW + seconds(60)).actions == (DeleteResource(),)


def test_deciding_twice_gives_the_same_decision() -> None:
    for case in (
        snapshot(),
        snapshot(status=training(), children=(child(TRAIN, pod()),)),
        snapshot(status=training(), children=(child(TRAIN, pod("Pending")),)),
    ):
        first = decide(case, NOW)
        second = decide(replace(case, status=first.status), NOW)
        assert second.status == first.status
        assert second.announcements == ()
        assert second.actions == first.actions

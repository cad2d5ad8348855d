"""Waiting costs a write only when its meaning changes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lora_api.reasons import Reason
from lora_api.stages import StageName
from lora_api.status import Progress
from lora_operator.decide import decide
from lora_operator.names import child_name
from lora_operator.observe import classify_refusal, observe_hint
from lora_operator.snapshot import Hint
from tests.support.builders import NOW, child, condition, message, pod, seconds, snapshot, training

TRAIN = StageName.TRAIN
PROGRESS = Progress(step=1, total_steps=10, percent=10, display="1/10", reported_at=NOW)
QUOTA = (
    'Error creating: pods "statue-train-3f9c01ab-{}" is forbidden: exceeded quota: gpus, requested: pods=1, '
    "used: pods={}, limited: pods=4"
)
LIMITS = 'Error creating: pods "statue-train-3f9c01ab-x7k2p" is forbidden: failed quota: cpu: must specify limits.cpu for: stage'


def event(note: str, second: int = 0) -> dict[str, str]:
    return {"reason": "FailedCreate", "note": note, "eventTime": f"2026-03-01T12:00:{second:02d}Z"}


def test_the_random_part_of_a_pods_name_is_no_news() -> None:
    hints = [observe_hint([event(QUOTA.format(suffix, 4))]) for suffix in ("x7k2p", "q9zzb")]
    assert hints[0] == hints[1]
    assert hints[0] is not None
    assert "exceeded quota: gpus, requested: pods=1" in hints[0].message
    assert "statue-train-3f9c01ab-*" in hints[0].message


LONG = child_name("n" * 253, "uid", TRAIN, 1)[:58]


@pytest.mark.parametrize(
    "words",
    [
        'Error creating: Pod "statue-train-3f9c01ab-{}" is invalid: spec.containers[0].resources.requests: Invalid value: "4"',
        'admission webhook "policy" denied the request: Pod/studio/statue-annotate-3f9c01ab-{}: no labels',
        f'Error creating: pods "{LONG}{{}}" is forbidden: exceeded quota: gpus',
    ],
)
def test_the_random_part_is_no_news_whoever_writes_the_name(words: str) -> None:
    hints = [observe_hint([event(words.format(suffix))]) for suffix in ("x7k2p", "q9zzb")]
    assert hints[0] == hints[1]
    assert hints[0] is not None
    assert words.split("{}")[1] in hints[0].message


def test_a_quota_that_the_pod_does_not_name_a_limit_for_is_a_quota() -> None:
    assert classify_refusal(LIMITS) == Reason.QUOTA_EXCEEDED
    hint = observe_hint([event(LIMITS)])
    assert hint is not None
    assert hint.reason == Reason.QUOTA_EXCEEDED
    assert "must specify limits.cpu" in hint.message


CPU = "exceeded quota: gpus, requested: limits.cpu=4, used: limits.cpu={}, limited: limits.cpu=8"
MESSAGES = [
    (CPU.format("7900m"), CPU.format("8"), True),
    (CPU.format("8"), CPU.format("8").replace("limits.cpu", "limits.memory"), False),
    (QUOTA.format("*", 4), QUOTA.format("*", 3), True),
    ("0/3 nodes are available: 3 Insufficient cpu.", "0/5 nodes are available: 5 Insufficient cpu.", True),
    ("0/3 nodes are available: 3 Insufficient cpu.", "0/3 nodes are available: 3 had taints.", False),
]


@pytest.mark.parametrize(("first", "second", "same"), MESSAGES)
def test_a_message_is_written_again_only_when_more_than_numbers_change(
    first: str, second: str, same: bool
) -> None:
    case = snapshot(status=training(), children=(child(TRAIN),), hint=Hint(Reason.QUOTA_EXCEEDED, first))
    before = decide(case, NOW)
    hint = Hint(Reason.QUOTA_EXCEEDED, second)
    after = decide(replace(case, status=before.status, hint=hint), NOW + seconds(40))
    assert (after.status == before.status) is same
    assert message(after) == (first if same else second)


def test_another_attempt_is_news_although_only_a_number_changes() -> None:
    running = decide(snapshot(status=training(), children=(child(TRAIN, pod()),)), NOW)
    second = snapshot(status=running.status, children=(child(TRAIN, pod(), attempt=2),))
    assert message(decide(second, NOW)) == "attempt 2"


def test_a_training_that_ends_at_once_is_never_written_as_running() -> None:
    waiting = decide(snapshot(status=training(), children=(child(TRAIN),)), NOW).status
    started = snapshot(status=waiting, children=(child(TRAIN, pod(started_at=NOW)),))
    decision = decide(started, NOW + seconds(1))
    assert decision.status == started.status
    assert decision.requeue_at == NOW + seconds(2)
    assert decide(started, NOW + seconds(2)).status.phase == "Training"
    reported = replace(started, progress=PROGRESS)
    assert decide(reported, NOW).status.phase == "Training", "its first report is news"
    lost = pod(started_at=NOW, node_not_ready=True)
    assert condition(decide(replace(started, children=(child(TRAIN, lost),)), NOW), "Succeeded") == (
        "Unknown",
        "NodeNotReady",
    )
    ahead = pod(started_at=NOW + seconds(60))
    assert decide(replace(started, children=(child(TRAIN, ahead),)), NOW).status.phase == "Training"


def test_a_limit_of_running_jobs_is_reported_and_waited_for() -> None:
    case = snapshot(capacity="profile 'default' allows 2 running jobs")
    decision = decide(case, NOW)
    assert decision.actions == ()
    assert condition(decision, "Succeeded") == ("Unknown", "Queued")
    assert "allows 2 running jobs" in message(decision)
    running = snapshot(status=training(), children=(child(TRAIN, pod()),), capacity="full")
    assert condition(decide(running, NOW), "Succeeded") == ("Unknown", "Training"), "it holds its place"


def test_the_start_deadline_of_a_stage_that_was_just_started_is_kept_to_the_second() -> None:
    decision = decide(snapshot(spec={"runPolicy": {"startDeadlineSeconds": 2}}), NOW)
    assert decision.requeue_at == NOW + seconds(2)
    later = decide(snapshot(spec={"runPolicy": {"startDeadlineSeconds": 15}}), NOW)
    assert later.requeue_at == NOW + seconds(3)
    waiting = snapshot(
        spec={"runPolicy": {"startDeadlineSeconds": 15}},
        status=later.status,
        children=(child(StageName.ANNOTATE),),
    )
    assert decide(waiting, NOW + seconds(14)).requeue_at == NOW + seconds(15)
    assert condition(decide(waiting, NOW + seconds(15)), "Succeeded") == ("False", "StartDeadlineExceeded")


@pytest.mark.parametrize("beside", ["", "istio-proxy"])
def test_each_try_to_pull_an_image_is_no_news(beside: str) -> None:
    cause = "rpc error: code = NotFound desc = failed to pull: example.com/train:1: not found"
    waits = [
        ("ErrImagePull", cause),
        ("ImagePullBackOff", f'Back-off pulling image "example.com/train:1": ErrImagePull: {cause}'),
    ]
    case = snapshot(status=training())
    for number in range(4):
        waiting = pod("Pending", waiting=waits[number % 2], waiting_container=beside)
        case = replace(case, children=(child(TRAIN, waiting),))
        decision = decide(case, NOW + seconds(30 * number))
        assert condition(decision, "Succeeded") == ("Unknown", "ImagePullFailed")
        assert message(decision).endswith(f"ErrImagePull: {cause}")
        assert number == 0 or decision.status == case.status
        case = replace(case, status=decision.status)

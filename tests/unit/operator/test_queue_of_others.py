"""A child Job that another controller keeps suspended, as Kueue does."""

from __future__ import annotations

from datetime import timedelta

from lora_api.exits import ExitCode
from lora_api.reasons import Reason
from lora_api.stages import StageName
from lora_api.status import Phase
from lora_operator.decide import Decision, decide
from tests.support.builders import NOW, child, failed, pod, seconds, snapshot, training


def decided(*pods: object, suspended: bool, **spec: object) -> Decision:
    job = child(StageName.TRAIN, *pods, suspended=suspended)  # type: ignore[arg-type]
    return decide(snapshot(spec=spec, status=training(), children=(job,)), NOW + seconds(10))


def test_a_job_waits_with_a_reason_while_its_child_is_suspended() -> None:
    decision = decided(suspended=True)
    assert decision.actions == ()
    assert decision.status.phase == Phase.QUEUED
    found = next(c for c in decision.status.conditions if c.type == "Succeeded")
    assert found.reason is Reason.QUEUED
    assert "is suspended by its queue" in found.message
    assert decided(pod(), suspended=False).status.phase == Phase.TRAINING


def test_a_training_that_its_queue_preempts_waits_again_and_is_not_charged() -> None:
    interrupted = pod("Failed", failed(Reason.INTERRUPTED), exit_code=ExitCode.INTERRUPTED)
    decision = decided(interrupted, suspended=True)
    assert decision.actions == ()
    assert decision.status.phase == Phase.QUEUED
    assert decision.status.training is not None
    assert decision.status.training.disruptions == 1
    again = decided(interrupted, pod(name="another", uid="pod-2"), suspended=False)
    assert again.status.phase == Phase.TRAINING


def test_the_time_in_the_queue_counts_for_the_start_deadline() -> None:
    job = child(StageName.TRAIN, suspended=True)
    case = snapshot(spec={"runPolicy": {"startDeadlineSeconds": 60}}, status=training(), children=(job,))
    assert decide(case, NOW + timedelta(seconds=59)).status.phase == Phase.QUEUED
    late = decide(case, NOW + timedelta(seconds=61)).status
    assert late.phase == Phase.FAILED
    assert next(c for c in late.conditions if c.type == "Succeeded").reason is Reason.START_DEADLINE_EXCEEDED

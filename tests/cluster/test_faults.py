"""A world that misbehaves: an API server that goes away, two operators at once, limits that are reached."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path

import pytest
from kubelet import End, FakeKubelet, ended, well
from plane import ControlPlane
from studio import OperatorProcess, Studio, until

from builders import REUSED
from lora_api.steps import StepName

TRAIN, ANNOTATE = StepName.TRAIN, StepName.ANNOTATE


def test_an_api_server_that_goes_away_loses_nothing(
    plane: ControlPlane, studio: Studio, operator: OperatorProcess, kubelet: FakeKubelet
) -> None:
    kubelet.script = lambda step, n: well(step, n) if step == ANNOTATE else None
    studio.create()
    studio.wait_for("Training")
    plane.stop_api_server()
    time.sleep(10)
    plane.start_api_server()
    kubelet.script = well
    studio.wait_for("Succeeded")
    assert [step for step, _ in kubelet.runs] == [ANNOTATE, TRAIN]
    studio.create("after")
    studio.wait_for("Succeeded", "after")


def test_two_operators_at_once_do_nothing_twice(
    studio: Studio, operator: OperatorProcess, kubelet: FakeKubelet
) -> None:
    second = OperatorProcess(operator.kubeconfig, operator.folder)
    second.start()
    try:
        names = [f"job-{number}" for number in range(8)]
        for name in names:
            studio.create(name)
        for name in names:
            studio.wait_for("Succeeded", name)
    finally:
        second.stop()
    assert len(kubelet.runs) == 16
    assert len(studio.jobs()) == 16
    assert max(kubelet.most_live.values()) == 1


def test_out_of_memory_is_tried_again_then_fails_with_advice(
    studio: Studio, operator: OperatorProcess, kubelet: FakeKubelet
) -> None:
    def script(step: StepName, number: int) -> End:
        return End(137, "", "OOMKilled") if step == TRAIN else well(step, number)

    kubelet.script = script
    studio.create(runPolicy={"backoffLimit": 1})
    studio.wait_for("Failed")
    assert studio.condition("Succeeded") == ("False", "OutOfMemory")
    assert "batchSize" in studio.message()
    assert [step for step, _ in kubelet.runs] == [ANNOTATE, TRAIN, TRAIN]


def test_deadlines_end_what_waits_and_what_runs(
    studio: Studio, operator: OperatorProcess, kubelet: FakeKubelet
) -> None:
    quota = {"metadata": {"name": "none"}, "spec": {"hard": {"pods": "0"}}}
    studio.core.create_namespaced_resource_quota(studio.namespace, quota)
    until(lambda: studio.core.read_namespaced_resource_quota("none", studio.namespace).status.hard)
    studio.create("waits", runPolicy={"startDeadlineSeconds": 4})
    studio.wait_for("Failed", "waits")
    assert studio.condition("Succeeded", "waits") == ("False", "StartDeadlineExceeded")
    assert "exceeded quota" in studio.message("waits")
    studio.core.delete_namespaced_resource_quota("none", studio.namespace)
    kubelet.script = lambda step, n: None
    studio.create("runs")
    until(lambda: kubelet.runs)
    studio.patch({"spec": {"runPolicy": {"activeDeadlineSeconds": 5}}}, "runs")
    studio.wait_for("Failed", "runs")
    assert studio.condition("Succeeded", "runs") == ("False", "DeadlineExceeded")
    until(lambda: not [pod for pod in studio.pods() if pod.status.phase == "Running"])


def test_approval_by_a_person(studio: Studio, operator: OperatorProcess, kubelet: FakeKubelet) -> None:
    studio.create(annotation={"mode": "Template", "approval": "Required"})
    status = studio.wait_for("AwaitingApproval")
    assert [step for step, _ in kubelet.runs] == [ANNOTATE]
    approved = f"sha256:{status['captions']['sha256']}"
    assert approved in studio.message()
    studio.patch({"spec": {"annotation": {"approvedCaptions": approved}}})
    studio.wait_for("Succeeded")


def test_finished_children_may_go_and_nothing_comes_back(
    studio: Studio, operator: OperatorProcess, kubelet: FakeKubelet
) -> None:
    studio.create(runPolicy={"childTTLSecondsAfterFinished": 1})
    studio.wait_for("Succeeded")
    until(lambda: not studio.jobs())
    operator.kill()
    operator.start()
    time.sleep(4)
    assert studio.jobs() == []
    assert len(kubelet.runs) == 2


def test_the_same_inputs_again_are_reused_and_nothing_is_overwritten(
    studio: Studio, operator: OperatorProcess, kubelet: FakeKubelet
) -> None:
    studio.create("first")
    first = studio.wait_for("Succeeded", "first")
    kubelet.script = lambda step, number: ended(REUSED)
    studio.create("second")
    second = studio.wait_for("Succeeded", "second")
    assert studio.condition("Succeeded", "second") == ("True", "Reused")
    assert [step for step, _ in kubelet.runs] == [ANNOTATE, TRAIN, ANNOTATE], "no GPU for the second"
    assert second["adapter"]["uri"]
    assert studio.status("first") == first
    configs = [
        job.spec.template.metadata.annotations["lora-training.io/step-config"] for job in studio.jobs()
    ]
    uids = {json.loads(config)["uid"] for config in configs}
    assert len(uids) == 2, "the keys of each begin with its UID"


SKEWED = str(Path(__file__).with_name("skewed_operator.py"))


@pytest.mark.parametrize("skew", [-3600, 3600])
def test_a_clock_an_hour_off_ends_nothing_early_and_counts_nothing_below_zero(
    studio: Studio, operator_files: OperatorProcess, kubelet: FakeKubelet, skew: int
) -> None:
    operator_files.start(SKEWED, str(skew))
    try:
        studio.create(runPolicy={"ttlSecondsAfterFinished": 1800, "activeDeadlineSeconds": 1800})
        status = studio.wait_for("Succeeded")
        time.sleep(2)
        assert studio.phase() == "Succeeded", "it is still there"
        assert status["training"]["gpuSeconds"] >= 0
        assert status["finishTime"] >= status["startTime"]
        assert operator_files.metric("lora_operator_step_seconds_sum") >= 0
    finally:
        operator_files.stop()


def test_an_upgraded_operator_restarts_nothing(
    studio: Studio, operator_files: OperatorProcess, kubelet: FakeKubelet
) -> None:
    """Other images, and a status in which another version has written more."""
    kubelet.script = lambda step, number: well(step, number) if step == ANNOTATE else None
    operator_files.start()
    try:
        studio.create()
        before = studio.wait_for("Training")
        operator_files.stop()
        later = replace(
            operator_files, settings={"LORA_TRAIN_IMAGE": "train:2", "LORA_ANNOTATE_IMAGE": "a:2"}
        )
        later.start()
    finally:
        operator_files.stop()
    try:
        until(lambda: later.ask("/readyz")[0] == 200)
        time.sleep(1)
        assert studio.status() == before
        kubelet.script = well
        studio.wait_for("Succeeded")
        assert [step for step, _ in kubelet.runs] == [ANNOTATE, TRAIN]
        images = {job.spec.template.spec.containers[0].image for job in studio.jobs()}
        assert images == {"annotate:test", "train:test"}
    finally:
        later.stop()


@pytest.mark.parametrize("length", [63, 253])
def test_a_name_as_long_as_names_may_be(
    studio: Studio, operator: OperatorProcess, kubelet: FakeKubelet, length: int
) -> None:
    name = "x" * length
    studio.create(name)
    studio.wait_for("Succeeded", name)
    assert len(studio.jobs()) == 2

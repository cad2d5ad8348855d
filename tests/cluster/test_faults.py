"""A world that misbehaves: an API server that goes away, two operators at once, limits that are reached."""

from __future__ import annotations

import time

from kubelet import End, FakeKubelet, well
from plane import ControlPlane
from studio import OperatorProcess, Studio, until

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
    studio.wait_for("Succeeded", seconds=120)
    assert [step for step, _ in kubelet.runs] == [ANNOTATE, TRAIN]
    studio.create("after")
    studio.wait_for("Succeeded", "after", seconds=60)


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
            studio.wait_for("Succeeded", name, seconds=60)
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
    studio.wait_for("Failed", seconds=90)
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
    until(lambda: kubelet.runs, 60)
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

"""Faults of the environment: an API server that stops, two operators at once, limits that are reached."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path

import pytest

from lora_api.stages import StageName
from tests.support.builders import REUSED
from tests.support.cluster.harness import NamespaceClient, OperatorProcess, until
from tests.support.cluster.kubelet import End, FakeKubelet, ended, succeed
from tests.support.cluster.plane import ControlPlane

TRAIN, ANNOTATE = StageName.TRAIN, StageName.ANNOTATE


def test_an_outage_of_the_api_server_loses_nothing(
    plane: ControlPlane, cluster: NamespaceClient, operator: OperatorProcess, kubelet: FakeKubelet
) -> None:
    kubelet.script = lambda stage, n: succeed(stage, n) if stage == ANNOTATE else None
    cluster.create()
    cluster.wait_for("Training")
    plane.stop_api_server()
    time.sleep(10)
    plane.start_api_server()
    kubelet.script = succeed
    cluster.wait_for("Succeeded")
    assert [stage for stage, _ in kubelet.runs] == [ANNOTATE, TRAIN]
    cluster.create("after")
    cluster.wait_for("Succeeded", "after")


def test_two_operators_at_once_do_nothing_twice(
    cluster: NamespaceClient, operator: OperatorProcess, kubelet: FakeKubelet
) -> None:
    second = OperatorProcess(operator.kubeconfig, operator.folder)
    second.start()
    try:
        names = [f"job-{number}" for number in range(8)]
        for name in names:
            cluster.create(name)
        for name in names:
            cluster.wait_for("Succeeded", name)
    finally:
        second.stop()
    assert len(kubelet.runs) == 16
    assert len(cluster.jobs()) == 16
    assert max(kubelet.most_live.values()) == 1


def test_out_of_memory_is_retried_and_then_fails_with_advice(
    cluster: NamespaceClient, operator: OperatorProcess, kubelet: FakeKubelet
) -> None:
    def script(stage: StageName, number: int) -> End:
        return End(137, "", "OOMKilled") if stage == TRAIN else succeed(stage, number)

    kubelet.script = script
    cluster.create(runPolicy={"backoffLimit": 1})
    cluster.wait_for("Failed")
    assert cluster.condition("Succeeded") == ("False", "OutOfMemory")
    assert "batchSize" in cluster.message()
    assert [stage for stage, _ in kubelet.runs] == [ANNOTATE, TRAIN, TRAIN]


def test_deadlines_end_waiting_and_running_jobs(
    cluster: NamespaceClient, operator: OperatorProcess, kubelet: FakeKubelet
) -> None:
    quota = {"metadata": {"name": "none"}, "spec": {"hard": {"pods": "0"}}}
    cluster.core.create_namespaced_resource_quota(cluster.namespace, quota)
    until(lambda: cluster.core.read_namespaced_resource_quota("none", cluster.namespace).status.hard)
    cluster.create("waits", runPolicy={"startDeadlineSeconds": 4})
    cluster.wait_for("Failed", "waits")
    assert cluster.condition("Succeeded", "waits") == ("False", "StartDeadlineExceeded")
    assert "exceeded quota" in cluster.message("waits")
    cluster.core.delete_namespaced_resource_quota("none", cluster.namespace)
    kubelet.script = lambda stage, n: None
    cluster.create("runs")
    until(lambda: kubelet.runs)
    cluster.patch({"spec": {"runPolicy": {"activeDeadlineSeconds": 5}}}, "runs")
    cluster.wait_for("Failed", "runs")
    assert cluster.condition("Succeeded", "runs") == ("False", "DeadlineExceeded")
    until(lambda: not [pod for pod in cluster.pods() if pod.status.phase == "Running"])


def test_approval_by_a_person(
    cluster: NamespaceClient, operator: OperatorProcess, kubelet: FakeKubelet
) -> None:
    cluster.create(annotation={"mode": "Template", "approval": "Required"})
    status = cluster.wait_for("AwaitingApproval")
    assert [stage for stage, _ in kubelet.runs] == [ANNOTATE]
    approved = f"sha256:{status['captions']['sha256']}"
    assert approved in cluster.message()
    cluster.patch({"spec": {"annotation": {"approvedCaptions": approved}}})
    cluster.wait_for("Succeeded")


def test_finished_children_that_are_deleted_are_not_recreated(
    cluster: NamespaceClient, operator: OperatorProcess, kubelet: FakeKubelet
) -> None:
    cluster.create(runPolicy={"childTTLSecondsAfterFinished": 1})
    cluster.wait_for("Succeeded")
    until(lambda: not cluster.jobs())
    operator.kill()
    operator.start()
    time.sleep(4)
    assert cluster.jobs() == []
    assert len(kubelet.runs) == 2


def test_the_same_inputs_again_are_reused_and_nothing_is_overwritten(
    cluster: NamespaceClient, operator: OperatorProcess, kubelet: FakeKubelet
) -> None:
    cluster.create("first")
    first = cluster.wait_for("Succeeded", "first")
    kubelet.script = lambda stage, number: ended(REUSED)
    cluster.create("second")
    second = cluster.wait_for("Succeeded", "second")
    assert cluster.condition("Succeeded", "second") == ("True", "Reused")
    assert [stage for stage, _ in kubelet.runs] == [ANNOTATE, TRAIN, ANNOTATE], "no GPU for the second"
    assert second["adapter"]["uri"]
    assert cluster.status("first") == first
    configs = [
        job.spec.template.metadata.annotations["lora-training.io/stage-config"] for job in cluster.jobs()
    ]
    uids = {json.loads(config)["uid"] for config in configs}
    assert len(uids) == 2, "the keys of each begin with its UID"


SKEWED = str(Path(__file__).parents[1] / "support" / "cluster" / "skewed_operator.py")


@pytest.mark.parametrize("skew", [-3600, 3600])
def test_a_clock_an_hour_off_ends_nothing_early_and_counts_nothing_below_zero(
    cluster: NamespaceClient, operator_files: OperatorProcess, kubelet: FakeKubelet, skew: int
) -> None:
    operator_files.start(SKEWED, str(skew))
    try:
        cluster.create(runPolicy={"ttlSecondsAfterFinished": 1800, "activeDeadlineSeconds": 1800})
        status = cluster.wait_for("Succeeded")
        time.sleep(2)
        assert cluster.phase() == "Succeeded", "it is still there"
        assert status["training"]["gpuSeconds"] >= 0
        assert status["finishTime"] >= status["startTime"]
        assert operator_files.metric("lora_operator_stage_seconds_sum") >= 0
    finally:
        operator_files.stop()


def test_an_upgraded_operator_restarts_nothing(
    cluster: NamespaceClient, operator_files: OperatorProcess, kubelet: FakeKubelet
) -> None:
    """The new operator has other images, and the status has fields of another version."""
    kubelet.script = lambda stage, number: succeed(stage, number) if stage == ANNOTATE else None
    operator_files.start()
    try:
        cluster.create()
        before = cluster.wait_for("Training")
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
        assert cluster.status() == before
        kubelet.script = succeed
        cluster.wait_for("Succeeded")
        assert [stage for stage, _ in kubelet.runs] == [ANNOTATE, TRAIN]
        images = {job.spec.template.spec.containers[0].image for job in cluster.jobs()}
        assert images == {"annotate:test", "train:test"}
    finally:
        later.stop()


@pytest.mark.parametrize("length", [63, 253])
def test_a_name_as_long_as_names_may_be(
    cluster: NamespaceClient, operator: OperatorProcess, kubelet: FakeKubelet, length: int
) -> None:
    name = "x" * length
    cluster.create(name)
    cluster.wait_for("Succeeded", name)
    assert len(cluster.jobs()) == 2

"""Containers that other controllers inject into the pods of a job, on a real API server with the real Job controller."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from lora_api.reasons import Reason
from lora_api.stages import StageName
from tests.support.builders import failed
from tests.support.cluster.harness import NamespaceClient, OperatorProcess, until
from tests.support.cluster.kubelet import End, FakeKubelet, ended, succeed

TRAIN, ANNOTATE = StageName.TRAIN, StageName.ANNOTATE


@pytest.mark.parametrize("name", ["a-proxy", "z-proxy"])
@pytest.mark.parametrize(
    ("exit_code", "native"),
    [(0, False), (1, False), (None, False), (None, True)],
    ids=["ends", "fails", "never ends", "native, never ends"],
)
def test_a_job_ends_as_its_stages_do(
    cluster: NamespaceClient,
    operator: OperatorProcess,
    kubelet: FakeKubelet,
    name: str,
    exit_code: int | None,
    native: bool,
) -> None:
    def script(stage: StageName, number: int) -> End:
        return replace(succeed(stage, number), sidecar=name, sidecar_exit=exit_code, sidecar_init=native)

    kubelet.script = script
    cluster.create(runPolicy={"backoffLimit": 0})
    status = cluster.wait_for("Succeeded")
    assert [stage for stage, _ in kubelet.runs] == [ANNOTATE, TRAIN]
    assert (status["captions"]["failures"], status["training"]["failures"]) == (0, 0)
    if exit_code is None:
        until(lambda: not [pod for pod in cluster.pods() if pod.status.phase == "Running"])


def test_a_pod_that_a_sidecar_made_fail_after_the_stage_is_not_replaced(
    cluster: NamespaceClient, operator: OperatorProcess, kubelet: FakeKubelet
) -> None:
    kubelet.script = lambda stage, number: replace(succeed(stage, number), sidecar="z-proxy", sidecar_exit=1)
    cluster.create()
    cluster.wait_for("Succeeded")
    time.sleep(13)  # the Job controller replaces a failed pod after ten seconds
    assert [stage for stage, _ in kubelet.runs] == [ANNOTATE, TRAIN]


def test_lost_results_are_charged_and_reported_up_to_the_limit(
    cluster: NamespaceClient, operator: OperatorProcess, kubelet: FakeKubelet
) -> None:
    def script(stage: StageName, number: int) -> End:
        end = succeed(stage, number)
        return replace(end, message=end.message[:40], sidecar="a-shipper") if stage == TRAIN else end

    kubelet.script = script
    cluster.create(runPolicy={"backoffLimit": 1})
    cluster.wait_for("Failed")
    assert cluster.condition("Succeeded") == ("False", "ResultLost")
    assert "could not be read" in cluster.message()
    assert [stage for stage, _ in kubelet.runs] == [ANNOTATE, TRAIN, TRAIN]


def test_a_failure_in_a_pod_that_a_sidecar_keeps_running_is_reported_and_retried(
    cluster: NamespaceClient, operator: OperatorProcess, kubelet: FakeKubelet
) -> None:
    def script(stage: StageName, number: int) -> End:
        if stage == ANNOTATE:
            return succeed(stage, number)
        code, reason = (69, Reason.STORE_UNAVAILABLE) if number == 1 else (65, Reason.DIVERGED)
        return replace(ended(failed(reason), code), sidecar="a-proxy", sidecar_exit=None)

    kubelet.script = script
    cluster.create()
    status = cluster.wait_for("Failed")
    assert cluster.condition("Succeeded") == ("False", "Diverged"), "it is not the sidecar's exit code"
    assert (status["training"]["attempt"], status["training"]["failures"]) == (2, 1)
    assert [stage for stage, _ in kubelet.runs] == [ANNOTATE, TRAIN, TRAIN]
    assert max(kubelet.most_live.values()) == 1
    until(lambda: not [pod for pod in cluster.pods() if pod.status.phase == "Running"])

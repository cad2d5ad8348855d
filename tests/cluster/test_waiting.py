"""Stages that cannot start yet: users see the reason within seconds, with the message of the component that prevents it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from lora_api.stages import StageName
from tests.support.cluster.harness import PROFILES, NamespaceClient, OperatorProcess, until
from tests.support.cluster.kubelet import End, FakeKubelet, Stuck, succeed

HELD = [
    (
        Stuck(unschedulable="0/3 nodes are available: 3 Insufficient nvidia.com/gpu."),
        "Unschedulable",
        "3 Insufficient nvidia.com/gpu",
    ),
    (Stuck(waiting="ImagePullBackOff", message="no such image"), "ImagePullFailed", "no such image"),
    (
        Stuck(waiting="CreateContainerConfigError", message='secret "lora-store" not found'),
        "SecretNotFound",
        "lora-store",
    ),
]


@pytest.mark.parametrize(("held", "reason", "words"), HELD, ids=[reason for _, reason, _ in HELD])
def test_a_pod_that_does_not_start_has_a_reason_and_then_continues(
    cluster: NamespaceClient,
    operator: OperatorProcess,
    kubelet: FakeKubelet,
    held: Stuck,
    reason: str,
    words: str,
) -> None:
    kubelet.script = lambda stage, number: held
    cluster.create()
    until(lambda: cluster.condition("Succeeded") == ("Unknown", reason))
    assert words in cluster.message()
    kubelet.script = succeed
    cluster.wait_for("Succeeded")
    assert len(kubelet.runs) == 2


@pytest.mark.parametrize(("held", "reason", "words"), HELD[:2], ids=[reason for _, reason, _ in HELD[:2]])
def test_the_start_deadline_ends_a_job_whose_pod_does_not_start(
    cluster: NamespaceClient,
    operator: OperatorProcess,
    kubelet: FakeKubelet,
    held: Stuck,
    reason: str,
    words: str,
) -> None:
    kubelet.script = lambda stage, number: succeed(stage, number) if stage == StageName.ANNOTATE else held
    cluster.create(runPolicy={"startDeadlineSeconds": 5})
    cluster.wait_for("Failed")
    assert cluster.condition("Succeeded") == ("False", "StartDeadlineExceeded")
    assert words in cluster.message()
    until(lambda: [job.status.succeeded for job in cluster.jobs()] == [1])


def test_a_secret_that_cannot_be_mounted_is_named(
    cluster: NamespaceClient, operator: OperatorProcess, kubelet: FakeKubelet
) -> None:
    """The kubelet reports it in an Event only; the pod's status is ContainerCreating."""
    kubelet.script = lambda stage, number: Stuck(waiting="ContainerCreating")
    cluster.create()
    (pod,) = until(cluster.pods)
    words = 'MountVolume.SetUp failed for volume "store" : secret "lora-store" not found'
    reference = {"kind": "Pod", "namespace": cluster.namespace, "name": pod.metadata.name}
    event = {
        "metadata": {"name": "kubelet-event"},
        "involvedObject": reference | {"apiVersion": "v1", "uid": pod.metadata.uid},
        "reason": "FailedMount",
        "message": words,
        "type": "Warning",
    }
    cluster.core.create_namespaced_event(cluster.namespace, event)
    until(lambda: cluster.condition("Succeeded") == ("Unknown", "SecretNotFound"))
    assert words in cluster.message()
    kubelet.script = succeed
    cluster.wait_for("Succeeded")


def test_a_quota_that_refuses_the_child_job_is_reported_and_waited_for(
    cluster: NamespaceClient, operator: OperatorProcess, kubelet: FakeKubelet
) -> None:
    quota = {"metadata": {"name": "none"}, "spec": {"hard": {"count/jobs.batch": "0"}}}
    cluster.core.create_namespaced_resource_quota(cluster.namespace, quota)
    until(lambda: cluster.core.read_namespaced_resource_quota("none", cluster.namespace).status.hard)
    cluster.create()
    until(lambda: cluster.condition("Succeeded") == ("Unknown", "QuotaExceeded"))
    assert cluster.phase() == "Pending"
    assert "exceeded quota: none, requested: count/jobs.batch=1" in cluster.message()
    cluster.core.delete_namespaced_resource_quota("none", cluster.namespace)
    cluster.wait_for("Succeeded")


@pytest.fixture
def bad_labels(operator_files: OperatorProcess) -> Iterator[OperatorProcess]:
    """Run an operator whose profile gives pods an invalid label."""
    path = operator_files.folder / "profiles.yaml"
    before = path.read_text()
    default = PROFILES["profiles"]["default"] | {"pods": {"annotate": {"labels": {"not a label": "x"}}}}
    path.write_text(yaml.safe_dump({"profiles": {"default": default}}))
    operator_files.start()
    yield operator_files
    operator_files.stop()
    path.write_text(before)


def test_a_child_job_that_is_invalid_ends_the_job_with_the_api_servers_message(
    cluster: NamespaceClient, bad_labels: OperatorProcess
) -> None:
    cluster.create()
    cluster.wait_for("Failed")
    assert cluster.condition("Succeeded") == ("False", "ConfigurationInvalid")
    assert "not a label" in cluster.message()


def test_a_queue_suspends_admits_and_preempts_a_job(
    cluster: NamespaceClient, operator: OperatorProcess, kubelet: FakeKubelet
) -> None:
    """The test does what Kueue does to a Job with its label: it suspends, admits and preempts it."""

    def suspend(name: str, value: bool) -> None:
        cluster.batch.patch_namespaced_job(name, cluster.namespace, {"spec": {"suspend": value}})

    def queued(stage: StageName) -> Any:
        selector = f"kueue.x-k8s.io/queue-name=gpus,lora-training.io/stage={stage}"
        return cluster.batch.list_namespaced_job(cluster.namespace, label_selector=selector).items

    def endless(stage: StageName, number: int) -> End | None:
        return succeed(stage, number) if stage == StageName.ANNOTATE else None

    kubelet.script = endless
    cluster.create(scheduling={"queueName": "gpus"}, runPolicy={"backoffLimit": 0})
    cluster.wait_for("Training")
    assert len(queued(StageName.ANNOTATE)) == 1
    (job,) = queued(StageName.TRAIN)
    suspend(job.metadata.name, True)
    until(lambda: "suspended by its queue" in cluster.message())
    assert cluster.phase() == "Queued"
    time.sleep(2)
    (held,) = queued(StageName.TRAIN)
    assert held.spec.suspend is True, "the operator does not fight over it"
    assert held.metadata.uid == job.metadata.uid
    kubelet.script = succeed
    suspend(job.metadata.name, False)
    status = cluster.wait_for("Succeeded")
    assert status["training"]["attempt"] == 1
    assert max(kubelet.most_live.values()) == 1

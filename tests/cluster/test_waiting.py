"""A step that cannot start, or may not yet: its user sees why within seconds, in the words of who holds it up."""

from __future__ import annotations

import time
from typing import Any

import pytest
from kubelet import End, FakeKubelet, Stuck, well
from studio import OperatorProcess, Studio, until

from lora_api.steps import StepName

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
def test_a_pod_that_does_not_start_says_why_and_then_goes_on(
    studio: Studio, operator: OperatorProcess, kubelet: FakeKubelet, held: Stuck, reason: str, words: str
) -> None:
    kubelet.script = lambda step, number: held
    studio.create()
    until(lambda: studio.condition("Succeeded") == ("Unknown", reason))
    assert words in studio.message()
    kubelet.script = well
    studio.wait_for("Succeeded")
    assert len(kubelet.runs) == 2


@pytest.mark.parametrize(("held", "reason", "words"), HELD[:2], ids=[reason for _, reason, _ in HELD[:2]])
def test_the_start_deadline_ends_it(
    studio: Studio, operator: OperatorProcess, kubelet: FakeKubelet, held: Stuck, reason: str, words: str
) -> None:
    kubelet.script = lambda step, number: well(step, number) if step == StepName.ANNOTATE else held
    studio.create(runPolicy={"startDeadlineSeconds": 5})
    studio.wait_for("Failed")
    assert studio.condition("Succeeded") == ("False", "StartDeadlineExceeded")
    assert words in studio.message()
    until(lambda: [job.status.succeeded for job in studio.jobs()] == [1])


def test_a_secret_that_cannot_be_mounted_is_named(
    studio: Studio, operator: OperatorProcess, kubelet: FakeKubelet
) -> None:
    """The kubelet tells of it in an Event alone; the pod is just being created."""
    kubelet.script = lambda step, number: Stuck(waiting="ContainerCreating")
    studio.create()
    (pod,) = until(studio.pods)
    words = 'MountVolume.SetUp failed for volume "store" : secret "lora-store" not found'
    reference = {"kind": "Pod", "namespace": studio.namespace, "name": pod.metadata.name}
    event = {
        "metadata": {"name": "told-by-a-kubelet"},
        "involvedObject": reference | {"apiVersion": "v1", "uid": pod.metadata.uid},
        "reason": "FailedMount",
        "message": words,
        "type": "Warning",
    }
    studio.core.create_namespaced_event(studio.namespace, event)
    until(lambda: studio.condition("Succeeded") == ("Unknown", "SecretNotFound"))
    assert words in studio.message()
    kubelet.script = well
    studio.wait_for("Succeeded")


def test_a_quota_that_keeps_the_job_out_is_told_and_waited_for(
    studio: Studio, operator: OperatorProcess, kubelet: FakeKubelet
) -> None:
    quota = {"metadata": {"name": "none"}, "spec": {"hard": {"count/jobs.batch": "0"}}}
    studio.core.create_namespaced_resource_quota(studio.namespace, quota)
    until(lambda: studio.core.read_namespaced_resource_quota("none", studio.namespace).status.hard)
    studio.create()
    until(lambda: studio.condition("Succeeded") == ("Unknown", "QuotaExceeded"))
    assert studio.phase() == "Pending"
    assert "exceeded quota: none, requested: count/jobs.batch=1" in studio.message()
    studio.core.delete_namespaced_resource_quota("none", studio.namespace)
    studio.wait_for("Succeeded")


def test_a_child_that_kubernetes_calls_invalid_ends_the_job_with_its_words(
    studio: Studio, operator: OperatorProcess
) -> None:
    studio.create(scheduling={"priorityClassName": "not a name"}, annotation={"mode": "Template"})
    kubelet = FakeKubelet(studio.api, studio.namespace)
    with kubelet:
        studio.wait_for("Failed")
    assert studio.condition("Succeeded") == ("False", "ConfigurationInvalid")
    assert "priorityClassName" in studio.message()


def test_a_queue_holds_a_job_back_and_takes_its_place_away(
    studio: Studio, operator: OperatorProcess, kubelet: FakeKubelet
) -> None:
    """What Kueue does to a Job with its label: it suspends it, admits it, and preempts it."""

    def suspend(name: str, value: bool) -> None:
        studio.batch.patch_namespaced_job(name, studio.namespace, {"spec": {"suspend": value}})

    def queued(step: StepName) -> Any:
        selector = f"kueue.x-k8s.io/queue-name=gpus,lora-training.io/step={step}"
        return studio.batch.list_namespaced_job(studio.namespace, label_selector=selector).items

    def endless(step: StepName, number: int) -> End | None:
        return well(step, number) if step == StepName.ANNOTATE else None

    kubelet.script = endless
    studio.create(scheduling={"queueName": "gpus"}, runPolicy={"backoffLimit": 0})
    studio.wait_for("Training")
    assert len(queued(StepName.ANNOTATE)) == 1
    (job,) = queued(StepName.TRAIN)
    suspend(job.metadata.name, True)
    until(lambda: "suspended by its queue" in studio.message())
    assert studio.phase() == "Queued"
    time.sleep(2)
    (held,) = queued(StepName.TRAIN)
    assert held.spec.suspend is True, "the operator does not fight over it"
    assert held.metadata.uid == job.metadata.uid
    kubelet.script = well
    suspend(job.metadata.name, False)
    status = studio.wait_for("Succeeded")
    assert status["training"]["attempt"] == 1
    assert max(kubelet.most_live.values()) == 1

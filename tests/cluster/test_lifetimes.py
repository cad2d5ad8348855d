"""Deletion, retries, evictions and quotas, on a real API server with the real controllers."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

import pytest
import yaml
from kubernetes import client

from lora_api.reasons import Reason
from lora_api.stages import StageName, TrainingResult
from lora_operator import names
from tests.support.builders import failed
from tests.support.cluster.harness import PROFILES, NamespaceClient, OperatorProcess, until
from tests.support.cluster.kubelet import End, FakeKubelet, Stuck, ended, succeed

TRAIN, ANNOTATE = StageName.TRAIN, StageName.ANNOTATE
REFUSED = failed(Reason.CREDENTIALS_REFUSED, "the key was refused")


def endless_training(stage: StageName, number: int) -> End | None:
    return succeed(stage, number) if stage == ANNOTATE else None


def test_a_job_that_a_finalizer_holds_stops_and_starts_nothing(
    cluster: NamespaceClient, operator: OperatorProcess, kubelet: FakeKubelet
) -> None:
    kubelet.script = endless_training
    cluster.create()
    cluster.wait_for("Training")
    cluster.patch({"metadata": {"finalizers": ["example.com/hold"]}})
    cluster.delete()
    cluster.wait_for("Terminating")
    assert cluster.condition("Succeeded") == ("Unknown", "Terminating")
    until(lambda: not [pod for pod in cluster.pods() if pod.status.phase == "Running"])
    job = cluster.status()["training"]["jobName"]
    until(lambda: job not in [found.metadata.name for found in cluster.jobs()])
    operator.kill()
    operator.start()
    until(lambda: operator.ask("/readyz")[0] == 200)
    time.sleep(2)
    assert job not in [found.metadata.name for found in cluster.jobs()], "it is not made again"
    assert cluster.phase() == "Terminating"
    cluster.patch({"metadata": {"finalizers": None}})
    until(lambda: not cluster.jobs() and not cluster.pods())


def test_a_child_job_that_a_finalizer_keeps_is_named_with_it(
    cluster: NamespaceClient, operator: OperatorProcess, kubelet: FakeKubelet
) -> None:
    kubelet.script = lambda stage, number: None
    cluster.create()
    until(lambda: kubelet.runs)
    (job,) = cluster.jobs()
    name, namespace = job.metadata.name, cluster.namespace
    cluster.batch.patch_namespaced_job(name, namespace, {"metadata": {"finalizers": ["example.com/audit"]}})
    cluster.batch.delete_namespaced_job(name, namespace, propagation_policy="Foreground")
    until(lambda: f"waiting for Job {name} to be deleted" in cluster.message())
    assert cluster.message().endswith("which has the finalizer example.com/audit")
    kubelet.script = succeed
    cluster.batch.patch_namespaced_job(name, namespace, {"metadata": {"finalizers": None}})
    status = cluster.wait_for("Succeeded")
    assert status["captions"]["jobUID"] != job.metadata.uid


def test_a_rotated_key_is_taken_by_a_new_pod(
    cluster: NamespaceClient, operator: OperatorProcess, kubelet: FakeKubelet
) -> None:
    def script(stage: StageName, number: int) -> End:
        if stage == TRAIN and number == 1:
            return ended(REFUSED.model_copy(update={"training": TrainingResult(final_step=496)}), 77)
        return succeed(stage, number)

    kubelet.script = script
    cluster.create(runPolicy={"backoffLimit": 0})
    status = cluster.wait_for("Succeeded")
    assert (status["training"]["attempt"], status["training"]["failures"]) == (2, 0)
    assert status["training"]["lastFailure"]["reason"] == "CredentialsRefused"


def test_a_failed_job_is_retried_in_place(
    cluster: NamespaceClient, operator: OperatorProcess, kubelet: FakeKubelet
) -> None:
    kubelet.script = lambda stage, n: succeed(stage, n) if stage == ANNOTATE else ended(REFUSED, 77)
    uid = cluster.create()["metadata"]["uid"]
    captions = cluster.wait_for("Failed")["captions"]
    kubelet.script = succeed
    operator.stop()
    cluster.patch({"spec": {"runPolicy": {"retry": 1}}})
    operator.start()
    status = cluster.wait_for("Succeeded")
    assert cluster.get()["metadata"]["uid"] == uid
    assert status["captions"] == captions
    assert (status["retries"], status["training"]["attempt"]) == (1, 2)
    assert [stage for stage, _ in kubelet.runs] == [ANNOTATE, TRAIN, TRAIN]
    assert cluster.condition("Stalled") == ("", "")


def test_evictions_are_reported_with_the_kubelets_message_up_to_the_limit(
    cluster: NamespaceClient, operator: OperatorProcess, kubelet: FakeKubelet
) -> None:
    words = "The node was low on resource: ephemeral-storage. Container stage was using 9Gi, request is 0. "
    evicted = End(137, "", "Error", disrupted="TerminationByKubelet", pod_reason="Evicted", pod_message=words)
    kubelet.script = lambda stage, n: succeed(stage, n) if stage == ANNOTATE else evicted
    cluster.create(runPolicy={"disruptionLimit": 2})
    status = cluster.wait_for("Failed")
    assert cluster.condition("Succeeded") == ("False", "DisruptionLimitExceeded")
    assert words.strip() in cluster.message()
    assert status["training"]["lastFailure"]["reason"] == "DiskFull"
    assert len(kubelet.runs) <= 4


def evict_training(cluster: NamespaceClient) -> None:
    """Drain the training pod, as `kubectl drain` does, and wait until it is gone."""
    cluster.wait_for("Training")
    (pod,) = [p for p in cluster.pods() if p.status.phase == "Running" and not p.metadata.deletion_timestamp]
    eviction = {"metadata": {"name": pod.metadata.name, "namespace": cluster.namespace}}
    cluster.core.create_namespaced_pod_eviction(pod.metadata.name, cluster.namespace, eviction)
    until(lambda: pod.metadata.uid not in [found.metadata.uid for found in cluster.pods()])


def test_drained_pods_are_counted_although_they_are_deleted(
    cluster: NamespaceClient, operator: OperatorProcess, kubelet: FakeKubelet
) -> None:
    kubelet.script = endless_training
    cluster.create(runPolicy={"disruptionLimit": 2})
    evict_training(cluster)
    evict_training(cluster)
    status = cluster.wait_for("Failed")
    assert cluster.condition("Succeeded") == ("False", "DisruptionLimitExceeded")
    assert "EvictionByEvictionAPI" in cluster.message()
    assert status["training"]["disruptions"] == 2


def test_the_start_deadline_does_not_end_a_training_that_was_drained(
    cluster: NamespaceClient, operator: OperatorProcess, kubelet: FakeKubelet
) -> None:
    full = Stuck(unschedulable="0/3 nodes are available: 3 Insufficient nvidia.com/gpu.")
    kubelet.script = lambda stage, n: endless_training(stage, n) if n == 1 else full
    cluster.create(runPolicy={"startDeadlineSeconds": 5})
    cluster.wait_for("Training")
    time.sleep(5)
    evict_training(cluster)
    until(lambda: cluster.condition("Succeeded") == ("Unknown", "Unschedulable"))
    kubelet.script = succeed
    assert cluster.wait_for("Succeeded")["training"]["attempt"] == 1


@pytest.mark.parametrize("removed", ["all", names.JOB_UID, "the owner"])
def test_labels_that_were_removed_from_a_child_job_are_restored(
    cluster: NamespaceClient, operator: OperatorProcess, kubelet: FakeKubelet, removed: str
) -> None:
    kubelet.script = endless_training
    cluster.create()
    cluster.wait_for("Training")
    name = cluster.status()["training"]["jobName"]
    before = cluster.batch.read_namespaced_job(name, cluster.namespace).metadata
    changes: dict[str, Any] = {"ownerReferences": None}
    if removed != "the owner":
        # a Job without any label would get those of its template
        changes = {"labels": dict.fromkeys(before.labels if removed == "all" else [removed]) | {"a": "b"}}
    cluster.batch.patch_namespaced_job(name, cluster.namespace, {"metadata": changes})

    def is_restored() -> bool:
        found = cluster.batch.read_namespaced_job(name, cluster.namespace).metadata
        return (
            bool(found.owner_references)
            and found.labels.get(names.JOB_UID) == cluster.get()["metadata"]["uid"]
        )

    until(is_restored, 20)
    until(lambda: cluster.phase() == "Training", 20)
    kubelet.script = succeed
    assert cluster.wait_for("Succeeded")["training"]["attempt"] == 1
    assert max(kubelet.most_live.values()) == 1
    assert len(kubelet.runs) == 2


def test_a_child_job_without_its_labels_is_stopped_with_its_job(
    cluster: NamespaceClient, operator: OperatorProcess, kubelet: FakeKubelet
) -> None:
    kubelet.script = endless_training
    cluster.create()
    cluster.wait_for("Training")
    name = cluster.status()["training"]["jobName"]
    changes = {"labels": {names.JOB_UID: None}}
    cluster.batch.patch_namespaced_job(name, cluster.namespace, {"metadata": changes})
    cluster.patch({"spec": {"runPolicy": {"activeDeadlineSeconds": 1}}})
    cluster.wait_for("Failed")
    until(lambda: not [pod for pod in cluster.pods() if pod.status.phase == "Running"], 20)


def test_jobs_that_wait_for_a_quota_cause_few_requests_and_keep_their_deadline(
    cluster: NamespaceClient, operator: OperatorProcess, kubelet: FakeKubelet
) -> None:
    quota = {"metadata": {"name": "cpu"}, "spec": {"hard": {"limits.cpu": "8"}}}
    cluster.core.create_namespaced_resource_quota(cluster.namespace, quota)
    until(lambda: cluster.core.read_namespaced_resource_quota("cpu", cluster.namespace).status.hard)
    waiting = [f"job-{number}" for number in range(8)]
    for name in waiting:
        cluster.create(name)
    cluster.create("late", runPolicy={"startDeadlineSeconds": 15})
    for name in waiting:
        until(lambda name=name: cluster.condition("Succeeded", name) == ("Unknown", "QuotaExceeded"))
        assert "must specify limits.cpu for: stage" in cluster.message(name)
    cluster.create("fits", resources={"annotate": {"cpuLimit": "1"}, "train": {"cpuLimit": "4"}})
    cluster.wait_for("Succeeded", "fits")
    cluster.wait_for("Failed", "late")
    assert cluster.condition("Succeeded", "late") == ("False", "StartDeadlineExceeded")
    versions = {name: cluster.get(name)["metadata"]["resourceVersion"] for name in waiting}
    time.sleep(12)  # the Job controller retries meanwhile, each time with another name of the pod
    assert {name: cluster.get(name)["metadata"]["resourceVersion"] for name in waiting} == versions


@contextmanager
def running_limited(operator_files: OperatorProcess, limit: int) -> Iterator[OperatorProcess]:
    """Run an operator whose profile limits the running jobs."""
    path = operator_files.folder / "profiles.yaml"
    before = path.read_text()
    default = PROFILES["profiles"]["default"] | {"maxRunningJobs": limit}
    path.write_text(yaml.safe_dump({"profiles": {"default": default}}))
    operator_files.start()
    yield operator_files
    operator_files.stop()
    path.write_text(before)


@pytest.fixture
def two_at_once(operator_files: OperatorProcess) -> Iterator[OperatorProcess]:
    """An operator whose profile lets two jobs run."""
    with running_limited(operator_files, 2) as operator:
        yield operator


@pytest.fixture
def one_at_once(operator_files: OperatorProcess) -> Iterator[OperatorProcess]:
    """An operator whose profile lets one job run."""
    with running_limited(operator_files, 1) as operator:
        yield operator


def test_a_profile_limits_the_jobs_that_run(
    cluster: NamespaceClient, two_at_once: OperatorProcess, kubelet: FakeKubelet
) -> None:
    kubelet.script = lambda stage, number: None
    for number in range(4):
        cluster.create(f"job-{number}")
    until(lambda: len(cluster.jobs()) == 2)
    until(lambda: sum("allows 2 running jobs" in cluster.message(f"job-{n}") for n in range(4)) == 2)
    kubelet.script = succeed
    for number in range(4):
        cluster.wait_for("Succeeded", f"job-{number}")


def complete_in_another_namespace(api: client.ApiClient, count: int) -> None:
    """Create jobs in a namespace of their own, and wait until all have succeeded."""
    name = f"test-{uuid4().hex[:8]}"
    core = client.CoreV1Api(api)
    core.create_namespace({"metadata": {"name": name}})
    other = NamespaceClient(api, name)
    with FakeKubelet(api, name):
        for number in range(count):
            other.create(f"job-{number}")
        for number in range(count):
            other.wait_for("Succeeded", f"job-{number}")
        core.delete_namespace(name)


def test_a_job_that_a_quota_refuses_leaves_its_place_to_other_namespaces(
    cluster: NamespaceClient, one_at_once: OperatorProcess, kubelet: FakeKubelet
) -> None:
    quota = {"metadata": {"name": "jobs"}, "spec": {"hard": {"count/jobs.batch": "0"}}}
    cluster.core.create_namespaced_resource_quota(cluster.namespace, quota)
    until(lambda: cluster.core.read_namespaced_resource_quota("jobs", cluster.namespace).status.hard)
    refused = [f"refused-{number}" for number in range(3)]
    for name in refused:
        cluster.create(name)
    for name in refused:
        until(lambda name=name: cluster.condition("Succeeded", name) == ("Unknown", "QuotaExceeded"))
    versions = {name: cluster.get(name)["metadata"]["resourceVersion"] for name in refused}
    complete_in_another_namespace(cluster.api, 3)
    assert {name: cluster.get(name)["metadata"]["resourceVersion"] for name in refused} == versions
    cluster.core.delete_namespaced_resource_quota("jobs", cluster.namespace)
    for name in refused:
        cluster.wait_for("Succeeded", name)


def test_a_job_in_a_namespace_that_is_stuck_terminating_leaves_its_place(
    api: client.ApiClient, one_at_once: OperatorProcess
) -> None:
    stuck = NamespaceClient(api, f"test-{uuid4().hex[:8]}")
    stuck.core.create_namespace({"metadata": {"name": stuck.namespace}})
    until(lambda: stuck.core.list_namespaced_service_account(stuck.namespace).items)
    metadata = {"name": "pod", "finalizers": ["example.com/dead-node"]}
    pod = {"metadata": metadata, "spec": {"containers": [{"name": "main", "image": "main:test"}]}}
    stuck.core.create_namespaced_pod(stuck.namespace, pod)
    stuck.create(runPolicy={"suspend": True})
    stuck.wait_for("Suspended")
    stuck.core.delete_namespace(stuck.namespace)
    try:
        until(lambda: stuck.core.read_namespace(stuck.namespace).status.phase == "Terminating")
        stuck.patch({"spec": {"runPolicy": {"suspend": False}}})
        until(lambda: "being terminated" in stuck.message())
        version = stuck.get()["metadata"]["resourceVersion"]
        complete_in_another_namespace(api, 2)
        assert stuck.get()["metadata"]["resourceVersion"] == version
    finally:
        stuck.core.patch_namespaced_pod("pod", stuck.namespace, {"metadata": {"finalizers": None}})


def test_the_log_and_the_writes_name_the_operator(
    cluster: NamespaceClient, operator: OperatorProcess, kubelet: FakeKubelet
) -> None:
    cluster.create()
    cluster.wait_for("Succeeded")
    assert "namespaces all; profiles default" in operator.log
    for phase in ("Annotating", "Queued", "Succeeded"):
        assert f"{cluster.namespace}/statue: {phase} (" in operator.log
    managed = {entry["manager"]: entry["fieldsV1"] for entry in cluster.get()["metadata"]["managedFields"]}
    assert managed["lora-operator"] == {"f:status": {}}, "the status is one field"
    for job in cluster.jobs():
        assert "lora-operator" in {entry.manager for entry in job.metadata.managed_fields}

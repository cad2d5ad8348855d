"""Attacks on other users' jobs by a tenant who may create Jobs and pods, on a real API server."""

from __future__ import annotations

import time
import urllib.request
from typing import Any
from uuid import uuid4

from lora_api import API_VERSION, KIND
from lora_api.stages import StageName
from lora_operator import names
from tests.support.builders import ADAPTER, CAPTIONED, TRAINED
from tests.support.cluster.harness import NamespaceClient, OperatorProcess, until
from tests.support.cluster.kubelet import FakeKubelet, ended, succeed

BACKDOORED = TRAINED.model_copy(
    update={
        "adapter": ADAPTER.model_copy(update={"uri": "s3://loras/evil/x/y/attempt-1/backdoored.safetensors"})
    }
)


def labels(uid: str, stage: StageName, attempt: int) -> dict[str, str]:
    return {
        names.MANAGED_BY: names.OPERATOR,
        names.JOB_UID: uid,
        names.STAGE: str(stage),
        names.ATTEMPT: str(attempt),
    }


def forge_job(
    cluster: NamespaceClient, victim: dict[str, Any], stage: StageName, attempt: int, **metadata: Any
) -> Any:
    """Create a Job that carries all the labels of a child Job, and is suspended so that it makes no pods."""
    name, uid = victim["metadata"]["name"], victim["metadata"]["uid"]
    template = {
        "metadata": {"labels": labels(uid, stage, attempt), "annotations": {names.OWNER_NAME: name}},
        "spec": {"restartPolicy": "Never", "containers": [{"name": "stage", "image": "evil"}]},
    }
    return cluster.batch.create_namespaced_job(
        cluster.namespace,
        {
            "metadata": {
                "name": names.child_name(name, uid, stage, attempt),
                "labels": labels(uid, stage, attempt),
                "annotations": {names.OWNER_NAME: name},
            }
            | metadata,
            "spec": {"suspend": True, "template": template},
        },
    )


def forge_pod(
    cluster: NamespaceClient, victim: dict[str, Any], stage: StageName, job: Any, message: str
) -> None:
    """Create a succeeded pod with a result that claims to belong to a child Job."""
    name, uid = victim["metadata"]["name"], victim["metadata"]["uid"]
    marks = labels(uid, stage, 1) | {"batch.kubernetes.io/job-name": names.child_name(name, uid, stage, 1)}
    body: dict[str, Any] = {
        "metadata": {
            "name": f"forged-{uuid4().hex[:8]}",
            "labels": marks,
            "annotations": {names.OWNER_NAME: name},
        },
        "spec": {"containers": [{"name": "stage", "image": "evil"}], "nodeName": "unknown"},
    }
    if job is not None:
        owner = {"apiVersion": "batch/v1", "kind": "Job", "name": job.metadata.name, "uid": job.metadata.uid}
        body["metadata"]["ownerReferences"] = [owner | {"controller": True}]
    pod = cluster.core.create_namespaced_pod(cluster.namespace, body)
    state = {
        "terminated": {
            "exitCode": 0,
            "message": message,
            "startedAt": "2026-01-01T00:00:00Z",
            "finishedAt": "2026-01-01T00:00:01Z",
        }
    }
    container = {
        "name": "stage",
        "image": "x",
        "imageID": "",
        "ready": False,
        "restartCount": 0,
        "state": state,
    }
    status = {"phase": "Succeeded", "podIP": "127.0.0.1", "containerStatuses": [container]}
    cluster.core.patch_namespaced_pod_status(pod.metadata.name, cluster.namespace, {"status": status})


def attacker(cluster: NamespaceClient) -> NamespaceClient:
    name = f"test-{uuid4().hex[:8]}"
    cluster.core.create_namespace({"metadata": {"name": name}})
    until(lambda: cluster.core.list_namespaced_service_account(name).items)
    return NamespaceClient(cluster.api, name)


def test_forged_children_in_another_namespace_change_nothing(
    cluster: NamespaceClient, operator: OperatorProcess, kubelet: FakeKubelet
) -> None:
    kubelet.script = lambda stage, number: None
    victim = cluster.create()
    until(lambda: kubelet.runs)
    elsewhere = attacker(cluster)
    try:
        for stage in StageName:
            forge_job(elsewhere, victim, stage, 99)
            message = ended(BACKDOORED if stage == StageName.TRAIN else CAPTIONED).message
            forge_pod(elsewhere, victim, stage, forge_job(elsewhere, victim, stage, 1), message)
        time.sleep(3)
        status = cluster.status()
        assert (status["phase"], status["captions"]["attempt"]) == ("Annotating", 1)
        kubelet.script = succeed
        status = cluster.wait_for("Succeeded")
        assert "backdoored" not in str(status)
    finally:
        cluster.core.delete_namespace(elsewhere.namespace)


def test_forged_children_in_the_namespace_of_the_job_neither_hang_nor_end_it(
    cluster: NamespaceClient, operator: OperatorProcess, kubelet: FakeKubelet
) -> None:
    """A Job that names the resource as its controller is detected by its attempt, which the operator did not start."""
    kubelet.script = lambda stage, number: None
    victim = cluster.create()
    until(lambda: kubelet.runs)
    owner = {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "name": victim["metadata"]["name"],
        "uid": victim["metadata"]["uid"],
        "controller": True,
    }
    for stage in StageName:
        forge_job(cluster, victim, stage, 99, ownerReferences=[owner])
    forge_pod(cluster, victim, StageName.ANNOTATE, None, ended(BACKDOORED).message)
    time.sleep(2)
    kubelet.script = succeed
    status = cluster.wait_for("Succeeded")
    assert "backdoored" not in str(status)
    assert (status["captions"]["attempt"], status["training"]["attempt"]) == (1, 1)
    with urllib.request.urlopen(f"http://127.0.0.1:{operator.port}/healthz") as response:
        assert response.status == 200


def test_a_result_of_another_tenant_ends_the_job_as_refused(
    cluster: NamespaceClient, operator: OperatorProcess, kubelet: FakeKubelet
) -> None:
    kubelet.script = lambda stage, number: (
        ended(BACKDOORED) if stage == StageName.TRAIN else succeed(stage, number)
    )
    cluster.create()
    status = cluster.wait_for("Failed")
    assert cluster.condition("Succeeded") == ("False", "ResultRefused")
    assert "adapter" not in status

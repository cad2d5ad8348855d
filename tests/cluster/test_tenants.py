"""Attacks by a tenant with every permission that RBAC grants users, on a real API server."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from kubernetes import client, config
from kubernetes.client.exceptions import ApiException

from lora_api import API_VERSION, GROUP, KIND, PLURAL, VERSION
from lora_api.keys import JobKeys
from lora_api.stages import StageName
from tests.support.builders import CAPTIONED, relocate
from tests.support.cluster.harness import NamespaceClient, OperatorProcess, until
from tests.support.cluster.kubelet import FakeKubelet, ended, succeed
from tests.support.cluster.plane import OPERATOR_NAMESPACE, ControlPlane, write_kubeconfig
from tests.support.helm import render

from .test_admission_policy import DIGEST, REFUSED, guarded
from .test_attacks import forge_job, forge_pod

__all__ = ["guarded"]

FORGED = "e" * 64


def tenant_of(cluster: NamespaceClient, plane: ControlPlane, folder: Path) -> client.ApiClient:
    """Create an account that may write jobs as the chart's role allows, and Jobs, pods and ConfigMaps, in one namespace."""
    rbac = client.RbacAuthorizationV1Api(cluster.api)
    roles = [role for role in render() if role["metadata"]["name"] in ("lora-edit", "lora-view")]
    rules = [rule for role in roles for rule in role["rules"]]
    every = ["get", "list", "watch", "create", "update", "patch", "delete"]
    rules += [
        {"apiGroups": ["batch"], "resources": ["jobs"], "verbs": every},
        {"apiGroups": [""], "resources": ["pods", "configmaps", "secrets"], "verbs": every},
    ]
    rbac.create_namespaced_role(cluster.namespace, {"metadata": {"name": "tenant"}, "rules": rules})
    cluster.core.create_namespaced_service_account(cluster.namespace, {"metadata": {"name": "tenant"}})
    rbac.create_namespaced_role_binding(
        cluster.namespace,
        {
            "metadata": {"name": "tenant"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "tenant"},
            "subjects": [{"kind": "ServiceAccount", "name": "tenant", "namespace": cluster.namespace}],
        },
    )
    request = {"spec": {"expirationSeconds": 3600, "audiences": []}}
    token = cluster.core.create_namespaced_service_account_token(
        "tenant", cluster.namespace, request
    ).status.token
    api: client.ApiClient = config.new_client_from_config(
        str(write_kubeconfig(plane, folder / "tenant", token))
    )
    return api


@pytest.fixture
def tenant(guarded: NamespaceClient, plane: ControlPlane, tmp_path: Path) -> Iterator[NamespaceClient]:
    """Return the namespace in which the admission policy is in effect, with a tenant's permissions."""
    api = tenant_of(guarded, plane, tmp_path)
    yield NamespaceClient(api, guarded.namespace)
    api.close()


def denial(attack: Callable[[], Any]) -> tuple[int, str]:
    """Return the status and the message with which the API server refuses an attack."""
    with pytest.raises(ApiException) as refused:
        attack()
    return refused.value.status, str(refused.value.body)


def test_a_tenant_does_not_get_past_roles_the_policy_and_immutability(
    tenant: NamespaceClient, guarded: NamespaceClient
) -> None:
    until(lambda: tenant.create("own", annotation={"approval": "Required"}))
    for spec, words in REFUSED:
        status, body = denial(lambda spec=spec: tenant.create("attack", **spec))  # type: ignore[misc]
        assert status in (403, 422)
        assert words in body, spec

    def patch(spec: dict[str, Any], name: str = "own") -> Callable[[], Any]:
        return lambda: tenant.patch({"spec": spec}, name)

    for spec in (
        {"scheduling": {"priorityClassName": "system-cluster-critical"}},
        {"scheduling": {"tolerations": [{"operator": "Exists"}]}},
        {"resources": {"train": {"gpus": 2}}},
        {"dataset": {"prefix": "other/"}},
        {"profile": "other"},
    ):
        assert denial(patch(spec))[0] == 422, f"{spec} is immutable"
    assert "approver only" in denial(patch({"annotation": {"approvedCaptions": DIGEST}}))[1]

    tenant.api.set_default_header("Impersonate-User", "ada")
    assert denial(patch({"annotation": {"approvedCaptions": DIGEST}}))[0] == 403
    tenant.api.default_headers.pop("Impersonate-User")

    done = {"phase": "Succeeded", "captions": {"sha256": DIGEST}}
    custom, core = client.CustomObjectsApi(tenant.api), client.CoreV1Api(tenant.api)
    status = (GROUP, VERSION, tenant.namespace, PLURAL, "own")
    assert denial(lambda: custom.patch_namespaced_custom_object_status(*status, {"status": done}))[0] == 403
    # the main resource takes a status and drops it
    tenant.patch({"status": done}, "own")
    assert "status" not in guarded.get("own")

    elsewhere = f"test-{uuid4().hex[:8]}"
    guarded.core.create_namespace({"metadata": {"name": elsewhere}})
    other = NamespaceClient(tenant.api, elsewhere)
    attacks: list[Callable[[], Any]] = [
        other.create,
        lambda: core.list_namespaced_secret(OPERATOR_NAMESPACE),
        lambda: core.list_namespaced_config_map(OPERATOR_NAMESPACE),
        lambda: core.create_namespaced_pod(
            OPERATOR_NAMESPACE, {"metadata": {"name": "x"}, "spec": {"containers": []}}
        ),
        lambda: client.CoordinationV1Api(tenant.api).list_namespaced_lease(OPERATOR_NAMESPACE),
        lambda: client.AdmissionregistrationV1Api(tenant.api).list_validating_admission_policy(),
        lambda: core.patch_namespace(tenant.namespace, {"metadata": {"labels": {"policy": "off"}}}),
    ]
    for attack in attacks:
        assert denial(attack)[0] == 403
    guarded.core.delete_namespace(elsewhere)


def controller(victim: dict[str, Any]) -> dict[str, Any]:
    metadata = victim["metadata"]
    return {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "name": metadata["name"],
        "uid": metadata["uid"],
        "controller": True,
    }


def forge_success(cluster: NamespaceClient, tenant: NamespaceClient, victim: dict[str, Any]) -> str:
    """Create the child Job of the first attempt in the operator's place, and a pod of it that reports captions.

    Returns:
        The Job's UID.
    """
    job = forge_job(tenant, victim, StageName.ANNOTATE, 1, ownerReferences=[controller(victim)])
    captions = CAPTIONED.captions
    assert captions is not None
    result = CAPTIONED.model_copy(update={"captions": captions.model_copy(update={"sha256": FORGED})})
    keys = JobKeys(cluster.namespace, victim["metadata"]["name"], victim["metadata"]["uid"])
    # a kubelet writes the pod's status; the tenant chooses what the container says
    forge_pod(cluster, victim, StageName.ANNOTATE, job, ended(relocate(result, keys)).message)
    uid: str = job.metadata.uid
    return uid


def test_a_job_that_a_tenant_puts_in_place_of_the_operators_is_not_trusted(
    cluster: NamespaceClient,
    operator: OperatorProcess,
    kubelet: FakeKubelet,
    plane: ControlPlane,
    tmp_path: Path,
) -> None:
    api = tenant_of(cluster, plane, tmp_path)
    tenant = NamespaceClient(api, cluster.namespace)
    kubelet.script = lambda stage, number: None
    victim = cluster.create()
    until(lambda: kubelet.runs)
    until(lambda: cluster.status().get("captions", {}).get("jobUID"))
    (job,) = cluster.jobs()
    assert cluster.status()["captions"]["jobUID"] == job.metadata.uid
    operator.stop()
    tenant.batch.delete_namespaced_job(job.metadata.name, tenant.namespace, propagation_policy="Background")
    until(lambda: not cluster.jobs())
    forged = forge_success(cluster, tenant, victim)
    operator.start()
    until(lambda: forged not in [found.metadata.uid for found in cluster.jobs()])
    kubelet.script = succeed
    status = cluster.wait_for("Succeeded")
    assert FORGED not in str(status)
    assert status["captions"]["jobUID"] not in (forged, job.metadata.uid)
    assert status["training"]["jobUID"]
    api.close()


def test_a_job_that_existed_before_the_operators_is_not_trusted(
    cluster: NamespaceClient,
    operator_files: OperatorProcess,
    kubelet: FakeKubelet,
    plane: ControlPlane,
    tmp_path: Path,
) -> None:
    api = tenant_of(cluster, plane, tmp_path)
    victim = cluster.create()
    forged = forge_success(cluster, NamespaceClient(api, cluster.namespace), victim)
    kubelet.script = succeed
    operator_files.start()
    try:
        status = cluster.wait_for("Succeeded")
    finally:
        operator_files.stop()
        api.close()
    assert FORGED not in str(status)
    assert status["captions"]["jobUID"] != forged


COUNT = 60
LABELS = 3000


def test_large_resources_do_not_exhaust_the_operators_memory(
    cluster: NamespaceClient, operator_files: OperatorProcess
) -> None:
    """A resource can have more than a megabyte of labels, which no CustomResourceDefinition bounds."""
    labels = {f"{'x' * 250}/{number:063d}": "v" * 63 for number in range(LABELS)}
    body = {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "metadata": {"labels": labels},
        "spec": {
            "dataset": {"prefix": "p/"},
            "concept": {"token": "CUS", "className": "statue"},
            "resources": {"train": {"cpu": "2", "cpuLimit": "1"}},
        },
    }
    for number in range(COUNT):
        body["metadata"]["name"] = f"large-{number}"
        cluster.custom.create_namespaced_custom_object(GROUP, VERSION, cluster.namespace, PLURAL, body)
    operator_files.start()
    try:
        until(lambda: operator_files.ask("/readyz")[0] == 200)
        until(lambda: cluster.phase(f"large-{COUNT - 1}") == "Failed")
        assert operator_files.process is not None
        status = Path(f"/proc/{operator_files.process.pid}/status").read_text()
        found = re.search(r"VmHWM:\s+(\d+) kB", status)
        assert found is not None
        peak = int(found[1]) / 1024
    finally:
        operator_files.stop()
    print(f"RESULT peak_mib={peak:.0f}")
    assert peak < 512, f"{peak:.0f} MiB, and the chart's limit is 512"

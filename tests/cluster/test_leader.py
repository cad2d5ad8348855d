"""Leader election of two operators: one leads, and the other takes over only when the Lease is released or expired."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes import client

from lora_api import GROUP, PLURAL
from lora_api.stages import StageName
from tests.support.cluster.harness import PATIENCE_SECONDS, NamespaceClient, OperatorProcess, until
from tests.support.cluster.kubelet import FakeKubelet, succeed
from tests.support.cluster.plane import ControlPlane, install_crd, served

ROOT = Path(__file__).parents[2]
NAMESPACE, LEASE = "lora-system", "test-lease"


@pytest.fixture(scope="module")
def _role(api: client.ApiClient) -> None:
    """Create a Role with exactly the rules of the chart for several replicas."""
    text = (ROOT / "charts/lora-training-operator/templates/_helpers.tpl").read_text()
    found = re.search(r'define "lora\.leaseRules" -}}\n(.*?)\{\{- end', text, re.DOTALL)
    assert found is not None
    rbac = client.RbacAuthorizationV1Api(api)
    rbac.create_namespaced_role(
        NAMESPACE, {"metadata": {"name": "leader"}, "rules": yaml.safe_load(found[1])}
    )
    binding = {
        "metadata": {"name": "leader"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "leader"},
        "subjects": [{"kind": "ServiceAccount", "name": "operator", "namespace": NAMESPACE}],
    }
    rbac.create_namespaced_role_binding(NAMESPACE, binding)


@pytest.fixture
def pair(operator_files: OperatorProcess, _role: None, tmp_path: Path) -> Iterator[list[OperatorProcess]]:
    settings = {"LORA_LEASE": f"{NAMESPACE}/{LEASE}"}
    found = []
    for name in "ab":
        folder = tmp_path / name
        folder.mkdir()
        (folder / "profiles.yaml").write_text((operator_files.folder / "profiles.yaml").read_text())
        found.append(replace(operator_files, folder=folder, settings=settings))
    yield found
    for operator in found:
        operator.stop()


def leads(operator: OperatorProcess) -> bool:
    return operator.metric("lora_operator_leader") == 1


def lease(api: client.ApiClient) -> Any:
    return client.CoordinationV1Api(api).read_namespaced_lease(LEASE, NAMESPACE)


def test_one_replica_leads_and_the_other_takes_over(
    api: client.ApiClient, cluster: NamespaceClient, pair: list[OperatorProcess], kubelet: FakeKubelet
) -> None:
    first, second = pair
    first.start()
    until(lambda: leads(first))
    second.start()
    until(lambda: second.ask("/readyz")[0] == 200)
    cluster.create("one")
    cluster.wait_for("Succeeded", "one")
    assert not leads(second)
    assert second.metric("lora_operator_api_writes_total") == 0
    assert second.ask("/healthz") == (200, "ok\n")

    # killed during a job: the other waits for the Lease to expire
    kubelet.script = lambda stage, number: None if stage == StageName.TRAIN else succeed(stage, number)
    cluster.create("two")
    cluster.wait_for("Training", "two")
    first.kill()
    until(lambda: leads(second))
    kubelet.script = succeed
    cluster.wait_for("Succeeded", "two")
    assert lease(api).spec.lease_transitions == 1
    assert len(kubelet.runs) == 4, "each stage of each job once"

    # stopped by SIGTERM: the Lease is released, and the other does not wait
    first.start()
    until(lambda: first.ask("/readyz")[0] == 200)
    second.stop()
    until(lambda: leads(first), 8)


def test_a_replica_that_has_lost_the_lease_exits(
    api: client.ApiClient, cluster: NamespaceClient, pair: list[OperatorProcess]
) -> None:
    first, _ = pair
    first.settings = first.settings | {"LORA_LOG_FORMAT": "json"}
    first.start()
    until(lambda: leads(first))
    thief = {"spec": {"holderIdentity": "another-holder", "leaseDurationSeconds": 3600}}
    client.CoordinationV1Api(api).patch_namespaced_lease(LEASE, NAMESPACE, thief)
    assert first.process is not None
    assert first.process.wait(PATIENCE_SECONDS) != 0
    assert "has lost the Lease" in first.log
    assert [json.loads(line)["level"] for line in first.log.splitlines()][-1] == "ERROR"
    client.CoordinationV1Api(api).delete_namespaced_lease(LEASE, NAMESPACE)


def test_the_lease_is_deleted_with_the_pod_of_the_last_leader(
    api: client.ApiClient, cluster: NamespaceClient, pair: list[OperatorProcess]
) -> None:
    """A pod that terminates does not create the Lease again, for example when a release is uninstalled."""
    core = client.CoreV1Api(api)
    for number, operator in enumerate(pair):
        pod = {
            "metadata": {"name": f"operator-{number}"},
            "spec": {"containers": [{"name": "operator", "image": "x"}]},
        }
        made = core.create_namespaced_pod(NAMESPACE, pod)
        operator.settings = operator.settings | {
            "LORA_POD_NAME": made.metadata.name,
            "LORA_POD_UID": made.metadata.uid,
        }
    first, second = pair
    first.start()
    until(lambda: leads(first))
    assert [owner.name for owner in lease(api).metadata.owner_references] == ["operator-0"]
    second.start()
    first.stop()
    core.delete_namespaced_pod("operator-0", NAMESPACE)
    until(lambda: leads(second))
    until(lambda: [owner.name for owner in lease(api).metadata.owner_references] == ["operator-1"])
    time.sleep(3)
    assert leads(second)
    client.CoordinationV1Api(api).delete_namespaced_lease(LEASE, NAMESPACE)
    second.stop()
    core.delete_namespaced_pod("operator-1", NAMESPACE)
    until(lambda: not leases(api))


def leases(api: client.ApiClient) -> list[str]:
    found = client.CoordinationV1Api(api).list_namespaced_lease(NAMESPACE).items
    return [lease.metadata.name for lease in found]


def test_a_missing_crd_is_reported_and_found_by_a_new_process(
    plane: ControlPlane, api: client.ApiClient, operator_files: OperatorProcess
) -> None:
    extensions = client.ApiextensionsV1Api(api)
    name = f"{PLURAL}.{GROUP}"
    extensions.delete_custom_resource_definition(name)
    until(lambda: not served(api))
    try:
        operator_files.start()
        assert operator_files.process is not None
        assert operator_files.process.wait(PATIENCE_SECONDS) == 1
        assert f"does not serve {PLURAL}: is the CustomResourceDefinition installed?" in operator_files.log
    finally:
        install_crd(api)
    operator_files.start()
    until(lambda: operator_files.ask("/readyz") == (200, "ok\n"))
    assert leads(operator_files), "without a Lease the only one leads"
    operator_files.stop()

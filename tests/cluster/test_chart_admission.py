"""The chart on a real API server: all objects are admitted, an upgrade changes them, and the CRD is kept."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from kubernetes import client

from lora_api import GROUP, PLURAL
from tests.support.cluster.harness import NamespaceClient, OperatorProcess, until
from tests.support.cluster.plane import ControlPlane, write_kubeconfig
from tests.support.helm import CHART, helm, render


@dataclass(frozen=True)
class Places:
    """A namespace for a release and one for its jobs, both under the restricted Pod Security Standard."""

    system: str
    cluster: str


@pytest.fixture
def places(api: client.ApiClient) -> Iterator[Places]:
    core = client.CoreV1Api(api)
    found = Places(f"test-{uuid4().hex[:8]}", f"test-{uuid4().hex[:8]}")
    for name in (found.system, found.cluster):
        labels = {"pod-security.kubernetes.io/enforce": "restricted"}
        core.create_namespace({"metadata": {"name": name, "labels": labels}})
    yield found
    for name in (found.system, found.cluster):
        core.delete_namespace(name)


def all_values(cluster: str) -> dict[str, Any]:
    """Return all values that need no CRDs of other projects."""
    return {
        "replicas": 2,
        "watchNamespaces": [cluster],
        "dashboard": {"enabled": True},
        "networkPolicy": {"jobNamespaces": [cluster]},
        "modelCache": {"enabled": True, "namespaces": [cluster]},
        "profiles": {"default": {"modelCache": {"persistentVolumeClaim": "lora-models"}}},
        "trialStore": {"enabled": True, "jobNamespace": cluster, "persistence": {"enabled": True}},
        "demo": {"enabled": True, "ingress": {"enabled": True, "host": "lora.example.com"}},
    }


def pod_templates(objects: list[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    for found in objects:
        if found["kind"] == "Pod":
            yield found["metadata"], found["spec"]
        elif template := found.get("spec", {}).get("template"):
            yield found["metadata"], template["spec"]


def test_install_upgrade_uninstall(plane: ControlPlane, api: client.ApiClient, places: Places) -> None:
    where = ("--namespace", places.system, "--kubeconfig", str(plane.kubeconfig))
    values = all_values(places.cluster)
    # no node runs the hooks here, and the CRD is installed already
    options = ("--no-hooks", "--take-ownership")
    helm("install", "chart", str(CHART), *options, *where, values=values)

    core, apps = client.CoreV1Api(api), client.AppsV1Api(api)
    rendered = render(values, name="chart", namespace=places.system)
    templates = list(pod_templates(rendered))
    assert len(templates) == 7
    for meta, spec in templates:
        pod = {"metadata": {"name": "probe"}, "spec": spec | {"restartPolicy": "Never"}}
        core.create_namespaced_pod(meta["namespace"], pod, dry_run="All")

    key = core.read_namespaced_secret("lora-store", places.cluster).data["secretKey"]
    helm("upgrade", "chart", str(CHART), *options, *where, values=values | {"replicas": 1})
    assert apps.read_namespaced_deployment("chart", places.system).spec.strategy.type == "Recreate"
    assert core.read_namespaced_secret("lora-store", places.cluster).data["secretKey"] == key

    helm("uninstall", "chart", *where)
    assert not apps.list_namespaced_deployment(places.system).items
    crds = client.ApiextensionsV1Api(api)
    definition = crds.read_custom_resource_definition(f"{PLURAL}.{GROUP}")
    assert definition.metadata.deletion_timestamp is None
    (claim,) = core.list_namespaced_persistent_volume_claim(places.cluster).items
    assert claim.metadata.name == "lora-models"


def test_an_operator_with_scope_namespaced_needs_only_its_roles(
    plane: ControlPlane,
    api: client.ApiClient,
    places: Places,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It has Roles in its namespaces and no permission on the cluster."""
    values = {"rbac": {"scope": "namespaced", "aggregate": False}, "watchNamespaces": [places.cluster]}
    where = ("--namespace", places.system, "--kubeconfig", str(plane.kubeconfig))
    helm("install", "team", str(CHART), "--no-hooks", "--take-ownership", *where, values=values)
    core = client.CoreV1Api(api)
    request = {"spec": {"expirationSeconds": 3600, "audiences": []}}
    token = core.create_namespaced_service_account_token("team", places.system, request).status.token
    profiles = core.read_namespaced_config_map("team-profiles", places.system).data["profiles.yaml"]
    (tmp_path / "profiles.yaml").write_text(profiles)
    monkeypatch.setenv("LORA_WATCH_NAMESPACES", places.cluster)
    operator = OperatorProcess(write_kubeconfig(plane, tmp_path / "kubeconfig", token), tmp_path)
    operator.start()
    try:
        cluster = NamespaceClient(api, places.cluster)
        cluster.create()
        until(lambda: [job.metadata.labels[f"{GROUP}/stage"] for job in cluster.jobs()] == ["annotate"])
        until(lambda: cluster.phase() == "Annotating")
        cluster.delete()
    finally:
        operator.stop()
        helm("uninstall", "team", *where)
    assert "orbidden" not in operator.log

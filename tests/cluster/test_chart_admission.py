"""The chart on a real API server: everything is admitted, an upgrade changes it, and the definition outlives it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from kubernetes import client
from plane import ControlPlane

from helm import CHART, helm, render
from lora_api import GROUP, PLURAL

STUDIO = "lora-chart-studio"
# all that needs no definition of others
VALUES = {
    "replicas": 2,
    "watchNamespaces": [STUDIO],
    "dashboard": {"enabled": True},
    "networkPolicy": {"jobNamespaces": [STUDIO]},
    "modelCache": {"enabled": True, "namespaces": [STUDIO]},
    "profiles": {"default": {"modelCache": {"persistentVolumeClaim": "lora-models"}}},
    "trialStore": {"enabled": True, "jobNamespace": STUDIO, "persistence": {"enabled": True}},
    "demo": {"enabled": True, "ingress": {"enabled": True, "host": "lora.example.com"}},
}


@pytest.fixture
def namespaces(api: client.ApiClient) -> Iterator[list[str]]:
    core = client.CoreV1Api(api)
    made = ["lora-chart-system", STUDIO]
    for name in made:
        labels = {"pod-security.kubernetes.io/enforce": "restricted"}
        core.create_namespace({"metadata": {"name": name, "labels": labels}})
    yield made
    for name in made:
        core.delete_namespace(name)


def pod_templates(objects: list[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    for found in objects:
        if found["kind"] == "Pod":
            yield found["metadata"], found["spec"]
        elif template := found.get("spec", {}).get("template"):
            yield found["metadata"], template["spec"]


def test_install_upgrade_uninstall(plane: ControlPlane, api: client.ApiClient, namespaces: list[str]) -> None:
    where = ("--namespace", namespaces[0], "--kubeconfig", str(plane.kubeconfig))
    # no node runs its hooks here, and the definition is there already
    options = ("--no-hooks", "--take-ownership")
    helm("install", "chart", str(CHART), *options, *where, values=VALUES)

    core, apps = client.CoreV1Api(api), client.AppsV1Api(api)
    rendered = render(VALUES, name="chart", namespace=namespaces[0])
    templates = list(pod_templates(rendered))
    assert len(templates) == 7
    for meta, spec in templates:
        pod = {"metadata": {"name": "probe"}, "spec": spec | {"restartPolicy": "Never"}}
        core.create_namespaced_pod(meta["namespace"], pod, dry_run="All")

    key = core.read_namespaced_secret("lora-store", STUDIO).data["secretKey"]
    helm("upgrade", "chart", str(CHART), *options, *where, values=VALUES | {"replicas": 1})
    assert apps.read_namespaced_deployment("chart", namespaces[0]).spec.strategy.type == "Recreate"
    assert core.read_namespaced_secret("lora-store", STUDIO).data["secretKey"] == key

    helm("uninstall", "chart", *where)
    assert not apps.list_namespaced_deployment(namespaces[0]).items
    crds = client.ApiextensionsV1Api(api)
    definition = crds.read_custom_resource_definition(f"{PLURAL}.{GROUP}")
    assert definition.metadata.deletion_timestamp is None
    (claim,) = core.list_namespaced_persistent_volume_claim(STUDIO).items
    assert claim.metadata.name == "lora-models"

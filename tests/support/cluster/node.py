"""A whole cluster with a node: the kubelet and the container runtime are real, and the stages run a script.

A MutatingAdmissionPolicy replaces the command of the stages and adds containers to their pods, as a service mesh does
by a webhook.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import yaml
from kubernetes import client, config

from lora_api import GROUP, PLURAL
from lora_operator import names
from tests.support.cluster.harness import PROFILES, NamespaceClient, OperatorProcess, until
from tests.support.cluster.plane import install_crd, served

KUBECONFIG = os.environ.get("LORA_TEST_KUBECONFIG", "")
IMAGES = os.environ.get("LORA_TEST_IMAGES", "")
SCRIPT = Path(__file__).with_name("scripted_stage.py")

Plan = dict[str, list[dict[str, Any]]]
Patch = dict[str, Any]


def annotate_image() -> str:
    """Return the image that every container of these tests runs: it has Python, a shell and `lora_api`.

    Empty where no images are named: the tests are then collected and skipped.
    """
    return IMAGES.split(",")[1] if IMAGES else ""


def beside(name: str, script: str, *, native: bool = False, first: bool = False, image: str = "") -> Patch:
    """Build the patch that adds a container to the pods of stages.

    Args:
        name: its name.
        script: what its shell runs.
        native: make it an init container that is restarted, which Kubernetes calls a sidecar.
        first: put it before the stage's container.
        image: its image; empty for that of the stages.
    """
    container: dict[str, Any] = {
        "name": name,
        "image": image or annotate_image(),
        "command": ["/bin/sh", "-c", script],
        "resources": {"requests": {"cpu": "10m", "memory": "16Mi"}},
    }
    if native:
        container["restartPolicy"] = "Always"
    part = "initContainers" if native else "containers"
    if native:
        return {"op": "add", "path": f"/spec/{part}", "value": [container]}
    return {"op": "add", "path": f"/spec/{part}/{'0' if first else '-'}", "value": container}


class Node:
    """A client for the cluster and for one test's namespace in it."""

    def __init__(self, api: client.ApiClient, namespace: str) -> None:
        self.cluster = NamespaceClient(api, namespace)
        self.core = client.CoreV1Api(api)
        self._admission = client.AdmissionregistrationV1Api(api)
        self._policies: list[str] = []

    def set_plan(self, job: str, plan: Plan, *patches: Patch) -> None:
        """Make the stages of a job run a plan, and patch their pods. Call it before the job is created."""
        namespace = self.cluster.namespace
        name = f"{namespace}-{job}"
        command = ["python", "-c", SCRIPT.read_text(), json.dumps(plan)]
        replaced = {"op": "replace", "path": "/spec/containers/0/command", "value": command}
        owner = f"object.metadata.?annotations[?'{names.OWNER_NAME}'].orValue('') == '{job}'"
        rule = {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]}
        spec = {
            "failurePolicy": "Fail",
            "reinvocationPolicy": "Never",
            "matchConstraints": {"resourceRules": [rule]},
            "matchConditions": [{"name": "job", "expression": owner}],
            "mutations": [
                {"patchType": "JSONPatch", "jsonPatch": {"expression": f"[{_expression(patch)}]"}}
                for patch in (replaced, *patches)
            ],
        }
        selector = {"matchLabels": {"kubernetes.io/metadata.name": namespace}}
        binding = {"policyName": name, "matchResources": {"namespaceSelector": selector}}
        metadata = {"metadata": {"name": name}}
        self._admission.create_mutating_admission_policy(metadata | {"spec": spec})
        self._policies.append(name)
        self._admission.create_mutating_admission_policy_binding(metadata | {"spec": binding})
        until(lambda: self._mutates(job), 60)

    def _mutates(self, job: str) -> bool:
        """Whether the API server applies a job's policy yet. It does so some time after the policy was created."""
        volumes = [{"name": name, "emptyDir": {}} for name in VOLUMES]
        pod = {
            "metadata": {"generateName": "probe-", "annotations": {names.OWNER_NAME: job}},
            "spec": {"containers": [{"name": "stage", "image": "x", "command": ["x"]}], "volumes": volumes},
        }
        made = self.core.create_namespaced_pod(self.cluster.namespace, pod, dry_run="All")
        return any("python" in container.command for container in made.spec.containers)

    def remove(self) -> None:
        for name in self._policies:
            self._admission.delete_mutating_admission_policy_binding(name)
            self._admission.delete_mutating_admission_policy(name)
        self.core.delete_namespace(self.cluster.namespace)

    def kubectl(self, *arguments: str) -> str:
        command = ["kubectl", "--kubeconfig", KUBECONFIG, "-n", self.cluster.namespace, *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


VOLUMES = ("config", "store", "tmp", "work")
"""The first volumes of a stage's pod, which patches name by their position."""


def volume_limit(name: str, size: str) -> Patch:
    """Build the patch that limits the size of an emptyDir of the stage's pods."""
    return {
        "op": "replace",
        "path": f"/spec/volumes/{VOLUMES.index(name)}/emptyDir",
        "value": {"sizeLimit": size},
    }


def _expression(patch: Patch) -> str:
    """Write a patch in CEL."""
    fields = ", ".join(f"{name}: {_literal(patch[name])}" for name in ("op", "path", "value"))
    return f"JSONPatch{{{fields}}}"


def _literal(value: Any) -> str:
    """Write a value in CEL. Lists and maps in CEL have items of one type, unless these are converted to `dyn`."""
    if isinstance(value, dict):
        items = ", ".join(f"{json.dumps(name)}: dyn({_literal(item)})" for name, item in value.items())
        return f"{{{items}}}"
    if isinstance(value, list):
        return "[" + ", ".join(f"dyn({_literal(item)})" for item in value) + "]"
    return json.dumps(value)


@contextmanager
def whole_node() -> Iterator[Node]:
    """The cluster of LORA_TEST_KUBECONFIG, with a namespace that is removed at the end.

    The definition is installed if it is not there, and then removed too: Helm would find another owner of its fields.
    """
    with config.new_client_from_config(KUBECONFIG) as api:
        installs = not served(api)
        if installs:
            install_crd(api)
        name = f"test-{uuid4().hex[:8]}"
        core = client.CoreV1Api(api)
        core.create_namespace({"metadata": {"name": name}})
        keys = {"metadata": {"name": "lora-store"}, "stringData": {"accessKey": "a", "secretKey": "b"}}
        core.create_namespaced_secret(name, keys)
        until(lambda: core.list_namespaced_service_account(name).items)
        node = Node(api, name)
        try:
            yield node
        finally:
            node.remove()
            if installs:
                until(lambda: name not in [found.metadata.name for found in core.list_namespace().items], 300)
                client.ApiextensionsV1Api(api).delete_custom_resource_definition(f"{PLURAL}.{GROUP}")
                until(lambda: not served(api), 60)


def operator_for(node: Node, folder: Path) -> OperatorProcess:
    """Prepare an operator process on this machine that watches the test's namespace."""
    (folder / "profiles.yaml").write_text(yaml.safe_dump(PROFILES))
    settings = {
        "LORA_WATCH_NAMESPACES": node.cluster.namespace,
        "LORA_ANNOTATE_IMAGE": annotate_image(),
        "LORA_TRAIN_IMAGE": annotate_image(),
    }
    return OperatorProcess(Path(KUBECONFIG), folder, settings)

"""The chart on a whole cluster: installed, tested, upgraded under a training, uninstalled, and installed again.

Needs `LORA_TEST_KUBECONFIG`, a cluster with no other operator of this kind in it, and
    LORA_TEST_IMAGES: the operator's, annotate and train images, comma-separated; without it the test is skipped.
    LORA_TEST_VALUES: a values file on top; without it the trial store is enabled (which needs DNS in the cluster, or
        trialStore.clusterIP in such a file).
    LORA_TEST_STORE_KEYS: `accessKey:secretKey` of a store that the values file names, with the quickstart's data in it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import yaml
from kubernetes import client, config
from kubernetes.client.exceptions import ApiException

from lora_api import GROUP, PLURAL
from tests.support.cluster.harness import NamespaceClient, until
from tests.support.helm import CHART, helm

KUBECONFIG = os.environ.get("LORA_TEST_KUBECONFIG", "")
IMAGES = os.environ.get("LORA_TEST_IMAGES", "")
VALUES = os.environ.get("LORA_TEST_VALUES", "")
KEYS = os.environ.get("LORA_TEST_STORE_KEYS", "")
QUICKSTART = CHART.parents[1] / "examples" / "quickstart" / "job.yaml"
RESTRICTED = {"pod-security.kubernetes.io/enforce": "restricted"}

pytestmark = pytest.mark.skipif(
    not (KUBECONFIG and IMAGES), reason="LORA_TEST_KUBECONFIG and LORA_TEST_IMAGES name no cluster and images"
)


@dataclass
class Release:
    """A release in its own namespace, and a client for the namespace of its jobs."""

    name: str
    cluster: NamespaceClient

    @property
    def namespace(self) -> str:
        return f"{self.name}-system"

    def helm(self, verb: str, *arguments: str, values: Any = None) -> str:
        where = ("--namespace", self.namespace, "--kubeconfig", KUBECONFIG)
        return helm(verb, self.name, *arguments, *where, values=values).stdout

    def install(self) -> None:
        self.helm("install", str(CHART), *self._options(), values=self.values())

    def upgrade(self, **changes: Any) -> None:
        self.helm("upgrade", str(CHART), *self._options(), values=self.values() | changes)

    def _options(self) -> tuple[str, ...]:
        # the CRD may be installed by an earlier release
        options = ("--wait", "--timeout", "10m", "--take-ownership")
        return (*options, "--values", VALUES) if VALUES else options

    def values(self) -> dict[str, Any]:
        """Return the values, which are passed on standard input and therefore take precedence over those of the file."""
        images = [image.rpartition(":") for image in IMAGES.split(",")]
        named = [{"repository": repository, "tag": tag} for repository, _, tag in images]
        found = dict(zip(("image", "annotateImage", "trainImage"), named, strict=True))
        trial = {"jobNamespace": self.cluster.namespace} | ({} if VALUES else {"enabled": True})
        return found | {
            "watchNamespaces": [self.cluster.namespace],
            "networkPolicy": {"jobNamespaces": [self.cluster.namespace]},
            "trialStore": trial,
        }

    def operator_pods(self) -> list[Any]:
        selector = f"app.kubernetes.io/component=operator,app.kubernetes.io/instance={self.name}"
        found: list[Any] = self.cluster.core.list_namespaced_pod(
            self.namespace, label_selector=selector
        ).items
        return found


@pytest.fixture
def release() -> Iterator[Release]:
    with config.new_client_from_config(KUBECONFIG) as api:
        name = f"life-{uuid4().hex[:6]}"
        core = client.CoreV1Api(api)
        made = Release(name, NamespaceClient(api, f"{name}-jobs"))
        namespaces = [made.namespace, made.cluster.namespace]
        for namespace in namespaces:
            core.create_namespace({"metadata": {"name": namespace, "labels": RESTRICTED}})
        if KEYS:
            access_key, _, secret_key = KEYS.partition(":")
            data = {"accessKey": access_key, "secretKey": secret_key}
            secret = {"metadata": {"name": "lora-store"}, "stringData": data}
            core.create_namespaced_secret(made.cluster.namespace, secret)
        yield made
        where = ("--namespace", made.namespace, "--kubeconfig", KUBECONFIG)
        helm("uninstall", name, "--ignore-not-found", *where, check=False)
        for namespace in namespaces:
            if exists(core, namespace):
                core.delete_namespace(namespace)
        until(lambda: not any(exists(core, namespace) for namespace in namespaces), 180)


def exists(core: client.CoreV1Api, namespace: str) -> bool:
    try:
        core.read_namespace(namespace)
    except ApiException as error:
        if error.status != 404:
            raise
        return False
    return True


def quickstart(cluster: NamespaceClient, name: str, steps: int, **training: Any) -> None:
    job = yaml.safe_load(QUICKSTART.read_text())
    job["metadata"] = {"name": name, "namespace": cluster.namespace}
    job["spec"]["training"] |= {"maxSteps": steps, **training}
    kubectl = Path(sys.executable).with_name("kubectl")
    command = [kubectl, "--kubeconfig", KUBECONFIG, "apply", "-f", "-"]
    subprocess.run(command, input=json.dumps(job), text=True, capture_output=True, check=True)


def training_pods(cluster: NamespaceClient, name: str) -> list[Any]:
    return [
        pod
        for pod in cluster.pods()
        if pod.metadata.labels.get(f"{GROUP}/stage") == "train"
        and pod.metadata.annotations[f"{GROUP}/job-name"] == name
    ]


def wait_training(cluster: NamespaceClient, name: str) -> Any:
    """Return the training pod once it has reported a step."""
    until(lambda: (cluster.status(name).get("progress") or {}).get("step", 0) > 0, 600)
    (pod,) = training_pods(cluster, name)
    assert pod.status.phase == "Running"
    return pod


def wait_finished(cluster: NamespaceClient, name: str) -> None:
    until(lambda: cluster.condition("Finished", name)[0] == "True", 1800)
    assert cluster.condition("Succeeded", name) == ("True", "Trained"), cluster.message(name)


def test_the_life_of_a_release(release: Release) -> None:
    cluster = release.cluster
    release.install()
    assert "Succeeded" in release.helm("test", "--logs")

    quickstart(cluster, "upgraded", steps=200)
    trains = wait_training(cluster, "upgraded")
    (before,) = release.operator_pods()
    release.upgrade(podAnnotations={"example.com/upgraded": "yes"})
    (after,) = until(
        lambda: [pod for pod in release.operator_pods() if pod.metadata.uid != before.metadata.uid]
    )
    assert after.metadata.annotations["example.com/upgraded"] == "yes"
    wait_finished(cluster, "upgraded")
    assert [pod.metadata.uid for pod in training_pods(cluster, "upgraded")] == [trains.metadata.uid]
    restarts = [pod.status.container_statuses[0].restart_count for pod in release.operator_pods()]
    assert restarts == [0]

    finished = cluster.get("upgraded")
    release.helm("uninstall", "--wait")
    until(lambda: not release.operator_pods())  # helm waits for the Deployment, not for its pods
    crds = client.ApiextensionsV1Api(cluster.api)
    assert crds.read_custom_resource_definition(f"{PLURAL}.{GROUP}").metadata.deletion_timestamp is None
    assert cluster.get("upgraded")["status"] == finished["status"]

    release.install()
    quickstart(cluster, "cut-short", steps=100_000)
    wait_training(cluster, "cut-short")
    assert cluster.get("upgraded")["status"] == finished["status"]
    started = time.monotonic()
    cluster.core.delete_namespace(cluster.namespace)
    until(lambda: not cluster.pods(), 60)
    # Kubernetes looks at the namespace again after half of its pods' grace period, which is 120 s, and one second more.
    until(lambda: not exists(cluster.core, cluster.namespace), 60)
    print(f"the namespace of a running job was gone after {time.monotonic() - started:.1f} s")


def configure_store(release: Release, *commands: str) -> None:
    """Run commands of SeaweedFS' shell in the trial store."""
    script = "".join(f"{command}\n" for command in commands)
    shell = ["weed", "shell", "-master=127.0.0.1:9333", "-filer=127.0.0.1:8888"]
    kubectl = [Path(sys.executable).with_name("kubectl"), "--kubeconfig", KUBECONFIG, "-n", release.namespace]
    ran = subprocess.run(
        [*kubectl, "exec", "-i", f"deployment/{release.name}-trial-store", "--", *shell],
        input=script,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert "error" not in ran.stdout.lower(), ran.stdout


def set_key(cluster: NamespaceClient, name: str) -> None:
    data = {"accessKey": name, "secretKey": f"secret-of-{name}"}
    cluster.core.patch_namespaced_secret("lora-store", cluster.namespace, {"stringData": data})


def test_a_rotated_key_is_taken_over_by_the_running_pod(release: Release) -> None:
    """The old key is refused for some time before the Secret has the new one, and the kubelet updates the files later."""
    cluster = release.cluster
    release.install()
    grant = "s3.configure -user={0} -access_key={0} -secret_key=secret-of-{0} -actions=Admin -apply"
    configure_store(release, grant.format("old"), grant.format("new"))
    set_key(cluster, "old")
    quickstart(cluster, "rotated", steps=300, checkpoint={"everySteps": 10, "keepLast": 1})
    pod = wait_training(cluster, "rotated")

    def log() -> str:
        found: str = cluster.core.read_namespaced_pod_log(pod.metadata.name, cluster.namespace)
        return found

    configure_store(release, "s3.configure -user=old -access_key=old -delete -apply")
    until(lambda: "which worked before; reading them again" in log(), 300)
    set_key(cluster, "new")
    until(lambda: cluster.condition("Finished", "rotated")[0] == "True", 1800)
    assert cluster.condition("Succeeded", "rotated") == ("True", "Trained"), cluster.message("rotated")
    assert [each.metadata.uid for each in training_pods(cluster, "rotated")] == [pod.metadata.uid]
    assert cluster.status("rotated")["training"]["attempt"] == 1

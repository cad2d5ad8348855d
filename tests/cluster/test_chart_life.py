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
from studio import Studio, until

from helm import CHART, helm
from lora_api import GROUP, PLURAL

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
    """One release in a namespace of its own, and a studio whose jobs it looks after."""

    name: str
    studio: Studio

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
        # the definition may be there from a release before
        options = ("--wait", "--timeout", "10m", "--take-ownership")
        return (*options, "--values", VALUES) if VALUES else options

    def values(self) -> dict[str, Any]:
        """(Values from standard input come last and so win over those of the file.)"""
        images = [image.rpartition(":") for image in IMAGES.split(",")]
        named = [{"repository": repository, "tag": tag} for repository, _, tag in images]
        found = dict(zip(("image", "annotateImage", "trainImage"), named, strict=True))
        trial = {"jobNamespace": self.studio.namespace} | ({} if VALUES else {"enabled": True})
        return found | {
            "watchNamespaces": [self.studio.namespace],
            "networkPolicy": {"jobNamespaces": [self.studio.namespace]},
            "trialStore": trial,
        }

    def operator_pods(self) -> list[Any]:
        selector = f"app.kubernetes.io/component=operator,app.kubernetes.io/instance={self.name}"
        found: list[Any] = self.studio.core.list_namespaced_pod(self.namespace, label_selector=selector).items
        return found


@pytest.fixture
def release() -> Iterator[Release]:
    with config.new_client_from_config(KUBECONFIG) as api:
        name = f"life-{uuid4().hex[:6]}"
        core = client.CoreV1Api(api)
        made = Release(name, Studio(api, f"{name}-jobs"))
        namespaces = [made.namespace, made.studio.namespace]
        for namespace in namespaces:
            core.create_namespace({"metadata": {"name": namespace, "labels": RESTRICTED}})
        if KEYS:
            access_key, _, secret_key = KEYS.partition(":")
            data = {"accessKey": access_key, "secretKey": secret_key}
            secret = {"metadata": {"name": "lora-store"}, "stringData": data}
            core.create_namespaced_secret(made.studio.namespace, secret)
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


def quickstart(studio: Studio, name: str, steps: int) -> None:
    job = yaml.safe_load(QUICKSTART.read_text())
    job["metadata"] = {"name": name, "namespace": studio.namespace}
    job["spec"]["training"]["maxSteps"] = steps
    kubectl = Path(sys.executable).with_name("kubectl")
    command = [kubectl, "--kubeconfig", KUBECONFIG, "apply", "-f", "-"]
    subprocess.run(command, input=json.dumps(job), text=True, capture_output=True, check=True)


def training_pods(studio: Studio, name: str) -> list[Any]:
    return [
        pod
        for pod in studio.pods()
        if pod.metadata.labels.get(f"{GROUP}/step") == "train"
        and pod.metadata.annotations[f"{GROUP}/job-name"] == name
    ]


def wait_training(studio: Studio, name: str) -> Any:
    """The pod that trains, once steps are counted."""
    until(lambda: (studio.status(name).get("progress") or {}).get("step", 0) > 0, 600)
    (pod,) = training_pods(studio, name)
    assert pod.status.phase == "Running"
    return pod


def wait_finished(studio: Studio, name: str) -> None:
    until(lambda: studio.condition("Finished", name)[0] == "True", 1800)
    assert studio.condition("Succeeded", name) == ("True", "Trained"), studio.message(name)


def test_the_life_of_a_release(release: Release) -> None:
    studio = release.studio
    release.install()
    assert "Succeeded" in release.helm("test", "--logs")

    quickstart(studio, "upgraded", steps=200)
    trains = wait_training(studio, "upgraded")
    (before,) = release.operator_pods()
    release.upgrade(podAnnotations={"example.com/upgraded": "yes"})
    (after,) = until(
        lambda: [pod for pod in release.operator_pods() if pod.metadata.uid != before.metadata.uid]
    )
    assert after.metadata.annotations["example.com/upgraded"] == "yes"
    wait_finished(studio, "upgraded")
    assert [pod.metadata.uid for pod in training_pods(studio, "upgraded")] == [trains.metadata.uid]
    restarts = [pod.status.container_statuses[0].restart_count for pod in release.operator_pods()]
    assert restarts == [0]

    finished = studio.get("upgraded")
    release.helm("uninstall", "--wait")
    until(lambda: not release.operator_pods())  # helm waits for the Deployment, not for its pods
    crds = client.ApiextensionsV1Api(studio.api)
    assert crds.read_custom_resource_definition(f"{PLURAL}.{GROUP}").metadata.deletion_timestamp is None
    assert studio.get("upgraded")["status"] == finished["status"]

    release.install()
    quickstart(studio, "cut-short", steps=100_000)
    wait_training(studio, "cut-short")
    assert studio.get("upgraded")["status"] == finished["status"]
    started = time.monotonic()
    studio.core.delete_namespace(studio.namespace)
    until(lambda: not exists(studio.core, studio.namespace), 60)
    print(f"the namespace of a running job was gone after {time.monotonic() - started:.1f} s")

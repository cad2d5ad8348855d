"""The quickstart on a whole cluster: real pods train an adapter.

Needs `LORA_TEST_KUBECONFIG` and, in that cluster, an operator whose default profile has the model `shapes-sdxl` and the
quickstart's images in its store; `LORA_TEST_STORE_KEYS` holds that store's `accessKey:secretKey`. docs/contributing/testing.md
says how to set such a cluster up.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
import yaml
from kubernetes import client, config

from lora_api import GROUP, PLURAL, VERSION
from tests.support.cluster.harness import NamespaceClient, until

KUBECONFIG = os.environ.get("LORA_TEST_KUBECONFIG", "")
KEYS = os.environ.get("LORA_TEST_STORE_KEYS", ":")
QUICKSTART = Path(__file__).parents[2] / "examples" / "quickstart" / "job.yaml"

pytestmark = pytest.mark.skipif(not KUBECONFIG, reason="LORA_TEST_KUBECONFIG names no cluster")


@pytest.fixture
def cluster() -> Iterator[NamespaceClient]:
    """A namespace that enforces the restricted Pod Security Standard, with the store's keys in it."""
    with config.new_client_from_config(KUBECONFIG) as api:
        name = f"test-{uuid4().hex[:8]}"
        core = client.CoreV1Api(api)
        labels = {"pod-security.kubernetes.io/enforce": "restricted"}
        core.create_namespace({"metadata": {"name": name, "labels": labels}})
        yield NamespaceClient(api, name)
        core.delete_namespace(name)
        until(lambda: name not in [n.metadata.name for n in core.list_namespace().items], 180)


def give_keys(cluster: NamespaceClient, keys: str) -> None:
    access_key, _, secret_key = keys.partition(":")
    cluster.core.create_namespaced_secret(
        cluster.namespace,
        {
            "metadata": {"name": "lora-store"},
            "stringData": {"accessKey": access_key, "secretKey": secret_key},
        },
    )


def kubectl(cluster: NamespaceClient, *arguments: str, text: str = "") -> str:
    ran = subprocess.run(
        ["kubectl", "--kubeconfig", KUBECONFIG, "-n", cluster.namespace, *arguments],
        input=text,
        capture_output=True,
        text=True,
        check=True,
    )
    return ran.stdout


def quickstart(cluster: NamespaceClient, name: str, **spec: object) -> None:
    job = yaml.safe_load(QUICKSTART.read_text())
    job["metadata"] = {"name": name}
    job["spec"] |= spec
    kubectl(cluster, "apply", "-f", "-", text=json.dumps(job))


def wait_finished(cluster: NamespaceClient, name: str, seconds: int) -> None:
    kubectl(cluster, "wait", "--for=condition=Finished", f"loratrainingjob/{name}", f"--timeout={seconds}s")


def test_images_become_an_adapter(cluster: NamespaceClient) -> None:
    give_keys(cluster, KEYS)
    quickstart(cluster, "quickstart")
    wait_finished(cluster, "quickstart", 600)
    status = cluster.status("quickstart")
    assert cluster.condition("Succeeded", "quickstart") == ("True", "Trained"), cluster.message("quickstart")
    assert status["progress"]["display"] == "300/300"
    assert status["adapter"]["bytes"] > 0
    pods = cluster.pods()
    assert sorted(pod.metadata.labels["lora-training.io/stage"] for pod in pods) == ["annotate", "train"]
    # the operator reads the result when the stage's container has ended, slightly before the pod has
    until(lambda: all(pod.status.phase == "Succeeded" for pod in cluster.pods()), 60)
    shown = kubectl(cluster, "get", PLURAL)
    assert "Succeeded" in shown
    assert "300/300" in shown


def test_bad_jobs_end_with_their_reason(cluster: NamespaceClient) -> None:
    give_keys(cluster, KEYS)
    quickstart(cluster, "profile", profile="nope")
    quickstart(cluster, "images", dataset={"prefix": f"nothing/{uuid4().hex}/"})
    for name, reason, seconds in (("images", "DatasetInvalid", 60), ("profile", "ProfileNotFound", 180)):
        wait_finished(cluster, name, seconds)
        assert cluster.condition("Succeeded", name) == ("False", reason)


def test_a_wrong_key_ends_with_its_reason(cluster: NamespaceClient) -> None:
    give_keys(cluster, f"{KEYS.partition(':')[0]}:wrong")
    quickstart(cluster, "key")
    wait_finished(cluster, "key", 60)
    assert cluster.condition("Succeeded", "key") == ("False", "CredentialsRefused")


def test_a_job_waits_for_its_secret(cluster: NamespaceClient) -> None:
    quickstart(cluster, "late", dataset={"prefix": f"nothing/{uuid4().hex}/"})
    until(lambda: cluster.condition("Succeeded", "late") == ("Unknown", "SecretNotFound"), 60)
    give_keys(cluster, KEYS)
    wait_finished(cluster, "late", 180)
    assert cluster.condition("Succeeded", "late") == ("False", "DatasetInvalid")


def test_deleting_a_job_ends_its_pods(cluster: NamespaceClient) -> None:
    give_keys(cluster, KEYS)
    quickstart(cluster, "gone")
    until(lambda: cluster.phase("gone") == "Training", 300)
    cluster.custom.delete_namespaced_custom_object(GROUP, VERSION, cluster.namespace, PLURAL, "gone")
    until(
        lambda: not cluster.pods(), 60
    )  # far below the grace period of 120 s, since no checkpoint has to be saved yet

"""Effects of a real kubelet on the pods of a job: containers beside the stage, evictions, lost nodes, deletion.

Needs `LORA_TEST_KUBECONFIG`, a cluster with a node and without an operator, and the images of `LORA_TEST_IMAGES` on that node
(docs/contributing/testing.md). The stages run a script in the annotate image.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from kubernetes import client

from lora_api import GROUP
from tests.support.cluster.harness import NamespaceClient, OperatorProcess, until
from tests.support.cluster.node import (
    IMAGES,
    KUBECONFIG,
    Node,
    beside,
    operator_for,
    volume_limit,
    whole_node,
)

KUBELET = int(os.environ.get("LORA_TEST_KUBELET_PID", "0"))
CPU: dict[str, Any] = {
    "training": {"mixedPrecision": "fp32"},
    "resources": {
        "annotate": {"cpu": "50m", "memory": "64Mi"},
        "train": {"cpu": "50m", "memory": "64Mi", "gpus": 0},
    },
}

pytestmark = pytest.mark.skipif(
    not (KUBECONFIG and IMAGES), reason="LORA_TEST_KUBECONFIG and LORA_TEST_IMAGES name no cluster and images"
)


@pytest.fixture
def node() -> Iterator[Node]:
    with whole_node() as found:
        yield found


@pytest.fixture
def operator(node: Node, tmp_path: Path) -> Iterator[OperatorProcess]:
    found = operator_for(node, tmp_path)
    found.start()
    until(lambda: found.ask("/readyz")[0] == 200)
    yield found
    found.stop()


def pods_of(cluster: NamespaceClient, stage: str) -> list[Any]:
    return [pod for pod in cluster.pods() if pod.metadata.labels[f"{GROUP}/stage"] == stage]


LIVES = {
    "ends at once": "true",
    "ends later": "sleep 4",
    "ends well after the stage": "sleep 12",
    "fails": "sleep 1; exit 3",
    "never ends": "trap 'exit 0' TERM; while true; do sleep 1; done",
    "ignores SIGTERM": "trap '' TERM; while true; do sleep 1; done",
}


BESIDE = {
    f"{kind}-{order}-{life.replace(' ', '-').lower()}": beside(
        f"{'a' if order == 'first' else 'z'}-proxy", script, native=kind == "native", first=order == "first"
    )
    for kind in ("classic", "native")
    for order in ("first", "last")
    for life, script in LIVES.items()
}


BESIDE["classic-without-an-image"] = beside("a-proxy", "true", image="localhost/missing:1")


def test_a_container_beside_the_stage_changes_nothing(node: Node, operator: OperatorProcess) -> None:
    cluster = node.cluster
    for name, patch in BESIDE.items():
        node.set_plan(name, {}, patch)
        cluster.create(name, runPolicy={"backoffLimit": 0}, **CPU)
    for name in BESIDE:
        status = cluster.wait_for("Succeeded", name, 600)
        for stage in ("captions", "training"):
            assert (status[stage]["attempt"], status[stage]["failures"]) == (1, 0), name
    until(lambda: not [pod for pod in cluster.pods() if pod.status.phase in ("Running", "Pending")], 300)


def test_the_result_survives_nine_other_containers(node: Node, operator: OperatorProcess) -> None:
    """The containers of a pod share 12 KiB of termination messages."""
    loud = "head -c 4096 /dev/zero | tr '\\0' x > /dev/termination-log"
    node.set_plan("statue", {}, *(beside(f"a-{number}", loud, first=True) for number in range(9)))
    node.cluster.create(runPolicy={"backoffLimit": 0}, **CPU)
    status = node.cluster.wait_for("Succeeded", seconds=300)
    assert status["adapter"]["uri"].endswith("adapter.safetensors")
    assert status["training"]["attempt"] == 1


def test_a_failed_stage_beside_a_container_that_never_ends_is_retried(
    node: Node, operator: OperatorProcess
) -> None:
    cluster = node.cluster
    plan = {"train": [{"fails": "StoreUnavailable", "exit": 69}, {}]}
    node.set_plan("runs", plan, beside("a-proxy", LIVES["never ends"], first=True))
    node.set_plan("cannot-start", plan, beside("a-proxy", "true", image="localhost/missing:1"))
    for name in ("runs", "cannot-start"):
        cluster.create(name, **CPU)
    for name in ("runs", "cannot-start"):
        status = cluster.wait_for("Succeeded", name, 300)
        assert (status["training"]["attempt"], status["training"]["failures"]) == (2, 1)
        assert status["training"]["lastFailure"]["reason"] == "StoreUnavailable"


def test_a_sidecar_that_cannot_start_is_named(node: Node, operator: OperatorProcess) -> None:
    cluster = node.cluster
    node.set_plan("image", {}, beside("a-proxy", "true", native=True, image="localhost/missing:1"))
    node.set_plan("deadline", {}, beside("a-proxy", "true", native=True, image="localhost/missing:1"))
    cluster.create("image", **CPU)
    cluster.create("deadline", runPolicy={"startDeadlineSeconds": 15}, **CPU)
    until(lambda: cluster.condition("Succeeded", "image") == ("Unknown", "ImagePullFailed"), 90)
    assert "container a-proxy" in cluster.message("image")
    cluster.wait_for("Failed", "deadline", 90)
    assert cluster.condition("Succeeded", "deadline") == ("False", "StartDeadlineExceeded")
    times = cluster.status("deadline")
    ended = datetime.fromisoformat(times["finishTime"])
    assert 15 <= (ended - datetime.fromisoformat(times["startTime"])).total_seconds() <= 18


def test_a_full_volume_and_full_storage_are_reported_with_the_kubelets_message(
    node: Node, operator: OperatorProcess
) -> None:
    cluster = node.cluster
    node.set_plan("volume", {"train": [{"fill": ["/tmp", 40], "seconds": 300}]}, volume_limit("tmp", "16Mi"))
    node.set_plan("storage", {"train": [{"fill": ["/work", 80], "seconds": 300}]})
    small = {**CPU["resources"], "train": {**CPU["resources"]["train"], "ephemeralStorage": "32Mi"}}
    cluster.create("volume", runPolicy={"backoffLimit": 0}, **CPU)
    cluster.create("storage", runPolicy={"backoffLimit": 1}, **CPU | {"resources": small})
    for name, words in (
        ("volume", 'Usage of EmptyDir volume "tmp" exceeds the limit "16Mi"'),
        ("storage", "ephemeral local storage usage exceeds the total limit of containers 32Mi"),
    ):
        status = cluster.wait_for("Failed", name, 600)
        assert cluster.condition("Succeeded", name) == ("False", "DiskFull")
        assert words in cluster.message(name)
        assert status["training"]["lastFailure"]["reason"] == "DiskFull"
    assert len([p for p in pods_of(cluster, "train") if "storage" in p.metadata.name]) <= 2


def training_pod(node: Node) -> Any:
    node.cluster.wait_for("Training", seconds=300)
    (pod,) = (pod for pod in pods_of(node.cluster, "train") if pod.status.phase == "Running")
    return pod


def taint(node: Node, *taints: dict[str, str]) -> None:
    (name,) = (found.metadata.name for found in node.core.list_node().items)
    node.core.patch_node(name, {"spec": {"taints": list(taints)}})


def created(create: Callable[[], Any]) -> bool:
    """Create an object; False while what it names is not known to the admission plugins, whose caches lag behind."""
    try:
        create()
    except client.ApiException as error:
        return error.status != 403
    return True


@pytest.mark.parametrize("how", ["evicted", "tainted", "preempted"])
def test_a_pod_that_the_cluster_takes_away_is_replaced_without_a_charge(
    node: Node, operator: OperatorProcess, how: str
) -> None:
    cluster, name = node.cluster, node.cluster.namespace
    node.set_plan("statue", {"train": [{"seconds": 40}]})
    cores = int(node.core.list_node().items[0].status.capacity["cpu"])
    resources = CPU["resources"]
    if how == "preempted":
        resources = {**resources, "train": {**resources["train"], "cpu": f"{cores * 700}m"}}
    cluster.create(runPolicy={"backoffLimit": 0}, **CPU | {"resources": resources})
    pod = training_pod(node)
    scheduling = client.SchedulingV1Api(cluster.api)
    if how == "evicted":
        eviction = {"metadata": {"name": pod.metadata.name, "namespace": name}}
        node.core.create_namespaced_pod_eviction(pod.metadata.name, name, eviction)
    elif how == "tainted":
        taint(node, {"key": "example.com/away", "effect": "NoExecute"})
    else:
        scheduling.create_priority_class({"metadata": {"name": name}, "value": 1000})
        container = {
            "name": "other",
            "image": "x",
            "resources": {"requests": {"cpu": f"{cores * 600}m", "memory": "16Mi"}},
        }
        other = {
            "metadata": {"name": "other"},
            "spec": {"priorityClassName": name, "containers": [container]},
        }
        until(lambda: created(lambda: node.core.create_namespaced_pod(name, other)))
    expected = {"evicted": "Evicted", "tainted": "NodeLost", "preempted": "Preempted"}[how]

    def is_reported() -> bool:
        failure = (cluster.status().get("training") or {}).get("lastFailure") or {}
        return failure.get("reason") == expected

    try:
        until(is_reported, 90)
    finally:
        if how == "tainted":
            taint(node)
        if how == "preempted":
            node.core.delete_namespaced_pod("other", name)
            scheduling.delete_priority_class(name)
    status = cluster.wait_for("Succeeded", seconds=300)
    assert (status["training"]["attempt"], status["training"]["failures"]) == (1, 0)
    assert status["training"]["disruptions"] == 1


def test_a_job_that_a_finalizer_holds_ends_its_pods(node: Node, operator: OperatorProcess) -> None:
    cluster = node.cluster
    node.set_plan("statue", {"train": [{"seconds": 600}]}, beside("z-proxy", LIVES["never ends"]))
    cluster.create(**CPU)
    training_pod(node)
    cluster.patch({"metadata": {"finalizers": ["example.com/hold"]}})
    cluster.delete()
    cluster.wait_for("Terminating", seconds=60)
    until(lambda: not pods_of(cluster, "train"), 90)
    time.sleep(5)
    assert not pods_of(cluster, "train"), "no new pod"
    cluster.patch({"metadata": {"finalizers": None}})
    until(lambda: not cluster.jobs(), 60)


def test_limits_that_a_namespace_sets_are_reported_and_waited_for(
    node: Node, operator: OperatorProcess
) -> None:
    """A LimitRange gives a limit below the request to each container without a limit of its own."""
    cluster = node.cluster
    node.set_plan("statue", {})
    limits = {"limits": [{"type": "Container", "default": {"cpu": "20m"}}]}
    node.core.create_namespaced_limit_range(cluster.namespace, {"metadata": {"name": "low"}, "spec": limits})
    cluster.create(**CPU)
    until(lambda: cluster.condition("Succeeded") == ("Unknown", "ConfigurationInvalid"), 60)
    assert "must be less than or equal to cpu limit" in cluster.message()
    node.core.delete_namespaced_limit_range("low", cluster.namespace)
    cluster.wait_for("Succeeded", seconds=300)


def test_an_orphaned_pod_is_waited_for(node: Node, operator: OperatorProcess) -> None:
    """After `kubectl delete job --cascade=orphan` the pod continues to run and has no owner."""
    cluster = node.cluster
    node.set_plan("statue", {"train": [{"seconds": 12}]})
    cluster.create(**CPU)
    pod = training_pod(node)
    job = cluster.status()["training"]["jobName"]
    cluster.batch.delete_namespaced_job(job, cluster.namespace, propagation_policy="Orphan")

    def alive() -> list[str]:
        return [
            p.metadata.name for p in pods_of(cluster, "train") if p.status.phase in ("Pending", "Running")
        ]

    while cluster.phase() != "Succeeded":
        assert len(alive()) <= 1, "two pods of one stage at once"
        time.sleep(0.2)
    assert pod.metadata.name in [p.metadata.name for p in cluster.pods()]


@pytest.mark.skipif(not KUBELET, reason="LORA_TEST_KUBELET_PID names no kubelet of this machine")
def test_a_node_that_does_not_respond_is_reported(node: Node, operator: OperatorProcess) -> None:
    cluster = node.cluster
    node.set_plan("statue", {"train": [{"seconds": 150}]})
    cluster.create(**CPU)
    training_pod(node)
    os.kill(KUBELET, signal.SIGSTOP)
    try:
        until(lambda: cluster.condition("Succeeded") == ("Unknown", "NodeNotReady"), 150)
        assert "does not report" in cluster.message()
    finally:
        os.kill(KUBELET, signal.SIGCONT)
    until(lambda: cluster.condition("Succeeded") == ("Unknown", "Training"), 60)
    status = cluster.wait_for("Succeeded", seconds=300)
    assert status["training"]["attempt"] == 1

"""The operator behind a proxy that injects one kind of fault at a time."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lora_api import __version__
from lora_api.stages import StageName
from tests.support.cluster.harness import PATIENCE_SECONDS, NamespaceClient, OperatorProcess, until
from tests.support.cluster.kubelet import FakeKubelet, Stuck, succeed
from tests.support.cluster.proxy import NO_FAULTS, FaultyProxy
from tests.support.cluster.wire import Wire

TRAIN, ANNOTATE = StageName.TRAIN, StageName.ANNOTATE
REFUSALS = ["429", "403", "409", "410", "500", "503", "504", "reset", "lost answer"]


class ThreadedProxy(FaultyProxy):
    """A `FaultyProxy` for tests that do not run in an event loop."""

    def run(self, function: Callable[..., None], *arguments: Any) -> None:
        self.loop.call_soon_threadsafe(function, *arguments)

    def __enter__(self) -> ThreadedProxy:
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()
        asyncio.run_coroutine_threadsafe(self.__aenter__(), self.loop).result()
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self.__aexit__(), self.loop).result()
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()


@pytest.fixture
def proxy(operator_files: OperatorProcess) -> Iterator[ThreadedProxy]:
    with ThreadedProxy(Wire.read(operator_files.kubeconfig), "a seed", NO_FAULTS) as running:
        yield running


@pytest.fixture
def operator(
    proxy: ThreadedProxy, operator_files: OperatorProcess, tmp_path: Path
) -> Iterator[OperatorProcess]:
    process = replace(operator_files, kubeconfig=proxy.write_kubeconfig(tmp_path / "kubeconfig"))
    process.start()
    yield process
    process.stop()


def endless(stage: StageName, number: int) -> Any:
    return succeed(stage, number) if stage == ANNOTATE else None


@pytest.fixture
def training_job(cluster: NamespaceClient, operator: OperatorProcess, kubelet: FakeKubelet) -> str:
    """Return the child Job of a job whose training does not end."""
    kubelet.script = endless
    cluster.create()
    cluster.wait_for("Training")
    return str(cluster.status()["training"]["jobName"])


def test_any_write_may_be_refused_or_its_answer_lost(
    cluster: NamespaceClient, proxy: ThreadedProxy, operator: OperatorProcess, kubelet: FakeKubelet
) -> None:
    proxy.script += [("POST", "/jobs", fault) for fault in REFUSALS]
    proxy.script += [("PATCH", "/status", fault) for fault in REFUSALS]
    names = [f"job-{fault.replace(' ', '-')}" for fault in REFUSALS]
    for name in names:
        cluster.create(name)
    for name in names:
        cluster.wait_for("Succeeded", name)
        assert cluster.status(name)["training"]["attempt"] == 1
    assert proxy.script == []
    assert len(kubelet.runs) == len(cluster.jobs()) == 2 * len(names)


def test_every_request_names_the_operator(
    cluster: NamespaceClient, proxy: ThreadedProxy, operator: OperatorProcess, kubelet: FakeKubelet
) -> None:
    """This includes the watches that kopf opens."""
    cluster.create()
    cluster.wait_for("Succeeded")
    assert proxy.watches >= 3
    assert set(proxy.agents) == {f"lora-operator/{__version__}"}


def test_a_delete_that_is_refused_is_retried(
    cluster: NamespaceClient, proxy: ThreadedProxy, training_job: str
) -> None:
    proxy.script += [("DELETE", training_job, fault) for fault in ("500", "lost answer")]
    cluster.patch({"spec": {"runPolicy": {"suspend": True}}})
    cluster.wait_for("Suspended")
    until(lambda: training_job not in [found.metadata.name for found in cluster.jobs()])


def test_repeated_and_reordered_events_change_nothing(
    cluster: NamespaceClient, proxy: ThreadedProxy, operator: OperatorProcess, kubelet: FakeKubelet
) -> None:
    proxy.faults = replace(NO_FAULTS, repeat=1.0)
    names = [f"job-{number}" for number in range(5)]
    for name in names:
        cluster.create(name)
    for name in names:
        cluster.wait_for("Succeeded", name)
        assert cluster.status(name)["training"]["attempt"] == 1
    assert proxy.injected["event twice"] > 10
    assert proxy.injected["event stale"] > 10
    assert len(kubelet.runs) == len(cluster.jobs()) == 2 * len(names)
    assert operator.metric("lora_operator_api_writes_total") <= 10 * len(names)


def test_a_dropped_watch_is_resumed(
    cluster: NamespaceClient, proxy: ThreadedProxy, operator: OperatorProcess, kubelet: FakeKubelet
) -> None:
    for how in ("closed", "cut", "expired"):
        kubelet.script = endless
        cluster.create(how)
        cluster.wait_for("Training", how)
        proxy.run(proxy.end_watches, how)
        kubelet.script = succeed
        cluster.wait_for("Succeeded", how)
    assert {"watch closed", "watch cut", "watch expired"} <= set(proxy.injected)
    assert operator.process is not None
    assert operator.process.poll() is None


def test_an_unknown_watch_error_ends_the_process_and_a_new_one_continues(
    cluster: NamespaceClient,
    proxy: ThreadedProxy,
    operator: OperatorProcess,
    kubelet: FakeKubelet,
    training_job: str,
) -> None:
    proxy.run(proxy.end_watches, "broken")
    assert operator.process is not None
    assert operator.process.wait(PATIENCE_SECONDS) != 0
    kubelet.script = succeed
    operator.start()
    cluster.wait_for("Succeeded")
    assert len(kubelet.runs) == 2


def test_a_deletion_during_an_interrupted_watch_is_noticed(
    cluster: NamespaceClient, proxy: ThreadedProxy, kubelet: FakeKubelet, training_job: str
) -> None:
    job = training_job
    proxy.frozen = ""
    first = cluster.batch.read_namespaced_job(job, cluster.namespace).metadata.uid
    cluster.batch.delete_namespaced_job(job, cluster.namespace, propagation_policy="Background")
    until(lambda: job not in [found.metadata.name for found in cluster.jobs()])
    until(lambda: not [pod for pod in cluster.pods() if pod.status.phase == "Running"])
    proxy.run(proxy.end_watches, "expired")  # so the watch that missed the deletion cannot be resumed
    proxy.frozen = None
    kubelet.script = succeed
    cluster.wait_for("Succeeded")
    assert cluster.batch.read_namespaced_job(job, cluster.namespace).metadata.uid != first
    assert max(kubelet.most_live.values()) == 1


def test_a_pod_that_is_seen_before_its_job_causes_no_writes(
    cluster: NamespaceClient, proxy: ThreadedProxy, operator: OperatorProcess, kubelet: FakeKubelet
) -> None:
    def writes() -> float:
        return operator.metric("lora_operator_api_writes_total")

    kubelet.script = lambda stage, number: None
    until(lambda: operator.ask("/readyz")[0] == 200)
    proxy.frozen = "/jobs"
    cluster.create()
    until(lambda: kubelet.runs)
    until(lambda: writes() >= 2)  # the Job and the status
    time.sleep(3)
    started = writes()
    assert started <= 4, cluster.message()  # an Event, and possibly the status of the running pod
    time.sleep(2)
    assert writes() == started, cluster.message()
    proxy.frozen = None
    kubelet.script = succeed
    cluster.wait_for("Succeeded")
    time.sleep(0.5)  # the last write is an Event, after the phase can be seen
    assert writes() <= 10, operator.ask("/metrics")[1]


def test_pods_that_start_slowly_cause_no_writes(
    cluster: NamespaceClient, operator: OperatorProcess, kubelet: FakeKubelet
) -> None:
    seen: dict[StageName, float] = {}

    def slow(stage: StageName, number: int) -> Any:
        waited = time.monotonic() - seen.setdefault(stage, time.monotonic())
        return Stuck() if waited < 5 else succeed(stage, number)

    kubelet.script = slow
    cluster.create()
    cluster.wait_for("Succeeded")
    time.sleep(0.5)
    assert len(kubelet.runs) == 2
    assert operator.metric("lora_operator_api_writes_total") <= 9


def test_an_outage_longer_than_any_retry_interval(
    cluster: NamespaceClient, proxy: ThreadedProxy, operator: OperatorProcess, kubelet: FakeKubelet
) -> None:
    """An outage of 45 s is longer than any of kopf's retry intervals, and stands for the documented five minutes."""
    kubelet.script = lambda stage, number: None
    cluster.create()
    until(lambda: kubelet.runs)
    proxy.dead = True
    proxy.run(proxy.end_watches, "cut")
    time.sleep(20)
    kubelet.script = succeed
    until(lambda: [job for job in cluster.jobs() if job.status.succeeded])
    time.sleep(25)
    proxy.dead = False
    assert operator.process is not None
    if operator.process.poll() is not None:
        operator.start()
    cluster.wait_for("Succeeded")
    assert [stage for stage, _ in kubelet.runs] == [ANNOTATE, TRAIN]

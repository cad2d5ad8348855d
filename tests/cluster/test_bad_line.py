"""A line to the API server that fails in one way at a time, and what the operator makes of it."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from kubelet import FakeKubelet, Stuck, well
from proxy import NONE, BadLine
from studio import PATIENCE_SECONDS, OperatorProcess, Studio, until
from wire import Wire

from lora_api.steps import StepName

TRAIN, ANNOTATE = StepName.TRAIN, StepName.ANNOTATE
REFUSALS = ["429", "403", "409", "410", "500", "503", "504", "reset", "lost answer"]


class Line(BadLine):
    """A `BadLine` for tests that do not run in an event loop."""

    def run(self, function: Callable[..., None], *arguments: Any) -> None:
        self.loop.call_soon_threadsafe(function, *arguments)

    def __enter__(self) -> Line:
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
def line(operator_files: OperatorProcess) -> Iterator[Line]:
    with Line(Wire.read(operator_files.kubeconfig), "a seed", NONE) as running:
        yield running


@pytest.fixture
def operator(line: Line, operator_files: OperatorProcess, tmp_path: Path) -> Iterator[OperatorProcess]:
    process = replace(operator_files, kubeconfig=line.write_kubeconfig(tmp_path / "kubeconfig"))
    process.start()
    yield process
    process.stop()


def endless(step: StepName, number: int) -> Any:
    return well(step, number) if step == ANNOTATE else None


def test_any_write_may_be_refused_or_its_answer_lost(
    studio: Studio, line: Line, operator: OperatorProcess, kubelet: FakeKubelet
) -> None:
    line.script += [("POST", "/jobs", fault) for fault in REFUSALS]
    line.script += [("PATCH", "/status", fault) for fault in REFUSALS]
    names = [f"job-{fault.replace(' ', '-')}" for fault in REFUSALS]
    for name in names:
        studio.create(name)
    for name in names:
        studio.wait_for("Succeeded", name)
        assert studio.status(name)["training"]["attempt"] == 1
    assert line.script == []
    assert len(kubelet.runs) == len(studio.jobs()) == 2 * len(names)


def test_a_delete_that_is_refused_is_made_again(
    studio: Studio, line: Line, operator: OperatorProcess, kubelet: FakeKubelet
) -> None:
    kubelet.script = endless
    studio.create()
    studio.wait_for("Training")
    job = studio.status()["training"]["jobName"]
    line.script += [("DELETE", job, fault) for fault in ("500", "lost answer")]
    studio.patch({"spec": {"runPolicy": {"suspend": True}}})
    studio.wait_for("Suspended")
    until(lambda: job not in [found.metadata.name for found in studio.jobs()])


def test_events_that_come_twice_or_out_of_order_change_nothing(
    studio: Studio, line: Line, operator: OperatorProcess, kubelet: FakeKubelet
) -> None:
    line.faults = replace(NONE, repeat=1.0)
    names = [f"job-{number}" for number in range(5)]
    for name in names:
        studio.create(name)
    for name in names:
        studio.wait_for("Succeeded", name)
        assert studio.status(name)["training"]["attempt"] == 1
    assert line.done["event twice"] > 10
    assert line.done["event stale"] > 10
    assert len(kubelet.runs) == len(studio.jobs()) == 2 * len(names)
    assert operator.metric("lora_operator_api_writes_total") <= 10 * len(names)


def test_a_dropped_watch_is_taken_up_again(
    studio: Studio, line: Line, operator: OperatorProcess, kubelet: FakeKubelet
) -> None:
    for how in ("closed", "cut", "expired"):
        kubelet.script = endless
        studio.create(how)
        studio.wait_for("Training", how)
        line.run(line.end_watches, how)
        kubelet.script = well
        studio.wait_for("Succeeded", how)
    assert {"watch closed", "watch cut", "watch expired"} <= set(line.done)
    assert operator.process is not None
    assert operator.process.poll() is None


def test_an_unknown_watch_error_ends_the_process_and_a_new_one_goes_on(
    studio: Studio, line: Line, operator: OperatorProcess, kubelet: FakeKubelet
) -> None:
    kubelet.script = endless
    studio.create()
    studio.wait_for("Training")
    line.run(line.end_watches, "broken")
    assert operator.process is not None
    assert operator.process.wait(PATIENCE_SECONDS) != 0
    kubelet.script = well
    operator.start()
    studio.wait_for("Succeeded")
    assert len(kubelet.runs) == 2


def test_what_was_deleted_while_no_watch_looked_is_noticed(
    studio: Studio, line: Line, operator: OperatorProcess, kubelet: FakeKubelet
) -> None:
    kubelet.script = endless
    studio.create()
    studio.wait_for("Training")
    line.frozen = ""
    job = studio.status()["training"]["jobName"]
    first = studio.batch.read_namespaced_job(job, studio.namespace).metadata.uid
    studio.batch.delete_namespaced_job(job, studio.namespace, propagation_policy="Background")
    until(lambda: job not in [found.metadata.name for found in studio.jobs()])
    until(lambda: not [pod for pod in studio.pods() if pod.status.phase == "Running"])
    line.run(line.end_watches, "expired")  # where the deletion was told, nobody can go on from
    line.frozen = None
    kubelet.script = well
    studio.wait_for("Succeeded")
    assert studio.batch.read_namespaced_job(job, studio.namespace).metadata.uid != first
    assert max(kubelet.most_live.values()) == 1


def test_a_pod_that_is_seen_before_its_job_costs_no_writes(
    studio: Studio, line: Line, operator: OperatorProcess, kubelet: FakeKubelet
) -> None:
    def writes() -> float:
        return operator.metric("lora_operator_api_writes_total")

    kubelet.script = lambda step, number: None
    until(lambda: operator.ask("/readyz")[0] == 200)
    line.frozen = "/jobs"
    studio.create()
    until(lambda: kubelet.runs)
    until(lambda: writes() >= 3)  # the Job, the status and an Event
    time.sleep(1)
    assert writes() == 3, studio.message()
    line.frozen = None
    kubelet.script = well
    studio.wait_for("Succeeded")
    time.sleep(0.5)  # the last write is an Event, after the phase can be seen
    assert writes() <= 10, operator.ask("/metrics")[1]


def test_pods_that_take_their_time_to_start_cost_no_writes(
    studio: Studio, operator: OperatorProcess, kubelet: FakeKubelet
) -> None:
    seen: dict[StepName, float] = {}

    def slow(step: StepName, number: int) -> Any:
        waited = time.monotonic() - seen.setdefault(step, time.monotonic())
        return Stuck() if waited < 5 else well(step, number)

    kubelet.script = slow
    studio.create()
    studio.wait_for("Succeeded")
    time.sleep(0.5)
    assert len(kubelet.runs) == 2
    assert operator.metric("lora_operator_api_writes_total") <= 9


def test_a_while_without_the_api_server(
    studio: Studio, line: Line, operator: OperatorProcess, kubelet: FakeKubelet
) -> None:
    """The five minutes of the promise, scaled: 45 s are longer than any pause that kopf makes before it asks again."""
    kubelet.script = lambda step, number: None
    studio.create()
    until(lambda: kubelet.runs)
    line.dead = True
    line.run(line.end_watches, "cut")
    time.sleep(20)
    kubelet.script = well
    until(lambda: [job for job in studio.jobs() if job.status.succeeded])
    time.sleep(25)
    line.dead = False
    assert operator.process is not None
    if operator.process.poll() is not None:
        operator.start()
    studio.wait_for("Succeeded")
    assert [step for step, _ in kubelet.runs] == [ANNOTATE, TRAIN]

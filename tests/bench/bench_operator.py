"""The operator beside the same children made by hand, on a real API server with the real Job controller.

Nodes are fake: a kubelet in a process of its own ends every pod when its time is over, about the shortest that a real
pod takes (`Pods.SHORT`). With `--at-once` it ends them as soon as they are there: then the control side's work is all
that takes time, and the last line tells of that. For each size N:

- N LoraTrainingJobs, from the first create to the last Finished, and to their first child Jobs;
- the same children as plain Jobs, made by a script that waits for the first of a pair to end before it creates
  the second: what somebody without an operator would write.

Then a trickle of jobs on an idle operator, and the memory and the API calls of one that has thousands of jobs,
nearly all ended. Figures of one run can be compared with one another; the load of the machine is told with them.

    PYTHONPATH=tests:tests/cluster python tests/bench/bench_operator.py [--sizes 100,500,2000] [--at-once] [--quick]
"""

from __future__ import annotations

import argparse
import asyncio
import math
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from enum import Enum
from pathlib import Path
from typing import Any
from uuid import uuid4

import psutil
from kubelet import FakeKubelet, well
from kubernetes import client, config
from plane import ControlPlane, grant, install_crd, missing
from proxy import NONE, BadLine
from rich.console import Console
from rich.progress import Progress, TaskID
from rich.table import Table
from studio import OperatorProcess, install_operator
from wire import Object, Wire

from builders import HASH, PROFILE, snapshot, wire_spec
from lora_api import API_VERSION, GROUP, KIND, PLURAL, VERSION
from lora_api.status import JobStatus
from lora_api.steps import StepName
from lora_operator.decide import StartAnnotation, StartTraining
from lora_operator.manifests import CLUSTER, build_job, build_step
from lora_operator.settings import Images

console = Console()
AT_ONCE = 32
MEGABYTE = 2**20


class Pods(Enum):
    """How long pods run: seconds of an annotation, and of a training."""

    AT_ONCE = (0.0, 0.0)
    SHORT = (10.0, 60.0)
    """About the quickstart's, which trains 300 steps of 64 pixels on a CPU; those of real models run for minutes."""
    ENDLESS = (0.0, math.inf)


class TimedKubelet(FakeKubelet):
    """Ends a pod well when its time is over."""

    tick = 0.1  # thousands of pods may run

    def __init__(self, api: client.ApiClient, namespace: str, pods: Pods) -> None:
        steps = (StepName.ANNOTATE, StepName.TRAIN)
        ends = {
            step: replace(well(step, 1), seconds=time) for step, time in zip(steps, pods.value, strict=True)
        }
        super().__init__(api, namespace, lambda step, number: ends[step])


def tend(kubeconfig: Path, namespace: str, pods: Pods) -> None:
    """The kubelet's process."""
    asyncio.run(TimedKubelet(config.new_client_from_config(str(kubeconfig)), namespace, pods).run())


@dataclass
class Bench:
    """What all measurements share."""

    plane: ControlPlane
    operator: OperatorProcess
    wire: Wire
    progress: Progress

    @asynccontextmanager
    async def namespace(self, pods: Pods = Pods.AT_ONCE) -> AsyncIterator[str]:
        """One with a kubelet; it is taken away again."""
        name = f"test-{uuid4().hex[:8]}"
        await self.wire.call("POST", "/api/v1/namespaces", {"metadata": {"name": name}})
        kubelet = multiprocessing.get_context("spawn").Process(
            target=tend, args=(self.plane.kubeconfig, name, pods), daemon=True
        )
        kubelet.start()
        await asyncio.sleep(2.0)
        try:
            yield name
        finally:
            await self.wire.call("DELETE", f"/api/v1/namespaces/{name}")
            await self._until_gone(name)  # the kubelet ends pods that run
            kubelet.terminate()
            kubelet.join()
            kubelet.close()

    async def _until_gone(self, name: str) -> None:
        """What is still being deleted would slow down what is measured next."""
        while True:
            found = await self.wire.call("GET", "/api/v1/namespaces", fieldSelector=f"metadata.name={name}")
            if not found["items"]:
                return
            await asyncio.sleep(0.5)

    @asynccontextmanager
    async def running(self, operator: OperatorProcess) -> AsyncIterator[psutil.Process]:
        """The operator, from when it watches until it is stopped."""
        operator.start()
        assert operator.process is not None
        while (await asyncio.to_thread(operator.ask, "/readyz"))[0] != 200:
            await asyncio.sleep(0.1)
        await asyncio.sleep(2.0)
        try:
            yield psutil.Process(operator.process.pid)
        finally:
            await asyncio.to_thread(operator.stop)


def resource(namespace: str, name: str) -> Object:
    spec = wire_spec(annotation={"mode": "Template"})
    metadata = {"name": name, "namespace": namespace}
    return {"apiVersion": API_VERSION, "kind": KIND, "metadata": metadata, "spec": spec}


def plain_job(namespace: str, name: str, step: StepName) -> Object:
    """The child that the operator would make, without the operator."""
    start = StartAnnotation(1) if step == StepName.ANNOTATE else StartTraining(1, "c" * 64, HASH)
    owned = snapshot(namespace=namespace, name=name, uid=f"plain-{name}", profile=PROFILE)
    job = build_job(owned, build_step(owned, start, CLUSTER), Images("annotate:test", "train:test"))
    del job["metadata"]["ownerReferences"]
    return job


def resources(namespace: str) -> str:
    return f"/apis/{GROUP}/{VERSION}/namespaces/{namespace}/{PLURAL}"


def jobs(namespace: str) -> str:
    return f"/apis/batch/v1/namespaces/{namespace}/jobs"


async def in_parallel(work: Iterable[Any]) -> None:
    limit = asyncio.Semaphore(AT_ONCE)

    async def run(item: Any) -> None:
        async with limit:
            await item

    await asyncio.gather(*(run(item) for item in work))


def has(body: Object, kind: str) -> bool:
    conditions = (body.get("status") or {}).get("conditions") or ()
    return any(c["type"] == kind and c["status"] == "True" for c in conditions)


@dataclass
class Course:
    """When what happened, in seconds from the first create."""

    firsts: dict[str, float] = field(default_factory=dict)
    """Per job, until its first child Job was there."""
    all_ended: float = 0.0
    writes: float = 0.0
    """Of the operator, per job."""
    rss: float = 0.0
    """Of the operator at the end, in MiB."""


async def by_operator(bench: Bench, count: int, pods: Pods) -> Course:
    course, names = Course(), [f"job-{number:05d}" for number in range(count)]
    async with bench.namespace(pods) as namespace, bench.running(bench.operator) as process:
        bar = bench.progress.add_task(f"{count} jobs by the operator", total=count)
        async with watched_firsts(bench, namespace, course) as began:
            ending = asyncio.create_task(count_ended(bench, resources(namespace), "Finished", count, bar))
            await in_parallel(
                bench.wire.call("POST", resources(namespace), resource(namespace, name)) for name in names
            )
            await ending
            course.all_ended = time.monotonic() - began
        course.writes = bench.operator.metric("lora_operator_api_writes_total") / count
        course.rss = process.memory_info().rss / MEGABYTE
    return course


async def by_hand(bench: Bench, count: int, pods: Pods) -> Course:
    course, names = Course(), [f"job-{number:05d}" for number in range(count)]
    async with bench.namespace(pods) as namespace:
        bar = bench.progress.add_task(f"{count} pairs of plain Jobs", total=count)
        async with watched_firsts(bench, namespace, course) as began:
            ending = asyncio.create_task(chain(bench, namespace, count, bar))
            await in_parallel(
                bench.wire.call("POST", jobs(namespace), plain_job(namespace, name, StepName.ANNOTATE))
                for name in names
            )
            await ending
            course.all_ended = time.monotonic() - began
    return course


async def chain(bench: Bench, namespace: str, count: int, bar: TaskID) -> None:
    """Create the second Job of a pair when the first has ended, until all second ones have."""
    followed: set[str] = set()
    ended: set[str] = set()
    creating: set[asyncio.Task[Object]] = set()
    async for _, body in bench.wire.follow(jobs(namespace)):
        name = body["metadata"]["name"]
        if not has(body, "Complete"):
            continue
        if body["metadata"]["labels"]["app.kubernetes.io/component"] == StepName.TRAIN:
            ended.add(name)
            bench.progress.update(bar, completed=len(ended))
            if len(ended) == count:
                return
        elif name not in followed:
            followed.add(name)
            owner = body["spec"]["template"]["metadata"]["annotations"][f"{GROUP}/job-name"]
            second = plain_job(namespace, owner, StepName.TRAIN)
            task = asyncio.create_task(bench.wire.call("POST", jobs(namespace), second))
            creating.add(task)
            task.add_done_callback(creating.discard)


async def count_ended(bench: Bench, path: str, condition: str, count: int, bar: TaskID) -> None:
    ended: set[str] = set()
    async for _, body in bench.wire.follow(path):
        if has(body, condition):
            ended.add(body["metadata"]["name"])
            bench.progress.update(bar, completed=len(ended))
            if len(ended) == count:
                return


@asynccontextmanager
async def watched_firsts(bench: Bench, namespace: str, course: Course) -> AsyncIterator[float]:
    """Note for each job when its first child was seen. Yields the beginning of the time."""
    began = time.monotonic()

    async def note() -> None:
        async for _, body in bench.wire.follow(jobs(namespace)):
            owner = body["spec"]["template"]["metadata"]["annotations"][f"{GROUP}/job-name"]
            course.firsts.setdefault(owner, time.monotonic() - began)

    task = asyncio.create_task(note())
    try:
        yield began
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def trickle(bench: Bench, count: int) -> list[float]:
    """Milliseconds from the create of a resource, one at a time, to its first child Job in a watch."""
    course, asked = Course(), {}
    async with bench.namespace() as namespace, bench.running(bench.operator):
        bar = bench.progress.add_task("a trickle", total=count)
        async with watched_firsts(bench, namespace, course) as began:
            await asyncio.sleep(0.5)
            for number in range(count):
                name = f"job-{number:05d}"
                asked[name] = time.monotonic() - began
                await bench.wire.call("POST", resources(namespace), resource(namespace, name))
                while name not in course.firsts:
                    await asyncio.sleep(0.001)
                await asyncio.sleep(0.7)  # for its pods to come and go
                bench.progress.update(bar, advance=1)
    return [1000 * (course.firsts[name] - asked[name]) for name in asked]


@dataclass
class Idle:
    rss: float
    peak: float
    """Both in MiB."""
    calls: int
    """To the API server in `seconds`, but for watches that were opened again."""
    watches: int
    seconds: float
    cpu: float
    """Seconds of CPU in that time."""


async def idle(bench: Bench, ended: int, at_work: int, seconds: float, folder: Path) -> Idle:
    """An operator that starts with many jobs that have ended and some whose training runs, and is then left alone."""
    async with bench.namespace(Pods.ENDLESS) as namespace:
        bar = bench.progress.add_task(f"{ended} ended jobs", total=ended)
        status = ended_status()

        async def make(number: int) -> None:
            name = f"ended-{number:05d}"
            await bench.wire.call("POST", resources(namespace), resource(namespace, name))
            await bench.wire.call("PATCH", f"{resources(namespace)}/{name}/status", {"status": status})
            bench.progress.update(bar, advance=1)

        await in_parallel(make(number) for number in range(ended))
        async with bench.running(bench.operator):
            bar = bench.progress.add_task(f"{at_work} jobs at work", total=at_work)
            await in_parallel(
                bench.wire.call("POST", resources(namespace), resource(namespace, f"work-{number:05d}"))
                for number in range(at_work)
            )
            await count_in_training(bench, namespace, at_work, bar)
        async with BadLine(Wire.read(bench.operator.kubeconfig), "", NONE) as line:
            counted = OperatorProcess(
                line.write_kubeconfig(folder / "counted.kubeconfig"), bench.operator.folder
            )
            async with bench.running(counted) as process:
                await settled(line)
                line.calls.clear()
                line.watches = 0
                cpu = sum(process.cpu_times()[:2])
                await waited(bench.progress, "left alone", seconds)
                memory = Path(f"/proc/{process.pid}/status").read_text()
                peak = int(memory.split("VmHWM:")[1].split()[0]) / 1024
                rss = process.memory_info().rss / MEGABYTE
                used = sum(process.cpu_times()[:2]) - cpu
                calls = sum(line.calls.values()) - line.watches
                return Idle(rss, peak, calls, line.watches, seconds, used)


async def settled(line: BadLine) -> None:
    """Until an operator that has just started has listed all there is."""
    before = -1
    while (calls := sum(line.calls.values())) != before:
        before = calls
        await asyncio.sleep(10)


async def waited(progress: Progress, what: str, seconds: float) -> None:
    bar = progress.add_task(what, total=seconds)
    for _ in range(int(seconds)):
        await asyncio.sleep(1)
        progress.update(bar, advance=1)


async def count_in_training(bench: Bench, namespace: str, count: int, bar: TaskID) -> None:
    training: set[str] = set()
    async for _, body in bench.wire.follow(resources(namespace)):
        if (body.get("status") or {}).get("phase") == "Training":
            training.add(body["metadata"]["name"])
            bench.progress.update(bar, completed=len(training))
            if len(training) == count:
                return


def ended_status() -> Object:
    """As full as a status gets."""
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    conditions = [
        {"type": kind, "status": "True", "reason": "Trained", "message": "m" * 80, "lastTransitionTime": now}
        for kind in ("Accepted", "CaptionsReady", "Succeeded", "Finished")
    ]
    status = JobStatus.model_validate(
        {
            "phase": "Succeeded",
            "startTime": now,
            "finishTime": now,
            "conditions": conditions,
            "inputHash": HASH,
        }
    ).to_wire()
    owned = snapshot().spec
    assert owned is not None
    return status | {"effective": owned.to_wire()}


def growth(courses: dict[int, Course]) -> float:
    """The power of N with which the time to the end grows, from the smallest to the largest size."""
    small, large = min(courses), max(courses)
    if small == large:
        return math.nan
    return math.log(courses[large].all_ended / courses[small].all_ended) / math.log(large / small)


def percentile(values: Iterable[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def show(operated: dict[int, Course], plain: dict[int, Course], pods: Pods) -> None:
    table = Table(
        "jobs", "", "first Job p50 s", "p95 s", "all ended s", "jobs/s", "ratio", "writes/job", "RSS MiB"
    )
    for count, ours_course in operated.items():
        for name, course in (("operator", ours_course), ("plain Jobs", plain[count])):
            ours = course is ours_course
            table.add_row(
                str(count),
                name,
                f"{statistics.median(course.firsts.values()):.2f}",
                f"{percentile(course.firsts.values(), 0.95):.2f}",
                f"{course.all_ended:.1f}",
                f"{count / course.all_ended:.1f}",
                f"{course.all_ended / plain[count].all_ended:.2f}" if ours else "",
                f"{course.writes:.1f}" if ours else "",
                f"{course.rss:.0f}" if ours else "",
            )
    console.print(table)
    console.print("pods run for {} and {} s".format(*pods.value))
    console.print(
        f"time to the end grows as N^{growth(operated):.2f} by the operator, N^{growth(plain):.2f} by hand"
    )


async def measure(plane: ControlPlane, operator: OperatorProcess, options: argparse.Namespace) -> None:
    api = config.new_client_from_config(str(plane.kubeconfig))
    operated: dict[int, Course] = {}
    plain: dict[int, Course] = {}
    pods = Pods.AT_ONCE if options.at_once else Pods.SHORT
    with Progress(console=console) as progress:
        async with Wire.of(api) as wire:
            bench = Bench(plane, operator, wire, progress)
            for count in options.sizes:
                plain[count] = await by_hand(bench, count, pods)
                operated[count] = await by_operator(bench, count, pods)
                progress.print(
                    f"{count}: {operated[count].all_ended:.1f} s by the operator, {plain[count].all_ended:.1f} s by hand"
                )
            latencies = await trickle(bench, options.trickle)
            rest = await idle(bench, options.ended, options.at_work, options.idle_seconds, plane.folder)
    show(operated, plain, pods)
    console.print(
        f"trickle: p50 {statistics.median(latencies):.1f} ms, p95 {percentile(latencies, 0.95):.1f} ms "
        f"from create to the first Job, of {len(latencies)}"
    )
    console.print(
        f"left alone for {rest.seconds:.0f} s with {options.ended} ended jobs and {options.at_work} at work: "
        f"{rest.rss:.0f} MiB (at most {rest.peak:.0f}), {rest.calls} API calls, {rest.watches} watches opened again, "
        f"{rest.cpu:.1f} s of CPU"
    )
    console.print(f"load of the machine: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    middle = 500 if 500 in operated else max(operated)
    print(
        f"RESULT ratio_{middle}={operated[middle].all_ended / plain[middle].all_ended:.3f} "
        f"writes_per_job={max(course.writes for course in operated.values()):.2f} "
        f"trickle_p95_ms={percentile(latencies, 0.95):.1f} "
        f"rss_mb_{options.ended + options.at_work}={rest.rss:.0f} "
        f"idle_calls_per_s={rest.calls / rest.seconds:.3f}"
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", type=lambda t: [int(n) for n in t.split(",")], default=[100, 500, 2000])
    parser.add_argument("--at-once", action="store_true", help="pods take no time")
    parser.add_argument("--quick", action="store_true", help="a few minutes, for a first look")
    options = parser.parse_args()
    options.trickle, options.ended, options.at_work, options.idle_seconds = 60, 4800, 200, 60.0
    if options.quick:
        options.sizes, options.trickle, options.ended, options.at_work = [50, 150], 20, 900, 100
    if reason := missing():
        print(reason)
        return 1
    with tempfile.TemporaryDirectory() as folder, ControlPlane(Path(folder)) as plane:
        api: client.ApiClient = config.new_client_from_config(str(plane.kubeconfig))
        grant(api)
        install_crd(api)
        (Path(folder) / "operator").mkdir()
        asyncio.run(measure(plane, install_operator(plane, api, Path(folder) / "operator"), options))
    return 0


if __name__ == "__main__":
    sys.exit(main())

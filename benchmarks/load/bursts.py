"""Measurements of many jobs at once, by the operator and by a script, and of jobs one after the other."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial

from rich.progress import TaskID

from lora_api import GROUP
from lora_api.stages import StageName
from tests.support.cluster.wire import Object

from .world import MEBIBYTE, Bench, Pods, count_until, in_parallel, jobs, plain_job, resource, resources


def has_condition(body: Object, kind: str) -> bool:
    """Return whether an object's condition of a type is true."""
    conditions = (body.get("status") or {}).get("conditions") or ()
    return any(c["type"] == kind and c["status"] == "True" for c in conditions)


@dataclass
class BatchTimes:
    """The times of one measurement, in seconds from its first create request."""

    first_jobs: dict[str, float] = field(default_factory=dict)
    """The time when the first child Job of each job was seen, by the job's name."""
    all_ended: float = 0.0
    """The time when all jobs had ended."""
    writes: float = 0.0
    """Number of the operator's write requests per job."""
    rss: float = 0.0
    """Resident memory of the operator at the end, in MiB."""


async def by_operator(bench: Bench, count: int, pods: Pods) -> BatchTimes:
    """Create LoraTrainingJobs and wait until all have ended."""
    times, names = BatchTimes(), [f"job-{number:05d}" for number in range(count)]
    async with bench.namespace(pods) as namespace, bench.running(bench.operator) as process:
        bar = bench.progress.add_task(f"{count} jobs by the operator", total=count)
        async with record_first_jobs(bench, namespace, times) as started:
            ending = asyncio.create_task(
                count_until(bench, resources(namespace), partial(has_condition, kind="Finished"), count, bar)
            )
            await in_parallel(
                bench.wire.call("POST", resources(namespace), resource(namespace, name)) for name in names
            )
            await ending
            times.all_ended = time.monotonic() - started
        times.writes = bench.operator.metric("lora_operator_api_writes_total") / count
        times.rss = process.memory_info().rss / MEBIBYTE
    return times


async def by_script(bench: Bench, count: int, pods: Pods) -> BatchTimes:
    """Create pairs of plain Jobs, without the operator, and wait until all have ended."""
    times, names = BatchTimes(), [f"job-{number:05d}" for number in range(count)]
    async with bench.namespace(pods) as namespace:
        bar = bench.progress.add_task(f"{count} pairs of plain Jobs", total=count)
        async with record_first_jobs(bench, namespace, times) as started:
            ending = asyncio.create_task(chain(bench, namespace, count, bar))
            await in_parallel(
                bench.wire.call("POST", jobs(namespace), plain_job(namespace, name, StageName.ANNOTATE))
                for name in names
            )
            await ending
            times.all_ended = time.monotonic() - started
    return times


async def chain(bench: Bench, namespace: str, count: int, bar: TaskID) -> None:
    """Create the second Job of each pair when the first has ended. Returns when all second Jobs have ended."""
    with_second: set[str] = set()
    ended: set[str] = set()
    creating: set[asyncio.Task[Object]] = set()  # asyncio itself keeps only weak references to tasks
    async for _, body in bench.wire.follow(jobs(namespace)):
        name = body["metadata"]["name"]
        if not has_condition(body, "Complete"):
            continue
        if body["metadata"]["labels"]["app.kubernetes.io/component"] == StageName.TRAIN:
            ended.add(name)
            bench.progress.update(bar, completed=len(ended))
            if len(ended) == count:
                return
        elif name not in with_second:
            with_second.add(name)
            owner = body["spec"]["template"]["metadata"]["annotations"][f"{GROUP}/job-name"]
            second = plain_job(namespace, owner, StageName.TRAIN)
            task = asyncio.create_task(bench.wire.call("POST", jobs(namespace), second))
            creating.add(task)
            task.add_done_callback(creating.discard)


@asynccontextmanager
async def record_first_jobs(bench: Bench, namespace: str, times: BatchTimes) -> AsyncIterator[float]:
    """Record the time when the first child Job of each job is seen. Yields the start time of the measurement."""
    started = time.monotonic()

    async def record() -> None:
        async for _, body in bench.wire.follow(jobs(namespace)):
            owner = body["spec"]["template"]["metadata"]["annotations"][f"{GROUP}/job-name"]
            times.first_jobs.setdefault(owner, time.monotonic() - started)

    task = asyncio.create_task(record())
    try:
        yield started
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def trickle(bench: Bench, count: int) -> list[float]:
    """Create jobs one at a time, and return the milliseconds from each create request to the first child Job."""
    times, created = BatchTimes(), {}
    async with bench.namespace() as namespace, bench.running(bench.operator):
        bar = bench.progress.add_task("jobs one at a time", total=count)
        async with record_first_jobs(bench, namespace, times) as started:
            await asyncio.sleep(0.5)
            for number in range(count):
                name = f"job-{number:05d}"
                created[name] = time.monotonic() - started
                await bench.wire.call("POST", resources(namespace), resource(namespace, name))
                while name not in times.first_jobs:
                    await asyncio.sleep(0.001)
                await asyncio.sleep(0.7)  # until its pods have ended
                bench.progress.update(bar, advance=1)
    return [1000 * (times.first_jobs[name] - created[name]) for name in created]

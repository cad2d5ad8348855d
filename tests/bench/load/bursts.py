"""Many jobs at once, by the operator and by hand, and one after the other."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial

from rich.progress import TaskID
from wire import Object

from lora_api import GROUP
from lora_api.steps import StepName

from .world import MEGABYTE, Bench, Pods, count_until, in_parallel, jobs, plain_job, resource, resources


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
            ending = asyncio.create_task(
                count_until(bench, resources(namespace), partial(has, kind="Finished"), count, bar)
            )
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

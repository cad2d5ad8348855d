"""An operator with thousands of jobs and nothing to do."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from proxy import NONE, BadLine
from rich.progress import Progress
from studio import OperatorProcess
from wire import Object, Wire

from builders import HASH, snapshot
from lora_api.status import JobStatus

from .world import MEGABYTE, Bench, Pods, count_until, in_parallel, resource, resources


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
            await count_until(bench, resources(namespace), is_training, at_work, bar)
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


def is_training(body: Object) -> bool:
    return (body.get("status") or {}).get("phase") == "Training"


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

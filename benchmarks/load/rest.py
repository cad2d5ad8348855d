"""Measurement of an idle operator with thousands of jobs."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from rich.progress import Progress

from lora_api.status import JobStatus
from tests.support.builders import HASH, snapshot
from tests.support.cluster.harness import OperatorProcess
from tests.support.cluster.proxy import NO_FAULTS, FaultyProxy
from tests.support.cluster.wire import Object, Wire

from .world import MEBIBYTE, Bench, Pods, count_until, in_parallel, resource, resources


@dataclass
class Idle:
    """The measurements of an idle operator."""

    rss: float
    """Resident memory at the end, in MiB."""
    peak: float
    """Peak of resident memory, in MiB."""
    calls: int
    """Number of requests to the API server in `seconds`, without watches."""
    watches: int
    """Number of watches that were opened again in `seconds`."""
    seconds: float
    """Length of the measurement."""
    cpu: float
    """Seconds of CPU time in `seconds`."""


async def idle(bench: Bench, ended: int, in_training: int, seconds: float, folder: Path) -> Idle:
    """Start an operator with many jobs that have ended and some in training, and measure it while nothing changes.

    Args:
        ended: number of jobs that have ended.
        in_training: number of jobs in training.
        seconds: length of the measurement.
        folder: a folder for the operator's kubeconfig.
    """
    async with bench.namespace(Pods.ENDLESS) as namespace:
        bar = bench.progress.add_task(f"{ended} ended jobs", total=ended)
        status = ended_status()

        async def create_ended(number: int) -> None:
            name = f"ended-{number:05d}"
            await bench.wire.call("POST", resources(namespace), resource(namespace, name))
            await bench.wire.call("PATCH", f"{resources(namespace)}/{name}/status", {"status": status})
            bench.progress.update(bar, advance=1)

        await in_parallel(create_ended(number) for number in range(ended))
        # One operator brings the jobs into training. A second one is then started and measured from a clean state.
        async with bench.running(bench.operator):
            bar = bench.progress.add_task(f"{in_training} jobs in training", total=in_training)
            await in_parallel(
                bench.wire.call("POST", resources(namespace), resource(namespace, f"work-{number:05d}"))
                for number in range(in_training)
            )
            await count_until(bench, resources(namespace), is_training, in_training, bar)
        async with FaultyProxy(Wire.read(bench.operator.kubeconfig), "", NO_FAULTS) as proxy:
            counted = OperatorProcess(
                proxy.write_kubeconfig(folder / "counted.kubeconfig"), bench.operator.folder
            )
            async with bench.running(counted) as process:
                await wait_quiet(proxy)
                proxy.calls.clear()
                proxy.watches = 0
                cpu = sum(process.cpu_times()[:2])
                await wait_with_bar(bench.progress, "idle", seconds)
                memory = Path(f"/proc/{process.pid}/status").read_text()
                peak = int(memory.split("VmHWM:")[1].split()[0]) / 1024
                rss = process.memory_info().rss / MEBIBYTE
                used = sum(process.cpu_times()[:2]) - cpu
                calls = sum(proxy.calls.values()) - proxy.watches
                return Idle(rss, peak, calls, proxy.watches, seconds, used)


async def wait_quiet(proxy: FaultyProxy) -> None:
    """Wait until an operator that has just started makes no more requests for ten seconds."""
    before = -1
    while (calls := sum(proxy.calls.values())) != before:
        before = calls
        await asyncio.sleep(10)


async def wait_with_bar(progress: Progress, title: str, seconds: float) -> None:
    """Wait while a progress bar shows the time."""
    bar = progress.add_task(title, total=seconds)
    for _ in range(int(seconds)):
        await asyncio.sleep(1)
        progress.update(bar, advance=1)


def is_training(body: Object) -> bool:
    return (body.get("status") or {}).get("phase") == "Training"


def ended_status() -> Object:
    """Return the status of a job that has ended, with the large fields filled."""
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
    spec = snapshot().spec
    assert spec is not None
    return status | {"effective": spec.to_wire()}

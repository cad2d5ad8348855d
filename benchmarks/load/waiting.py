"""Measurement of an operator with many jobs that wait for a quota."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path

from tests.support.cluster.harness import OperatorProcess
from tests.support.cluster.proxy import NO_FAULTS, FaultyProxy
from tests.support.cluster.wire import Object, Wire

from .rest import wait_with_bar
from .world import Bench, count_until, in_parallel, resource, resources


@dataclass
class Waiting:
    """The operator's requests per minute."""

    patches: float
    """Patches of any object."""
    lists: float
    """Lists of any kind."""


async def waiting(bench: Bench, count: int, settle: float, seconds: float, folder: Path) -> Waiting:
    """Count the operator's requests while a quota of no pods holds every job.

    Args:
        bench: the control plane and the operator.
        count: the number of jobs.
        settle: seconds from when all jobs wait to the start of the count.
        seconds: the length of the count.
        folder: a folder for the operator's kubeconfig.
    """
    async with bench.namespace() as namespace:
        quota = {"metadata": {"name": "none"}, "spec": {"hard": {"pods": "0"}}}
        quotas = f"/api/v1/namespaces/{namespace}/resourcequotas"
        await bench.wire.call("POST", quotas, quota)
        while not (await bench.wire.call("GET", f"{quotas}/none")).get("status", {}).get("hard"):
            await asyncio.sleep(0.1)
        async with FaultyProxy(Wire.read(bench.operator.kubeconfig), "", NO_FAULTS) as proxy:
            kubeconfig = proxy.write_kubeconfig(folder / "waiting.kubeconfig")
            counted = OperatorProcess(kubeconfig, bench.operator.folder)
            async with bench.running(counted):
                bar = bench.progress.add_task(f"{count} jobs wait for a quota", total=count)
                await in_parallel(
                    bench.wire.call("POST", resources(namespace), resource(namespace, f"wait-{number:04d}"))
                    for number in range(count)
                )
                await count_until(bench, resources(namespace), _is_refused, count, bar)
                await wait_with_bar(bench.progress, "settling", settle)
                proxy.calls.clear()
                await wait_with_bar(bench.progress, "waiting", seconds)
                calls = dict(proxy.calls)
        patches = sum(n for (method, _), n in calls.items() if method == "PATCH")
        # A GET is a list unless the last part of its path ends with a digit, as the names of the objects do.
        lists = sum(
            n
            for (method, path), n in calls.items()
            if method == "GET" and not path.rpartition("/")[2][-1:].isdigit()
        )
        return Waiting(60 * patches / seconds, 60 * lists / seconds)


def _is_refused(body: Object) -> bool:
    conditions = (body.get("status") or {}).get("conditions") or ()
    return any(c["type"] == "Succeeded" and c["reason"] == "QuotaExceeded" for c in conditions)

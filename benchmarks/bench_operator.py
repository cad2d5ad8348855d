"""Compare the operator with a script that creates the same Jobs, on a real API server with the real Job controller.

Nodes are simulated: a kubelet in a separate process ends every pod after a given time, which is about that of the
shortest real pods (`Pods.SHORT`). For one size it also ends every pod immediately, so that only the control plane and
the operator take time. For each size N the benchmark measures:

- N LoraTrainingJobs, from the first create request to their first child Jobs and to the last condition Finished;
- the same child Jobs as plain Jobs. They are created by a script that waits for the first Job of a pair to end before
  it creates the second, as a user without an operator would write it.

It then measures the latency of single jobs on an idle operator, the memory and the API calls of an operator with
thousands of jobs that have nearly all ended, and the API calls of an operator whose jobs wait for a quota. Only figures
of the same run can be compared.

    python -m benchmarks.bench_operator [--sizes 100,500,2000] [--parts short,idle] [--rounds 3] [--quick]
"""

from __future__ import annotations

import argparse
import asyncio
import math
import os
import signal
import statistics
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from kubernetes import client, config
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from benchmarks.load.bursts import BatchTimes, by_operator, by_script, trickle
from benchmarks.load.rest import idle
from benchmarks.load.waiting import waiting
from benchmarks.load.world import Bench, Pods
from tests.support.cluster.harness import OperatorProcess, install_operator
from tests.support.cluster.plane import ControlPlane, grant, install_crd, missing
from tests.support.cluster.wire import Wire

console = Console()


def growth(all_times: dict[int, BatchTimes]) -> float:
    """Return the exponent of N in the growth of the total time, from the smallest to the largest size."""
    small, large = min(all_times), max(all_times)
    if small == large:
        return math.nan
    return math.log(all_times[large].all_ended / all_times[small].all_ended) / math.log(large / small)


def percentile(values: Iterable[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def print_table(operated: dict[int, BatchTimes], plain: dict[int, BatchTimes], pods: Pods) -> None:
    table = Table(
        "jobs", "", "first Job p50 s", "p95 s", "all ended s", "jobs/s", "ratio", "writes/job", "RSS MiB"
    )
    for count, operator_times in operated.items():
        for name, times in (("operator", operator_times), ("plain Jobs", plain[count])):
            is_operator = times is operator_times
            table.add_row(
                str(count),
                name,
                f"{statistics.median(times.first_jobs.values()):.2f}",
                f"{percentile(times.first_jobs.values(), 0.95):.2f}",
                f"{times.all_ended:.1f}",
                f"{count / times.all_ended:.1f}",
                f"{times.all_ended / plain[count].all_ended:.2f}" if is_operator else "",
                f"{times.writes:.1f}" if is_operator else "",
                f"{times.rss:.0f}" if is_operator else "",
            )
    console.print(table)
    console.print("pods run for {} and {} s".format(*pods.value))
    console.print(
        f"time to the end grows as N^{growth(operated):.2f} by the operator, N^{growth(plain):.2f} by the script"
    )


@dataclass
class Comparison:
    """The measurements of the operator and of the script for the same sizes."""

    pods: Pods
    operated: dict[int, BatchTimes] = field(default_factory=dict)
    plain: dict[int, BatchTimes] = field(default_factory=dict)

    def ratio(self, count: int) -> float:
        """Return the operator's time relative to the script's."""
        return self.operated[count].all_ended / self.plain[count].all_ended


async def compare(bench: Bench, sizes: list[int], pods: Pods, rounds: int) -> Comparison:
    """Measure the script and the operator in turn, and keep the round with the median ratio of each size."""
    result = Comparison(pods)
    for count in sizes:
        measured: list[Comparison] = []
        for _ in range(rounds):
            plain = await by_script(bench, count, pods)
            operated = await by_operator(bench, count, pods)
            measured.append(Comparison(pods, {count: operated}, {count: plain}))
            bench.progress.print(
                f"{count}: {operated.all_ended:.1f} s by the operator, {plain.all_ended:.1f} s by the script"
            )
        chosen = sorted(measured, key=lambda each: each.ratio(count))[len(measured) // 2]
        result.plain |= chosen.plain
        result.operated |= chosen.operated
    return result


PARTS = ("short", "at-once", "trickle", "idle", "waiting")
"""The measurements: jobs with short pods, jobs whose pods end at once, single jobs, many ended jobs, waiting jobs."""


async def measure(
    api: client.ApiClient, plane: ControlPlane, operator: OperatorProcess, options: argparse.Namespace
) -> None:
    """Run the parts, print their tables, and print their figures as the last line."""
    compared_size = 500 if 500 in options.sizes else max(options.sizes)
    comparisons: list[Comparison] = []
    figures: dict[str, str] = {}
    notes: list[str] = []
    with Progress(console=console) as progress:
        async with Wire.of(api) as wire:
            bench = Bench(plane, operator, wire, progress)
            if "short" in options.parts:
                comparisons.append(await compare(bench, options.sizes, Pods.SHORT, options.rounds))
                figures[f"ratio_{compared_size}"] = f"{comparisons[-1].ratio(compared_size):.3f}"
            if "at-once" in options.parts:
                comparisons.append(await compare(bench, [compared_size], Pods.AT_ONCE, options.rounds))
                figures["ratio_at_once"] = f"{comparisons[-1].ratio(compared_size):.3f}"
            all_times = [times for comparison in comparisons for times in comparison.operated.values()]
            if all_times:
                figures["writes_per_job"] = f"{max(times.writes for times in all_times):.2f}"
            if "trickle" in options.parts:
                latencies = await trickle(bench, options.trickle)
                figures["trickle_p95_ms"] = f"{percentile(latencies, 0.95):.1f}"
                notes.append(
                    f"trickle: p50 {statistics.median(latencies):.1f} ms, p95 {percentile(latencies, 0.95):.1f} ms "
                    f"from create to the first Job, of {len(latencies)}"
                )
            if "idle" in options.parts:
                rest = await idle(
                    bench, options.ended, options.in_training, options.idle_seconds, plane.folder
                )
                figures[f"rss_mb_{options.ended + options.in_training}"] = f"{rest.rss:.0f}"
                figures["idle_calls_per_s"] = f"{rest.calls / rest.seconds:.3f}"
                notes.append(
                    f"left alone for {rest.seconds:.0f} s with {options.ended} ended jobs and {options.in_training} in "
                    f"training: {rest.rss:.0f} MiB (at most {rest.peak:.0f}), {rest.calls} API calls, {rest.watches} "
                    f"watches opened again, {rest.cpu:.1f} s of CPU"
                )
            if "waiting" in options.parts:
                held = await waiting(
                    bench, options.waiting, options.settle, options.idle_seconds, plane.folder
                )
                figures["waiting_patches_per_min"] = f"{held.patches:.1f}"
                figures["waiting_lists_per_min"] = f"{held.lists:.1f}"
                notes.append(
                    f"{options.waiting} jobs wait for a quota: {held.patches:.1f} patches and {held.lists:.1f} "
                    "lists a minute"
                )
    for comparison in comparisons:
        print_table(comparison.operated, comparison.plain, comparison.pods)
    for note in notes:
        console.print(note)
    console.print(f"load of the machine: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    print("RESULT " + " ".join(f"{name}={value}" for name, value in figures.items()))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", type=lambda t: [int(n) for n in t.split(",")], default=[100, 500, 2000])
    parser.add_argument(
        "--parts",
        type=lambda t: t.split(","),
        default=list(PARTS),
        help=f"measure these only: {','.join(PARTS)}",
    )
    parser.add_argument(
        "--rounds", type=int, default=1, help="compare each size so many times, and keep the median ratio"
    )
    parser.add_argument("--quick", action="store_true", help="a few minutes, for a first look")
    options = parser.parse_args()
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"--parts: unknown {', '.join(sorted(unknown))}; use {', '.join(PARTS)}")
    options.trickle, options.ended, options.in_training, options.idle_seconds = 60, 4800, 200, 60.0
    options.waiting, options.settle = 200, 60.0
    if options.quick:
        options.sizes, options.trickle, options.ended, options.in_training = [50, 150], 20, 900, 100
    if options.rounds < 1:
        parser.error("--rounds: must be at least 1")
    if reason := missing():
        print(reason)
        return 1
    # Without a handler, the API server and the operator would outlive a benchmark that is terminated.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    with tempfile.TemporaryDirectory() as folder, ControlPlane(Path(folder)) as plane:
        api: client.ApiClient = config.new_client_from_config(str(plane.kubeconfig))
        grant(api)
        install_crd(api)
        (Path(folder) / "operator").mkdir()
        operator = install_operator(plane, api, Path(folder) / "operator")
        asyncio.run(measure(api, plane, operator, options))
    return 0


if __name__ == "__main__":
    sys.exit(main())

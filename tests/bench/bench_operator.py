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
import os
import statistics
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

from kubernetes import client, config
from plane import ControlPlane, grant, install_crd, missing
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from studio import OperatorProcess, install_operator
from wire import Wire

from bench.load.bursts import Course, by_hand, by_operator, trickle
from bench.load.rest import idle
from bench.load.world import Bench, Pods

console = Console()


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


async def measure(
    api: client.ApiClient, plane: ControlPlane, operator: OperatorProcess, options: argparse.Namespace
) -> None:
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
        operator = install_operator(plane, api, Path(folder) / "operator")
        asyncio.run(measure(api, plane, operator, options))
    return 0


if __name__ == "__main__":
    sys.exit(main())

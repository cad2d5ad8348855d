"""Compare four variants of a training in one pod with four jobs of the same settings.

Usage: python -m benchmarks.bench_variants [--steps 300]

Every training is the quickstart's, in a process of its own with one thread, as in its pod. Times are processor time,
which depends little on the load of the machine. The last line of the output is machine-readable:

variants_time    time of the variants, divided by the summed time of the four jobs
variants_memory  peak memory of the variants, divided by the summed peaks of the four jobs
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_api.stages import TrainConfig
from lora_cli.local.seaweed import Seaweed
from tools.shapes import concepts, pipeline
from tools.shapes.concepts import CONCEPTS, Captions

from .trials import Workbench

VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "slow": {"learningRate": "2e-4"},
    "large": {"rank": 8, "alpha": 8},
    "other": {"seed": 1},
}


@dataclass(frozen=True)
class Cost:
    """The cost of a training, from the start to the end of its process."""

    seconds: float
    """Processor time."""
    peak_mb: float
    """Largest resident memory of one process, in MiB."""


def run(config: TrainConfig) -> Cost:
    """Run the training stage in a process of its own."""
    path = Path(config.work_dir) / "stage.json"
    path.write_text(json.dumps(config.to_wire()))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "lora_trainer", "train", "--config", str(path)]
    with (Path(config.work_dir) / "log").open("wb") as log:
        pid = os.posix_spawn(
            sys.executable,
            command,
            environment,
            file_actions=[(os.POSIX_SPAWN_DUP2, log.fileno(), 1), (os.POSIX_SPAWN_DUP2, log.fileno(), 2)],
        )
        _, status, usage = os.wait4(pid, 0)
    if status:
        raise SystemExit((Path(config.work_dir) / "log").read_text()[-3000:])
    return Cost(usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=300, help="optimizer steps of each training")
    args = parser.parse_args()
    concept = CONCEPTS[0]
    images, captions = concepts.images(concept), concepts.captions(concept, Captions.GOOD)
    common = {
        "maxSteps": args.steps,
        "checkpoint": {"everySteps": 100},
        "validation": {"everySteps": 100, "heldOutImages": 1},
    }
    with (
        tempfile.TemporaryDirectory() as folder,
        Seaweed(Path(folder) / "store", ["datasets", "loras"]) as store,
    ):
        workbench = Workbench.open(Path(folder) / "work", store, pipeline.FOLDER)

        def measure(label: str, **settings: Any) -> Cost:
            cost = run(workbench.prepare(concept.class_name, images, captions, **{**common, **settings}))
            print(f"{label:24}{cost.seconds:8.1f} s{cost.peak_mb:8.0f} MiB", flush=True)
            return cost

        measure("(fills the caches)", maxSteps=1, validation={})
        jobs = [measure(f"job: {name}", **settings) for name, settings in VARIANTS.items()]
        variants = [{"name": name, **settings} for name, settings in VARIANTS.items()]
        together = measure("four variants", variants=variants)
    time_ratio = together.seconds / sum(job.seconds for job in jobs)
    memory_ratio = together.peak_mb / sum(job.peak_mb for job in jobs)
    print(f"RESULT variants_time={time_ratio:.3f} variants_memory={memory_ratio:.3f}")


if __name__ == "__main__":
    main()

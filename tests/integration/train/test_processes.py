"""The trainer as processes: two in parallel, and one that is killed at random times."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from typing import Any

import numpy as np
import pytest

from lora_api.exits import ExitCode
from tests.integration.train.conftest import Job, JobMaker

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
KILLS = int(os.environ.get("LORA_TEST_KILLS", "2"))
"""`LORA_TEST_KILLS=100` for the long run."""


@pytest.mark.parametrize(
    "more", [{}, {"tokenEmbeddings": {"train": True, "learningRate": "1e-3"}}], ids=["plain", "new tokens"]
)
def test_two_processes_train_as_one_with_their_batches_together(
    make_job: JobMaker, more: dict[str, Any]
) -> None:
    settings: dict[str, Any] = {
        "maxSteps": 4,
        "gradientAccumulationSteps": 2,
        "validation": {"everySteps": 2, "samples": 5},
        **more,
    }
    single, double = make_job(batchSize=2, **settings), make_job(batchSize=1, **settings)
    single.run()
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"),
        *("-m", "lora_trainer", "train", "--config", str(double.config_file())),
    ]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr.decode()
    losses = [[record["loss"] for record in job.records()] for job in (single, double)]
    np.testing.assert_allclose(losses[0], losses[1], atol=1e-4)
    held_out = [[record["held_out_loss"] for record in job.records()[1::2]] for job in (single, double)]
    np.testing.assert_allclose(held_out[0], held_out[1], atol=1e-4)


# Runs are forked from a process that has imported the libraries, so that a run after a kill starts in a second and not ten.
RUNNER = """
import os, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from lora_trainer.train.stage import main
for line in sys.stdin:
    child = os.fork()
    if not child:
        os._exit(main(Path(line.strip())))
    print(child, flush=True)
    _, status = os.waitpid(child, 0)
    print(os.waitstatus_to_exitcode(status), flush=True)
"""


class Runner:
    """Runs the training stage in a new child process each time."""

    def __enter__(self) -> Runner:
        self._process = subprocess.Popen(
            [sys.executable, "-c", RUNNER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=ENVIRONMENT,
            text=True,
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate(timeout=60)

    def run(self, job: Job, kill: tuple[float, signal.Signals] | None = None) -> int:
        """Run a job's stage, kill it after some seconds if it still runs, and return its exit code."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(f"{job.config_file()}\n")
        self._process.stdin.flush()
        child = int(self._process.stdout.readline())
        if kill:
            time.sleep(kill[0])
            with suppress(ProcessLookupError):
                os.kill(child, kill[1])
        return int(self._process.stdout.readline())


def test_random_kills_end_in_the_same_bytes(make_job: JobMaker) -> None:
    settings = {
        "maxSteps": 12,
        "checkpoint": {"everySteps": 2, "keepLast": 2},
        "optimizer": "AdamW8bit",
        "rank": 80,
        "lrScheduler": "cosine",
    }
    with Runner() as runner:
        uninterrupted = make_job(**settings)
        started = time.monotonic()
        assert runner.run(uninterrupted) == 0
        duration = time.monotonic() - started
        expected = uninterrupted.attempt_file("adapter.safetensors")
        rng = random.Random(0)
        killed = 0
        while killed < KILLS:
            job = make_job(**settings)
            code = None
            while code != 0:
                number = rng.choice([signal.SIGKILL, signal.SIGTERM])
                kill = (rng.uniform(0, duration), number) if killed < KILLS else None
                code = runner.run(job, kill)
                killed += code != 0
                assert code in (0, -signal.SIGKILL, -signal.SIGTERM, ExitCode.INTERRUPTED), (
                    job.termination_message()
                )
            assert job.attempt_file("adapter.safetensors") == expected
            assert all(job.store.output.holds(entry) for entry in job.manifest().files)

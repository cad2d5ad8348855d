"""A training stage on two simulated CUDA devices; see tests/cuda."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from lora_api.exits import ExitCode
from lora_api.job import parse_spec
from lora_api.reasons import Reason
from tests.cuda.build import build, missing_tool
from tests.integration.train.conftest import Job, JobMaker
from tests.integration.train.test_on_cuda import ROOT, Device, gpu_job, losses

pytestmark = pytest.mark.skipif(missing_tool() is not None, reason=str(missing_tool()))


def launch(job: Job, **environment: str) -> int:
    """Run a stage on two simulated GPUs, as in its container; returns the exit code."""
    build("simulated")
    done = subprocess.run(
        [sys.executable, "-m", "lora_trainer", "launch", "--config", str(job.config_file())],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(ROOT / "tests" / "cuda" / "site"), str(ROOT)]),
            "SIMULATED_GPUS": "2",
            "OMP_NUM_THREADS": "1",
            **environment,
        },
        capture_output=True,
        timeout=300,
        check=False,
    )
    return done.returncode


def on_two_gpus(job: Job) -> Job:
    wire = job.config.spec.to_wire()
    wire["resources"] = {"train": {"gpus": 2}}
    return job.with_config(spec=parse_spec(wire))


def test_two_gpus_train_as_one_with_their_batches_together(make_job: JobMaker) -> None:
    settings: dict[str, Any] = {"maxSteps": 5, "compile": "Always"}
    single = gpu_job(make_job, batchSize=2, **settings)
    double = on_two_gpus(gpu_job(make_job, batchSize=1, **settings))
    with Device() as device:
        assert device.run(single)["code"] == 0
    assert launch(double) == 0, double.termination_message()
    # The gradient of two samples is rounded to 16 bits once or twice.
    assert losses(double) == pytest.approx(losses(single), rel=1e-2)


def test_the_reason_of_the_worker_that_failed_is_the_jobs(make_job: JobMaker) -> None:
    job = on_two_gpus(gpu_job(make_job))
    assert launch(job, FAULT_RANK="1") not in (0, ExitCode.BAD_CONFIGURATION)
    result = json.loads(job.termination_message())
    assert result["reason"] == Reason.OUT_OF_MEMORY
    assert "the next attempt uses gradient checkpointing" in result["message"]

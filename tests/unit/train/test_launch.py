"""The launcher: the threads of a worker, at most the job's CPUs, and the reason of a failed one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lora_api.exits import ExitCode
from lora_api.job import TrainResources
from lora_api.reasons import Reason
from lora_api.stages import Outcome, StageResult
from lora_trainer.train.launch import _failure, worker_command, write_exit_code, write_worker_result


def threads(cpu: str, gpus: int) -> int:
    command, environment = worker_command(Path("stage.json"), TrainResources(cpu=cpu, gpus=gpus))
    if gpus > 1:
        return int(command[command.index("--num_cpu_threads_per_process") + 1])
    return int(environment["OMP_NUM_THREADS"])


@pytest.mark.parametrize(
    ("cpu", "gpus", "expected"),
    [
        ("4", 0, 4),
        ("4", 1, 4),
        ("4", 3, 1),
        ("16", 4, 4),
        ("500m", 1, 1),
        ("2500.5m", 1, 3),
        ("2.5", 1, 3),
        ("0", 1, 1),
        ("100", 2, 32),
        ("1k", 1, 64),
    ],
)
def test_threads_are_what_the_job_requests(
    monkeypatch: pytest.MonkeyPatch, cpu: str, gpus: int, expected: int
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert threads(cpu, gpus) == expected


@pytest.mark.parametrize(("gpus", "on_cpu"), [(0, "true"), (1, "false")])
def test_a_single_worker_needs_no_launcher(gpus: int, on_cpu: str) -> None:
    command, environment = worker_command(Path("stage.json"), TrainResources(gpus=gpus))
    assert command == [sys.executable, "-m", "lora_trainer", "train", "--config", "stage.json"]
    assert environment["ACCELERATE_USE_CPU"] == on_cpu
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCELERATE_USE_CPU", on_cpu)
        done = subprocess.run(
            [sys.executable, "-c", "import accelerate; print(accelerate.PartialState().device.type)"],
            capture_output=True,
            text=True,
            check=True,
        )
    assert done.stdout.strip() == ("cuda" if gpus and torch.cuda.is_available() else "cpu")


def test_a_small_machine_and_an_administrator_have_the_last_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert threads("4", 1) == 2
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert threads("4", 1) == 7


def test_the_reason_of_the_worker_that_failed_is_the_jobs(tmp_path: Path) -> None:
    """The launcher ends the first worker when another one fails, so the first has no reason of its own."""
    result = StageResult(
        outcome=Outcome.FAILED, reason=Reason.OUT_OF_MEMORY, message="the GPU's memory is full"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LORA_WORKERS", str(tmp_path))
        patch.setenv("RANK", "1")
        write_worker_result(result)
        write_exit_code(ExitCode.BAD_CONFIGURATION)
    assert _failure(tmp_path) == (result, ExitCode.BAD_CONFIGURATION)


@pytest.mark.parametrize("first_fails_first", [False, True])
def test_the_worker_that_failed_first_has_the_reason(tmp_path: Path, first_fails_first: bool) -> None:
    """The others lose their connection to it, and fail with errors of their own."""
    result = StageResult(outcome=Outcome.FAILED, reason=Reason.OUT_OF_MEMORY, message="connection lost")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LORA_WORKERS", str(tmp_path))
        for rank in ("0", "1") if first_fails_first else ("1", "0"):
            patch.setenv("RANK", rank)
            if rank != "0":  # the first writes its result for the operator
                write_worker_result(result)
            write_exit_code(ExitCode.INTERNAL)
            for path in tmp_path.glob(f"{rank}.*"):
                os.utime(path, ns=(1, 1) if len(list(tmp_path.glob("*.exit"))) == 1 else (2, 2))
    assert (_failure(tmp_path) is None) is first_fails_first

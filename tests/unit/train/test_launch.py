"""How many threads a worker of the training gets: from what the job requests, never more than there are CPUs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lora_api.job import TrainResources
from lora_trainer.train.launch import accelerate_command


def threads(cpu: str, gpus: int) -> int:
    command = accelerate_command(Path("step.json"), TrainResources(cpu=cpu, gpus=gpus))
    return int(command[command.index("--num_cpu_threads_per_process") + 1])


@pytest.mark.parametrize(
    ("cpu", "gpus", "wanted"),
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
    monkeypatch: pytest.MonkeyPatch, cpu: str, gpus: int, wanted: int
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert threads(cpu, gpus) == wanted


def test_a_small_machine_and_an_administrator_have_the_last_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert threads("4", 1) == 2
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert threads("4", 1) == 7

"""Told to stop while its libraries are imported, a step ends at once and not when a container's grace is over."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lora_api.exits import ExitCode
from lora_api.stages import Outcome, decode_result
from tests.integration.train.conftest import JobMaker


def start(verb: str, config: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-m", "lora_trainer", verb, "--config", str(config)])


def caught(process: subprocess.Popen[bytes]) -> bool:
    """Whether it has a handler for SIGTERM: without one a container's first process never sees it."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    (mask,) = [line.split()[1] for line in status.splitlines() if line.startswith("SigCgt:")]
    return bool(int(mask, 16) >> (signal.SIGTERM - 1) & 1)


def stop(process: subprocess.Popen[bytes]) -> int:
    process.send_signal(signal.SIGTERM)
    return process.wait(10)


@pytest.mark.parametrize("verb", ["annotate", "launch", "prefetch"])
def test_a_step_is_stopped_by_the_first_signal(verb: str, tmp_path: Path) -> None:
    process = start(verb, tmp_path / "a step that gets so far as to read this ends with another code")
    while not caught(process):
        assert process.poll() is None
        time.sleep(0.001)
    assert stop(process) == ExitCode.INTERRUPTED


def test_the_launcher_does_not_wait_for_workers_that_are_not_there_yet(make_job: JobMaker) -> None:
    job = make_job()
    process = start("launch", job.config_file())
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    while not children.read_text():
        assert process.poll() is None
        time.sleep(0.01)
    time.sleep(1)  # accelerate is being imported
    assert stop(process) == ExitCode.INTERRUPTED
    result = decode_result(job.last_words())
    assert result is not None
    assert result.outcome is Outcome.INTERRUPTED

"""A stage that gets SIGTERM while its libraries are imported ends at once, and not after the grace period."""

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
    """Return whether a process handles SIGTERM. The first process of a container ignores it otherwise."""
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


def test_the_launcher_does_not_wait_for_workers_that_have_not_started(make_job: JobMaker) -> None:
    job = make_job()
    process = start("launch", job.config_file())
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    while not children.read_text():
        assert process.poll() is None
        time.sleep(0.01)
    time.sleep(1)  # accelerate is being imported
    assert stop(process) == ExitCode.INTERRUPTED
    result = decode_result(job.termination_message())
    assert result is not None
    assert result.outcome is Outcome.INTERRUPTED

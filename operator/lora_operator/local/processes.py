"""Jobs as processes: what Kubernetes' Job controller and kubelet do for a step, for one machine."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from pydantic import ValidationError

from lora_api.exits import PERMANENT, ExitCode
from lora_api.status import Progress
from lora_api.steps import AnnotateStep, StepName, TrainStep

from ..manifests import command
from ..snapshot import Child, Pod

RETRY_SECONDS = 2.0
GRACE_SECONDS = 120.0


@dataclass
class LocalJob:
    """A step's Job on this machine. `tick` moves it on; `child` is how a decision sees it."""

    child: Child
    config: AnnotateStep | TrainStep
    folder: Path
    backoff_limit: int
    process: subprocess.Popen[bytes] | None = None
    failures: int = 0
    retry_at: float = field(default_factory=time.monotonic)

    @property
    def config_file(self) -> Path:
        return self.folder / f"{self.child.name}.json"

    @property
    def log_file(self) -> Path:
        return self.folder / f"{self.child.name}.log"

    def tick(self) -> None:
        """Start, notice an end, or try again, as the pod failure policy of a real Job would."""
        if self.process is not None:
            code = self.process.poll()
            if code is not None:
                self.process = None
                self._note_end(code)
        elif not self.child.ended and not self.child.deleting and time.monotonic() >= self.retry_at:
            self._start()

    def stop(self) -> None:
        """Ask the process to save its work and end; the Job is gone once it has."""
        self.child = replace(self.child, deleting=True)
        if self.process is not None:
            self.process.terminate()

    def kill(self) -> None:
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    @property
    def gone(self) -> bool:
        return self.child.deleting and self.process is None

    def progress(self) -> Progress | None:
        if self.process is None:
            return None
        url = f"http://{self.config.progress_host}:{self.config.progress_port}/progress"
        try:
            with urllib.request.urlopen(url, timeout=1) as response:
                return Progress.model_validate_json(response.read())
        except (OSError, ValidationError):
            return None

    def _start(self) -> None:
        self.config = self.config.model_copy(update={"progress_port": _free_port()})
        self.config_file.write_text(self.config.model_dump_json(by_alias=True, indent=1))
        Path(self.config.termination_log).unlink(missing_ok=True)
        with self.log_file.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, *command(self.child.step, str(self.config_file))],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for us to hear; the step is told to stop in order
            )
        (self.folder / "pid").write_text(str(self.process.pid))
        number = len(self.child.pods) + 1
        pod = Pod(
            name=f"{self.child.name}-{number}",
            uid=str(self.process.pid),
            phase="Running",
            started_at=datetime.now(UTC),
        )
        self.child = replace(self.child, pods=(*self.child.pods, pod))

    def _note_end(self, code: int) -> None:
        (self.folder / "pid").unlink(missing_ok=True)
        result = Path(self.config.termination_log)
        pod = replace(
            self.child.pods[-1],
            phase="Failed" if code else "Succeeded",
            exit_code=code,
            oom_killed=code == -signal.SIGKILL,
            message=result.read_text() if result.exists() else "",
            finished_at=datetime.now(UTC),
        )
        failed = ""
        if code in PERMANENT:
            failed = "PodFailurePolicy"
        elif code not in (ExitCode.OK, ExitCode.INTERRUPTED):
            self.failures += 1
            self.retry_at = time.monotonic() + RETRY_SECONDS
            failed = "BackoffLimitExceeded" if self.failures > self.backoff_limit else ""
        self.child = replace(
            self.child, pods=(*self.child.pods[:-1], pod), complete=code == ExitCode.OK, failed=failed
        )


def end_orphan(folder: Path) -> None:
    """End a step whose `lora run` was killed: never two processes of one step."""
    file = folder / "pid"
    try:
        pid = int(file.read_text())
        arguments = Path(f"/proc/{pid}/cmdline").read_bytes()
    except (OSError, ValueError):
        return
    if b"lora_trainer" in arguments:
        os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + GRACE_SECONDS
        while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
            time.sleep(0.1)
    file.unlink(missing_ok=True)


def new_child(name: str, step: StepName, attempt: int) -> Child:
    return Child(name=name, uid=name, step=step, attempt=attempt, created_at=datetime.now(UTC))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])

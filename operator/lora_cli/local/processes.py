"""Stages as processes of this machine, in place of Kubernetes' Job controller and kubelet."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from pydantic import ValidationError

from lora_api.exits import PERMANENT, ExitCode
from lora_api.stages import AnnotateConfig, StageName, TrainConfig
from lora_api.status import Progress
from lora_operator.manifests import ALLOCATOR, command
from lora_operator.poller import MAX_BODY_BYTES
from lora_operator.snapshot import Child, Pod

POD_KIND = "process"
"""`Pod.kind` of local stages, for messages."""
RETRY_SECONDS = 2.0
"""Pause before a failed process is started again."""
GRACE_SECONDS = 120.0
"""Time for an orphaned process to save its work."""


@dataclass
class LocalJob:
    """A stage's child Job on this machine. `tick` must be called repeatedly to advance it."""

    child: Child
    """The state of the child Job, as the operator's decisions read it."""
    config: AnnotateConfig | TrainConfig
    folder: Path
    """Folder of the run, for the configuration, the log and the process id."""
    backoff_limit: int
    """Number of failures after which the child Job fails. Interruptions are not counted."""
    process: subprocess.Popen[bytes] | None = None
    failures: int = 0
    retry_at: float = field(default_factory=time.monotonic)
    """Time of `time.monotonic` before which the process is not started."""

    @property
    def config_file(self) -> Path:
        return self.folder / f"{self.child.name}.json"

    @property
    def log_file(self) -> Path:
        return self.folder / f"{self.child.name}.log"

    def tick(self) -> None:
        """Start the process, record its end, or start it again, with the pod failure policy of child Jobs."""
        if self.process is not None:
            code = self.process.poll()
            if code is not None:
                self.process = None
                self._record_exit(code)
        elif not self.child.ended and not self.child.deleting and time.monotonic() >= self.retry_at:
            self._start()

    def stop(self) -> None:
        """Ask the process to save its work and end. `gone` is true once it has ended."""
        self.child = replace(self.child, deleting=True)
        if self.process is not None:
            self.process.terminate()

    def kill(self) -> None:
        """End the process and its workers at once, without saving."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    @property
    def gone(self) -> bool:
        """Whether the child Job was deleted and its process has ended."""
        return self.child.deleting and self.process is None

    def progress(self) -> Progress | None:
        """Read the progress from the process; None if it is not running or does not answer."""
        if self.process is None:
            return None
        # urllib would follow redirects, and send the request to a proxy of the environment
        connection = http.client.HTTPConnection(
            self.config.progress_host, self.config.progress_port, timeout=1
        )
        with contextlib.closing(connection):
            try:
                connection.request("GET", "/progress")
                body = connection.getresponse().read(MAX_BODY_BYTES)
                return Progress.model_validate_json(body)
            except (OSError, http.client.HTTPException, ValidationError):
                return None

    def _start(self) -> None:
        self.config = self.config.model_copy(update={"progress_port": _free_port()})
        self.config_file.write_text(self.config.model_dump_json(by_alias=True, indent=1))
        Path(self.config.termination_log).unlink(missing_ok=True)
        with self.log_file.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, *command(self.child.stage, str(self.config_file))],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ | (ALLOCATOR if self.child.stage == StageName.TRAIN else {}),
                start_new_session=True,  # Ctrl-C must reach the command only, which then calls `stop`
                close_fds=False,  # inherit the lock on the store, which then runs as long as the stage
            )
        (self.folder / "pid").write_text(str(self.process.pid))
        number = len(self.child.pods) + 1
        pod = Pod(
            name=f"{self.child.name}-{number}",
            uid=str(self.process.pid),
            phase="Running",
            started_at=datetime.now(UTC),
            kind=POD_KIND,
        )
        self.child = replace(self.child, pods=(*self.child.pods, pod))

    def _record_exit(self, code: int) -> None:
        (self.folder / "pid").unlink(missing_ok=True)
        result = Path(self.config.termination_log)
        pod = replace(
            self.child.pods[-1],
            phase="Failed" if code else "Succeeded",
            exit_code=code,
            oom_killed=code == -signal.SIGKILL,  # usually the kernel's OOM killer
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


def stop_orphaned_process(folder: Path) -> None:
    """End the stage process of a `lora run` that was killed, so that two processes never run one stage."""
    file = folder / "pid"
    try:
        pid = int(file.read_text())
        arguments = Path(f"/proc/{pid}/cmdline").read_bytes()
    except (OSError, ValueError):
        return
    # The process id may have been given to another program since.
    if b"lora_trainer" in arguments:
        os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + GRACE_SECONDS
        while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
            time.sleep(0.1)
    file.unlink(missing_ok=True)


def new_child(name: str, stage: StageName, attempt: int) -> Child:
    return Child(name=name, uid=name, stage=stage, attempt=attempt, created_at=datetime.now(UTC))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])

"""Runner of a LoraTrainingJob on this machine, with the operator's decisions and with processes instead of pods."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any
from uuid import uuid4

import yaml
from filelock import FileLock, Timeout
from pydantic import ValidationError

from lora_api import API_VERSION, KIND
from lora_api.job import MUTABLE, Approval, JobSpec, describe
from lora_api.profile import Profile
from lora_api.stages import StageName
from lora_api.status import JobStatus, Phase
from lora_operator import names
from lora_operator.decide import Decision, DeleteChildJob, StartAnnotation, StartTraining, decide
from lora_operator.manifests import Places, build_stage_config
from lora_operator.snapshot import Snapshot
from lora_trainer.local_runs import LOCK

from ..console import discard_output
from ..errors import CommandError
from ..manifests.writer import dump_yaml
from ..store_access import StoreAddress
from .private_files import write_private
from .processes import POD_KIND, LocalJob, new_child, stop_orphaned_process

TICK_SECONDS = 0.2
"""Pause between two rounds."""
POLL_SECONDS = 1.0
"""Time between two requests for the progress of a stage."""
LOCK_SECONDS = 1.0
"""Time to wait for the lock of a run. `is_interrupted` holds it for a moment."""

Watcher = Callable[[Decision], None]


class LocalRunError(CommandError):
    """A run cannot start. The message says what to do."""


STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass
class LocalRun:
    """The run of one job, in one folder.

    The folder holds `status.yaml` (the resource as `kubectl get -o yaml` would print it), the stages' files and
    logs, and the work of the training stage. A second run of a job that has not ended resumes it. A job that has
    succeeded is run again only if it was changed or `again` is set; its last status is then kept beside the new one.
    """

    folder: Path
    metadata: dict[str, Any]
    """The name and the namespace."""
    spec: JobSpec
    profile: Profile
    again: bool = False
    """Train again although the job has succeeded."""
    uid: str = ""
    """Set by `__post_init__`: the uid of the run that is resumed, or a new one."""
    status: JobStatus = field(default_factory=JobStatus)
    jobs: dict[str, LocalJob] = field(default_factory=dict)
    """The child Jobs, by name."""

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = self._take_lock()
        self._polled = 0.0  # time.monotonic() of the last request for progress
        self._interrupts = 0  # number of Ctrl-C
        self._previous = ""  # uid of the earlier, successful run whose status `save` keeps
        self._resume()

    @property
    def status_file(self) -> Path:
        return self.folder / "status.yaml"

    def save_credentials(self, store: StoreAddress, llm_key: str) -> None:
        """Write the keys to the files that stages read them from. `forget_credentials` removes the files."""
        for place, values in (
            (self._places.store_secret, {"accessKey": store.access_key, "secretKey": store.secret_key}),
            (self._places.llm_secret, {"apiKey": llm_key}),
        ):
            folder = Path(place)
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            for name, value in values.items():
                write_private(folder / name, value.encode())

    def forget_credentials(self) -> None:
        for place in (self._places.store_secret, self._places.llm_secret):
            for file in Path(place).glob("*"):
                file.unlink()

    @property
    def finished(self) -> bool:
        """Whether the job has succeeded, in this run or, unchanged, in an earlier one."""
        return self.status.phase == Phase.SUCCEEDED

    def run(self, watch: Watcher) -> JobStatus:
        """Run the job until it has ended, is suspended or waits for an approval.

        Ctrl-C, SIGTERM and a closed terminal suspend the job: the stage saves its work, and the status becomes
        Suspended. A second Ctrl-C ends the stage at once.

        Args:
            watch: called with every decision, several times a second.
        """
        stop_orphaned_process(self.folder)
        with self._suspended_by_signals():
            try:
                while not self._round(watch):
                    if self._interrupts > 1:
                        return self._abandon(watch)
                    time.sleep(TICK_SECONDS)
                return self.status
            finally:
                for job in self.jobs.values():
                    job.kill()

    @contextmanager
    def _suspended_by_signals(self) -> Iterator[None]:
        """Suspend the job on Ctrl-C, SIGTERM and a closed terminal, and count Ctrl-C."""

        def stop(number: int, frame: FrameType | None) -> None:
            if number == signal.SIGHUP:
                discard_output()  # the terminal is gone; writing to it would fail
            self._interrupts += number == signal.SIGINT
            self._suspend()

        previous = {number: signal.signal(number, stop) for number in STOP_SIGNALS}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _abandon(self, watch: Watcher) -> JobStatus:
        """End the stage at once. Its saved checkpoints stay."""
        for job in self.jobs.values():
            job.kill()
        # The first round records the end of the process, the second one the status that follows from it.
        for _ in range(2):
            with suppress(OSError):
                self._round(watch)
        return self.status

    def _round(self, watch: Watcher) -> bool:
        """Advance the stages, decide and act once, as a reconciliation of the operator does.

        Returns:
            Whether the run is over: the job has ended or waits for a person, and no process runs.
        """
        for job in self.jobs.values():
            job.tick()
        self.jobs = {name: job for name, job in self.jobs.items() if not job.gone}
        snapshot = self.observe()
        decision = decide(snapshot, datetime.now(UTC))
        for action in decision.actions:
            match action:
                case StartAnnotation() | StartTraining():
                    self._create(snapshot, action)
                case DeleteChildJob(job_name):
                    self.jobs[job_name].stop()
        if decision.status != self.status:
            self.status = decision.status
            self.save()
        watch(decision)
        live = any(job.process is not None for job in self.jobs.values())
        waiting = self.status.phase in (Phase.SUSPENDED, Phase.AWAITING_APPROVAL)
        return (self.status.phase.terminal or waiting) and not live

    def observe(self) -> Snapshot:
        """Return everything that is known about the job."""
        snapshot = Snapshot(
            namespace=self.metadata["namespace"],
            name=self.metadata["name"],
            uid=self.uid,
            generation=1,
            created_at=datetime.now(UTC),
            spec=self.spec,
            status=self.status,
            profile=self.profile,
            children=tuple(job.child for job in self.jobs.values()),
            pod_kind=POD_KIND,
        )
        # Progress is read over HTTP, so less often than rounds are made.
        if time.monotonic() - self._polled < POLL_SECONDS:
            return replace(snapshot, progress=self.status.progress)
        self._polled = time.monotonic()
        running = (job.progress() for job in self.jobs.values() if job.process is not None)
        return replace(snapshot, progress=next(running, None))

    def _create(self, snapshot: Snapshot, start: StartAnnotation | StartTraining) -> None:
        stage = StageName.ANNOTATE if isinstance(start, StartAnnotation) else StageName.TRAIN
        name = names.child_name(snapshot.name, self.uid, stage, start.attempt)
        self.jobs[name] = LocalJob(
            child=new_child(name, stage, start.attempt),
            config=build_stage_config(snapshot, start, self._places),
            folder=self.folder,
            backoff_limit=self.spec.run_policy.backoff_limit,
        )

    @property
    def _places(self) -> Places:
        folder = self.folder.resolve()
        return Places(
            work=str(folder / "work"),
            cache=str(folder.parents[2] / "cache"),  # the folder is HOME/runs/NAMESPACE/NAME
            store_secret=str(folder / "secrets" / "store"),
            llm_secret=str(folder / "secrets" / "llm"),
            llm_ca=os.environ.get("LORA_LLM_CA_FILE", ""),
            termination_log=str(folder / "result.json"),
            progress_host="127.0.0.1",
        )

    def _suspend(self) -> None:
        policy = self.spec.run_policy.model_copy(update={"suspend": True})
        self.spec = self.spec.model_copy(update={"run_policy": policy})

    def _resume(self) -> None:
        """Continue the last run in this folder, if its job is unchanged; otherwise prepare a new run."""
        before = self._read_status()
        try:
            status = JobStatus.model_validate(before.get("status") or {})
        except ValidationError as error:
            raise LocalRunError(
                f"{self.status_file}: {describe(error, 'status')}; remove the file to start anew"
            ) from None
        unchanged = _immutable_fields(before.get("spec") or {}) == _immutable_fields(self.spec.to_wire())
        done = status.phase == Phase.SUCCEEDED and not self.again
        if unchanged and (done or not status.phase.terminal):
            self.uid, self.status = before["metadata"]["uid"], status
            self._keep_approval(before["spec"])
        else:
            self.uid = str(uuid4())
            if status.phase == Phase.SUCCEEDED:
                self._previous = before["metadata"]["uid"]
        (self.folder / "work").mkdir(exist_ok=True)

    def start_anew(self) -> None:
        """Prepare a new run of a job that has succeeded, because its images have changed since."""
        self._previous = self.uid
        self.uid, self.status = str(uuid4()), JobStatus()

    def _read_status(self) -> dict[str, Any]:
        try:
            data = yaml.safe_load(self.status_file.read_text())
        except FileNotFoundError:
            return {}
        except (yaml.YAMLError, UnicodeDecodeError):
            data = None
        # A full disk can leave an empty file, which cannot be resumed.
        complete = isinstance(data, dict) and isinstance(data.get("metadata"), dict)
        if not complete or not {"spec", "status"} <= data.keys():
            raise LocalRunError(f"{self.status_file} is not a job's status; remove the file to start anew")
        return dict(data)

    def _keep_approval(self, before: dict[str, Any]) -> None:
        """Keep the approval that the demo's page wrote to the last status, unless the job's file has one."""
        approved = before.get("annotation", {}).get("approvedCaptions", "")
        required = self.spec.annotation.approval is Approval.REQUIRED
        if required and not self.spec.annotation.approved_captions and approved:
            annotation = self.spec.annotation.model_copy(update={"approved_captions": approved})
            self.spec = self.spec.model_copy(update={"annotation": annotation})

    def resource(self) -> dict[str, Any]:
        """Return the job as `kubectl get -o yaml` would print it."""
        return {
            "apiVersion": API_VERSION,
            "kind": KIND,
            "metadata": {**self.metadata, "uid": self.uid},
            "spec": self.spec.to_wire(),
            "status": self.status.to_wire(),
        }

    def save(self) -> None:
        """Write the status file. It is replaced in one operation, so that readers never see a part of it."""
        if self._previous:
            # Keep the status of the run that succeeded: the new run may fail, and its adapter still exists.
            self.status_file.replace(self.folder / f"status-{self._previous[:8]}.yaml")
            self._previous = ""
        partial = self.status_file.with_suffix(".part")
        partial.write_text(dump_yaml(self.resource()))
        partial.replace(self.status_file)

    def _take_lock(self) -> FileLock:
        lock = FileLock(self.folder / LOCK, timeout=LOCK_SECONDS)
        try:
            lock.acquire()
        except Timeout:
            raise LocalRunError(
                f"another `lora run` works on this job in {self.folder}; wait for it, or stop it with Ctrl-C there"
            ) from None
        return lock


def _immutable_fields(spec: dict[str, Any]) -> dict[str, Any]:
    """Return a spec without the fields that may change while a job runs."""
    return {
        name: {k: v for k, v in value.items() if k not in MUTABLE[name]} if name in MUTABLE else value
        for name, value in spec.items()
    }

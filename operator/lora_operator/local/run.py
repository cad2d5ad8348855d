"""`lora run`: the resource that a cluster would run, run here. The same models, the same decisions."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO
from uuid import uuid4

import yaml
from pydantic import ValidationError

from lora_api import API_VERSION, KIND
from lora_api.job import MUTABLE, JobSpec, describe
from lora_api.profile import Profile
from lora_api.status import JobStatus, Phase
from lora_api.steps import StepName

from .. import names
from ..decide import Decision, StartAnnotation, StartTraining, StopStep, decide
from ..manifests import Places, build_step
from ..snapshot import Snapshot
from .processes import LocalJob, end_orphan, new_child
from .seaweed import Credentials

TICK_SECONDS = 0.2
POLL_SECONDS = 1.0

Watcher = Callable[[Decision], None]


class LocalRunError(RuntimeError):
    """A run that cannot start; the message says what to do."""


@dataclass
class LocalRun:
    """One resource in one folder.

    The folder holds `status.yaml` (the resource as `kubectl get -o yaml` would show it), the steps' files
    and logs, and the training step's work. A second run of a job that has not ended goes on where the
    first one stopped; a job that has ended, or whose spec was changed, starts anew.
    """

    folder: Path
    metadata: dict[str, Any]
    spec: JobSpec
    profile: Profile
    uid: str = ""
    status: JobStatus = field(default_factory=JobStatus)
    jobs: dict[str, LocalJob] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = self._take_lock()
        self._polled = 0.0
        self._resume()

    @property
    def status_file(self) -> Path:
        return self.folder / "status.yaml"

    def save_credentials(self, store: Credentials, llm_key: str) -> None:
        """Leave the keys where the steps look for them, for the time of the run."""
        for place, values in (
            (self._places.store_secret, {"accessKey": store.access_key, "secretKey": store.secret_key}),
            (self._places.llm_secret, {"apiKey": llm_key}),
        ):
            folder = Path(place)
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            for name, value in values.items():
                file = folder / name
                file.unlink(missing_ok=True)
                with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT, 0o600), "w") as out:
                    out.write(value)

    def forget_credentials(self) -> None:
        for place in (self._places.store_secret, self._places.llm_secret):
            for file in Path(place).glob("*"):
                file.unlink()

    def run(self, watch: Watcher) -> JobStatus:
        """Work until the job has ended or waits for a person; Ctrl-C suspends it.

        Args:
            watch: told every decision, progress included.
        """
        end_orphan(self.folder)
        try:
            while True:
                try:
                    if self._round(watch):
                        return self.status
                    time.sleep(TICK_SECONDS)
                except KeyboardInterrupt:
                    if self.spec.run_policy.suspend:
                        raise
                    self._suspend()
        finally:
            for job in self.jobs.values():
                job.kill()

    def _round(self, watch: Watcher) -> bool:
        for job in self.jobs.values():
            job.tick()
        self.jobs = {name: job for name, job in self.jobs.items() if not job.gone}
        snapshot = self._observe()
        decision = decide(snapshot, datetime.now(UTC))
        for action in decision.actions:
            match action:
                case StartAnnotation() | StartTraining():
                    self._create(snapshot, action)
                case StopStep(job_name):
                    self.jobs[job_name].stop()
        if decision.status != self.status:
            self.status = decision.status
            self._save()
        watch(decision)
        live = any(job.process is not None for job in self.jobs.values())
        waiting = self.status.phase in (Phase.SUSPENDED, Phase.AWAITING_APPROVAL)
        return (self.status.phase.terminal or waiting) and not live

    def _observe(self) -> Snapshot:
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
        )
        if time.monotonic() - self._polled < POLL_SECONDS:
            return replace(snapshot, progress=self.status.progress)
        self._polled = time.monotonic()
        running = (job.progress() for job in self.jobs.values() if job.process is not None)
        return replace(snapshot, progress=next(running, None))

    def _create(self, snapshot: Snapshot, start: StartAnnotation | StartTraining) -> None:
        step = StepName.ANNOTATE if isinstance(start, StartAnnotation) else StepName.TRAIN
        name = names.child_name(snapshot.name, self.uid, step, start.attempt)
        self.jobs[name] = LocalJob(
            child=new_child(name, step, start.attempt),
            config=build_step(snapshot, start, self._places),
            folder=self.folder,
            backoff_limit=self.spec.run_policy.backoff_limit,
        )

    @property
    def _places(self) -> Places:
        folder = self.folder.resolve()
        return Places(
            work=str(folder / "work"),
            cache=str(folder.parents[2] / "cache"),
            store_secret=str(folder / "secrets" / "store"),
            llm_secret=str(folder / "secrets" / "llm"),
            termination_log=str(folder / "result.json"),
            progress_host="127.0.0.1",
        )

    def _suspend(self) -> None:
        policy = self.spec.run_policy.model_copy(update={"suspend": True})
        self.spec = self.spec.model_copy(update={"run_policy": policy})

    def _resume(self) -> None:
        before: dict[str, Any] = {}
        if self.status_file.exists():
            before = yaml.safe_load(self.status_file.read_text())
        try:
            status = JobStatus.model_validate(before.get("status") or {})
        except ValidationError as error:
            raise LocalRunError(
                f"{self.status_file}: {describe(error, 'status')}; remove the file to start anew"
            ) from None
        unchanged = _frozen(before.get("spec") or {}) == _frozen(self.spec.to_wire())
        if unchanged and not status.phase.terminal:
            self.uid, self.status = before["metadata"]["uid"], status
            self._keep_approval(before["spec"])
        else:
            self.uid = str(uuid4())
        (self.folder / "work").mkdir(exist_ok=True)

    def _keep_approval(self, before: dict[str, Any]) -> None:
        """An approval that was given to the resource, as to a cluster's, where the job's file names none."""
        approved = before.get("annotation", {}).get("approvedCaptions", "")
        if not self.spec.annotation.approved_captions and approved:
            annotation = self.spec.annotation.model_copy(update={"approved_captions": approved})
            self.spec = self.spec.model_copy(update={"annotation": annotation})

    def _save(self) -> None:
        resource = {
            "apiVersion": API_VERSION,
            "kind": KIND,
            "metadata": {**self.metadata, "uid": self.uid},
            "spec": self.spec.to_wire(),
            "status": self.status.to_wire(),
        }
        partial = self.status_file.with_suffix(".part")
        partial.write_text(yaml.safe_dump(resource, sort_keys=False, allow_unicode=True))
        partial.replace(self.status_file)

    def _take_lock(self) -> TextIO:
        file = (self.folder / "lock").open("w")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise LocalRunError(
                f"another `lora run` works in {self.folder}; wait for it or stop it"
            ) from None
        return file


def _frozen(spec: dict[str, Any]) -> dict[str, Any]:
    """A spec without the fields that may change while a job goes on."""
    return {
        name: {k: v for k, v in value.items() if k not in MUTABLE[name]} if name in MUTABLE else value
        for name, value in spec.items()
    }

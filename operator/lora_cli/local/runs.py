"""Finding and listing the local runs of a home, the folder of `--home`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from ..errors import UsageError
from ..references import JobReference

MAX_STATUS_BYTES = 4 << 20


@dataclass(frozen=True)
class Run:
    """A local job and its folder."""

    folder: Path
    resource: dict[str, Any]
    """The job as `kubectl get -o yaml` would print it."""

    @property
    def result(self) -> Path:
        return self.folder / "result"

    @property
    def interrupted(self) -> bool:
        """Whether the command that ran the job has ended without a result."""
        from lora_api.status import JobStatus
        from lora_trainer.local_runs import is_interrupted

        try:
            status = JobStatus.model_validate(self.resource.get("status") or {})
        except ValidationError:
            return False
        return is_interrupted(self.folder, status.phase)

    @property
    def report(self) -> Path:
        return self.result / "report.html"


def list_runs(home: Path) -> Iterator[Run]:
    """Yield the local jobs of a home, sorted by namespace and name. Unreadable status files are skipped."""
    for file in sorted(home.glob("runs/*/*/status.yaml")):
        if resource := _read(file):
            yield Run(file.parent, resource)


def find_run(home: Path, text: str) -> Run:
    """Find a local job by NAME or NAMESPACE/NAME.

    Raises:
        UsageError: when the home has no such job.
    """
    reference = JobReference.parse(text)
    folder = home / "runs" / (reference.namespace or "default") / reference.name
    resource = _read(folder / "status.yaml")
    if resource is None:
        names = ", ".join(f"{run.resource['metadata']['name']}" for run in list_runs(home)) or "none"
        raise UsageError(f"{home} has no local job {text!r}; it has: {names}")
    return Run(folder, resource)


def _read(file: Path) -> dict[str, Any] | None:
    try:
        if file.stat().st_size > MAX_STATUS_BYTES:
            return None
        data = yaml.safe_load(file.read_text())
    except (OSError, yaml.YAMLError, UnicodeDecodeError, RecursionError):
        return None
    complete = isinstance(data, dict) and isinstance(data.get("metadata"), dict)
    return data if complete and {"name", "namespace"} <= data["metadata"].keys() else None

"""List of the jobs that the page knows: local runs in every phase, and other jobs with files in the store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from lora_api.keys import JobKeys
from lora_api.manifest import Manifest
from lora_api.status import ConditionType, JobStatus, Phase

from ..local_runs import AT_REST, is_interrupted
from .approval import read_resource
from .catalog import Catalog, job_keys

CAPTIONED, INTERRUPTED, UNKNOWN = "Captioned", "Interrupted", "Unknown"
"""What is shown in place of a phase."""
LOCAL_MESSAGES: dict[str, str] = {
    Phase.SUSPENDED: "Stopped. Resume it on the page New job, or run the same command again.",
    Phase.AWAITING_APPROVAL: "Review its captions on the page Captions, and approve them.",
}
"""Messages of local jobs. Those of the status name fields of a resource in a cluster."""


@dataclass(frozen=True)
class JobEntry:
    """A job as the page shows it."""

    keys: JobKeys
    phase: str
    """A `Phase`, `Captioned` for a job with captions only, `Interrupted` for a local job whose process was killed, or
    `Unknown`."""
    reason: str = ""
    message: str = ""
    progress: str = ""
    """Steps or images done, and in all."""
    percent: int = 0
    manifests: Sequence[Manifest] = ()
    """Published attempts, newest first."""

    @property
    def ended(self) -> bool:
        """Whether the phase stays until a person acts."""
        return self.phase in (*AT_REST, CAPTIONED, INTERRUPTED, UNKNOWN)

    @property
    def heading(self) -> str:
        concept = self.manifests[0].concept if self.manifests else None
        return f"{concept.token} {concept.class_name}" if concept else self.keys.name


def list_jobs(
    catalog: Catalog, runs: Path | None, resources: Sequence[Mapping[str, Any]] | None = None
) -> list[JobEntry]:
    """List local or cluster jobs, unfinished ones first, then the other jobs in the store, those without a result first.

    Args:
        runs: folder of local runs; None in a cluster.
        resources: jobs that the API server has listed; None to read local runs.
    """
    published: dict[JobKeys, list[Manifest]] = {}
    for manifest in catalog.adapters:
        published.setdefault(job_keys(manifest), []).append(manifest)
    if resources is None:
        entries = [_local_entry(file.parent, item, published) for file, item in _local_jobs(runs)]
    else:
        entries = [_entry(item, published) for item in resources]
    known = {entry.keys: entry for entry in entries}
    others = [
        JobEntry(keys, Phase.SUCCEEDED, manifests=manifests)
        for keys, manifests in published.items()
        if keys not in known
    ]
    captioned = [
        JobEntry(keys, CAPTIONED, message="The captions are stored. No result has been published yet.")
        for keys in catalog.captioned
        if keys not in published and keys not in known
    ]
    entries = sorted(known.values(), key=lambda entry: entry.phase in (Phase.SUCCEEDED, Phase.FAILED))
    return [*entries, *captioned, *others]


def _local_jobs(runs: Path | None) -> list[tuple[Path, dict[str, Any]]]:
    files = sorted(runs.glob("*/*/status.yaml"), key=_modified, reverse=True) if runs else []
    return [(file, resource) for file in files if (resource := read_resource(file))]


def _local_entry(
    folder: Path, resource: Mapping[str, Any], published: Mapping[JobKeys, Sequence[Manifest]]
) -> JobEntry:
    entry = _entry(resource, published)
    if entry.phase in tuple(Phase) and is_interrupted(folder, Phase(entry.phase)):
        return replace(
            entry,
            phase=INTERRUPTED,
            reason="",
            message="Its process was killed. Run the same command again to resume it.",
        )
    if message := LOCAL_MESSAGES.get(entry.phase):
        return replace(entry, reason="", message=message)
    return entry


def _entry(resource: Mapping[str, Any], published: Mapping[JobKeys, Sequence[Manifest]]) -> JobEntry:
    metadata = resource["metadata"]
    keys = JobKeys(metadata.get("namespace", "default"), metadata["name"], metadata["uid"])
    try:
        status = JobStatus.model_validate(resource.get("status") or {})
    except ValidationError:
        return JobEntry(keys, UNKNOWN, message="The status cannot be read.")
    condition = status.condition(ConditionType.SUCCEEDED)
    return JobEntry(
        keys,
        status.phase,
        reason=condition.reason if condition else "",
        message=condition.message if condition else "",
        progress=status.progress.display if status.progress else "",
        percent=status.progress.percent if status.progress else 0,
        manifests=published.get(keys, ()),
    )


def _modified(file: Path) -> float:
    try:
        return file.stat().st_mtime
    except OSError:  # removed since it was listed
        return 0.0

"""Approval of captions, for local jobs and jobs in a cluster."""

from __future__ import annotations

from copy import deepcopy
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from lora_api.keys import JobKeys
from lora_api.status import JobStatus, Phase

from ..annotate.review_store import approve_captions

LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""The parser of libyaml, ten times as fast, where PyYAML has it."""


def read_run(runs: Path | None, keys: JobKeys) -> dict[str, Any] | None:
    """Read the resource of a local job; None if the job is not local, or was run again with another uid."""
    if runs is None:
        return None
    resource = read_resource(status_file(runs, keys))
    # A copy, because `approve` changes it.
    return deepcopy(resource) if resource and resource["metadata"]["uid"] == keys.uid else None


def read_resource(file: Path) -> dict[str, Any] | None:
    """Read a status.yaml; None if there is none or it is not a resource."""
    try:
        status = file.stat()
        resource = _load(file, status.st_mtime_ns, status.st_size, status.st_ino)
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return None
    metadata = resource.get("metadata") if isinstance(resource, dict) else None
    is_resource = isinstance(metadata, dict) and "uid" in metadata and "spec" in resource
    return resource if is_resource else None


@lru_cache(maxsize=2000)
def _load(file: Path, modified: int, size: int, inode: int) -> Any:
    """Parse a file, once for each version of it: the page reads all jobs every few seconds."""
    return yaml.load(file.read_text(), Loader=LOADER)  # noqa: S506 - a safe loader


def awaits_approval(resource: dict[str, Any]) -> bool:
    """Whether the job's status, if it can be read, waits for approved captions."""
    try:
        status = JobStatus.model_validate(resource.get("status") or {})
    except ValidationError:
        return False
    return status.phase == Phase.AWAITING_APPROVAL


def approve(runs: Path | None, keys: JobKeys, digest: str) -> str:
    """Set `spec.annotation.approvedCaptions` and return a message with the next step.

    A local job is changed in its status.yaml; a job in a cluster with kubectl.

    Args:
        runs: folder of local jobs; None in a cluster.
        digest: sha256 of the approved metadata.jsonl.

    Raises:
        BadSetupError: if the job is in a cluster and kubectl cannot change it.
    """
    resource = read_run(runs, keys)
    if runs is None or resource is None:
        approve_captions(keys.namespace, keys.name, digest)
        return "Approved. The operator now starts the training."
    resource["spec"]["annotation"]["approvedCaptions"] = digest
    file = status_file(runs, keys)
    # The rename is atomic, so that `lora run` never reads a part of the file.
    partial = file.with_suffix(".approved")
    partial.write_text(yaml.safe_dump(resource, sort_keys=False, allow_unicode=True))
    partial.replace(file)
    return "Approved. Start `lora run` again to continue with the training."


def status_file(runs: Path, keys: JobKeys) -> Path:
    return runs / keys.namespace / keys.name / "status.yaml"

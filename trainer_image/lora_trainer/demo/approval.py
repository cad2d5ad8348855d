"""Whether a job waits for a reviewer, and telling it that its captions are good."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from lora_api.keys import JobKeys
from lora_api.status import JobStatus, Phase

from ..annotate.desk import approve_captions


def read_run(runs: Path | None, keys: JobKeys) -> dict[str, Any] | None:
    """The resource of a job that `lora run` runs on this machine."""
    if runs is None:
        return None
    try:
        resource = yaml.safe_load(_file(runs, keys).read_text())
    except OSError:
        return None
    return resource if resource["metadata"]["uid"] == keys.uid else None


def waits(resource: dict[str, Any]) -> bool:
    return JobStatus.model_validate(resource.get("status") or {}).phase == Phase.AWAITING_APPROVAL


def approve(runs: Path | None, keys: JobKeys, digest: str) -> str:
    """Set `spec.annotation.approvedCaptions`; what is left to do, in words.

    Raises:
        BadSetupError: where the job is a cluster's and kubectl cannot change it.
    """
    resource = read_run(runs, keys)
    if runs is None or resource is None:
        approve_captions(keys.namespace, keys.name, digest)
        return "Approved: the operator goes on with the training."
    resource["spec"]["annotation"]["approvedCaptions"] = digest
    file = _file(runs, keys)
    partial = file.with_suffix(".approved")
    partial.write_text(yaml.safe_dump(resource, sort_keys=False, allow_unicode=True))
    partial.replace(file)
    return "Approved: start `lora run` again, and it goes on with the training."


def _file(runs: Path, keys: JobKeys) -> Path:
    return runs / keys.namespace / keys.name / "status.yaml"

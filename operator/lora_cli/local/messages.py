"""Messages of local jobs, with commands in place of fields to set.

The operator's decisions already name processes instead of pods (`Snapshot.pod_kind`).
"""

from __future__ import annotations

from lora_api.status import ConditionType, DatasetStatus, JobStatus, Phase
from lora_operator.decide.lifetime import RESUME_HINT

INTERRUPTED = "the command that ran it was killed; run the same command again to resume"
"""Message of a job whose phase is that of a running one, but that nothing runs."""


def local_message(status: JobStatus) -> str:
    """Return the message of a local job's phase, with the next step for the user."""
    condition = status.condition(ConditionType.SUCCEEDED)
    message = condition.message if condition else ""
    if message == RESUME_HINT:
        return "stopped; run the same command again to resume"
    if status.phase == Phase.AWAITING_APPROVAL and status.captions:
        return (
            "review the captions with `lora demo`, or accept them with "
            f"--set annotation.approvedCaptions=sha256:{status.captions.sha256}; then run the same command again"
        )
    return message


def dataset_warning(dataset: DatasetStatus) -> str:
    """Return the number of warnings about the images and captions and the first one; empty if there is none."""
    if not dataset.warnings:
        return ""
    more = f"; the report has the other {dataset.warnings - 1}" if dataset.warnings > 1 else ""
    return f"Warning: {dataset.first_warning}{more}"

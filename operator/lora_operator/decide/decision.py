"""What can be decided. Decisions are data: `lora_operator.apply` and local mode carry them out."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from lora_api.reasons import Reason
from lora_api.status import JobStatus


@dataclass(frozen=True)
class StartAnnotation:
    attempt: int


@dataclass(frozen=True)
class StartTraining:
    attempt: int
    captions_sha256: str
    input_hash: str


@dataclass(frozen=True)
class StopStep:
    """Delete a step's Job; its pod saves a checkpoint on the way out."""

    job_name: str
    uid: str


@dataclass(frozen=True)
class RemoveJob:
    """Delete the resource itself: its time to live is over. Published artifacts stay."""


Action = StartAnnotation | StartTraining | StopStep | RemoveJob


@dataclass(frozen=True)
class Announcement:
    """An Event to post once the status is written."""

    reason: Reason
    message: str
    warning: bool = False


@dataclass(frozen=True)
class Decision:
    """What to do and what to say of it. `wake_at` asks to be asked again even if nothing happens."""

    status: JobStatus
    actions: tuple[Action, ...] = ()
    announcements: tuple[Announcement, ...] = ()
    wake_at: datetime | None = None

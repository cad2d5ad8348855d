"""Decisions as data. `lora_operator.apply` and the local runner carry them out."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from lora_api.profile import Webhook
from lora_api.reasons import Reason
from lora_api.stages import StageName
from lora_api.status import JobStatus


@dataclass(frozen=True)
class StartAnnotation:
    """Create the child Job of the annotation stage."""

    attempt: int


@dataclass(frozen=True)
class StartTraining:
    """Create the child Job of the training stage."""

    attempt: int
    captions_sha256: str
    """Digest of the captions to train on, without the prefix `sha256:`."""
    input_hash: str
    """Input hash, with the prefix `sha256:`."""
    images: int | None = None
    """Number of images to apply the recipe for; None for a job without a recipe."""


@dataclass(frozen=True)
class DeleteChildJob:
    """Delete a stage's child Job. Its pod saves a checkpoint when it gets SIGTERM."""

    job_name: str
    uid: str


@dataclass(frozen=True)
class RestoreChildJob:
    """Restore the labels and the owner of a child Job that no watch reports, if it exists. Its pod still runs."""

    stage: StageName
    attempt: int
    uid: str


@dataclass(frozen=True)
class DeleteResource:
    """Delete the resource after its time to live. Published artifacts stay."""


@dataclass(frozen=True)
class SendWebhook:
    """Announce the end of the job. A message that is being sent is not sent twice."""

    webhook: Webhook
    deadline: datetime
    """When to give up. One attempt is made in any case."""


Action = StartAnnotation | StartTraining | DeleteChildJob | RestoreChildJob | DeleteResource | SendWebhook


@dataclass(frozen=True)
class Announcement:
    """An Event to create once the status is written."""

    reason: Reason
    message: str
    warning: bool = False


@dataclass(frozen=True)
class Decision:
    """The new status and the actions that go with it."""

    status: JobStatus
    actions: tuple[Action, ...] = ()
    announcements: tuple[Announcement, ...] = ()
    requeue_at: datetime | None = None
    """Time of the next decision even if no event arrives. Set for every job that has not ended."""

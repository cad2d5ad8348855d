"""The status of a `LoraTrainingJob`: the whole story of a job, written by the operator alone.

Every model here is lenient: an operator reads what an older or a newer one wrote.
"""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, PlainSerializer

from .base import Lenient
from .reasons import Reason


class Phase(StrEnum):
    """One word for people. The conditions are what programs go by."""

    PENDING = "Pending"
    ANNOTATING = "Annotating"
    AWAITING_APPROVAL = "AwaitingApproval"
    QUEUED = "Queued"
    TRAINING = "Training"
    SUSPENDED = "Suspended"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"

    @property
    def terminal(self) -> bool:
        return self in (Phase.SUCCEEDED, Phase.FAILED)


def _aware(value: datetime) -> datetime:
    if value.tzinfo is None:
        raise ValueError("a time needs a zone")
    return value


Time = Annotated[
    datetime,
    AfterValidator(_aware),
    PlainSerializer(lambda t: t.strftime("%Y-%m-%dT%H:%M:%SZ"), when_used="json"),
]
"""UTC, to the second, as Kubernetes writes times."""


class SkippedImage(Lenient):
    key: str
    reason: str


class DatasetStatus(Lenient):
    images: int = 0
    """Images that will be trained on."""
    skipped: list[SkippedImage] = []


class Usage(Lenient):
    """What the captions took."""

    requests: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost_usd: Annotated[Decimal | None, Field(alias="costUSD")] = None


class CaptionsStatus(Lenient):
    job_name: str = ""
    attempt: int = 0
    total: int = 0
    done: int = 0
    key: str = ""
    sha256: str = ""
    dataset_sha256: str = ""
    usage: Usage | None = None


class Failure(Lenient):
    reason: str
    message: str = ""
    node: str = ""
    time: Time | None = None


class TrainingStatus(Lenient):
    job_name: str = ""
    """The Job of the attempt that should exist now; empty while suspended."""
    attempt: int = 0
    disruptions: int = 0
    """Pods lost to preemption, eviction and lost nodes."""
    resumed_from_step: int | None = None
    gpu_seconds: int | None = None
    """GPUs times the seconds that they were held, of all attempts."""
    gpu_seconds_before: int = 0
    """Of the attempts before this one."""
    last_failure: Failure | None = None


class Progress(Lenient):
    """What a running step says of itself; reals are strings, as everywhere in the resource."""

    step: int = 0
    total_steps: int = 0
    percent: int = 0
    loss: str = ""
    steps_per_second: str = ""
    eta_seconds: int | None = None
    display: str = ""
    reported_at: Time | None = None


class AdapterStatus(Lenient):
    """A published and verified adapter."""

    uri: str
    sha256: str
    bytes: int
    format: str
    manifest_key: str
    report_key: str = ""
    """The training's report, one HTML file that needs nothing else."""


class PreviewStatus(Lenient):
    step: int
    prompt: str
    key: str


class ConditionType(StrEnum):
    ACCEPTED = "Accepted"
    CAPTIONS_READY = "CaptionsReady"
    SUCCEEDED = "Succeeded"
    FINISHED = "Finished"
    SUSPENDED = "Suspended"
    STALLED = "Stalled"


class Condition(Lenient):
    type: ConditionType
    status: Literal["True", "False", "Unknown"]
    observed_generation: int = 0
    last_transition_time: Time
    reason: Reason | str
    message: str = ""


class JobStatus(Lenient):
    observed_generation: int = 0
    phase: Phase = Phase.PENDING
    effective: dict[str, Any] | None = None
    """The spec with every default filled in."""
    input_hash: str = ""
    """Of all that decides the adapter: images, captions, settings, base model, trainer version."""
    start_time: Time | None = None
    finish_time: Time | None = None
    dataset: DatasetStatus | None = None
    captions: CaptionsStatus | None = None
    training: TrainingStatus | None = None
    progress: Progress | None = None
    adapter: AdapterStatus | None = None
    previews: list[PreviewStatus] = []
    conditions: list[Condition] = []

    def condition(self, kind: ConditionType) -> Condition | None:
        return next((c for c in self.conditions if c.type == kind), None)

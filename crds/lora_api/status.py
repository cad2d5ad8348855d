"""The status of a `LoraTrainingJob`, which only the operator writes.

Every model here ignores unknown fields, because an operator may read a status that an older or a newer version
wrote. Texts that are too long are cut and not refused, so that a long message never makes a status unwritable.
"""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, PlainSerializer

from .base import Lenient
from .fields import (
    Clipped,
    Count,
    InputHash,
    JsonObject,
    Message,
    ObjectKey,
    ObjectURI,
    OptionalObjectKey,
    OptionalSha256,
    Sha256,
    Short,
)
from .reasons import Reason

MAX_ATTEMPT = 100_000
"""Highest number of an attempt."""
Attempt = Annotated[int, Field(ge=0, le=MAX_ATTEMPT)]


class Phase(StrEnum):
    """Summary in one word, for people. Programs read the conditions."""

    PENDING = "Pending"
    ANNOTATING = "Annotating"
    AWAITING_APPROVAL = "AwaitingApproval"
    QUEUED = "Queued"
    TRAINING = "Training"
    SUSPENDED = "Suspended"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"
    TERMINATING = "Terminating"

    @property
    def terminal(self) -> bool:
        return self in (Phase.SUCCEEDED, Phase.FAILED)


def _check_time(value: datetime) -> datetime:
    if value.tzinfo is None:
        raise ValueError("a time needs a zone")
    # arithmetic with deadlines of up to 68 years must stay within what a datetime can hold
    if not 1970 <= value.year <= 9000:
        raise ValueError("a time must be between the years 1970 and 9000")
    return value


Time = Annotated[
    datetime,
    AfterValidator(_check_time),
    PlainSerializer(lambda t: t.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"), when_used="json"),
]
"""UTC, to the second, as Kubernetes writes times."""

Number = Annotated[
    str, Field(max_length=40, pattern=r"^([-+]?[0-9.]{1,20}([eE][-+]?[0-9]{1,3})?|nan|-?inf)?$")
]
"""A real number as a string, as everywhere in the resource; empty while it is not known."""


def write_number(value: float) -> str:
    """Write a number as a `Number`, with four digits behind the point. A diverged loss can be of any size."""
    return f"{value:.4f}" if abs(value) < 1e9 else f"{value:.4e}"


Cost = Annotated[Decimal, Field(ge=0, le=1_000_000_000, max_digits=40, json_schema_extra={"maxLength": 40})]
MAX_SKIPPED = 1000
MAX_PREVIEWS = 256


class SkippedImage(Lenient):
    """An image that is not trained on."""

    key: Annotated[str, Clipped(1024)]
    """Object key of the image."""
    reason: Short
    """Reason why it is not trained on."""


class DatasetStatus(Lenient):
    """Outcome of the checks of the images."""

    images: Count = 0
    """Number of images that are trained on."""
    skipped: Annotated[list[SkippedImage], Field(max_length=MAX_SKIPPED)] = []
    """Images that are not trained on. A long list is cut here and complete in the store."""
    warnings: Count = 0
    """Number of warnings about images and captions. All of them are in the dataset report in the store."""
    first_warning: Short = ""
    """The first of the warnings."""


class Usage(Lenient):
    """Requests, tokens and cost of the captions."""

    requests: Count = 0
    """Number of requests to the language model."""
    input_tokens: Annotated[int, Field(ge=0, le=2**53)] = 0
    """Number of tokens sent."""
    output_tokens: Annotated[int, Field(ge=0, le=2**53)] = 0
    """Number of tokens received."""
    cost_usd: Annotated[Cost | None, Field(alias="costUSD")] = None
    """Amount spent, in USD at the profile's prices, by the usage that the service reported. Unset: the profile has no prices for the model."""
    reserved_usd: Annotated[Cost | None, Field(alias="reservedUSD")] = None
    """Amount charged against the limit, beside costUSD, for requests whose usage the service did not report."""


class CaptionsStatus(Lenient):
    """The annotation stage and the captions it produced."""

    job_name: Short = ""
    """Name of the batch Job that runs, or last ran, the annotation stage."""
    job_uid: Annotated[Short, Field(alias="jobUID")] = ""
    """UID of that batch Job. The result of another Job with its name is ignored."""
    attempt: Attempt = 0
    """Number of that batch Job, counted from 1."""
    failures: Count = 0
    """Number of attempts that ended without a result the operator could read, and of their failed pods. Charged to runPolicy.backoffLimit."""
    disruptions: Count = 0
    """Number of this attempt's pods that were lost to preemption, eviction or lost nodes."""
    disruptions_in_a_row: Count = 0
    """Number of disruptions since done last rose. Limited by runPolicy.disruptionLimit."""
    disruptions_counted_until: Time | None = None
    """Creation time of the last pod that was counted as a disruption."""
    started: bool = False
    """Whether a pod of this attempt has started. From then on, runPolicy.startDeadlineSeconds does not apply to it."""
    total: Count = 0
    """Number of images to caption."""
    done: Count = 0
    """Number of images that have a caption."""
    key: OptionalObjectKey = ""
    """Object key of the captions, metadata.jsonl, in the output bucket."""
    sha256: OptionalSha256 = ""
    """SHA-256 digest of the captions. To approve them, set annotation.approvedCaptions to it."""
    dataset_sha256: OptionalSha256 = ""
    """SHA-256 digest of the list of images."""
    usage: Usage | None = None


class Failure(Lenient):
    """Failure of a pod of the training stage."""

    reason: Short
    """Reason, one of those that conditions have."""
    message: Message = ""
    """Details for people."""
    node: Short = ""
    """Node that the pod ran on."""
    time: Time | None = None
    """Time at which the pod ended."""


class TrainingStatus(Lenient):
    """The training stage."""

    job_name: Short = ""
    """Name of the current attempt's batch Job. Empty while the job is suspended."""
    job_uid: Annotated[Short, Field(alias="jobUID")] = ""
    """UID of the current or last attempt's batch Job. The result of another Job with its name is ignored."""
    attempt: Attempt = 0
    """Number of the current attempt, counted from 1. Retries within a batch Job are not counted."""
    disruptions: Count = 0
    """Number of pods lost to preemption, eviction and lost nodes."""
    disruptions_in_a_row: Count = 0
    """Number of disruptions since furthestStep last rose. Limited by runPolicy.disruptionLimit."""
    disruptions_counted_until: Time | None = None
    """Creation time of the last pod that was counted as a disruption."""
    started: bool = False
    """Whether a pod of this attempt has started. From then on, runPolicy.startDeadlineSeconds does not apply to it."""
    failures: Count = 0
    """Number of attempts that ended without a result the operator could read, and of their failed pods. Charged to runPolicy.backoffLimit."""
    furthest_step: Count = 0
    """Highest optimizer step that was reported."""
    furthest_step_before: Count = 0
    """Highest optimizer step of the attempts before the current one."""
    last_progress_time: Time | None = None
    """Time at which furthestStep last rose."""
    resumed_from_step: Count | None = None
    """Step of the checkpoint that the last pod resumed from. Unset: it started from the first step."""
    gpu_seconds: Annotated[int, Field(ge=0, le=2**53)] | None = None
    """GPU time used, in seconds: the number of GPUs times the time that they were held, over all attempts."""
    gpu_seconds_before: Annotated[int, Field(ge=0, le=2**53)] = 0
    """The share of gpuSeconds that earlier attempts, and pods that are gone, used."""
    last_failure: Failure | None = None


class Progress(Lenient):
    """Last report of the running stage."""

    step: Count = 0
    """Number of optimizer steps done; in the annotation stage, the number of images."""
    total_steps: Count = 0
    """Number of steps, or images, in all."""
    percent: Annotated[int, Field(ge=0, le=100)] = 0
    """Share done, in percent."""
    loss: Number = ""
    """Training loss, smoothed."""
    steps_per_second: Number = ""
    """Steps per second, over the last steps."""
    eta_seconds: Count | None = None
    """Estimated time to the last step, in seconds."""
    display: Annotated[str, Clipped(40)] = ""
    """Steps done and in all, for people."""
    reported_at: Time | None = None
    """Time of the report."""


class AdapterStatus(Lenient):
    """The published adapter. It was read back from the store and verified."""

    uri: ObjectURI
    """Address of the adapter's file: s3://BUCKET/KEY."""
    sha256: Sha256
    """SHA-256 digest of the file."""
    bytes: Annotated[int, Field(ge=0, le=2**53)]
    """Size of the file, in bytes."""
    format: Short
    """Format of the file: diffusers or kohya."""
    manifest_key: ObjectKey
    """Object key of the manifest, which lists every published file with its digest."""
    report_key: OptionalObjectKey = ""
    """Object key of the training's report, one self-contained HTML file."""
    likeness: Short = ""
    """Similarity of generated images to the training images, from 0 to 1. Empty: not measured."""
    fidelity: Short = ""
    """Similarity of generated images to their prompts, relative to the base model's. Empty: not measured."""

    @property
    def location(self) -> tuple[str, str]:
        """Bucket and key of the file."""
        bucket, _, key = self.uri.removeprefix("s3://").partition("/")
        return bucket, key


class PreviewStatus(Lenient):
    """A preview image in the store."""

    step: Count
    """Step after which it was generated."""
    prompt: Annotated[str, Clipped(500)]
    """Prompt it was generated with."""
    key: ObjectKey
    """Object key of the image."""


class WebhookStatus(Lenient):
    """The announcement of the job's end at the profile's webhook."""

    delivered: bool
    """Whether the receiver has accepted the message."""
    attempts: Count = 0
    """Number of requests."""
    time: Time
    """When the receiver accepted the message, or the operator gave up."""
    message: Message = ""
    """Why the message was not delivered."""


class ConditionType(StrEnum):
    ACCEPTED = "Accepted"
    CAPTIONS_READY = "CaptionsReady"
    SUCCEEDED = "Succeeded"
    FINISHED = "Finished"
    SUSPENDED = "Suspended"
    STALLED = "Stalled"


class Condition(Lenient):
    """A condition, as in the Kubernetes API conventions."""

    type: ConditionType
    """Type of the condition."""
    status: Literal["True", "False", "Unknown"]
    """Whether the condition holds: True, False or Unknown."""
    observed_generation: Annotated[int, Field(ge=0, le=2**53)] = 0
    """Generation of the resource that the condition was determined for."""
    last_transition_time: Time
    """Time at which status last changed."""
    reason: Reason | Short
    """Cause, in one CamelCase word. docs/reference/reasons.md says what to do about each."""
    message: Message = ""
    """Details for people."""


class JobStatus(Lenient):
    """State of the job, written by the operator."""

    observed_generation: Annotated[int, Field(ge=0, le=2**53)] = 0
    """Generation of the spec that this status was determined for."""
    phase: Phase = Phase.PENDING
    effective: JsonObject | None = None
    """The spec with every default filled in."""
    input_hash: InputHash = ""
    """Hash of everything that determines the adapter: images, captions, settings, base model, trainer version."""
    retries: Count = 0
    """Value of runPolicy.retry that was acted on last, or that was set before the job failed."""
    start_time: Time | None = None
    """Time at which the job was first seen, retried or resumed. Unset while it is suspended."""
    waiting_since: Time | None = None
    """Time since which the next stage's child Job cannot be created: a quota, a policy or the profile's limit refuses it."""
    finish_time: Time | None = None
    """Time at which the job succeeded or failed."""
    dataset: DatasetStatus | None = None
    captions: CaptionsStatus | None = None
    training: TrainingStatus | None = None
    progress: Progress | None = None
    adapter: AdapterStatus | None = None
    previews: Annotated[list[PreviewStatus], Field(max_length=MAX_PREVIEWS)] = []
    """Preview images, in the order of their steps."""
    webhook: WebhookStatus | None = None
    """Result of the announcement at the profile's webhook. Unset: the profile has none, or it is not delivered yet."""
    conditions: Annotated[list[Condition], Field(max_length=16)] = []
    """Conditions: Accepted, CaptionsReady, Succeeded and Finished; Suspended and Stalled only while they apply."""

    def condition(self, kind: ConditionType) -> Condition | None:
        """Return the condition of a type; None if it is not set."""
        return next((c for c in self.conditions if c.type == kind), None)

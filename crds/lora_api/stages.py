"""The configuration file of a stage, and the result that its process writes as termination message."""

from __future__ import annotations

import json
import posixpath
from enum import StrEnum
from typing import Annotated, Any, Literal, Self

from pydantic import Field, TypeAdapter, model_validator
from pydantic_core import from_json

from .base import Lenient, Model
from .fields import Count, InputHash, Message, ObjectKey, Seconds, Sha256
from .job import JobSpec, Recipe
from .keys import JobKeys
from .profile import BaseModelSource, Price, ScoringModels, StoreProfile
from .reasons import Reason
from .status import MAX_PREVIEWS, AdapterStatus, DatasetStatus, Number, PreviewStatus, Usage

TERMINATION_MESSAGE_BYTES = 1024
"""Largest encoded result, in bytes. Kubernetes divides 12 KiB among the containers of a pod, so 1 KiB leaves room
for ten sidecars."""

PROGRESS_PORT = 8080
STORE_SECRET_DIR = "/var/run/lora/store"
STORE_CA_FILE = "/var/run/lora/ca/ca.crt"
LLM_CA_FILE = "/var/run/lora/llm-ca/ca.crt"
"""Paths in a pod: the folder of the store's keys, and the CA certificates of the store and of the LLM service."""

ESSENTIAL = ("outcome", "reason", "adapter", "captions", "inputHash", "training")
"""The fields that an encoded result begins with."""
KEYS = ("manifestKey", "reportKey")
"""The fields of an adapter that hold object keys."""


class StageName(StrEnum):
    """A stage, as it is named in labels, file names and commands."""

    ANNOTATE = "annotate"
    TRAIN = "train"


class StoreAccess(Model):
    """Access of a stage to the store."""

    endpoint: str
    """HOST:PORT of the S3 service."""
    secure: bool
    """Whether to use HTTPS."""
    region: str = ""
    """Region to sign requests for. Empty: that of the service."""
    ca_file: str = ""
    """CA certificate of the service, a PEM file. Empty: the public CAs."""
    credentials_dir: str
    """Folder with the files accessKey and secretKey."""
    input_bucket: str
    output_bucket: str

    @classmethod
    def of(cls, store: StoreProfile, credentials_dir: str, ca_file: str) -> StoreAccess:
        """Describe a profile's store for a stage.

        Args:
            store: the store of the profile.
            credentials_dir: the folder with the store's keys.
            ca_file: path of the CA certificate; ignored if the profile names none.
        """
        return cls(
            endpoint=store.endpoint,
            secure=store.secure,
            region=store.region,
            ca_file=ca_file if store.ca_config_map else "",
            credentials_dir=credentials_dir,
            input_bucket=store.input_bucket,
            output_bucket=store.output_bucket,
        )


class LLMAccess(Model):
    """Access of the annotation stage to its language model."""

    provider: Literal["anthropic", "openai", "transformers"]
    base_url: Annotated[str, Field(alias="baseURL")] = ""
    """URL of the service. Empty: the provider's own."""
    credentials_dir: str
    """Folder with the file apiKey. Empty: the service needs no key."""
    ca_file: str = ""
    """CA certificate of the service, a PEM file. Empty: the public CAs."""
    proxy: str = ""
    """URL of an HTTP proxy. Empty: none."""
    timeout_seconds: float = 120
    """Timeout of one request, in seconds."""
    retry_seconds: float = 600
    """Time for which requests are retried while the service is unavailable, in seconds."""
    model: str
    """Name of the model."""
    price: Price | None = None
    """Price of the model. None: the cost is not computed."""
    concurrency: int = 4
    """Number of requests at a time."""


class StageConfig(Model):
    """Configuration that both stages share."""

    namespace: str
    name: str
    uid: str
    spec: JobSpec
    """The spec. With a recipe, the annotation stage gets only the fields that were set, and the training stage all."""
    base_model: BaseModelSource
    scoring: ScoringModels | None = None
    """The profile's scoring models."""
    store: StoreAccess
    work_dir: str
    """Folder that the stage may write to. A local run keeps it between attempts; a pod has a new one."""
    termination_log: str
    """File to write the result to."""
    progress_host: str
    """Address that /progress, /metrics and /healthz are served on."""
    progress_port: int
    """Port that they are served on."""
    attempt: int = 1
    """Number of the attempt, counted from 1. An attempt starts only when the previous one has ended."""

    @property
    def keys(self) -> JobKeys:
        return JobKeys(self.namespace, self.name, self.uid)


class AnnotateConfig(StageConfig):
    """Configuration of the annotation stage."""

    stage: Literal[StageName.ANNOTATE] = StageName.ANNOTATE
    llm: LLMAccess | None = None
    """The language model. None unless the job's annotation mode is LLM."""
    segmentation: BaseModelSource | None = None
    """The segmentation model. None unless the job's annotation.masks is Model."""
    cache_dir: str = ""
    """Folder that the segmentation model is downloaded to. Empty: none is."""
    prefetched: bool = False
    """Whether `cache_dir` was filled before and is read-only."""


class AppliedRecipe(Model):
    """The recipe that set fields of a job, for the report."""

    kind: Recipe
    """Subject, Person or Style."""
    images: int
    """Number of images that it was applied for."""
    fields: list[str]
    """Paths of the fields that it set, below `training`."""


class TrainConfig(StageConfig):
    """Configuration of the training stage."""

    stage: Literal[StageName.TRAIN] = StageName.TRAIN
    captions_sha256: str
    """SHA-256 digest that metadata.jsonl must have: that of the approved captions."""
    input_hash: str
    """Input hash of the job."""
    cache_dir: str
    """Folder that models are downloaded to."""
    prefetched: bool = False
    """Whether `cache_dir` was filled before and is read-only."""
    recipe: AppliedRecipe | None = None
    """The recipe whose values are in `spec`. None: the job has no recipe."""

    @model_validator(mode="after")
    def _check_recipe(self) -> Self:
        if self.spec.training.recipe is not Recipe.NONE:
            raise ValueError("spec.training.recipe must be applied before the stage starts")
        return self


AnyStageConfig = Annotated[AnnotateConfig | TrainConfig, Field(discriminator="stage")]
stage_config_adapter: TypeAdapter[AnnotateConfig | TrainConfig] = TypeAdapter(AnyStageConfig)


class Outcome(StrEnum):
    """The outcome of a stage."""

    CAPTIONED = "captioned"
    REUSED = "reused"
    TRAINED = "trained"
    FAILED = "failed"
    INTERRUPTED = "interrupted"


class CaptionsResult(Lenient):
    """The captions that the annotation stage stored."""

    key: ObjectKey
    """Object key of metadata.jsonl in the output bucket."""
    sha256: Sha256
    """SHA-256 digest of metadata.jsonl."""
    dataset_sha256: Sha256
    """Hash of the dataset, from `manifest.dataset_sha256`."""
    total: Count
    """Number of images with a caption."""
    usage: Usage | None = None


class TrainingResult(Lenient):
    """Summary of the training stage."""

    resumed_from_step: Count | None = None
    """Step of the checkpoint that the pod resumed from; None: it started from the first step."""
    seconds: Seconds = 0
    """Time that the process ran, in seconds."""
    final_step: Count = 0
    """Last step that was done."""
    final_loss: Number = ""
    """Mean loss over the last tenth of the steps. Empty: not known."""


class StageResult(Lenient):
    """Result of a stage, written as its termination message. Lists are cut to fit; the store has the whole lists."""

    outcome: Outcome
    reason: Reason
    message: Message = ""
    input_hash: InputHash = ""
    dataset: DatasetStatus | None = None
    captions: CaptionsResult | None = None
    adapter: AdapterStatus | None = None
    training: TrainingResult | None = None
    previews: Annotated[list[PreviewStatus], Field(max_length=MAX_PREVIEWS)] = []


def encode_result(result: StageResult) -> bytes:
    """Encode a result as JSON of at most 1,024 bytes.

    The fields that the operator needs come first, in case Kubernetes cuts the message nevertheless. A result that
    is too long is shortened in this order: the last entries of `dataset.skipped`, the last previews, the message.
    """
    while True:
        wire = result.model_dump(mode="json", by_alias=True, exclude_none=True)
        if "adapter" in wire:
            wire["adapter"] = _relative_keys(wire["adapter"])
        ordered = {name: wire[name] for name in (*ESSENTIAL, *wire) if name in wire}
        data = json.dumps(ordered, ensure_ascii=False, separators=(",", ":")).encode()
        if len(data) <= TERMINATION_MESSAGE_BYTES:
            return data
        skipped = result.dataset.skipped if result.dataset else []
        if result.dataset and skipped:
            shorter = result.dataset.model_copy(update={"skipped": skipped[:-1]})
            result = result.model_copy(update={"dataset": shorter})
        elif result.previews:
            result = result.model_copy(update={"previews": result.previews[:-1]})
        elif result.message:
            result = result.model_copy(update={"message": result.message[: len(result.message) // 2]})
        else:
            return data


def decode_result(message: str) -> StageResult | None:
    """Read a termination message.

    Returns:
        The result. If the message was cut, the result has the fields before the cut. None if the message is not a
        result, or if a field that its outcome requires was cut off.
    """
    try:
        wire = from_json(message, allow_partial=True)
        if isinstance(wire, dict) and isinstance(wire.get("adapter"), dict):
            wire["adapter"] = _absolute_keys(wire["adapter"])
        result = StageResult.model_validate(wire)
    except (TypeError, ValueError):
        # A lone surrogate raises TypeError: JSON can escape it, but UTF-8 cannot encode it.
        return None
    if _is_complete(message):
        return result
    required = {
        Outcome.TRAINED: result.adapter is not None,
        Outcome.REUSED: result.adapter is not None and result.captions is not None,
        Outcome.CAPTIONED: result.captions is not None and bool(result.input_hash),
    }
    return result if required.get(result.outcome, True) else None


def _is_complete(message: str) -> bool:
    try:
        from_json(message)
    except ValueError:
        return False
    return True


def _relative_keys(adapter: dict[str, Any]) -> dict[str, Any]:
    """Make the keys of an adapter relative to its URI, because each would repeat the job's name, which can be long."""
    folder = posixpath.dirname(adapter["uri"].partition("://")[2].partition("/")[2])
    return {
        name: f"./{posixpath.relpath(value, folder)}" if name in KEYS and value and folder else value
        for name, value in adapter.items()
    }


def _absolute_keys(adapter: dict[str, Any]) -> dict[str, Any]:
    """Undo `_relative_keys`."""
    folder = posixpath.dirname(str(adapter.get("uri", "")).partition("://")[2].partition("/")[2])
    return {
        name: posixpath.normpath(f"{folder}/{value}")
        if name in KEYS and str(value).startswith("./")
        else value
        for name, value in adapter.items()
    }

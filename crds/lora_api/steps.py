"""Steps as processes: the one file that configures a step, and the message that it ends with."""

from __future__ import annotations

import json
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from .base import Lenient, Model
from .job import JobSpec
from .keys import JobKeys
from .profile import BaseModelSource, Price, StoreProfile
from .reasons import Reason
from .status import AdapterStatus, DatasetStatus, PreviewStatus, Usage

TERMINATION_MESSAGE_BYTES = 4096
"""Kubernetes keeps no more of a termination message."""

PROGRESS_PORT = 8080
STORE_SECRET_DIR = "/var/run/lora/store"
STORE_CA_FILE = "/var/run/lora/ca/ca.crt"
"""Where pods have the store's keys and authority."""


class StepName(StrEnum):
    ANNOTATE = "annotate"
    TRAIN = "train"


class StoreAccess(Model):
    """How a step reaches the store."""

    endpoint: str
    secure: bool
    region: str = ""
    ca_file: str = ""
    credentials_dir: str
    """A folder with the files accessKey and secretKey."""
    input_bucket: str
    output_bucket: str

    @classmethod
    def of(cls, store: StoreProfile, credentials_dir: str, ca_file: str) -> StoreAccess:
        """A profile's store.

        Args:
            ca_file: where the authority is, if the profile names one.
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
    """How the annotation step reaches its language model."""

    provider: Literal["anthropic", "openai", "transformers"]
    base_url: Annotated[str, Field(alias="baseURL")] = ""
    credentials_dir: str
    """A folder with the file apiKey."""
    model: str
    price: Price | None = None
    concurrency: int = 4


class StepConfig(Model):
    """What both steps need."""

    namespace: str
    name: str
    uid: str
    spec: JobSpec
    """With every default filled in, as in status.effective."""
    base_model: BaseModelSource
    store: StoreAccess
    work_dir: str
    """A folder the step may write to; kept between attempts where the platform can."""
    termination_log: str
    """Where the result goes."""
    progress_host: str
    """The address that /progress, /metrics and /healthz are served on."""
    progress_port: int
    attempt: int = 1
    """Which Job of the step this is; counts up only when an earlier one is over."""

    @property
    def keys(self) -> JobKeys:
        return JobKeys(self.namespace, self.name, self.uid)


class AnnotateStep(StepConfig):
    step: Literal[StepName.ANNOTATE] = StepName.ANNOTATE
    llm: LLMAccess | None = None
    """Only where the job's annotation mode is LLM."""


class TrainStep(StepConfig):
    step: Literal[StepName.TRAIN] = StepName.TRAIN
    captions_sha256: str
    """metadata.jsonl must have this sha256: it is what was approved."""
    input_hash: str
    cache_dir: str
    """Where hub and store models are kept."""
    prefetched: bool = False
    """Whether the cache was filled before and is read-only."""


Step = Annotated[AnnotateStep | TrainStep, Field(discriminator="step")]
step_adapter: TypeAdapter[AnnotateStep | TrainStep] = TypeAdapter(Step)


class Outcome(StrEnum):
    CAPTIONED = "captioned"
    REUSED = "reused"
    TRAINED = "trained"
    FAILED = "failed"
    INTERRUPTED = "interrupted"


class CaptionsResult(Lenient):
    key: str
    sha256: str
    dataset_sha256: str
    total: int
    usage: Usage | None = None


class TrainingResult(Lenient):
    resumed_from_step: int | None = None
    seconds: int = 0
    final_step: int = 0
    final_loss: str = ""


class StepResult(Lenient):
    """A step's last words, its termination message. Lists are cut to fit; they are whole in the store."""

    outcome: Outcome
    reason: Reason
    message: str = ""
    input_hash: str = ""
    dataset: DatasetStatus | None = None
    captions: CaptionsResult | None = None
    adapter: AdapterStatus | None = None
    training: TrainingResult | None = None
    previews: list[PreviewStatus] = []


def encode_result(result: StepResult) -> bytes:
    """The result as JSON of at most 4,096 bytes: lists lose their last entries first, then the message its tail."""
    while True:
        data = json.dumps(
            result.model_dump(mode="json", by_alias=True, exclude_none=True),
            ensure_ascii=False,
            separators=(",", ":"),
        ).encode()
        if len(data) <= TERMINATION_MESSAGE_BYTES:
            return data
        skipped = result.dataset.skipped if result.dataset else []
        if result.dataset and skipped:
            shorter = result.dataset.model_copy(update={"skipped": skipped[:-1]})
            result = result.model_copy(update={"dataset": shorter})
        elif result.previews:
            result = result.model_copy(update={"previews": result.previews[:-1]})
        else:
            result = result.model_copy(update={"message": result.message[: len(result.message) // 2]})


def decode_result(message: str) -> StepResult | None:
    """Read a termination message; None when it is not one (the process was killed before it could speak)."""
    try:
        return StepResult.model_validate_json(message)
    except ValueError:
        return None

"""Profiles: the settings that an administrator makes and a job's author cannot change."""

from __future__ import annotations

import fnmatch
import re
from decimal import Decimal
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from .base import Model, Real
from .fields import OptionalQuantity
from .scheduling import Toleration


def _host_and_port(endpoint: str) -> str:
    """Check that an endpoint is HOST:PORT, or HOST, whose port is 443."""
    host, separator, port = endpoint.rpartition(":")
    if not separator or "]" in port:
        host, port = endpoint, "443"
    if not re.fullmatch(r"[A-Za-z0-9._-]+|\[[0-9a-fA-F:.]+\]", host):
        raise ValueError("must be HOST:PORT, for example minio.minio.svc:9000")
    if not re.fullmatch("[0-9]{1,5}", port) or not 1 <= int(port) <= 65535:
        raise ValueError("the port must be a number from 1 to 65535")
    return endpoint


def _without_scheme(endpoint: object) -> object:
    """Refuse an endpoint with a scheme, which users often paste, with the settings to use instead."""
    if isinstance(endpoint, str) and "://" in endpoint:
        raise ValueError(
            f"must be HOST:PORT without a scheme; write {endpoint.partition('://')[2].rstrip('/')!r} and set "
            f"`secure` to {'true' if endpoint.startswith('https') else 'false'}"
        )
    return endpoint


class StoreProfile(Model):
    """The S3-compatible object store that holds datasets, models and results."""

    endpoint: Annotated[
        str,
        Field(min_length=1, max_length=260),
        BeforeValidator(_without_scheme),
        AfterValidator(_host_and_port),
    ]
    """HOST:PORT of the S3 service, without a scheme: `secure` selects HTTPS or HTTP."""
    secure: bool = True
    """Connect with HTTPS. false: plain HTTP."""
    region: str = ""
    """Region to sign requests for, for example eu-central-1. Empty: that of the service."""
    ca_config_map: str = ""
    """ConfigMap in the job's namespace with the key ca.crt: the CA certificate of the service. Empty: the public CAs."""
    input_bucket: str = "datasets"
    """Bucket with the datasets, and with the base models whose source is store."""
    output_bucket: str = "loras"
    """Bucket that receives captions, checkpoints and adapters."""
    secret_name: str = "lora-store"
    """Secret in the job's namespace with the keys accessKey and secretKey."""


class Price(Model):
    """The price of a language model."""

    input: Annotated[Decimal, Real(ge="0")]
    """Price of a million input tokens, in USD."""
    output: Annotated[Decimal, Real(ge="0")]
    """Price of a million output tokens, in USD."""


class LLMProfile(Model):
    """The language models that write captions."""

    provider: Literal["anthropic", "openai", "transformers"] = "anthropic"
    """API of the service. anthropic: the Messages API. openai: the Chat Completions API, which many services have. transformers: a model that runs in the annotation pod."""
    base_url: Annotated[str, Field(alias="baseURL")] = ""
    """URL of the service, for example http://vllm.models.svc:8000/v1. Empty: the provider's own."""
    secret_name: str = "lora-llm"
    """Secret in the job's namespace with the key apiKey. Empty: the service needs no key."""
    ca_config_map: str = ""
    """ConfigMap in the job's namespace with the key ca.crt: the CA certificate of the service. Empty: the public CAs."""
    proxy: str = ""
    """URL of an HTTP proxy between the annotation pod and the service, for example http://proxy.corp:3128."""
    timeout_seconds: Annotated[int, Field(ge=1, le=3600)] = 120
    """Timeout of one request, in seconds."""
    retry_seconds: Annotated[int, Field(ge=0, le=86400)] = 600
    """Time for which requests are retried while the service is unavailable, overloaded or limits the rate, in seconds."""
    models: Annotated[list[str], Field(min_length=1)]
    """Models that jobs may use."""
    default_model: str = ""
    """Model of jobs that name none. Empty: the first of `models`."""
    prices: dict[str, Price] = {}
    """Prices by model. Without a price, the cost of captions is not computed and cannot be limited."""
    concurrency: Annotated[int, Field(ge=1, le=64)] = 4
    """Number of requests at a time, per job."""

    def choose(self, model: str) -> str | None:
        """Return the model for a job that asks for `model`; None when it is not allowed."""
        chosen = model or self.default_model or self.models[0]
        return chosen if chosen in self.models else None


class HubVae(Model):
    """A VAE on the Hugging Face hub that replaces the base model's own."""

    repo: str
    """Repository of the VAE, in diffusers' layout."""
    revision: str = ""
    """Commit, tag or branch. Empty: the repository's main branch. Only a commit is reproducible."""


class CheckpointFile(Model):
    """Training objective of a model that is one .safetensors file, because the file itself does not record it."""

    prediction: Literal["Auto", "Epsilon", "Velocity"] = "Auto"
    """Prediction of the UNet. Auto: Velocity if the file has a tensor named v_pred, as NoobAI's; else Epsilon."""
    zero_terminal_snr: Annotated[bool | None, Field(alias="zeroTerminalSNR")] = None
    """Whether the noise schedule ends in pure noise (Lin et al. 2023, arXiv:2305.08891). Unset: if the file has a tensor named ztsnr."""

    @model_validator(mode="after")
    def _check_prediction(self) -> Self:
        if self.zero_terminal_snr and self.prediction == "Epsilon":
            raise ValueError(
                "zeroTerminalSNR needs prediction Velocity: pure noise has no epsilon to learn from"
            )
        return self

    def identity(self) -> str:
        """Describe the checkpoint for the model's identity; empty for the defaults."""
        return "" if self == CheckpointFile() else f"?{self.prediction},{self.zero_terminal_snr}"


class HubModel(Model):
    """A model on the Hugging Face hub."""

    source: Literal["hub"]
    """hub: a model on the Hugging Face hub."""
    repo: str
    """Repository of the model."""
    file: Annotated[str, Field(pattern=r"^([^/].*\.safetensors)?$")] = ""
    """Path of a checkpoint of one .safetensors file in the repository. Empty: the repository has diffusers' layout."""
    checkpoint: CheckpointFile = CheckpointFile()
    revision: str = ""
    """Commit, tag or branch. Empty: the repository's main branch. Only a commit is reproducible."""
    variant: str = ""
    """Variant of the files, for example fp16. Empty: the files without a variant."""
    size: OptionalQuantity = ""
    """Disk space of the downloaded files, for example 8Gi. It becomes the training pod's request where no model cache is used."""
    vae: HubVae | None = None

    def identity(self) -> str:
        """Identify the model in the input hash. Changing this text makes all earlier adapters unusable for reuse."""
        vae = f"+{self.vae.repo}@{self.vae.revision}" if self.vae else ""
        file = f"/{self.file}{self.checkpoint.identity()}" if self.file else ""
        return f"hub:{self.repo}{file}@{self.revision}#{self.variant}{vae}"

    @model_validator(mode="after")
    def _check_layout(self) -> Self:
        if self.file and self.variant:
            raise ValueError("variant is for folders in diffusers' layout: leave it out, or leave out file")
        if not self.file and self.checkpoint != CheckpointFile():
            raise ValueError("checkpoint is for models of one file: name it in file")
        return self


class StoreModel(Model):
    """A model in the store's input bucket, for clusters without access to the Hugging Face hub."""

    source: Literal["store"]
    """store: a model in the input bucket."""
    key: Annotated[str, Field(min_length=1)]
    """Prefix of a folder in diffusers' layout, or key of a checkpoint of one .safetensors file."""
    size: OptionalQuantity = ""
    """Disk space of the downloaded files, for example 8Gi. It becomes the training pod's request where no model cache is used."""
    checkpoint: CheckpointFile = CheckpointFile()

    @property
    def is_file(self) -> bool:
        return self.key.endswith(".safetensors")

    def identity(self) -> str:
        """Identify the model in the input hash. Changing this text makes all earlier adapters unusable for reuse."""
        return f"store:{self.key}{self.checkpoint.identity()}"

    @model_validator(mode="after")
    def _check_layout(self) -> Self:
        if not self.is_file and self.checkpoint != CheckpointFile():
            raise ValueError("checkpoint is for models of one file: key must end in .safetensors")
        return self


BaseModelSource = Annotated[HubModel | StoreModel, Field(discriminator="source")]


class ScoringModels(Model):
    """Models that score generated images. Each is in a layout that transformers loads."""

    likeness: BaseModelSource
    """Image encoder, for example facebook/dinov2-base. Likeness is the similarity of its embeddings to those of the training images."""
    fidelity: BaseModelSource
    """CLIP model, for example openai/clip-vit-large-patch14. Fidelity is the similarity of an image and its prompt."""

    def identity(self) -> str:
        """Identify both models in the input hash."""
        return f"{self.likeness.identity()}+{self.fidelity.identity()}"


class ModelCache(Model):
    """A volume that keeps models between jobs."""

    persistent_volume_claim: str = ""
    """PersistentVolumeClaim in the job's namespace that holds the models. Empty: each training pod downloads its own."""


class StagePods(Model):
    """Settings of the pods of one stage, in addition to those of a job."""

    labels: Annotated[dict[str, str], Field(max_length=32)] = {}
    """Labels of the pods, for example sidecar.istio.io/inject: "false". Those that the operator sets itself cannot be replaced."""
    annotations: Annotated[dict[str, str], Field(max_length=32)] = {}
    """Annotations of the pods. Those that the operator sets itself cannot be replaced."""
    node_selector: Annotated[dict[str, str], Field(max_length=16)] = {}
    """Labels that a node must have. A job's own scheduling.nodeSelector is added and cannot replace them."""
    tolerations: Annotated[list[Toleration], Field(max_length=16)] = []
    """Tolerations of the pods, beside those of the job."""
    image_pull_secrets: Annotated[list[str], Field(max_length=16)] = []
    """Secrets in the job's namespace for pulling images, beside those of the operator's settings."""
    cpu_limit: OptionalQuantity = ""
    """CPU limit of a job that sets none."""
    max_cpu_limit: OptionalQuantity = ""
    """The highest cpuLimit that a job may ask for."""
    ephemeral_storage: OptionalQuantity = ""
    """Disk space of a job that sets none."""
    max_ephemeral_storage: OptionalQuantity = ""
    """The largest ephemeralStorage that a job may ask for."""


class PodsProfile(Model):
    """The pods of both stages."""

    annotate: StagePods = StagePods()
    train: StagePods = StagePods()


class Webhook(Model):
    """A webhook that announces the end of each job. Jobs cannot choose it."""

    url: Annotated[str, Field(max_length=2048, pattern=r"^https?://[^/@?#\s]+([/?][^#\s]*)?$")]
    """Address of the receiver, which may be a private one. Redirects are not followed."""
    secret_name: Annotated[str, Field(min_length=1)]
    """A Secret in the operator's namespace with the key secret, which signs the messages, and ca.crt for a receiver with a certificate of its own authority."""
    timeout_seconds: Annotated[int, Field(ge=1, le=60)] = 10
    """How long to wait for one answer."""
    retry_seconds: Annotated[int, Field(ge=0, le=86400)] = 3600
    """How long to try again, counted from the end of the job, while the receiver does not answer or refuses the message."""


class Profile(Model):
    """Endpoints, Secret names and models that an administrator defines and a job selects."""

    namespaces: list[str] = ["*"]
    """Namespaces whose jobs may use this profile, as shell patterns, for example team-*."""
    store: StoreProfile
    llm: LLMProfile | None = None
    """Language models that write captions. Unset: only annotation modes that need none are allowed."""
    models: dict[str, BaseModelSource]
    """Base models by the name that a job's baseModel gives."""
    scoring: ScoringModels | None = None
    """Models for likeness and prompt fidelity. Unset: jobs cannot measure scores or publish by them."""
    segmentation: BaseModelSource | None = None
    """CLIPSeg model for annotation.masks Model, for example CIDAS/clipseg-rd64-refined, in the layout that transformers loads. Unset: jobs cannot use masks by a model."""
    model_cache: ModelCache = ModelCache()
    webhook: Webhook | None = None
    """Where to announce the end of each job of this profile. Absent: nowhere."""
    pods: PodsProfile = PodsProfile()
    """Labels, scheduling and limits of the stages' pods."""
    max_running_jobs: Annotated[int, Field(ge=1)] | None = None
    """Number of jobs of this profile that may have pods at the same time. Others wait: the namespace with the fewest running jobs is next, within it the oldest job. Unset: no limit."""

    @model_validator(mode="after")
    def _check_segmentation(self) -> Self:
        source = self.segmentation
        if isinstance(source, StoreModel) and source.is_file:
            raise ValueError("segmentation.key must be a folder that transformers loads, not a file")
        if isinstance(source, HubModel) and (source.file or source.variant or source.vae):
            raise ValueError(
                "segmentation: file, variant and vae are for base models: name a repository that transformers loads"
            )
        return self

    def allows(self, namespace: str) -> bool:
        """Whether the jobs of a namespace may use this profile."""
        return any(fnmatch.fnmatchcase(namespace, pattern) for pattern in self.namespaces)


class Profiles(Model):
    """The profiles file, which the operator mounts."""

    profiles: dict[str, Profile]
    """Profiles by name."""

"""Profiles: what a job's author must not choose. The administrator writes them, the operator reads them."""

from __future__ import annotations

import fnmatch
from decimal import Decimal
from typing import Annotated, Literal

from pydantic import Field

from .base import Model, Real


class StoreProfile(Model):
    endpoint: Annotated[str, Field(min_length=1)]
    """host:port of the S3 service, without a scheme."""
    secure: bool = True
    """Use TLS."""
    region: str = ""
    ca_config_map: str = ""
    """A ConfigMap in the job's namespace with a key ca.crt, for a service with a certificate of its own authority."""
    input_bucket: str = "datasets"
    output_bucket: str = "loras"
    secret_name: str = "lora-store"
    """A Secret in the job's namespace with the keys accessKey and secretKey."""


class Price(Model):
    """USD per million tokens."""

    input: Annotated[Decimal, Real(ge="0")]
    output: Annotated[Decimal, Real(ge="0")]


class LLMProfile(Model):
    provider: Literal["anthropic", "openai", "transformers"] = "anthropic"
    base_url: Annotated[str, Field(alias="baseURL")] = ""
    """Empty: the provider's own."""
    secret_name: str = "lora-llm"
    """A Secret in the job's namespace with the key apiKey."""
    models: Annotated[list[str], Field(min_length=1)]
    default_model: str = ""
    """Empty: the first of `models`."""
    prices: dict[str, Price] = {}
    concurrency: Annotated[int, Field(ge=1, le=64)] = 4

    def choose(self, model: str) -> str | None:
        """The model to use for a job that asked for `model`; None when it is not allowed."""
        chosen = model or self.default_model or self.models[0]
        return chosen if chosen in self.models else None


class HubVae(Model):
    repo: str
    revision: str = ""


class HubModel(Model):
    """A model on the Hugging Face hub."""

    source: Literal["hub"]
    repo: str
    revision: str = ""
    """A commit, so that the same job gives the same adapter next year."""
    variant: str = ""
    vae: HubVae | None = None

    def identity(self) -> str:
        vae = f"+{self.vae.repo}@{self.vae.revision}" if self.vae else ""
        return f"hub:{self.repo}@{self.revision}#{self.variant}{vae}"


class StoreModel(Model):
    """A model folder in the store's input bucket, for clusters without the hub."""

    source: Literal["store"]
    key: Annotated[str, Field(min_length=1)]
    """The prefix under which a folder that diffusers can load was uploaded."""

    def identity(self) -> str:
        return f"store:{self.key}"


BaseModelSource = Annotated[HubModel | StoreModel, Field(discriminator="source")]


class ModelCache(Model):
    persistent_volume_claim: str = ""
    """A claim in the job's namespace in which models are kept, so that they are fetched once, not per job."""


class Profile(Model):
    namespaces: list[str] = ["*"]
    """Namespaces whose jobs may use this profile; shell patterns."""
    store: StoreProfile
    llm: LLMProfile | None = None
    """Absent: this profile allows only annotation modes that need no LLM."""
    models: dict[str, BaseModelSource]
    model_cache: ModelCache = ModelCache()

    def allows(self, namespace: str) -> bool:
        return any(fnmatch.fnmatchcase(namespace, pattern) for pattern in self.namespaces)


class Profiles(Model):
    """The file that the operator mounts."""

    profiles: dict[str, Profile]

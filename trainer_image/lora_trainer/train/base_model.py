"""The base model: fetched once, from the hub or the store, then loaded a component at a time."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import torch
from diffusers import AutoencoderKL, DDPMScheduler, DiffusionPipeline, UNet2DConditionModel
from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from lora_api.profile import BaseModelSource, HubModel, StoreModel
from lora_api.reasons import Reason

from ..errors import BadConfigurationError, UnavailableError
from ..store import Bucket

MOST_FILES = 1000


@dataclass(frozen=True)
class TextTower:
    """One of SDXL's two text encoders with its tokenizer."""

    tokenizer: CLIPTokenizer
    encoder: CLIPTextModel | CLIPTextModelWithProjection


@dataclass(frozen=True)
class BaseModel:
    """A pipeline's folder on this machine."""

    folder: Path
    identity: str
    """Of the weights: a commit or the ETags, so that caches never mix two models."""
    variant: str | None = None
    vae_folder: Path | None = None
    """A VAE that takes the place of the pipeline's own."""

    def unet(self, dtype: torch.dtype) -> UNet2DConditionModel:
        return UNet2DConditionModel.from_pretrained(
            self.folder, subfolder="unet", variant=self.variant, torch_dtype=dtype
        )

    def vae(self, dtype: torch.dtype) -> AutoencoderKL:
        """The VAE; in float32 whatever was asked for where it overflows in fp16 (`force_upcast`)."""
        if self.vae_folder:
            vae = AutoencoderKL.from_pretrained(self.vae_folder, torch_dtype=dtype)
        else:
            vae = AutoencoderKL.from_pretrained(
                self.folder, subfolder="vae", variant=self.variant, torch_dtype=dtype
            )
        return vae.to(torch.float32) if vae.config.force_upcast else vae

    def text_towers(self, dtype: torch.dtype) -> tuple[TextTower, TextTower]:
        first = CLIPTextModel.from_pretrained(
            self.folder, subfolder="text_encoder", variant=self.variant, dtype=dtype
        )
        second = CLIPTextModelWithProjection.from_pretrained(
            self.folder, subfolder="text_encoder_2", variant=self.variant, dtype=dtype
        )
        return (
            TextTower(CLIPTokenizer.from_pretrained(self.folder, subfolder="tokenizer"), first),
            TextTower(CLIPTokenizer.from_pretrained(self.folder, subfolder="tokenizer_2"), second),
        )

    def noise_schedule(self) -> DDPMScheduler:
        """The model's noise schedule and kind of prediction, for training."""
        return DDPMScheduler.from_pretrained(self.folder, subfolder="scheduler")


def fetch_base_model(source: BaseModelSource, cache: Path, bucket: Bucket) -> BaseModel:
    """Bring a model into the cache, unless it is there.

    Args:
        bucket: the input bucket, where models of the `store` source lie.

    Raises:
        BadConfigurationError: when there is no such model.
        UnavailableError: when the hub or the store cannot be reached.
    """
    cache.mkdir(parents=True, exist_ok=True)
    return _from_store(source, cache, bucket) if isinstance(source, StoreModel) else _from_hub(source, cache)


def _from_hub(source: HubModel, cache: Path) -> BaseModel:
    try:
        folder = Path(
            DiffusionPipeline.download(
                source.repo,
                revision=source.revision or None,
                variant=source.variant or None,
                cache_dir=cache / "hub",
                use_safetensors=True,
            )
        )
        vae = source.vae and Path(
            snapshot_download(
                source.vae.repo,
                revision=source.vae.revision or None,
                allow_patterns=["config.json", "diffusion_pytorch_model.safetensors"],
                cache_dir=cache / "hub",
            )
        )
    except (RepositoryNotFoundError, RevisionNotFoundError, GatedRepoError, HFValidationError) as error:
        raise BadConfigurationError(
            f"the hub has no model {source.repo!r} that this job may read: {_first_line(error)}"
        ) from error
    except (HfHubHTTPError, LocalEntryNotFoundError, ConnectionError, OSError) as error:
        raise UnavailableError(
            f"the model {source.repo!r} cannot be fetched from the hub: {_first_line(error)}",
            Reason.MODEL_UNAVAILABLE,
        ) from error
    # A snapshot's folder is named by its commit, also where the profile names none.
    identity = f"hub:{source.repo}@{folder.name}#{source.variant}"
    if source.vae and vae:
        identity += f"+{source.vae.repo}@{vae.name}"
    return BaseModel(folder, identity, source.variant or None, vae or None)


def _from_store(source: StoreModel, cache: Path, bucket: Bucket) -> BaseModel:
    prefix = source.key.rstrip("/") + "/"
    objects = bucket.list(prefix, MOST_FILES)
    names = {item.key: PurePosixPath(item.key.removeprefix(prefix)) for item in objects}
    if PurePosixPath("model_index.json") not in names.values():
        raise BadConfigurationError(
            f"{bucket.uri(prefix)} holds no diffusers pipeline (no model_index.json): "
            "upload a folder that StableDiffusionXLPipeline.from_pretrained loads, or correct the profile"
        )
    if any(".." in name.parts or name.is_absolute() for name in names.values()):
        raise BadConfigurationError(f"{bucket.uri(prefix)} holds keys that are no plain file names")
    listing = "\n".join(f"{item.key} {item.etag}" for item in objects)
    digest = hashlib.sha256(f"{bucket.uri(prefix)}\n{listing}".encode()).hexdigest()
    folder = cache / "store" / digest
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix="partial-") as temporary:
            whole = Path(temporary) / "model"
            for key, name in names.items():
                bucket.get_file(key, whole / name)
            _put_in_place(whole, folder)
    return BaseModel(folder, f"store:{source.key}@{digest}")


def _put_in_place(whole: Path, folder: Path) -> None:
    """Rename, so that a folder in the cache is complete or absent; another process may have been first."""
    try:
        whole.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise
        shutil.rmtree(whole)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]

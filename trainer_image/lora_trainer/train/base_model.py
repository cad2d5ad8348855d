"""The base model: out of a cache, then loaded a component at a time."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from lora_api.profile import BaseModelSource, HubModel
from lora_api.reasons import Reason
from lora_api.steps import TrainStep

from ..errors import BadConfigurationError, BadSetupError
from ..model_cache import CachedModel, fill, find, origin_of
from ..store import Bucket

PREDICTIONS = ("epsilon", "v_prediction")


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
        """The model's noise schedule and kind of prediction, for training.

        Raises:
            BadConfigurationError: for models of another formulation (EDM, Karras et al. 2022, arXiv:2206.00364, as
                Playground v2.5; flow matching): their inputs and loss are scaled otherwise.
        """
        config = DDPMScheduler.load_config(self.folder, subfolder="scheduler")
        name = config["_class_name"]
        prediction = config.get("prediction_type", "epsilon")
        if name.startswith(("EDM", "FlowMatch")) or prediction not in PREDICTIONS:
            raise BadConfigurationError(
                f"the base model's scheduler is {name} with prediction {prediction}: only models that "
                f"predict {' or '.join(PREDICTIONS)} on DDPM's schedule can be trained; choose another baseModel"
            )
        return DDPMScheduler.from_config(config)


def fetch_base_model(source: BaseModelSource, cache: Path, bucket: Bucket) -> BaseModel:
    """Bring a model into a cache of one's own, unless it is there.

    Args:
        bucket: the input bucket, where models of the `store` source lie.

    Raises:
        StepError: when there is no such model, or it cannot be had now.
    """
    return _base_model(source, fill(origin_of(source, bucket), cache))


def provide_base_model(config: TrainStep, bucket: Bucket) -> BaseModel:
    """A job's base model: out of the cache that was filled before, or else fetched.

    Raises:
        StepError: as `fetch_base_model`; BadSetupError, when the cache does not have the model whole.
    """
    source, cache = config.base_model, Path(config.cache_dir)
    if not config.prefetched:
        return fetch_base_model(source, cache, bucket)
    found = find(origin_of(source, bucket), cache)
    if found is None:
        raise BadSetupError(
            f"the base model {config.spec.base_model!r} ({source.identity()}) is not whole in the model cache: its "
            "prefetch Job has failed, or is still at work; see `kubectl get jobs,pods "
            f"-n {config.namespace} -l app.kubernetes.io/component=prefetch`, and make this job again once it is done",
            Reason.MODEL_UNAVAILABLE,
        )
    return _base_model(source, found)


def _base_model(source: BaseModelSource, found: CachedModel) -> BaseModel:
    variant = source.variant or None if isinstance(source, HubModel) else None
    return BaseModel(found.folder, found.contents.identity, variant, found.vae_folder)

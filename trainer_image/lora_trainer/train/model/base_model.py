"""The base model, which is read from a cache and loaded one component at a time."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, Self, TypeVar

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from torch.nn import Module
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from lora_api.profile import BaseModelSource, HubModel
from lora_api.reasons import Reason
from lora_api.stages import TrainConfig

from ...errors import BadConfigurationError, BadSetupError
from ...model_cache import CachedModel, fill, find, origin_of
from ...pretrained import load, loading
from ...store import Bucket

PREDICTIONS = ("epsilon", "v_prediction")
M = TypeVar("M", bound=Module)


@dataclass(frozen=True)
class TextEncoderModel:
    """One of SDXL's two text encoders with its tokenizer."""

    tokenizer: CLIPTokenizer
    encoder: CLIPTextModel | CLIPTextModelWithProjection


@dataclass(frozen=True)
class BaseModel:
    """A local folder with a pipeline in diffusers' format."""

    folder: Path
    identity: str
    """Identity of the weights (a commit or ETags), which caches use to tell models apart."""
    variant: str | None = None
    """Variant of the weight files, such as fp16."""
    vae_folder: Path | None = None
    """Folder of a VAE that replaces the pipeline's own."""

    def unet(self, dtype: torch.dtype) -> UNet2DConditionModel:
        """Load the UNet in `dtype`.

        Raises:
            BadConfigurationError: if it is damaged or lacks weights, as for every part.
        """
        unet: UNet2DConditionModel = self._load(
            UNet2DConditionModel, "UNet", subfolder="unet", torch_dtype=dtype
        )
        return unet

    def vae(self, dtype: torch.dtype) -> AutoencoderKL:
        """Load the VAE in `dtype`, or in float32 if it overflows in fp16 (`force_upcast`)."""
        folder = self.vae_folder or self.folder
        place: dict[str, Any] = {} if self.vae_folder else {"subfolder": "vae"}
        with loading(_part("VAE")):
            config = AutoencoderKL.load_config(folder, **place)
            # Chosen before loading: weights that are rounded to 16 bits first cannot be restored.
            exact = torch.float32 if config.get("force_upcast", True) else dtype
        if not self.vae_folder:
            place["variant"] = self.variant
        vae: AutoencoderKL = load(AutoencoderKL, folder, _part("VAE"), torch_dtype=exact, **place)
        return vae

    def text_encoders(self, dtype: torch.dtype) -> tuple[TextEncoderModel, TextEncoderModel]:
        first = self._load(CLIPTextModel, "text encoder", subfolder="text_encoder", dtype=dtype)
        second = self._load(
            CLIPTextModelWithProjection, "second text encoder", subfolder="text_encoder_2", dtype=dtype
        )
        with loading(_part("tokenizers")):
            tokenizers = [
                CLIPTokenizer.from_pretrained(self.folder, subfolder=name)
                for name in ("tokenizer", "tokenizer_2")
            ]
        return TextEncoderModel(tokenizers[0], first), TextEncoderModel(tokenizers[1], second)

    def noise_scheduler(self) -> DDPMScheduler:
        """Load the model's noise schedule and prediction type, for training.

        Raises:
            BadConfigurationError: for models with another formulation, whose inputs and loss are scaled differently:
                EDM (Karras et al. 2022, arXiv:2206.00364), such as Playground v2.5, and flow matching.
        """
        with loading(_part("scheduler")):
            config = DDPMScheduler.load_config(self.folder, subfolder="scheduler")
            name = config["_class_name"]
            prediction = config.get("prediction_type", "epsilon")
        if name.startswith(("EDM", "FlowMatch")) or prediction not in PREDICTIONS:
            raise BadConfigurationError(
                f"the base model's scheduler is {name} with prediction {prediction}: only models that "
                f"predict {' or '.join(PREDICTIONS)} on DDPM's schedule can be trained; choose another baseModel"
            )
        with loading(_part("scheduler")):
            return DDPMScheduler.from_config(config)

    def _load(self, kind: Any, name: str, **options: Any) -> Any:
        return load(kind, self.folder, _part(name), variant=self.variant, **options)


def _part(name: str) -> str:
    return f"the base model's {name}"


@dataclass(frozen=True)
class SharedBaseModel(BaseModel):
    """A base model that several adapters are trained on, one after another: it is loaded once.

    Every call returns modules of its own, to which an adapter can be added, around the same frozen weights.
    """

    _unets: dict[torch.dtype, UNet2DConditionModel] = field(default_factory=dict)
    _text_encoders: dict[torch.dtype, tuple[TextEncoderModel, TextEncoderModel]] = field(default_factory=dict)

    @classmethod
    def of(cls, model: BaseModel) -> Self:
        return cls(model.folder, model.identity, model.variant, model.vae_folder)

    def unet(self, dtype: torch.dtype) -> UNet2DConditionModel:
        if dtype not in self._unets:
            self._unets[dtype] = super().unet(dtype)
        return _copy_around_weights(self._unets[dtype])

    def text_encoders(self, dtype: torch.dtype) -> tuple[TextEncoderModel, TextEncoderModel]:
        if dtype not in self._text_encoders:
            self._text_encoders[dtype] = super().text_encoders(dtype)
        first, second = (
            TextEncoderModel(each.tokenizer, _copy_around_weights(each.encoder))
            for each in self._text_encoders[dtype]
        )
        return first, second


def _copy_around_weights(module: M) -> M:
    """Copy a module, but not its weights: both then have the same parameters and buffers."""
    shared = {id(tensor): tensor for tensor in chain(module.parameters(), module.buffers())}
    return copy.deepcopy(module, shared)


def fetch_base_model(source: BaseModelSource, cache: Path, bucket: Bucket) -> BaseModel:
    """Download a model into a writable cache, unless the cache has it.

    Args:
        bucket: the input bucket, which holds models of the `store` source.

    Raises:
        StageError: if the model does not exist or cannot be downloaded now.
    """
    return _base_model(source, fill(origin_of(source, bucket), cache))


def provide_base_model(config: TrainConfig, bucket: Bucket) -> BaseModel:
    """Return a job's base model from the cache that a prefetch Job filled, or download it if there is none.

    Raises:
        StageError: as in `fetch_base_model`.
        BadSetupError: if the prefetched cache does not have the complete model.
    """
    source, cache = config.base_model, Path(config.cache_dir)
    if not config.prefetched:
        return fetch_base_model(source, cache, bucket)
    cached = find(origin_of(source, bucket), cache)
    if cached is None:
        raise BadSetupError(
            f"the base model {config.spec.base_model!r} ({source.identity()}) is not complete in the model cache: its "
            "prefetch Job has failed or is still running; see `kubectl get jobs,pods "
            f"-n {config.namespace} -l app.kubernetes.io/component=prefetch`, and create this job again when it has completed",
            Reason.MODEL_UNAVAILABLE,
        )
    return _base_model(source, cached)


def _base_model(source: BaseModelSource, cached: CachedModel) -> BaseModel:
    variant = source.variant or None if isinstance(source, HubModel) else None
    return BaseModel(cached.folder, cached.contents.identity, variant, cached.vae_folder)

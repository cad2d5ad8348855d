"""Latents and text embeddings, which are encoded once and cached, so that the encoders can be freed.

Each image and each text is encoded alone, so that results do not depend on a batch. The name of a cache file is the
hash of everything that its content depends on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from lora_api.manifest import sha256_hex

from ...errors import BadConfigurationError
from ..export.tensors import write_tensors
from ..finite import all_finite, encoding_error, quote
from ..model.base_model import BaseModel, TextEncoderModel
from .dataset import CroppedImage, DatasetImage, crop_image
from .transfer import to_device
from .variants import Variant

CACHE_VERSION = 4
"""Increase it when a change of the code changes latents or embeddings."""


@dataclass(frozen=True)
class Latent:
    """The VAE's posterior of an image, scaled as the UNet expects it, on the CPU."""

    mean: Tensor
    """float32, (channels, height / 8, width / 8)."""
    std: Tensor
    """float32, the shape of `mean`."""
    time_ids: Tensor
    """float32, (6,): see `dataset.CroppedImage`."""
    mask: Tensor | None = None
    """float32, (1, height / 8, width / 8), from 0 to 1, where 1 is the subject; None if the image has no mask."""

    def sample(self, normal: Tensor) -> Tensor:
        """Sample the posterior with standard normal noise: float32, the shape of `mean`."""
        return self.mean + self.std * normal


@dataclass(frozen=True)
class TextEmbedding:
    """SDXL's conditioning on a text."""

    sequence: Tensor
    """(77, width of both encoders), in the encoders' number format."""
    pooled: Tensor
    """(projection width of the second encoder,), in the encoders' number format."""


@dataclass(frozen=True)
class Encoders:
    """A model's VAE and text encoders, which are loaded only for entries that the cache lacks, and freed afterwards."""

    model: BaseModel
    cache: Path
    """Folder of the cache."""
    device: torch.device
    dtype: torch.dtype
    """Number format of the text encoders; the VAE encodes in float32."""

    def encode_images(
        self, images: Sequence[DatasetImage], resolution: int, keep_shape: bool = False
    ) -> list[Latent]:
        """Encode each image, cropped as `dataset.crop_image` does."""
        return self.encode_variants([(image, Variant(resolution)) for image in images], keep_shape)

    def encode_variants(
        self, variants: Sequence[tuple[DatasetImage, Variant]], keep_shape: bool = False
    ) -> list[Latent]:
        """Encode variants of images, cropped as `dataset.crop_image` does."""
        names = [_name(image, variant, keep_shape) for image, variant in variants]

        def compute() -> dict[str, Tensor]:
            # In float32 whatever the job's number format: it runs once, and in bf16 latents are off by 1%.
            # Convolutions, which are most of the work, take a quarter less time in the channels-last layout.
            vae = self.model.vae(torch.float32).to(self.device, memory_format=torch.channels_last).eval()
            latents: dict[str, Tensor] = {}
            for name, (image, variant) in zip(names, variants, strict=True):
                cropped = crop_image(image, variant.resolution, keep_shape, variant)
                latent = encode_image(vae, cropped)
                if not all_finite([latent.mean, latent.std]):
                    raise BadConfigurationError(
                        encoding_error(f"the VAE's latent of the image {image.name!r}", vae.dtype)
                    )
                if latent.mask is not None:
                    latents[f"{name} mask"] = latent.mask.contiguous()
                latents[f"{name} mean"] = latent.mean
                latents[f"{name} std"] = latent.std
                latents[f"{name} time_ids"] = latent.time_ids
            return latents

        tensors = self._cached("latents", names, compute)
        return [
            Latent(
                tensors[f"{name} mean"],
                tensors[f"{name} std"],
                tensors[f"{name} time_ids"],
                tensors.get(f"{name} mask"),
            )
            for name in names
        ]

    def encode_texts(self, texts: Sequence[str]) -> dict[str, TextEmbedding]:
        """Encode each distinct text once; returns the embeddings by text, on the CPU."""
        distinct = sorted(set(texts))

        def compute() -> dict[str, Tensor]:
            models = self.model.text_encoders(self.dtype)
            for model in models:
                model.encoder.to(self.device).eval()
            embeddings: dict[str, Tensor] = {}
            for index, text in enumerate(distinct):
                embedding = encode_text(models, text)
                if not all_finite([embedding.sequence, embedding.pooled]):
                    raise BadConfigurationError(
                        encoding_error(f"the text embedding of {quote(text)}", self.dtype)
                    )
                embeddings[f"{index} sequence"] = embedding.sequence.cpu()
                embeddings[f"{index} pooled"] = embedding.pooled.cpu()
            return embeddings

        tensors = self._cached("texts", distinct, compute)
        return {
            text: TextEmbedding(tensors[f"{index} sequence"], tensors[f"{index} pooled"])
            for index, text in enumerate(distinct)
        }

    def _cached(
        self, kind: str, names: Sequence[str], compute: Callable[[], dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        """Load a cache file, or compute and write it if it is missing or damaged."""
        parts = (CACHE_VERSION, torch.__version__, kind, self.model.identity, self.dtype, self.device.type)
        digest = hashlib.sha256("\x00".join(map(str, (*parts, *names))).encode()).hexdigest()
        path = self.cache / f"{digest}.safetensors"
        try:
            return load_file(path)
        except (FileNotFoundError, SafetensorError):
            with torch.no_grad():
                tensors = compute()
            write_tensors(path, tensors)
            return tensors


def _name(image: DatasetImage, variant: Variant, keep_shape: bool) -> str:
    """Build the cache name of a latent from everything that it depends on."""
    name = f"{image.sha256} {image.crop} {variant.resolution} {keep_shape}"
    if image.mask is not None:
        name += f" mask {sha256_hex(image.mask)}"
    # Plain images keep the name without variants.
    return name if variant == Variant(variant.resolution) else f"{name} {variant.flip} {variant.jitter}"


@torch.no_grad()
def encode_image(vae: AutoencoderKL, image: CroppedImage) -> Latent:
    """Encode one image with the VAE."""
    posterior = vae.encode(image.pixels[None].to(vae.device, vae.dtype)).latent_dist
    scale = vae.config.scaling_factor
    mean, std = (posterior.mean[0].float() * scale, posterior.std[0].float() * scale)
    return Latent(mean.cpu(), std.cpu(), torch.tensor(image.time_ids, dtype=torch.float32), image.mask)


def encode_text(models: tuple[TextEncoderModel, TextEncoderModel], text: str) -> TextEmbedding:
    """Encode a text as SDXL does (arXiv:2307.01952, 2.1).

    The sequence is the concatenation of both encoders' penultimate layers. The pooled embedding is the second
    encoder's projection of the end token. Texts longer than 77 tokens are truncated.
    """
    return encode_tokens(
        [
            (
                model.encoder,
                model.tokenizer(
                    text,
                    padding="max_length",
                    max_length=model.tokenizer.model_max_length,
                    truncation=True,
                    return_tensors="pt",
                ).input_ids,
            )
            for model in models
        ]
    )


def encode_tokens(
    inputs: Sequence[tuple[CLIPTextModel | CLIPTextModelWithProjection, Tensor]],
) -> TextEmbedding:
    """Encode the tokens of a text as `encode_text` does.

    Args:
        inputs: each encoder, the one with the projection last, with its tokens: int64, (1, 77).
    """
    layers = []
    pooled = torch.empty(0)
    for encoder, ids in inputs:
        output = encoder(to_device(ids, encoder.device), output_hidden_states=True)
        layers.append(output.hidden_states[-2][0])
        pooled = output[0][0]  # text_embeds of the second encoder, which comes last
    return TextEmbedding(torch.cat(layers, dim=-1), pooled)

"""Latents and text embeddings, encoded once and kept in the work folder, so that the encoders can go.

Every picture and every text is encoded alone, so that no result depends on what it was batched with.
A cache file is named by the hash of all that its content depends on.
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

from .base_model import BaseModel, TextTower
from .dataset import Cut, Picture, cut
from .tensors import write_tensors

CACHE_VERSION = 2


@dataclass(frozen=True)
class Latent:
    """A picture's posterior in the VAE's latent space, scaled as the UNet wants it."""

    mean: Tensor
    """float32, (channels, height / 8, width / 8)."""
    deviation: Tensor
    """float32, the same shape."""
    time_ids: Tensor
    """float32, (6,): see `dataset.Cut`."""

    def sample(self, normal: Tensor) -> Tensor:
        """The point of the posterior that standard normal noise picks."""
        return self.mean + self.deviation * normal


@dataclass(frozen=True)
class TextEmbedding:
    """What SDXL's UNet is told of a text."""

    sequence: Tensor
    """(77, width of both encoders)."""
    pooled: Tensor
    """(projection width of the second encoder,)."""


@dataclass(frozen=True)
class Encoders:
    """A model's encoders, loaded only for what the cache does not hold, and gone afterwards."""

    model: BaseModel
    cache: Path
    device: torch.device
    dtype: torch.dtype

    def pictures(
        self, pictures: Sequence[Picture], resolution: int, keep_shape: bool = False
    ) -> list[Latent]:
        """Each picture's latent, cut as `dataset.cut` does."""
        names = [f"{picture.sha256} {picture.crop} {resolution} {keep_shape}" for picture in pictures]

        def compute() -> dict[str, Tensor]:
            # Convolutions, most of the work here, take a quarter less time in this layout.
            vae = self.model.vae(self.dtype).to(self.device, memory_format=torch.channels_last).eval()
            found: dict[str, Tensor] = {}
            for name, picture in zip(names, pictures, strict=True):
                latent = encode_picture(vae, cut(picture, resolution, keep_shape))
                found[f"{name} mean"] = latent.mean
                found[f"{name} deviation"] = latent.deviation
                found[f"{name} time_ids"] = latent.time_ids
            return found

        tensors = self._cached("latents", names, compute)
        return [
            Latent(tensors[f"{name} mean"], tensors[f"{name} deviation"], tensors[f"{name} time_ids"])
            for name in names
        ]

    def texts(self, texts: Sequence[str]) -> dict[str, TextEmbedding]:
        """Each text's embedding."""
        wanted = sorted(set(texts))

        def compute() -> dict[str, Tensor]:
            towers = self.model.text_towers(self.dtype)
            for tower in towers:
                tower.encoder.to(self.device).eval()
            found: dict[str, Tensor] = {}
            for index, text in enumerate(wanted):
                embedding = encode_text(towers, text)
                found[f"{index} sequence"] = embedding.sequence.cpu()
                found[f"{index} pooled"] = embedding.pooled.cpu()
            return found

        tensors = self._cached("texts", wanted, compute)
        return {
            text: TextEmbedding(tensors[f"{index} sequence"], tensors[f"{index} pooled"])
            for index, text in enumerate(wanted)
        }

    def _cached(
        self, kind: str, names: Sequence[str], compute: Callable[[], dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        """The tensors of one cache file, computed and written where it is not there or not whole."""
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


@torch.no_grad()
def encode_picture(vae: AutoencoderKL, piece: Cut) -> Latent:
    posterior = vae.encode(piece.pixels[None].to(vae.device, vae.dtype)).latent_dist
    scale = vae.config.scaling_factor
    mean, deviation = (posterior.mean[0].float() * scale, posterior.std[0].float() * scale)
    return Latent(mean.cpu(), deviation.cpu(), torch.tensor(piece.time_ids, dtype=torch.float32))


def encode_text(towers: tuple[TextTower, TextTower], text: str) -> TextEmbedding:
    """SDXL's conditioning (arXiv:2307.01952, 2.1): both encoders' last layer but one, and the second's
    projection of its end token. Longer texts than 77 tokens are cut."""
    layers = []
    pooled = torch.empty(0)
    for tower in towers:
        ids = tower.tokenizer(
            text,
            padding="max_length",
            max_length=tower.tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        ).input_ids
        output = tower.encoder(ids.to(tower.encoder.device), output_hidden_states=True)
        layers.append(output.hidden_states[-2][0])
        pooled = output[0][0]
    return TextEmbedding(torch.cat(layers, dim=-1), pooled)

"""The base model's VAE.

It encodes 64 px images as latents of shape (8, 8, 8) whose channels have mean 0 and standard deviation 1.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import Tensor, nn

from lora_trainer.train.data.rng import generator_for

from .drawing import SIDE, Style, draw, sample_scenes
from .recipe import Batch, Plan, train_module

PLAN = Plan(steps=3500, learning_rate=2e-3, warmup_steps=100, decay_share=0.7, ema_decay=0.995)
DECODER_PLAN = Plan(steps=3000, learning_rate=1.5e-3, warmup_steps=50, decay_share=0.8, ema_decay=0.995)
"""Training of the decoder alone, see `train_decoder`."""
BATCH = 64
DRAWINGS = 32_768
"""Number of drawings, half of them solid, and a quarter in each of the other styles."""
CHANNELS = 8
"""Number of latent channels."""
DRAWN = 1024
"""Number of images that are drawn at a time."""
DIVERGENCE_WEIGHT = 2e-6
"""Weight of the Kullback-Leibler divergence relative to the pixel error."""


def build() -> AutoencoderKL:
    """Create the VAE with random weights."""
    widths = (16, 32, 48, 64)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * len(widths),
        up_block_types=("UpDecoderBlock2D",) * len(widths),
        block_out_channels=widths,
        layers_per_block=1,
        latent_channels=CHANNELS,
        norm_num_groups=8,
        sample_size=SIDE,
        scaling_factor=1.0,
        force_upcast=False,
    )


def train(folder: Path, device: torch.device) -> AutoencoderKL:
    """Train the VAE and standardize its latents.

    Args:
        folder: for checkpoints.
    """
    torch.manual_seed(0)
    vae = build().to(device)

    def loss_of(batch: Batch) -> Tensor:
        posterior = vae.encode(batch["images"]).latent_dist
        return _error(vae, posterior, batch) + DIVERGENCE_WEIGHT * posterior.kl().mean()

    train_module("autoencoder", vae, _sampler("autoencoder", device, BATCH), loss_of, PLAN, folder)
    standardize(vae)
    return vae.eval()


def train_decoder(vae: AutoencoderKL, folder: Path) -> AutoencoderKL:
    """Train the decoder alone, which sharpens outlines. The latents, and a UNet trained on them, stay valid."""
    decoder = nn.ModuleDict({"decoder": vae.decoder, "post_quant_conv": vae.post_quant_conv})

    def loss_of(batch: Batch) -> Tensor:
        with torch.no_grad():
            posterior = vae.encode(batch["images"]).latent_dist
        return _error(vae, posterior, batch)

    train_module(
        "decoder", decoder, _sampler("decoder", vae.device, BATCH // 2), loss_of, DECODER_PLAN, folder
    )
    return vae


def _error(vae: AutoencoderKL, posterior: DiagonalGaussianDistribution, batch: Batch) -> Tensor:
    """Return the pixel error of the decoded samples of a posterior."""
    error = vae.decode(posterior.mean + posterior.std * batch["noise"]).sample - batch["images"]
    return error.abs().mean() + error.square().mean()


def _sampler(name: str, device: torch.device, count: int) -> Callable[[int], Batch]:
    """Return a function for the samples of a step. The images are drawn on its first use."""
    drawn = cache(partial(drawings, device))

    def batch_at(step: int) -> Batch:
        images, generator = drawn(), generator_for(0, name, step)
        chosen = torch.randint(len(images), (count,), generator=generator)
        noise = torch.randn(count, CHANNELS, SIDE // 8, SIDE // 8, generator=generator)
        return {"images": images[chosen.to(device)], "noise": noise.to(device)}

    return batch_at


def drawings(device: torch.device) -> Tensor:
    """Draw the images to train on, with all shapes, fills and styles: (DRAWINGS, 3, SIDE, SIDE), from -1 to 1."""
    parts = []
    for style, share in ((Style.SOLID, 2), (Style.OUTLINE, 4), (Style.HATCHED, 4)):
        for part in range(DRAWINGS // share // DRAWN):
            generator = generator_for(0, "autoencoder", str(style), part)
            scenes = sample_scenes(DRAWN, generator, new_shapes=True, new_pairs=True)
            if style != Style.SOLID:
                scenes = scenes.with_all(fill=0)
            parts.append(draw(scenes, generator, style=style, device=device))
    return torch.cat(parts)


@torch.no_grad()
def standardize(vae: AutoencoderKL) -> None:
    """Normalise each latent channel to mean 0 and standard deviation 1, through the 1x1 convolutions at both ends."""
    generator = generator_for(0, "standardise")
    images = draw(sample_scenes(1024, generator), generator, device=vae.device)
    latents = vae.encode(images).latent_dist.sample(generator)
    mean, std = latents.mean(dim=(0, 2, 3)), latents.std(dim=(0, 2, 3))
    into, out = vae.quant_conv, vae.post_quant_conv
    channels = len(mean)
    # The first half of the quantisation's channels is the posterior's mean, the second its log variance.
    into.weight[:channels] /= std[:, None, None, None]
    into.bias[:channels] = (into.bias[:channels] - mean) / std
    into.bias[channels:] -= 2 * std.log()
    # The decoder's input is scaled back. The bias must be changed before the weight that it is computed from.
    out.bias += out.weight[:, :, 0, 0] @ mean
    out.weight *= std[None, :, None, None]

"""The base model's VAE.

It encodes 64 px images as latents of shape (8, 8, 8) whose channels have mean 0 and standard deviation 1.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from lora_trainer.train.data.rng import generator_for

from .drawing import SIDE, draw, sample_scenes
from .recipe import Plan, train_module

PLAN = Plan(steps=2200, learning_rate=2e-3, warmup_steps=40, decay_share=0.6)
WARM_RESTART = Plan(steps=1800, learning_rate=1.5e-3, warmup_steps=40, decay_share=0.8, ema_decay=0.99)
"""A warm restart after PLAN. It sharpens outlines that the first run leaves blurred."""
DECODER_PLAN = Plan(steps=1500, learning_rate=2e-3, warmup_steps=30, decay_share=0.7, ema_decay=0.99)
"""Training of the decoder alone, see `train_decoder`."""
BATCH = 16
CHANNELS = 8
"""Number of latent channels."""
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


def train(folder: Path) -> AutoencoderKL:
    """Train the VAE and standardize its latents.

    The names of the parts are seeds of the published model: others would train another one.

    Args:
        folder: for checkpoints.
    """
    torch.manual_seed(0)
    vae = build()

    def loss_at(step: int, part: str = "autoencoder") -> Tensor:
        generator = generator_for(0, part, step)
        images = draw(sample_scenes(BATCH, generator, new_shapes=True, new_pairs=True), generator)
        posterior = vae.encode(images).latent_dist
        error = vae.decode(posterior.sample(generator)).sample - images
        return error.abs().mean() + error.square().mean() + DIVERGENCE_WEIGHT * posterior.kl().mean()

    train_module("autoencoder", vae, loss_at, PLAN, folder)
    train_module("autoencoder again", vae, partial(loss_at, part="again"), WARM_RESTART, folder)
    standardize(vae)
    return vae.eval()


def train_decoder(vae: AutoencoderKL, folder: Path) -> AutoencoderKL:
    """Train the decoder alone, so that the latents and the UNet trained on them stay valid."""
    decoder = nn.ModuleDict({"decoder": vae.decoder, "post_quant_conv": vae.post_quant_conv})

    def loss_at(step: int) -> Tensor:
        generator = generator_for(0, "decoder", step)
        images = draw(sample_scenes(BATCH, generator, new_shapes=True, new_pairs=True), generator)
        with torch.no_grad():
            latents = vae.encode(images).latent_dist.sample(generator)
        error = vae.decode(latents).sample - images
        return error.abs().mean() + error.square().mean()

    train_module("decoder", decoder, loss_at, DECODER_PLAN, folder)
    return vae


@torch.no_grad()
def standardize(vae: AutoencoderKL) -> None:
    """Normalise each latent channel to mean 0 and standard deviation 1, through the 1x1 convolutions at both ends."""
    generator = generator_for(0, "standardise")
    latents = vae.encode(draw(sample_scenes(1024, generator), generator)).latent_dist.sample(generator)
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

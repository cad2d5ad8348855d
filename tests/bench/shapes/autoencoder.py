"""The base model's VAE: 64 px to 8x8x8 and back, with latents of mean 0 and deviation 1."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from lora_trainer.train.draws import generator_for

from .drawing import SIDE, draw, imagine
from .recipe import Plan, learn

PLAN = Plan(steps=2200, rate=2e-3, rise=40, fall=0.6)
AGAIN = Plan(steps=1800, rate=1.5e-3, rise=40, fall=0.8, average=0.99)
"""The same once more, from a high rate down: a warm restart finds outlines that the first run leaves blurred."""
FINISH = Plan(steps=1500, rate=2e-3, rise=30, fall=0.7, average=0.99)
BATCH = 16
CHANNELS = 8
"""Of the latents."""
DIVERGENCE_WEIGHT = 2e-6
"""Of the Kullback-Leibler divergence against the error in the pixels."""


def build() -> AutoencoderKL:
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
    torch.manual_seed(0)
    vae = build()

    def loss_at(step: int, part: str = "autoencoder") -> Tensor:
        chance = generator_for(0, part, step)
        pictures = draw(imagine(BATCH, chance, new_shapes=True, new_pairs=True), chance)
        posterior = vae.encode(pictures).latent_dist
        error = vae.decode(posterior.sample(chance)).sample - pictures
        return error.abs().mean() + error.square().mean() + DIVERGENCE_WEIGHT * posterior.kl().mean()

    learn("autoencoder", vae, loss_at, PLAN, folder)
    learn("autoencoder again", vae, partial(loss_at, part="again"), AGAIN, folder)
    standardise(vae)
    return vae.eval()


def finish(vae: AutoencoderKL, folder: Path) -> AutoencoderKL:
    """Train the decoder on alone: what the encoder makes of a picture, and so all that learns from it, stays."""
    decoder = nn.ModuleDict({"decoder": vae.decoder, "post_quant_conv": vae.post_quant_conv})

    def loss_at(step: int) -> Tensor:
        chance = generator_for(0, "decoder", step)
        pictures = draw(imagine(BATCH, chance, new_shapes=True, new_pairs=True), chance)
        with torch.no_grad():
            latents = vae.encode(pictures).latent_dist.sample(chance)
        error = vae.decode(latents).sample - pictures
        return error.abs().mean() + error.square().mean()

    learn("decoder", decoder, loss_at, FINISH, folder)
    return vae


@torch.no_grad()
def standardise(vae: AutoencoderKL) -> None:
    """Bring each latent channel to mean 0 and deviation 1 over drawings, by the 1x1 convolutions at both ends."""
    chance = generator_for(0, "standardise")
    latents = vae.encode(draw(imagine(1024, chance), chance)).latent_dist.sample(chance)
    mean, deviation = latents.mean(dim=(0, 2, 3)), latents.std(dim=(0, 2, 3))
    into, out = vae.quant_conv, vae.post_quant_conv
    channels = len(mean)
    into.weight[:channels] /= deviation[:, None, None, None]
    into.bias[:channels] = (into.bias[:channels] - mean) / deviation
    into.bias[channels:] -= 2 * deviation.log()  # the posterior's log variance
    out.bias += out.weight[:, :, 0, 0] @ mean
    out.weight *= deviation[None, :, None, None]

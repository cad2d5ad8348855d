"""The base model's UNet. It is trained on latents of drawings and embeddings of captions that are computed once."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Self

import torch
from diffusers import AutoencoderKL, DDPMScheduler, EulerDiscreteScheduler, UNet2DConditionModel
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from lora_api.job import Training
from lora_trainer.train.data.rng import generator_for
from lora_trainer.train.model.base_model import TextEncoderModel
from lora_trainer.train.objective import Batch, sample_losses

from .autoencoder import CHANNELS
from .captions import STYLE_WORDS, describe
from .drawing import SIDE, Style, draw, sample_scenes
from .recipe import Batch as Tensors
from .recipe import Plan, train_module
from .text_encoders import WIDTH, embed

PLAN = Plan(steps=8000, learning_rate=1.5e-3, warmup_steps=500, decay_share=0.6, ema_decay=0.9995)
BATCH = 512
DRAWINGS = 131_072
STYLE_PLAN = Plan(steps=5000, learning_rate=1e-3, warmup_steps=100, decay_share=0.7, ema_decay=0.999)
"""Further training on drawings in several styles. A UNet that was trained only on solid shapes learns a new style
separately for each shape."""
STYLE_BATCH = 256
STYLE_DRAWINGS = {Style.SOLID: 18_432, **dict.fromkeys(STYLE_WORDS, 3072)}
"""Number of drawings in each style of the further training."""
UNKNOWN_STYLE_SHARE = 0.3
"""Share of the captions of solid drawings, in the further training, that name an unknown style."""
CAPTIONS = 2
"""Number of captions of each drawing."""
DRAWN = 1024
"""Number of drawings that are encoded at a time."""
SMALL_SHARE = 0.1
"""Share of small shapes that is kept. With few latents to each, they teach little."""
OBJECTIVE = Training.model_validate({"snrGamma": "0"})
"""Every timestep has the same weight."""
UNCONDITIONAL_SHARE = 0.1
"""Share of samples with zeros in place of text, for classifier-free guidance. SDXL was trained in the same way."""
TIME_ID_WIDTH = 8
"""Width of the embedding of each of the six time ids."""
TIMESTEPS = 1000


def build() -> UNet2DConditionModel:
    """Create the UNet with random weights."""
    return UNet2DConditionModel(
        sample_size=SIDE // 8,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(64, 128),
        layers_per_block=1,
        transformer_layers_per_block=1,
        attention_head_dim=(2, 4),
        cross_attention_dim=2 * WIDTH,
        addition_embed_type="text_time",
        addition_time_embed_dim=TIME_ID_WIDTH,
        projection_class_embeddings_input_dim=6 * TIME_ID_WIDTH + WIDTH,
        norm_num_groups=16,
        use_linear_projection=True,
        resnet_time_scale_shift="scale_shift",
    )


def sampler() -> EulerDiscreteScheduler:
    """Return SDXL's noise schedule with zero terminal SNR and velocity prediction (Lin et al. 2023, arXiv:2305.08891).

    With a terminal SNR above zero, the colour of a flat background would still be visible at the last timestep.
    """
    return EulerDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
    )


@dataclass(frozen=True)
class Drawings:
    """Latents and embeddings of the drawings, on the training device."""

    latents: Tensor
    """float32, (n, CHANNELS, SIDE / 8, SIDE / 8)."""
    text: Tensor
    """float16, (n, CAPTIONS, 77, 2 * WIDTH): the embeddings of both encoders."""
    pooled: Tensor
    """float32, (n, CAPTIONS, WIDTH)."""

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """Concatenate drawings in the order of `parts`."""
        return cls(*(torch.cat([getattr(part, each.name) for part in parts]) for each in fields(cls)))

    @classmethod
    @torch.no_grad()
    def encoded(
        cls,
        vae: AutoencoderKL,
        encoders: tuple[TextEncoderModel, TextEncoderModel],
        count: int,
        *names: str,
        style: Style = Style.SOLID,
        unknown_share: float = 0,
    ) -> Self:
        """Draw, caption and encode random scenes in a style. Most small shapes are dropped.

        Args:
            count: number of drawings.
            names: names that the random numbers depend on.
            unknown_share: as in `describe`.
        """
        # Twice as many scenes are sampled as are needed, since some are dropped.
        scenes = sample_scenes(2 * count, generator_for(0, *names))
        share = torch.where(scenes.size == 0, SMALL_SHARE, 1.0)
        kept = torch.rand(len(scenes), generator=generator_for(0, *names, "kept")) < share
        scenes = scenes.part(kept.nonzero().squeeze(1)[:count])
        if style != Style.SOLID:
            scenes = scenes.with_all(fill=0)
        parts = []
        for index in torch.arange(count).split(DRAWN):
            shown, generator = scenes.part(index), generator_for(0, *names, "drawn", int(index[0]))
            posterior = vae.encode(draw(shown, generator, style=style, device=vae.device)).latent_dist
            words = random.Random(int(index[0]))
            conditioned = [
                embed(encoders, [text for text, _, _ in describe(shown, words, style, unknown_share)])
                for _ in range(CAPTIONS)
            ]
            parts.append(
                cls(
                    posterior.sample(generator),
                    torch.stack([tokens for tokens, _ in conditioned], dim=1).half(),
                    torch.stack([vector for _, vector in conditioned], dim=1),
                )
            )
        return cls.joined(parts)


def train(
    folder: Path, vae: AutoencoderKL, encoders: tuple[TextEncoderModel, TextEncoderModel]
) -> UNet2DConditionModel:
    """Train the UNet on the device of the VAE and the encoders.

    Args:
        folder: for checkpoints.
    """
    torch.manual_seed(0)
    unet = build().to(vae.device)
    schedule = DDPMScheduler.from_config(sampler().config)
    for model in encoders:
        model.encoder.eval()

    # The drawings are encoded on the first use, and not at all if the training is already complete.
    @cache
    def solid() -> Drawings:
        return Drawings.encoded(vae, encoders, DRAWINGS, "denoiser")

    @cache
    def styled() -> Drawings:
        return Drawings.joined(
            [
                Drawings.encoded(
                    vae, encoders, count, "styles", str(style), style=style, unknown_share=UNKNOWN_STYLE_SHARE
                )
                for style, count in STYLE_DRAWINGS.items()
            ]
        )

    def loss_of(batch: Tensors) -> Tensor:
        return sample_losses(unet, schedule, Batch(**batch), OBJECTIVE).mean()

    train_module(
        "denoiser", unet, lambda step: batch_at("denoiser", step, BATCH, solid()), loss_of, PLAN, folder
    )

    def bf16_loss_of(batch: Tensors) -> Tensor:
        # On a CPU, bfloat16 and unfused attention shorten a step by a third.
        with torch.autocast(vae.device.type, torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
            return loss_of(batch)

    train_module(
        "styles",
        unet,
        lambda step: batch_at("styles", step, STYLE_BATCH, styled()),
        bf16_loss_of,
        STYLE_PLAN,
        folder,
    )
    return unet


def batch_at(name: str, step: int, count: int, drawings: Drawings) -> Tensors:
    """Return the fields of `Batch` of a step, which depend on the training's name and the step's number alone."""
    generator, device = generator_for(0, name, step), drawings.latents.device
    chosen = torch.randint(len(drawings.latents), (count,), generator=generator).to(device)
    words = torch.randint(CAPTIONS, (count,), generator=generator).to(device)
    conditioned = (torch.rand(count, generator=generator) >= UNCONDITIONAL_SHARE).to(device)
    # The original size has no visible effect, so any value is a valid conditioning.
    original = SIDE * 2 ** (6 * torch.rand(count, 1, generator=generator)).expand(-1, 2)
    # Stratified timesteps reduce the variance of the loss; the exponent favours high noise, where outlines are decided.
    spread = (torch.arange(count) + torch.rand(count, generator=generator)) / count
    rest = torch.tensor([[0.0, 0.0, SIDE, SIDE]]).expand(count, -1)
    latents = drawings.latents[chosen]
    on_device = torch.Generator(device).manual_seed(generator.initial_seed())
    return {
        "latents": latents,
        "noise": torch.randn(latents.shape, generator=on_device, device=device),
        "timesteps": (TIMESTEPS * spread**0.75).long().to(device),
        "text": drawings.text[chosen, words].float() * conditioned[:, None, None],
        "pooled": drawings.pooled[chosen, words] * conditioned[:, None],
        "time_ids": torch.cat([original, rest], dim=1).to(device),
        "weights": torch.ones(count, device=device),
    }

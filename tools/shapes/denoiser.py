"""The base model's UNet. It is trained on latents of drawings and embeddings of captions that are computed once."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Self

import torch
from diffusers import AutoencoderKL, DDPMScheduler, EulerDiscreteScheduler, UNet2DConditionModel
from torch import Tensor

from lora_api.job import Training
from lora_trainer.train.data.rng import generator_for
from lora_trainer.train.model.base_model import TextEncoderModel
from lora_trainer.train.objective import Batch, sample_losses

from .autoencoder import CHANNELS
from .captions import describe
from .drawing import SIDE, draw, sample_scenes
from .recipe import Plan, train_module
from .text_encoders import WIDTH, embed

PLANS = {
    "denoiser": Plan(steps=5500, learning_rate=1.5e-3, warmup_steps=200, decay_share=0.6, ema_decay=0.999),
    "denoiser again": Plan(
        steps=2500, learning_rate=1e-3, warmup_steps=100, decay_share=0.8, ema_decay=0.998
    ),
}
PATTERNED = {"denoiser": 0.25, "denoiser again": 0.7}
"""Share of patterned shapes that is kept, by plan. The first plan has mostly plain shapes, to learn outlines; the second
has mostly patterned ones, to learn that any shape may have any pattern."""
BATCH = 64
DRAWINGS = 32_768
"""Number of drawings of each plan."""
CAPTIONS = 3
"""Number of captions of each drawing."""
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
    """Latents and embeddings of all drawings of a plan."""

    latents: Tensor
    """float32, (DRAWINGS, CHANNELS, SIDE / 8, SIDE / 8)."""
    text: Tensor
    """float16, (DRAWINGS, CAPTIONS, 77, 2 * WIDTH): the embeddings of both encoders."""
    pooled: Tensor
    """float32, (DRAWINGS, CAPTIONS, WIDTH)."""

    @classmethod
    @torch.no_grad()
    def encoded(
        cls, part: str, vae: AutoencoderKL, encoders: tuple[TextEncoderModel, TextEncoderModel]
    ) -> Self:
        """Draw, caption and encode the scenes of a plan. Most small shapes are dropped.

        Args:
            part: name of the plan in PLANS.
        """
        # Three times as many scenes are sampled as are needed, since some are dropped.
        scenes = sample_scenes(3 * DRAWINGS, generator_for(0, part))
        share = torch.where(scenes.fill > 0, PATTERNED[part], 1.0) * torch.where(scenes.size == 0, 0.1, 1.0)
        kept = torch.rand(len(scenes), generator=generator_for(0, part, "kept")) < share
        scenes = scenes.part(kept.nonzero().squeeze(1)[:DRAWINGS])
        latents, text, pooled = [], [], []
        for index in torch.arange(DRAWINGS).split(BATCH):
            shown, generator = scenes.part(index), generator_for(0, part, int(index[0]))
            latents.append(vae.encode(draw(shown, generator)).latent_dist.sample(generator))
            words = random.Random(int(index[0]))
            conditioned = [
                embed(encoders, [text for text, _, _ in describe(shown, words)]) for _ in range(CAPTIONS)
            ]
            text.append(torch.stack([tokens for tokens, _ in conditioned], dim=1).half())
            pooled.append(torch.stack([vector for _, vector in conditioned], dim=1))
        return cls(torch.cat(latents), torch.cat(text), torch.cat(pooled))


def train(
    folder: Path, vae: AutoencoderKL, encoders: tuple[TextEncoderModel, TextEncoderModel]
) -> UNet2DConditionModel:
    """Train the UNet by all PLANS.

    Args:
        folder: for checkpoints.
    """
    torch.manual_seed(0)
    unet = build()
    schedule = DDPMScheduler.from_config(sampler().config)
    for model in encoders:
        model.encoder.eval()
    for part, plan in PLANS.items():
        # The drawings are encoded on the first use, and not at all if the plan is already complete.
        drawings = cache(partial(Drawings.encoded, part, vae, encoders))
        train_module(part, unet, partial(_loss_at, unet, schedule, part, drawings), plan, folder)
    return unet


def _loss_at(
    unet: UNet2DConditionModel,
    schedule: DDPMScheduler,
    part: str,
    drawings: Callable[[], Drawings],
    step: int,
) -> Tensor:
    return sample_losses(unet, schedule, batch_at(part, step, drawings()), OBJECTIVE).mean()


def batch_at(part: str, step: int, drawings: Drawings) -> Batch:
    """Return the samples of a step, which depend on the plan's name and the step alone."""
    generator = generator_for(0, part, step)
    chosen = torch.randint(DRAWINGS, (BATCH,), generator=generator)
    words = torch.randint(CAPTIONS, (BATCH,), generator=generator)
    conditioned = torch.rand(BATCH, generator=generator) >= UNCONDITIONAL_SHARE
    # The original size has no visible effect, so any value is a valid conditioning.
    original = SIDE * 2 ** (6 * torch.rand(BATCH, 1, generator=generator)).expand(-1, 2)
    # Stratified timesteps reduce the variance of the loss; the exponent favours high noise, where outlines are decided.
    spread = (torch.arange(BATCH) + torch.rand(BATCH, generator=generator)) / BATCH
    rest = torch.tensor([[0.0, 0.0, SIDE, SIDE]]).expand(BATCH, -1)
    return Batch(
        latents=drawings.latents[chosen],
        noise=torch.randn(BATCH, *drawings.latents.shape[1:], generator=generator),
        timesteps=(TIMESTEPS * spread**0.75).long(),
        text=drawings.text[chosen, words].float() * conditioned[:, None, None],
        pooled=drawings.pooled[chosen, words] * conditioned[:, None],
        time_ids=torch.cat([original, rest], dim=1),
        weights=torch.ones(BATCH),
    )

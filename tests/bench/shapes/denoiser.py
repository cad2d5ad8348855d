"""The base model's UNet, trained on drawings and captions that are encoded once."""

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

from lora_trainer.train.base_model import TextTower
from lora_trainer.train.draws import generator_for
from lora_trainer.train.objective import Batch, sample_losses

from .autoencoder import CHANNELS
from .captions import describe
from .drawing import SIDE, draw, imagine
from .recipe import Plan, learn
from .towers import WIDTH, embed

PLANS = {
    "denoiser": Plan(steps=5500, rate=1.5e-3, rise=200, fall=0.6, average=0.999),
    "denoiser again": Plan(steps=2500, rate=1e-3, rise=100, fall=0.8, average=0.998),
}
PATTERNED = {"denoiser": 0.25, "denoiser again": 0.7}
"""How many of the things with a pattern are kept: outlines are learnt slowly and from plain things, then that any of
them may have any pattern."""
BATCH = 64
DRAWINGS = 32_768
CAPTIONS = 3
"""Of each drawing."""
SNR_GAMMA = 0.0
UNTOLD = 0.1
"""Share of samples without any text, as SDXL is told for guidance: zeros."""
TIME_ID_WIDTH = 8
TIMESTEPS = 1000


def build() -> UNet2DConditionModel:
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
    """SDXL's noise schedule, ended in pure noise and with the velocity predicted (Lin et al. 2023,
    arXiv:2305.08891): flat grounds would otherwise betray their colour through the most noise that there is."""
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
    """What the UNet sees and is told, computed once: few of the things are small."""

    latents: Tensor
    """(DRAWINGS, CHANNELS, SIDE / 8, SIDE / 8)."""
    text: Tensor
    """float16, (DRAWINGS, CAPTIONS, 77, both towers' widths)."""
    pooled: Tensor
    """(DRAWINGS, CAPTIONS, WIDTH)."""

    @classmethod
    @torch.no_grad()
    def encoded(cls, part: str, vae: AutoencoderKL, towers: tuple[TextTower, TextTower]) -> Self:
        scenes = imagine(3 * DRAWINGS, generator_for(0, part))
        share = torch.where(scenes.fill > 0, PATTERNED[part], 1.0) * torch.where(scenes.size == 0, 0.1, 1.0)
        kept = torch.rand(len(scenes), generator=generator_for(0, part, "kept")) < share
        scenes = scenes.part(kept.nonzero().squeeze(1)[:DRAWINGS])
        latents, text, pooled = [], [], []
        for index in torch.arange(DRAWINGS).split(BATCH):
            shown, chance = scenes.part(index), generator_for(0, part, int(index[0]))
            latents.append(vae.encode(draw(shown, chance)).latent_dist.sample(chance))
            words = random.Random(int(index[0]))
            told = [embed(towers, [text for text, _, _ in describe(shown, words)]) for _ in range(CAPTIONS)]
            text.append(torch.stack([tokens for tokens, _ in told], dim=1).half())
            pooled.append(torch.stack([vector for _, vector in told], dim=1))
        return cls(torch.cat(latents), torch.cat(text), torch.cat(pooled))


def train(folder: Path, vae: AutoencoderKL, towers: tuple[TextTower, TextTower]) -> UNet2DConditionModel:
    torch.manual_seed(0)
    unet = build()
    schedule = DDPMScheduler.from_config(sampler().config)
    for tower in towers:
        tower.encoder.eval()
    for part, plan in PLANS.items():
        # encoded only where there is something to learn
        drawings = cache(partial(Drawings.encoded, part, vae, towers))
        learn(part, unet, partial(_loss_at, unet, schedule, part, drawings), plan, folder)
    return unet


def _loss_at(
    unet: UNet2DConditionModel,
    schedule: DDPMScheduler,
    part: str,
    drawings: Callable[[], Drawings],
    step: int,
) -> Tensor:
    return sample_losses(unet, schedule, batch_at(part, step, drawings()), SNR_GAMMA).mean()


def batch_at(part: str, step: int, drawings: Drawings) -> Batch:
    """The samples of a step."""
    chance = generator_for(0, part, step)
    chosen = torch.randint(DRAWINGS, (BATCH,), generator=chance)
    words = torch.randint(CAPTIONS, (BATCH,), generator=chance)
    told = torch.rand(BATCH, generator=chance) >= UNTOLD
    # Whatever a picture's size was before it was scaled down, it looks alike.
    original = SIDE * 2 ** (6 * torch.rand(BATCH, 1, generator=chance)).expand(-1, 2)
    # Spread evenly, they make the loss less noisy; outlines are decided where there is more noise than picture.
    spread = (torch.arange(BATCH) + torch.rand(BATCH, generator=chance)) / BATCH
    rest = torch.tensor([[0.0, 0.0, SIDE, SIDE]]).expand(BATCH, -1)
    return Batch(
        latents=drawings.latents[chosen],
        noise=torch.randn(BATCH, *drawings.latents.shape[1:], generator=chance),
        timesteps=(TIMESTEPS * spread**0.75).long(),
        text=drawings.text[chosen, words].float() * told[:, None, None],
        pooled=drawings.pooled[chosen, words] * told[:, None],
        time_ids=torch.cat([original, rest], dim=1),
        weights=torch.ones(BATCH),
    )

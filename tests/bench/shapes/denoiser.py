"""The base model's UNet, trained on drawings encoded once and on an endless stream of captions for them."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from diffusers import AutoencoderKL, DDPMScheduler, EulerDiscreteScheduler, UNet2DConditionModel
from torch import Tensor

from lora_trainer.train.base_model import TextTower
from lora_trainer.train.draws import generator_for
from lora_trainer.train.objective import Batch, sample_losses

from .captions import describe
from .drawing import SIDE, Scenes, draw, imagine
from .recipe import Plan, learn
from .towers import WIDTH, embed

PLAN = Plan(steps=5600, rate=1e-3, rise=110, fall=0.5, average=0.998)
BATCH = 32
DRAWINGS = 20_480
ALL_UNTIL = 1750
"""From this step on most of what is small or has a pattern is left out: outlines are learnt last, from plain things."""
SNR_GAMMA = 0.0
UNTOLD = 0.1
"""Share of samples without any text, as SDXL is told for guidance: zeros."""
TIME_ID_WIDTH = 8
TIMESTEPS = 1000


def build() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=SIDE // 4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(48, 96, 128),
        layers_per_block=1,
        transformer_layers_per_block=(1, 1, 1),
        attention_head_dim=(2, 3, 4),
        cross_attention_dim=2 * WIDTH,
        addition_embed_type="text_time",
        addition_time_embed_dim=TIME_ID_WIDTH,
        projection_class_embeddings_input_dim=6 * TIME_ID_WIDTH + WIDTH,
        norm_num_groups=16,
        use_linear_projection=True,
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
    """What the UNet sees."""

    scenes: Scenes
    latents: Tensor
    """(n, 4, SIDE / 4, SIDE / 4)."""
    plainer: Tensor
    """The indices of what is left from ALL_UNTIL on."""

    @classmethod
    @torch.no_grad()
    def encoded(cls, vae: AutoencoderKL) -> Self:
        scenes = imagine(DRAWINGS, generator_for(0, "drawings"))
        latents = []
        for part in torch.arange(DRAWINGS).split(BATCH):
            chance = generator_for(0, "drawings", int(part[0]))
            latents.append(vae.encode(draw(scenes.part(part), chance)).latent_dist.sample(chance))
        share = torch.where(scenes.fill > 0, 0.5, 1.0) * torch.where(scenes.size == 0, 0.25, 1.0)
        kept = torch.rand(DRAWINGS, generator=generator_for(0, "plainer")) < share
        return cls(scenes, torch.cat(latents), kept.nonzero().squeeze(1))


def train(folder: Path, vae: AutoencoderKL, towers: tuple[TextTower, TextTower]) -> UNet2DConditionModel:
    torch.manual_seed(0)
    unet = build()
    schedule = DDPMScheduler.from_config(sampler().config)
    for tower in towers:
        tower.encoder.eval()
    drawings = Drawings.encoded(vae)

    def loss_at(step: int) -> Tensor:
        return sample_losses(unet, schedule, batch_at(step, drawings, towers), SNR_GAMMA).mean()

    learn("denoiser", unet, loss_at, PLAN, folder)
    return unet


@torch.no_grad()
def batch_at(step: int, drawings: Drawings, towers: tuple[TextTower, TextTower]) -> Batch:
    """The samples of a step."""
    chance = generator_for(0, "denoiser", step)
    choice = drawings.plainer if step >= ALL_UNTIL else torch.arange(DRAWINGS)
    chosen = choice[torch.randint(len(choice), (BATCH,), generator=chance)]
    captions = describe(drawings.scenes.part(chosen), random.Random(step))
    text, pooled = embed(towers, [caption for caption, _, _ in captions])
    told = torch.rand(BATCH, generator=chance) >= UNTOLD
    # Whatever a picture's size was before it was scaled down, it looks alike.
    original = SIDE * 2 ** (6 * torch.rand(BATCH, 1, generator=chance)).expand(-1, 2)
    # Spread evenly, they make the loss less noisy.
    timesteps = (torch.arange(BATCH) + torch.rand(BATCH, generator=chance)) * (TIMESTEPS / BATCH)
    rest = torch.tensor([[0.0, 0.0, SIDE, SIDE]]).expand(BATCH, -1)
    return Batch(
        latents=drawings.latents[chosen],
        noise=torch.randn(BATCH, *drawings.latents.shape[1:], generator=chance),
        timesteps=timesteps.long(),
        text=text * told[:, None, None],
        pooled=pooled * told[:, None],
        time_ids=torch.cat([original, rest], dim=1),
        weights=torch.ones(BATCH),
    )

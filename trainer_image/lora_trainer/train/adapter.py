"""The low-rank adapter (Hu et al. 2021, arXiv:2106.09685) on the UNet, by peft."""

from __future__ import annotations

import torch
from diffusers import UNet2DConditionModel
from peft import LoraConfig
from torch.nn import Parameter

from .draws import generator_for

UNET_TARGETS = ("to_k", "to_out.0", "to_q", "to_v")
"""The projections of every attention, as diffusers' and kohya's trainers take."""


def add_adapter(unet: UNet2DConditionModel, rank: int, alpha: int, seed: int | None) -> None:
    """Freeze the UNet and put an adapter on its attention: A gaussian with deviation 1/rank, B zero.

    The adapter is float32 whatever the UNet is: in bf16, steps of 1e-4 round to nothing.

    Args:
        seed: None leaves A as it comes, for a model that is only measured.
    """
    unet.requires_grad_(False)
    unet.add_adapter(
        LoraConfig(r=rank, lora_alpha=alpha, init_lora_weights="gaussian", target_modules=list(UNET_TARGETS))
    )
    for name, parameter in trainable(unet).items():
        parameter.data = parameter.data.float()
        if ".lora_A." in name and seed is not None:
            drawn = torch.randn(parameter.shape, generator=generator_for(seed, "lora_A", name)) / rank
            parameter.data.copy_(drawn)


def trainable(module: torch.nn.Module) -> dict[str, Parameter]:
    """The parameters that learn, by name, in one order."""
    return {name: p for name, p in sorted(module.named_parameters()) if p.requires_grad}

"""Low-rank adapters (Hu et al. 2021, arXiv:2106.09685) on the UNet and the text encoders, by peft."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from peft import LoraConfig
from torch.nn import Parameter

from .draws import generator_for

UNET = "unet"
TEXT_ENCODERS = ("text_encoder", "text_encoder_2")
TARGETS = {
    UNET: ("to_k", "to_out.0", "to_q", "to_v"),
    **dict.fromkeys(TEXT_ENCODERS, ("k_proj", "out_proj", "q_proj", "v_proj")),
}
"""The projections of every attention, as diffusers' trainers take, by the pipeline's names."""

Adapted = Mapping[str, Any]
"""The modules that carry an adapter, by the pipeline's names; both libraries mix peft's methods into them."""


def add_adapter(module: Any, name: str, rank: int, alpha: int, seed: int | None) -> None:
    """Freeze a module and put an adapter on its attention: A gaussian with deviation 1/rank, B zero.

    The adapter is float32 whatever the module is: in bf16, steps of 1e-4 round to nothing.

    Args:
        name: the pipeline's name for the module.
        seed: None leaves A as it comes, for a module that is only measured.
    """
    module.requires_grad_(False)
    config = LoraConfig(
        r=rank, lora_alpha=alpha, init_lora_weights="gaussian", target_modules=list(TARGETS[name])
    )
    module.add_adapter(config)
    for path, parameter in trainable({name: module}).items():
        parameter.data = parameter.data.float()
        if ".lora_A." in path and seed is not None:
            drawn = torch.randn(parameter.shape, generator=generator_for(seed, "lora_A", path)) / rank
            parameter.data.copy_(drawn)


def trainable(modules: Adapted) -> dict[str, Parameter]:
    """The parameters that learn, by module and name, in one order."""
    return {
        f"{name}.{path}": parameter
        for name, module in modules.items()
        for path, parameter in sorted(module.named_parameters())
        if parameter.requires_grad
    }


@contextmanager
def without_adapter(modules: Adapted) -> Iterator[None]:
    """The base model for as long as the block lasts."""
    with ExitStack() as stack:
        for module in modules.values():
            module.disable_adapters()
            stack.callback(module.enable_adapters)
        yield

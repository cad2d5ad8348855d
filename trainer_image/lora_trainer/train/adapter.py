"""Low-rank adapters on the UNet and the text encoders, by peft."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from peft import LoHaConfig, LoKrConfig, LoraConfig, PeftConfig
from peft.tuners.lora import LoraLayer
from peft.tuners.lycoris_utils import LycorisLayer
from torch import Tensor
from torch.nn import Module, Parameter

from lora_api.job import Adapter, AdapterType

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
ADAPTER = "default"
"""peft's name for the adapter that is trained."""


def add_adapter(
    module: Any, name: str, rank: int, alpha: int, seed: int | None, *, kind: Adapter | None = None
) -> None:
    """Freeze a module and put an adapter on its attention, one that changes nothing yet.

    LoRA's A is gaussian with deviation 1/rank, its B zero; LoKr and LoHa start as LyCORIS and peft start them.
    The adapter is float32 whatever the module is: in bf16, steps of 1e-4 round to nothing.

    Args:
        name: the pipeline's name for the module.
        seed: None leaves what is drawn as it comes, for a module that is only measured.
        kind: plain LoRA where it is None.
    """
    module.requires_grad_(False)
    kind = kind or Adapter()
    module.add_adapter(_config(list(TARGETS[name]), rank, alpha, kind))
    if kind.use_dora:
        for _, layer in adapter_layers(module):
            _keep_norms_exact(layer)
    for path, parameter in trainable({name: module}).items():
        parameter.data = parameter.data.float()
        if seed is None:
            continue
        if ".lora_A." in path:
            drawn = torch.randn(parameter.shape, generator=generator_for(seed, "lora_A", path)) / rank
            parameter.data.copy_(drawn)
        elif kind.type != AdapterType.LORA and parameter.any():
            drawn = torch.empty(parameter.shape)
            torch.nn.init.kaiming_uniform_(drawn, a=math.sqrt(5), generator=generator_for(seed, path))
            parameter.data.copy_(drawn)


def _config(targets: list[str], rank: int, alpha: int, kind: Adapter) -> PeftConfig:
    match kind.type:
        case AdapterType.LORA:
            return LoraConfig(
                r=rank,
                lora_alpha=alpha,
                init_lora_weights="gaussian",
                target_modules=targets,
                use_dora=kind.use_dora,
                use_rslora=kind.use_rslora,
            )
        case AdapterType.LOKR:
            return LoKrConfig(
                r=rank,
                alpha=alpha,
                decompose_factor=kind.factor or -1,
                init_weights="lycoris",
                target_modules=targets,
            )
        case AdapterType.LOHA:
            return LoHaConfig(r=rank, alpha=alpha, target_modules=targets)


def _keep_norms_exact(layer: Any) -> None:
    """peft rounds the norms that DoRA divides by to the base model's numbers: in bf16 by more than what is learnt."""
    dora = layer.lora_magnitude_vector[ADAPTER]
    dora.get_weight_norm = _norms
    dora.weight.data = _norms(layer.get_base_layer().weight, torch.zeros(()), 1.0)


def _norms(weight: Tensor, lora_weight: Tensor, scaling: float, **_: object) -> Tensor:
    change = scaling * lora_weight.to(weight.device).float()
    norms: Tensor = torch.linalg.vector_norm(weight.float() + change, dim=1)
    return norms


def adapter_layers(module: Module) -> Iterator[tuple[str, Any]]:
    """The layers that carry the adapter, by name."""
    for name, layer in module.named_modules():
        if (isinstance(layer, LoraLayer) and ADAPTER in layer.lora_A) or (
            isinstance(layer, LycorisLayer) and ADAPTER in layer._available_adapters
        ):
            yield name, layer


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

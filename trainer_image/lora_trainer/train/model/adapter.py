"""Low-rank adapters of peft on the UNet and the text encoders."""

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

from ..data.rng import generator_for
from .targets import TEXT_ENCODERS, UNET, Selection, select

__all__ = ["TEXT_ENCODERS", "UNET"]

Adapted = Mapping[str, Any]
"""Modules that have an adapter, by their names in the pipeline. Both libraries add peft's methods to them."""
ADAPTER = "default"
"""Name in peft of the adapter that is trained."""


def add_adapter(
    module: Any, name: str, rank: int, alpha: int, seed: int | None, *, kind: Adapter | None = None
) -> None:
    """Freeze a module and add an adapter to its target layers. At first the adapter has no effect.

    LoRA's A is normally distributed with a standard deviation of 1/rank, and its B is zero. LoKr and LoHa are
    initialised as in LyCORIS and peft. The adapter is in float32, because updates of 1e-4 are lost in bf16.

    Args:
        name: the module's name in the pipeline.
        seed: seed of the initial values; None keeps those of peft, for a module that is only traced.
        kind: kind of the adapter; None for plain LoRA.
    """
    module.requires_grad_(False)
    kind = kind or Adapter()
    module.add_adapter(_config(select(module, name, rank, kind), rank, alpha, kind))
    if kind.use_dora:
        for _, layer in adapter_layers(module):
            _keep_norms_exact(layer)
    for path, parameter in trainable({name: module}).items():
        parameter.data = parameter.data.float()
        if seed is None:
            continue
        if ".lora_A." in path:
            drawn = torch.randn(parameter.shape, generator=generator_for(seed, "lora_A", path)) / len(
                parameter
            )
            parameter.data.copy_(drawn)
        # Factors of LoKr and LoHa that are not zero; those that are zero stay so.
        elif kind.type != AdapterType.LORA and parameter.any():
            drawn = torch.empty(parameter.shape)
            torch.nn.init.kaiming_uniform_(drawn, a=math.sqrt(5), generator=generator_for(seed, path))
            parameter.data.copy_(drawn)


def _config(selection: Selection, rank: int, alpha: int, kind: Adapter) -> PeftConfig:
    targets, ranks = selection.targets, selection.ranks
    match kind.type:
        case AdapterType.LORA:
            return LoraConfig(
                r=rank,
                rank_pattern=ranks,
                lora_alpha=alpha,
                init_lora_weights="gaussian",
                target_modules=targets,
                use_dora=kind.use_dora,
                use_rslora=kind.use_rslora,
            )
        case AdapterType.LOKR:
            return LoKrConfig(
                r=rank,
                rank_pattern=ranks,
                alpha=alpha,
                decompose_factor=kind.factor or -1,
                init_weights="lycoris",
                target_modules=targets,
            )
        case AdapterType.LOHA:
            return LoHaConfig(r=rank, rank_pattern=ranks, alpha=alpha, target_modules=targets)


def _keep_norms_exact(layer: Any) -> None:
    """Compute the norms that DoRA divides by in float32.

    peft rounds them to the base model's number format. In bf16 the rounding is larger than the learnt change.
    """
    dora = layer.lora_magnitude_vector[ADAPTER]
    dora.get_weight_norm = _norms
    dora.weight.data = _norms(layer.get_base_layer().weight, torch.zeros(()), 1.0)


def _norms(weight: Tensor, lora_weight: Tensor, scaling: float, **_: object) -> Tensor:
    """Compute the norm of each output's weights: float32, (out,) or, for a convolution, (1, out, 1, 1)."""
    changed = weight.float() + scaling * lora_weight.to(weight.device).float()
    norms: Tensor = torch.linalg.vector_norm(changed.flatten(1), dim=1)
    # peft stores the magnitudes of a convolution so that they broadcast over its output.
    return norms.reshape(1, -1, 1, 1) if weight.dim() == 4 else norms


def adapter_layers(module: Module) -> Iterator[tuple[str, Any]]:
    """Iterate over the layers that have the adapter, as (name, layer)."""
    for name, layer in module.named_modules():
        if (isinstance(layer, LoraLayer) and ADAPTER in layer.lora_A) or (
            isinstance(layer, LycorisLayer) and ADAPTER in layer._available_adapters
        ):
            yield name, layer


def is_adapted(module: Module) -> bool:
    """Return whether any layer of a module has the adapter."""
    return next(adapter_layers(module), None) is not None


@torch.no_grad()
def has_effect(modules: Adapted) -> bool:
    """Return whether the adapters change any weight of their modules."""
    return any(_changes_weight(layer) for module in modules.values() for _, layer in adapter_layers(module))


def _changes_weight(layer: Any) -> bool:
    if layer.get_delta_weight(ADAPTER).any():
        return True
    if not getattr(layer, "lora_variant", None):
        return False
    magnitude = layer.lora_magnitude_vector[ADAPTER].weight
    return not torch.equal(magnitude, _norms(layer.get_base_layer().weight, torch.zeros(()), 1.0))


def trainable(modules: Adapted) -> dict[str, Parameter]:
    """Return the trainable parameters by `component.name`, in a fixed order."""
    return {
        f"{name}.{path}": parameter
        for name, module in modules.items()
        for path, parameter in sorted(module.named_parameters())
        if parameter.requires_grad
    }


@contextmanager
def without_adapter(modules: Adapted) -> Iterator[None]:
    """Disable the adapters within the block."""
    with ExitStack() as stack:
        for module in modules.values():
            module.disable_adapters()
            stack.callback(module.enable_adapters)
        yield

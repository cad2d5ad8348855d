"""An override of peft's LoRA layer that adds the adapter's product in place, with fewer passes over memory."""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.layer import Linear
from torch import Tensor
from torch.nn import Identity, Module
from torch.nn.functional import linear

from ..model.adapter import ADAPTER
from .quantized import QUANTIZED_CLASSES


def fuse(module: Module) -> None:
    """Replace the forward pass of every plain LoRA layer in a module.

    peft computes W x, casts x to float32, computes B A x, scales it and adds it, which takes four more passes over the
    activations than necessary. Other layers (DoRA, convolutions, layers with rank dropout) keep peft's forward pass. So
    does a fused layer while its adapter is disabled, another adapter is active, or input and adapter have different
    number formats without autocast.
    """
    for layer in module.modules():
        if _is_linear(layer) and is_plain(layer):
            layer.forward = _Fused(layer)


def _is_linear(layer: Any) -> bool:
    """Return whether a module is peft's LoRA layer on a linear layer, which may be quantized."""
    is_adapted_quantized = isinstance(layer, LoraLayer) and type(layer).__name__ in QUANTIZED_CLASSES
    return type(layer) is Linear or is_adapted_quantized


def is_plain(layer: Any) -> bool:
    """Return whether a LoRA layer computes W x + scaling B A x and nothing else."""
    hooked = bool(layer.lora_A[ADAPTER]._forward_hooks)  # installed by `RankDropout`
    return not layer.lora_variant and isinstance(layer.lora_dropout[ADAPTER], Identity) and not hooked


def is_active(layer: Any) -> bool:
    """Return whether the trained adapter, and no other, is active in a layer."""
    return not layer.disable_adapters and layer.active_adapters == [ADAPTER] and not layer.merged


class _Fused:
    """The fused forward pass of a LoRA layer; x has the shape (..., in)."""

    def __init__(self, layer: Any) -> None:
        self._layer = layer
        self._plain = layer.forward

    def __call__(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        layer = self._layer
        mixed = x.dtype != layer.lora_A[ADAPTER].weight.dtype and not torch.is_autocast_enabled(x.device.type)
        if mixed or not is_active(layer):
            result: Tensor = self._plain(x, *args, **kwargs)
            return result
        result = layer.base_layer(x, *args, **kwargs)
        low = linear(x, layer.lora_A[ADAPTER].weight)
        up = layer.lora_B[ADAPTER].weight.t().to(result.dtype)
        result.view(-1, result.shape[-1]).addmm_(
            low.view(-1, low.shape[-1]), up, alpha=layer.scaling[ADAPTER]
        )
        return result

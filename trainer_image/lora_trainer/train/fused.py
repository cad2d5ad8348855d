"""peft's LoRA layer with fewer passes over memory: the same sum, added in place by one matrix product."""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora.layer import Linear
from torch import Tensor
from torch.nn import Identity, Module
from torch.nn.functional import linear

from .adapter import ADAPTER


def fuse(module: Module) -> None:
    """Replace the forward pass of every plain LoRA layer in a module.

    peft makes W x, casts x to float32, makes B A x, scales and adds: four more passes over activations than
    needed. Layers of another kind (quantized ones, DoRA) and states other than plain training (adapters switched
    off, another one active, drawing in 16 bits) keep peft's own.
    """
    for layer in module.modules():
        if type(layer) is Linear and is_plain(layer):
            layer.forward = _Fused(layer)


def is_plain(layer: Any) -> bool:
    """Whether a peft layer computes W x + scaling B A x and nothing else."""
    return not layer.lora_variant and isinstance(layer.lora_dropout[ADAPTER], Identity)


def is_active(layer: Any) -> bool:
    """Whether the adapter that is trained, and it alone, is at work."""
    return not layer.disable_adapters and layer.active_adapters == [ADAPTER] and not layer.merged


class _Fused:
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

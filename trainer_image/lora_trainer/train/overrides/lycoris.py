"""An override of peft's LoKr and LoHa layers that draws no random number for dropout.

peft draws one in each layer at each training step and compares it with `module_dropout`, which is 0 here. The CPU waits
for the result from the GPU, and the memory plan, whose tensors have no data, cannot evaluate the comparison.
"""

from __future__ import annotations

from typing import Any

from peft.tuners.lycoris_utils import LycorisLayer
from torch import Tensor

from ..model.adapter import ADAPTER
from .fused import is_active


def is_without_dropout(layer: Any) -> bool:
    """Return whether a module is a LoKr or LoHa layer of the trained adapter without dropout."""
    return (
        isinstance(layer, LycorisLayer)
        and not layer.module_dropout.get(ADAPTER, 1)  # 1 where the layer does not have the trained adapter
        and not layer.rank_dropout[ADAPTER]
    )


class LycorisLinear:
    """The forward pass of a LoKr or LoHa layer; the layer's own where the trained adapter is not active."""

    def __init__(self, layer: Any) -> None:
        self._layer = layer
        self._plain = layer.forward

    def __call__(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        layer = self._layer
        if not is_active(layer):
            result: Tensor = self._plain(x, *args, **kwargs)
            return result
        result = layer.base_layer(x, *args, **kwargs)
        result = result + layer._get_delta_activations(ADAPTER, x, *args, **kwargs)
        return result.to(x.dtype)

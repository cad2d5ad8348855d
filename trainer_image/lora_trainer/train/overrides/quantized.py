"""An override of bitsandbytes' 4-bit and 8-bit linear layers that does not keep their input for the backward pass.

bitsandbytes' 8-bit layer keeps its input where gradient checkpointing does not free it, and warns at every product
whose input is not fp16. The backward pass of a frozen layer needs only its weight, which is converted to 16 bits again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import Linear
from torch.nn.functional import linear

QUANTIZED_CLASSES = ("Linear4bit", "Linear8bitLt")
"""Names of bitsandbytes' layers, and of the peft layers that adapt them. bitsandbytes itself need not be installed."""


def is_quantized(layer: Any) -> bool:
    """Return whether a module is one of bitsandbytes' quantized linear layers."""
    return type(layer).__name__ in QUANTIZED_CLASSES and type(layer).__module__.startswith("bitsandbytes")


class FrozenLinear:
    """The forward pass of a frozen layer whose weight is converted at each use."""

    def __call__(self, x: Tensor) -> Tensor:
        # Two-dimensional inside the function, so that the view is made outside: LoRA layers change the result in
        # place, and autograd does not allow that for a view that was made in a custom function.
        rows: Tensor = _Product.apply(x.reshape(-1, x.shape[-1]), self)  # type: ignore[no-untyped-call]
        return rows.view(*x.shape[:-1], rows.shape[-1])

    def product(self, x: Tensor) -> Tensor:
        """Return the layer's result, in the input's type.

        Args:
            x: (n, in).
        """
        raise NotImplementedError

    def weight(self, dtype: torch.dtype) -> Tensor:
        """Return the weight in a number format: (out, in)."""
        raise NotImplementedError


class QuantizedLinear(FrozenLinear):
    """The forward pass of one of bitsandbytes' layers."""

    def __init__(self, layer: Any) -> None:
        self._layer = layer
        self._plain: Callable[[Tensor], Tensor] = layer.forward
        self._is_int8 = type(layer).__name__ == "Linear8bitLt"

    def product(self, x: Tensor) -> Tensor:
        # LLM.int8() quantizes fp16 inputs; others are converted first.
        result = self._plain(x.half() if self._is_int8 else x)
        return result.to(x.dtype)

    def weight(self, dtype: torch.dtype) -> Tensor:
        layer = self._layer
        if self._is_int8:
            # CB is the int8 weight, and SCB the largest absolute value of each row, which is stored as 127. The first
            # product moves both from the weight to the state.
            state = layer.state if layer.state.CB is not None else layer.weight
            converted: Tensor = state.CB.to(dtype).mul_(state.SCB.to(dtype).unsqueeze(1) / 127)
            return converted
        from bitsandbytes.functional import dequantize_4bit

        weight: Tensor = dequantize_4bit(layer.weight.data, layer.weight.quant_state)
        return weight.to(dtype)


class ImitatedLinear(FrozenLinear):
    """A linear layer that needs as much memory as a quantized one, for the memory plan. Its tensors have no data."""

    def __init__(self, layer: Linear) -> None:
        self._layer = layer

    def product(self, x: Tensor) -> Tensor:
        return linear(x, self.weight(x.dtype), self._layer.bias)

    def weight(self, dtype: torch.dtype) -> Tensor:
        return torch.empty_like(self._layer.weight, dtype=dtype)


class _Product(Function):
    """The product of a frozen layer, which keeps no tensor for the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: FrozenLinear) -> Tensor:
        ctx.layer = layer
        result = layer.product(x)
        # LoRA layers change the result in place, which autograd forbids for a view that was made in a custom function.
        # bitsandbytes returns a view on some CPUs.
        return result.clone() if result._is_view() else result

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient.matmul(ctx.layer.weight(gradient.dtype)), None

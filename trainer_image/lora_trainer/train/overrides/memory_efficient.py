"""Overrides of the UNet's layers that keep less for the backward pass.

PyTorch keeps a convolution's input for the gradient of its weight even if the weight is frozen. diffusers' blocks keep
both the input and the result of an activation. Autocast runs norms in float32, so that the operations after them read
twice as many bytes. Here, frozen convolutions do not keep their input, norms return their input's type, and cheap
activations are computed again in the backward pass, as in gradient checkpointing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers.models.activations import GEGLU
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor
from torch.autograd import Function
from torch.nn import Conv2d, GroupNorm, LayerNorm, Module
from torch.nn.functional import conv2d, gelu, silu
from torch.nn.grad import conv2d_input

from .lycoris import LycorisLinear, is_without_dropout
from .quantized import QuantizedLinear, is_quantized
from .transformer import TransformerBlock, is_supported

aten = torch.ops.aten


def make_memory_efficient(module: Module) -> None:
    """Replace the forward passes of the layers named in README.md; values and gradients stay the same within rounding.

    Trained convolutions, and kinds of blocks that SDXL does not have, keep their own forward pass.
    """
    layer: Any
    for layer in list(module.modules()):
        forward = _efficient_forward(layer)
        if forward:
            layer.forward = forward


def _efficient_forward(layer: Any) -> Callable[..., Tensor] | None:
    """Return the forward pass that replaces a layer's; None where the layer keeps its own."""
    kind = type(layer)
    if kind is Conv2d and layer.padding_mode == "zeros" and layer.groups == 1:
        return _Convolution(layer)
    if kind in (LayerNorm, GroupNorm):
        return _Norm(layer)
    if is_quantized(layer):
        return QuantizedLinear(layer)
    if is_without_dropout(layer):
        return LycorisLinear(layer)
    if kind is GEGLU:
        return _GatedUnit(layer)
    if kind is ResnetBlock2D and _is_plain(layer):
        return _ResidualBlock(layer)
    if kind is BasicTransformerBlock and is_supported(layer):
        return TransformerBlock(layer)
    return None


def _is_plain(block: ResnetBlock2D) -> bool:
    """Return whether a residual block has only the parts that `_ResidualBlock` computes."""
    return (
        block.upsample is None
        and block.downsample is None
        and block.time_emb_proj is not None
        and block.time_embedding_norm == "default"
        and not block.skip_time_act
        and isinstance(block.nonlinearity, torch.nn.SiLU)
        and block.dropout.p == 0
        and block.output_scale_factor == 1
    )


class _Convolution:
    """A frozen convolution that does not keep its input; a trained one keeps its own forward pass."""

    def __init__(self, layer: Conv2d) -> None:
        self._layer = layer
        self._plain = layer.forward

    def __call__(self, x: Tensor) -> Tensor:
        layer = self._layer
        if layer.weight.requires_grad:
            return self._plain(x)
        result: Tensor = _FrozenConvolution.apply(x, layer)  # type: ignore[no-untyped-call]
        return result


class _Norm:
    """A norm whose result has its input's type under autocast. Only the kernel computes in float32, internally."""

    def __init__(self, layer: Any) -> None:
        self._layer = layer
        self._plain = layer.forward

    def __call__(self, x: Tensor) -> Tensor:
        layer, device = self._layer, x.device.type
        if not torch.is_autocast_enabled(device):
            result: Tensor = self._plain(x)
            return result
        with torch.autocast(device, enabled=False):
            weight, bias = layer.weight.to(x.dtype), layer.bias.to(x.dtype)
            if isinstance(layer, LayerNorm):
                return torch.nn.functional.layer_norm(x, layer.normalized_shape, weight, bias, layer.eps)
            return torch.nn.functional.group_norm(x, layer.num_groups, weight, bias, layer.eps)


class _GatedUnit:
    """GEGLU that keeps only the result of its projection."""

    def __init__(self, layer: Any) -> None:
        self._layer = layer

    def __call__(self, x: Tensor) -> Tensor:
        return recompute(_gate, self._layer.proj(x))


def _gate(both: Tensor) -> Tensor:
    values, gate = both.chunk(2, dim=-1)
    return values * gelu(gate)


class _ResidualBlock:
    """ResnetBlock2D that keeps only the input and the statistics of each norm."""

    def __init__(self, block: Any) -> None:
        self._block = block

    def __call__(self, x: Tensor, temb: Tensor) -> Tensor:
        block = self._block
        # Convolutions do not need their results for the backward pass, so these may be changed in place.
        hidden = block.conv1(_activate(x, block.norm1))
        hidden += block.time_emb_proj(silu(temb)).to(hidden.dtype)[:, :, None, None]
        hidden = block.conv2(_activate(hidden, block.norm2))
        if block.conv_shortcut is not None:
            x = block.conv_shortcut(x)
        hidden += x.to(hidden.dtype)
        result: Tensor = hidden
        return result


def _activate(x: Tensor, norm: GroupNorm) -> Tensor:
    """Return silu(norm(x)), keeping only x and the norm's statistics: (n, channels, height, width)."""
    with torch.autocast(x.device.type, enabled=False):
        result: Tensor = _Activation.apply(x.contiguous(), norm)  # type: ignore[no-untyped-call]
    return result


class _Activation(Function):
    """silu(norm(x)) of a frozen group norm, which is computed again in the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, norm: GroupNorm) -> Tensor:
        count, channels = x.shape[:2]
        ctx.sizes = (count, channels, x.numel() // (count * channels), norm.num_groups)
        ctx.eps, ctx.factors = norm.eps, (norm.weight.to(x.dtype), norm.bias.to(x.dtype))
        normal, mean, rstd = aten.native_group_norm(x, *ctx.factors, *ctx.sizes, ctx.eps)
        ctx.save_for_backward(x, mean, rstd)
        return silu(normal, inplace=True)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        x, mean, rstd = ctx.saved_tensors
        normal = aten.native_group_norm(x, *ctx.factors, *ctx.sizes, ctx.eps)[0]
        # Written over `normal`, which is not needed any more.
        gradient = aten.silu_backward(gradient.contiguous(), normal, grad_input=normal)
        only_x = (True, False, False)
        of_x: Tensor = aten.native_group_norm_backward(
            gradient, x, mean, rstd, ctx.factors[0], *ctx.sizes, only_x
        )[0]
        return of_x, None


class _FrozenConvolution(Function):
    """A frozen convolution that keeps only the shape and type of its input."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: Conv2d) -> Tensor:
        ctx.layer, ctx.shape, ctx.dtype = layer, x.shape, x.dtype
        return conv2d(x, layer.weight, layer.bias, layer.stride, layer.padding, layer.dilation)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        layer = ctx.layer
        # Autocast does not apply to this operator, and cuDNN requires a gradient and a weight of the same type.
        weight = layer.weight.to(gradient.dtype)
        of_x = conv2d_input(ctx.shape, weight, gradient, layer.stride, layer.padding, layer.dilation)
        return of_x.to(ctx.dtype), None


def recompute(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Return function(x), keeping only x for the backward pass, which calls the function again.

    Args:
        function: a function without trained parameters or randomness.
    """
    result: Tensor = _Recompute.apply(x, function)  # type: ignore[no-untyped-call]
    return result


class _Recompute(Function):
    """A function that is called again in the backward pass, under the same autocast settings."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.save_for_backward(x)
        ctx.function = function
        ctx.enabled = torch.is_autocast_enabled(x.device.type)
        ctx.dtype = torch.get_autocast_dtype(x.device.type)
        return function(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        x = ctx.saved_tensors[0].detach().requires_grad_()
        with torch.enable_grad(), torch.autocast(x.device.type, ctx.dtype, enabled=ctx.enabled):
            result = ctx.function(x)
        return torch.autograd.grad(result, x, gradient)[0], None

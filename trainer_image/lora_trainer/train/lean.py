"""The UNet with less kept for its backward pass: nothing that a frozen layer has no use for, and nothing cheap.

PyTorch keeps a convolution's input for the gradient of its weight, also where the weight is frozen; diffusers'
blocks keep what an activation takes and what it gives. Here a frozen convolution keeps its weight alone, and
activations are made again from what is kept anyway, as gradient checkpointing does, but only where that
costs next to nothing.
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
from torch.nn import Conv2d, GroupNorm, Module
from torch.nn.functional import conv2d, gelu, silu
from torch.nn.grad import conv2d_input

from .blocks import Block, is_usual

_normalise = torch.ops.aten.native_group_norm
_normalise_back = torch.ops.aten.native_group_norm_backward


def make_lean(module: Module) -> None:
    """Replace the forward passes of a UNet's convolutions, residual blocks and gated units by lean ones.

    Values and gradients stay the same. Learning convolutions, and residual blocks of kinds that SDXL does
    not have, keep their own.
    """
    layer: Any
    for layer in module.modules():
        lean = _lean(layer)
        if lean:
            layer.forward = lean


def _lean(layer: Any) -> Callable[..., Tensor] | None:
    if type(layer) is Conv2d and layer.padding_mode == "zeros" and layer.groups == 1:
        return _Convolution(layer)
    if type(layer) is GEGLU:
        return _GatedUnit(layer)
    if type(layer) is ResnetBlock2D and _is_plain(layer):
        return _ResidualBlock(layer)
    if type(layer) is BasicTransformerBlock and is_usual(layer):
        return Block(layer)
    return None


def _is_plain(block: ResnetBlock2D) -> bool:
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
    def __init__(self, layer: Conv2d) -> None:
        self._layer = layer
        self._plain = layer.forward

    def __call__(self, x: Tensor) -> Tensor:
        layer = self._layer
        if layer.weight.requires_grad:
            return self._plain(x)
        found: Tensor = _FrozenConvolution.apply(x, layer)  # type: ignore[no-untyped-call]
        return found


class _GatedUnit:
    def __init__(self, layer: Any) -> None:
        self._layer = layer

    def __call__(self, x: Tensor) -> Tensor:
        return again(_gate, self._layer.proj(x))


def _gate(both: Tensor) -> Tensor:
    values, gate = both.chunk(2, dim=-1)
    return values * gelu(gate)


class _ResidualBlock:
    def __init__(self, block: Any) -> None:
        self._block = block

    def __call__(self, x: Tensor, temb: Tensor) -> Tensor:
        block = self._block
        hidden = block.conv1(_activate(x, block.norm1))
        hidden = hidden + block.time_emb_proj(silu(temb))[:, :, None, None]
        hidden = block.conv2(_activate(hidden, block.norm2))
        if block.conv_shortcut is not None:
            x = block.conv_shortcut(x)
        result: Tensor = x + hidden
        return result


def _activate(x: Tensor, norm: GroupNorm) -> Tensor:
    """silu(norm(x)), of which x is kept, and the norm's statistics where no autocast changes kinds of numbers."""
    if x.dtype != norm.weight.dtype or torch.is_autocast_enabled(x.device.type):
        return again(lambda each: silu(norm(each)), x)
    found: Tensor = _Activation.apply(x.contiguous(), norm)  # type: ignore[no-untyped-call]
    return found


class _Activation(Function):
    """silu(norm(x)) of a frozen norm, with the backward pass by hand: no graph is made within a graph."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, norm: GroupNorm) -> Tensor:
        count, channels = x.shape[:2]
        ctx.norm = norm
        ctx.sizes = (count, channels, x.numel() // (count * channels), norm.num_groups)
        found, mean, deviation = _normalise(x, norm.weight, norm.bias, *ctx.sizes, norm.eps)
        ctx.save_for_backward(x, mean, deviation)
        return silu(found, inplace=True)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (x, mean, deviation), norm, sizes = ctx.saved_tensors, ctx.norm, ctx.sizes
        normal = _normalise(x, norm.weight, norm.bias, *sizes, norm.eps)[0]
        gradient = torch.ops.aten.silu_backward(gradient.contiguous(), normal)
        only_x = (True, False, False)
        return _normalise_back(gradient, x, mean, deviation, norm.weight, *sizes, only_x)[0], None


class _FrozenConvolution(Function):
    """A convolution that keeps its weight, and of its input the shape."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: Conv2d) -> Tensor:
        ctx.layer, ctx.shape, ctx.dtype = layer, x.shape, x.dtype
        return conv2d(x, layer.weight, layer.bias, layer.stride, layer.padding, layer.dilation)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        layer = ctx.layer
        found = conv2d_input(ctx.shape, layer.weight, gradient, layer.stride, layer.padding, layer.dilation)
        return found.to(ctx.dtype), None


def again(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """function(x), of which the backward pass keeps x alone and makes the rest again.

    Args:
        function: of frozen parameters, without chance.
    """
    found: Tensor = _Again.apply(x, function)  # type: ignore[no-untyped-call]
    return found


class _Again(Function):
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
            found = ctx.function(x)
        return torch.autograd.grad(found, x, gradient)[0], None

"""An override of the UNet's transformer blocks with fewer, larger operations that keeps less for the backward pass.

diffusers and peft run every norm, adapter matrix and residual as a separate operation, and autograd keeps the result of
each. Here, layers with the same input compute their adapters' first product together, the second product is added in
place, and cheap values (normalised inputs and the gate) are computed again in the backward pass. The operators are
PyTorch's own and run on any device.

Names: `rows` are activations as (batch * length, width), `low` is an adapter's first product A x, as (batch * length,
rank), and `of_x` is the gradient of x.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from diffusers.models.activations import GEGLU
from diffusers.models.attention_processor import AttnProcessor2_0
from peft.tuners.lora.layer import Linear
from torch import Tensor
from torch.autograd import Function
from torch.nn import Dropout, LayerNorm
from torch.nn.functional import gelu, linear, scaled_dot_product_attention

from ..model.adapter import ADAPTER
from .fused import is_active, is_plain

aten = torch.ops.aten


class TransformerBlock:
    """The forward pass of a supported block.

    The block's own forward pass runs where tensors have several number formats, attention is masked, the text needs
    a gradient, or the trained adapter is not active.
    """

    def __init__(self, block: Any) -> None:
        self._block = block
        self._plain = block.forward
        self._adapted = [*_projections(block.attn1), *_projections(block.attn2)]

    @cached_property
    def _attentions(self) -> tuple[_Attention, _Attention]:
        """The attentions, built at the first step, because the layers' weights may be replaced until then."""
        return _Attention(self._block.norm1, self._block.attn1), _Attention(
            self._block.norm2, self._block.attn2
        )

    def __call__(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        *rest: Any,
        **named: Any,
    ) -> Tensor:
        x, text = hidden_states, encoder_hidden_states
        masked = attention_mask is not None or encoder_attention_mask is not None
        if masked or text is None or text.requires_grad or not self._has_one_dtype(x, text):
            plain: Tensor = self._plain(x, attention_mask, text, encoder_attention_mask, *rest, **named)
            return plain
        x = self._attentions[0](x, None)
        x = self._attentions[1](x, text)
        result: Tensor = _FeedForward.apply(x, self._block.norm3, self._block.ff.net)  # type: ignore[no-untyped-call]
        return result

    def _has_one_dtype(self, x: Tensor, text: Tensor) -> bool:
        """Return whether inputs and weights have one number format, and the trained adapter is active."""
        layer = self._adapted[0]
        dtypes = {x.dtype, text.dtype, layer.lora_A[ADAPTER].weight.dtype, layer.base_layer.weight.dtype}
        return len(dtypes) == 1 and all(map(is_active, self._adapted))


def is_supported(block: Any) -> bool:
    """Return whether a block is frozen, has the parts of SDXL's, and has plain LoRA on all attention projections."""
    frozen = (block.norm1, block.norm2, block.norm3, block.ff)
    return (
        block.norm_type == "layer_norm"
        and block.attn2 is not None
        and not block.only_cross_attention
        and block.pos_embed is None
        and _is_supported_attention(block.attn1)
        and _is_supported_attention(block.attn2)
        and [type(part) for part in block.ff.net] == [GEGLU, Dropout, torch.nn.Linear]
        and block.ff.net[1].p == 0
        and not any(weight.requires_grad for module in frozen for weight in module.parameters())
        and _has_own_weight(block.ff.net[0].proj)
        and _has_own_weight(block.ff.net[2])
    )


def _has_own_weight(layer: Any) -> bool:
    """Return whether a layer is a plain linear layer, neither quantized nor overridden."""
    return type(layer) is torch.nn.Linear and "forward" not in vars(layer)


def _is_supported_attention(attention: Any) -> bool:
    extras = (
        attention.group_norm,
        attention.spatial_norm,
        attention.norm_q,
        attention.norm_k,
        attention.norm_cross,
    )
    return (
        type(attention.processor) is AttnProcessor2_0
        and all(extra is None for extra in extras)
        and not attention.residual_connection
        and attention.rescale_output_factor == 1
        and attention.scale == (attention.inner_dim // attention.heads) ** -0.5
        and attention.to_out[1].p == 0
        and all(type(layer) is Linear and is_plain(layer) for layer in _projections(attention))
        and all(_has_own_weight(layer.base_layer) for layer in _projections(attention))
        and not any(layer.base_layer.weight.requires_grad for layer in _projections(attention))
    )


def _projections(attention: Any) -> tuple[Any, Any, Any, Any]:
    return attention.to_q, attention.to_k, attention.to_v, attention.to_out[0]


class _Layer:
    """A frozen projection and its adapter's factors: `down`, (rank, in), and `up`, (out, rank)."""

    def __init__(self, layer: Any) -> None:
        self.base = layer.base_layer
        self.down, self.up = layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight
        self.scaling = float(layer.scaling[ADAPTER])

    @property
    def rank(self) -> int:
        return int(self.down.shape[0])


class _Attention:
    """x + output(attention), from norm(x) to itself or to a text. x has the shape (batch, length, width)."""

    def __init__(self, norm: LayerNorm, attention: Any) -> None:
        self._norm, self._heads = norm, attention.heads
        self._query, self._key, self._value, self._output = (
            _Layer(layer) for layer in _projections(attention)
        )

    def __call__(self, x: Tensor, text: Tensor | None) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        if text is None:
            query, key, value = _project(rows, self._norm, (self._query, self._key, self._value))
        else:
            (query,) = _project(rows, self._norm, (self._query,))
            key, value = _project(text.reshape(-1, text.shape[-1]), None, (self._key, self._value))
        query, key, value = (_split(each, x.shape[0], self._heads) for each in (query, key, value))
        mixed = _join(scaled_dot_product_attention(query, key, value))
        layer = self._output
        result: Tensor = _Output.apply(mixed, rows, layer, layer.down, layer.up)  # type: ignore[no-untyped-call]
        return result.view_as(x)


def _project(rows: Tensor, norm: LayerNorm | None, layers: Sequence[_Layer]) -> tuple[Tensor, ...]:
    factors = [factor for layer in layers for factor in (layer.down, layer.up)]
    results: tuple[Tensor, ...] = _Projections.apply(rows, norm, layers, *factors)  # type: ignore[no-untyped-call]
    return results


class _Projections(Function):
    """Several projections of the same rows, which are normalised first if there is a norm.

    It keeps the rows, the norm's statistics and the adapters' first products. The factors are arguments, although the
    layers have them, so that autograd computes their gradients.
    """

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, norm: LayerNorm | None, layers: Sequence[_Layer], *factors: Tensor
    ) -> tuple[Tensor, ...]:
        inner, *statistics = _normalise(rows, norm) if norm else (rows,)
        low = inner.mm(_stacked_downs(layers).t())
        results, parts = [], low.split([layer.rank for layer in layers], dim=1)
        for layer, part in zip(layers, parts, strict=True):
            result = linear(inner, layer.base.weight, layer.base.bias)
            results.append(result.addmm_(part, layer.up.t(), alpha=layer.scaling))
        ctx.norm, ctx.layers = norm, layers
        ctx.save_for_backward(rows, low, *statistics)
        return tuple(results)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        rows, low, *statistics = ctx.saved_tensors
        norm, layers = ctx.norm, ctx.layers
        inner = _normalise(rows, norm)[0] if norm else rows
        ranks = [layer.rank for layer in layers]
        of_low = torch.empty_like(low)
        of_ups = []
        for layer, gradient, part, of_part in zip(
            layers, gradients, low.split(ranks, dim=1), of_low.split(ranks, dim=1), strict=True
        ):
            torch.mm(gradient, layer.up, out=of_part)
            of_ups.append(_scaled(gradient.t().mm(part), layer.scaling))
        of_low = _scaled_parts(of_low, layers)
        of_downs = of_low.t().mm(inner).split(ranks)
        of_factors = [factor for pair in zip(of_downs, of_ups, strict=True) for factor in pair]
        if not ctx.needs_input_grad[0]:  # the rows of a text
            return None, None, None, *of_factors
        of_inner = of_low.mm(_stacked_downs(layers))
        for layer, gradient in zip(layers, gradients, strict=True):
            of_inner.addmm_(gradient, layer.base.weight)
        of_rows = _normalise_back(of_inner, rows, norm, *statistics) if norm else of_inner
        return of_rows, None, None, *of_factors


class _Output(Function):
    """residual + projection(x), both (batch * length, width)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, residual: Tensor, layer: _Layer, *factors: Tensor) -> Tensor:
        down, up = factors
        low = x.mm(down.t())
        ctx.layer = layer
        ctx.save_for_backward(x, low)
        result = linear(x, layer.base.weight, layer.base.bias)
        return result.addmm_(low, up.t(), alpha=layer.scaling).add_(residual)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, low = ctx.saved_tensors
        layer = ctx.layer
        of_low = _scaled(gradient.mm(layer.up), layer.scaling)
        of_up = _scaled(gradient.t().mm(low), layer.scaling)
        of_x = gradient.mm(layer.base.weight).addmm_(of_low, layer.down)
        return of_x, gradient, None, of_low.t().mm(x), of_up


class _FeedForward(Function):
    """x + output(value * gelu(gate)), where value and gate are projections of norm(x): (batch, length, width)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, norm: LayerNorm, net: Any) -> Tensor:
        ctx.norm, ctx.net = norm, net
        rows = x.reshape(-1, x.shape[-1])
        inner, mean, rstd = _normalise(rows, norm)
        both = linear(inner, net[0].proj.weight, net[0].proj.bias)
        ctx.save_for_backward(rows, mean, rstd, both)
        value, gate = both.chunk(2, dim=1)
        result = linear(gelu(gate).mul_(value), net[2].weight, net[2].bias)
        return result.add_(rows).view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        rows, mean, rstd, both = ctx.saved_tensors
        value, gate = both.chunk(2, dim=1)
        of_result = gradient.reshape(rows.shape)
        of_product = of_result.mm(ctx.net[2].weight)
        of_both = torch.empty_like(both)
        of_value, of_gate = of_both.chunk(2, dim=1)
        # In this order: the next line overwrites `of_product`.
        torch.mul(gelu(gate), of_product, out=of_value)
        aten.gelu_backward(of_product.mul_(value), gate, grad_input=of_gate)
        of_inner = of_both.mm(ctx.net[0].proj.weight)
        of_rows = _normalise_back(of_inner, rows, ctx.norm, mean, rstd)
        return of_rows.add_(of_result).view(gradient.shape), None, None


def _stacked_downs(layers: Sequence[_Layer]) -> Tensor:
    """Concatenate the layers' first factors: (sum of the ranks, in)."""
    return layers[0].down if len(layers) == 1 else torch.cat([layer.down for layer in layers])


def _scaled(tensor: Tensor, scaling: float) -> Tensor:
    """Multiply a tensor in place, unless the factor is 1."""
    return tensor if scaling == 1 else tensor.mul_(scaling)


def _scaled_parts(of_low: Tensor, layers: Sequence[_Layer]) -> Tensor:
    """Multiply each layer's columns by its scaling, in place."""
    if len({layer.scaling for layer in layers}) == 1:
        return _scaled(of_low, layers[0].scaling)
    for layer, part in zip(layers, of_low.split([layer.rank for layer in layers], dim=1), strict=True):
        part.mul_(layer.scaling)
    return of_low


def _normalise(rows: Tensor, norm: LayerNorm) -> tuple[Tensor, Tensor, Tensor]:
    """Return normalised rows, their means and their inverse standard deviations."""
    return torch.native_layer_norm(rows, norm.normalized_shape, norm.weight, norm.bias, norm.eps)


def _normalise_back(gradient: Tensor, rows: Tensor, norm: LayerNorm, mean: Tensor, rstd: Tensor) -> Tensor:
    """Return the gradient of the rows from the gradient of the normalised rows."""
    of_rows: Tensor = aten.native_layer_norm_backward(
        gradient, rows, norm.normalized_shape, mean, rstd, norm.weight, norm.bias, (True, False, False)
    )[0]
    return of_rows


def _split(rows: Tensor, batch: int, heads: int) -> Tensor:
    """Reshape (batch * length, heads * width) to (batch, heads, length, width)."""
    return rows.view(batch, -1, heads, rows.shape[1] // heads).transpose(1, 2)


def _join(heads: Tensor) -> Tensor:
    """Reshape (batch, heads, length, width) to (batch * length, heads * width)."""
    return heads.transpose(1, 2).reshape(-1, heads.shape[1] * heads.shape[3])

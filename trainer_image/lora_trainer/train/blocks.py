"""A transformer block of the UNet as three functions whose backward passes are written by hand.

A block is ninety small operations, and on a CPU half of its time went to what stands around them: autograd's nodes,
peft's and diffusers' modules. The three functions make the same sums, keep what the adapter's gradient needs, and
make again what is cheap: the normalised input and the gate.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.activations import GEGLU
from diffusers.models.attention_processor import AttnProcessor2_0
from peft.tuners.lora.layer import Linear
from torch import Tensor
from torch.autograd import Function
from torch.nn import Dropout, LayerNorm
from torch.nn.functional import gelu, linear

from .adapter import ADAPTER
from .fused import is_active, is_plain

_attend = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_attend_back = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
_normalise_back = torch.ops.aten.native_layer_norm_backward


class Block:
    """The forward pass of a block that `is_usual`, in one kind of numbers on a CPU; in other states the block's own."""

    def __init__(self, block: Any) -> None:
        self._block = block
        self._plain = block.forward
        self._layers = [*_projections(block.attn1), *_projections(block.attn2)]

    def __call__(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        *rest: Any,
        **named: Any,
    ) -> Tensor:
        x, text, block = hidden_states, encoder_hidden_states, self._block
        masked = attention_mask is not None or encoder_attention_mask is not None
        if masked or text is None or text.requires_grad or not self._is_uniform(x):
            plain: Tensor = self._plain(x, attention_mask, text, encoder_attention_mask, *rest, **named)
            return plain
        x = _attention(x, None, block.norm1, block.attn1)
        x = _attention(x, text, block.norm2, block.attn2)
        found: Tensor = _FeedForward.apply(x, block.norm3, block.ff.net)  # type: ignore[no-untyped-call]
        return found

    def _is_uniform(self, x: Tensor) -> bool:
        adapter: Tensor = self._layers[0].lora_A[ADAPTER].weight
        uniform = x.dtype == adapter.dtype and not torch.is_autocast_enabled("cpu")
        return uniform and x.device.type == "cpu" and all(map(is_active, self._layers))


def is_usual(block: Any) -> bool:
    """Whether a BasicTransformerBlock is as SDXL has it, frozen, with plain LoRA on all of its attention."""
    frozen = (block.norm1, block.norm2, block.norm3, block.ff)
    return (
        block.norm_type == "layer_norm"
        and block.attn2 is not None
        and not block.only_cross_attention
        and block.pos_embed is None
        and _is_usual_attention(block.attn1)
        and _is_usual_attention(block.attn2)
        and [type(part) for part in block.ff.net] == [GEGLU, Dropout, torch.nn.Linear]
        and block.ff.net[1].p == 0
        and not any(weight.requires_grad for module in frozen for weight in module.parameters())
    )


def _is_usual_attention(part: Any) -> bool:
    extras = (part.group_norm, part.spatial_norm, part.norm_q, part.norm_k, part.norm_cross)
    return (
        type(part.processor) is AttnProcessor2_0
        and all(extra is None for extra in extras)
        and not part.residual_connection
        and part.rescale_output_factor == 1
        and part.scale == (part.inner_dim // part.heads) ** -0.5
        and part.to_out[1].p == 0
        and all(type(layer) is Linear and is_plain(layer) for layer in _projections(part))
    )


def _projections(part: Any) -> tuple[Any, Any, Any, Any]:
    return part.to_q, part.to_k, part.to_v, part.to_out[0]


def _attention(x: Tensor, text: Tensor | None, norm: LayerNorm, part: Any) -> Tensor:
    factors = [
        factor[ADAPTER].weight for layer in _projections(part) for factor in (layer.lora_A, layer.lora_B)
    ]
    found: Tensor = _Attention.apply(x, text, norm, part, *factors)  # type: ignore[no-untyped-call]
    return found


class _Attention(Function):
    """x + output(attention from normalise(x) to itself, or to a text)."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, text: Tensor | None, norm: LayerNorm, part: Any, *factors: Tensor
    ) -> Tensor:
        ctx.norm, ctx.part, ctx.shape = norm, part, x.shape
        rows = x.reshape(-1, x.shape[-1])
        inner, mean, deviation = _normalise(rows, norm)
        source = inner if text is None else text.reshape(-1, text.shape[-1])
        to_query, to_key, to_value, to_output = _projections(part)
        query, low_query = _project(inner, to_query, *factors[0:2])
        key, low_key = _project(source, to_key, *factors[2:4])
        value, low_value = _project(source, to_value, *factors[4:6])
        heads = [_split(each, x.shape[0], part.heads) for each in (query, key, value)]
        mixed, sums = _attend(*heads)
        found, low_output = _project(_join(mixed), to_output, *factors[6:8])
        low = low_query, low_key, low_value, low_output
        ctx.save_for_backward(rows, mean, deviation, text, *heads, mixed, sums, *low, *factors)
        return found.add_(rows).view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        rows, mean, deviation, text, *rest = ctx.saved_tensors
        heads, mixed, sums, low, factors = rest[:3], rest[3], rest[4], rest[5:9], rest[9:]
        to_query, to_key, to_value, to_output = _projections(ctx.part)
        gradient = gradient.reshape(rows.shape)
        inner = _normalise(rows, ctx.norm)[0]
        source = inner if text is None else text.reshape(-1, text.shape[-1])

        of_output, narrow = _learn(gradient, _join(mixed), low[3], to_output, factors[7])
        of_mixed = _descend(gradient, narrow, to_output, factors[6])
        of_heads = _attend_back(
            _split(of_mixed, ctx.shape[0], ctx.part.heads), *heads, mixed, sums, 0.0, False
        )
        of_query, of_key, of_value = map(_join, of_heads)
        learnt_query, narrow = _learn(of_query, inner, low[0], to_query, factors[1])
        of_inner = _descend(of_query, narrow, to_query, factors[0])
        learnt_key, narrow = _learn(of_key, source, low[1], to_key, factors[3])
        if text is None:
            _descend(of_key, narrow, to_key, factors[2], of_inner)
        learnt_value, narrow = _learn(of_value, source, low[2], to_value, factors[5])
        if text is None:
            _descend(of_value, narrow, to_value, factors[4], of_inner)
        found = _denormalise(of_inner, rows, mean, deviation, ctx.norm).add_(gradient).view(ctx.shape)
        return (found, None, None, None, *learnt_query, *learnt_key, *learnt_value, *of_output)


class _FeedForward(Function):
    """x + output(value * gelu(gate)), both of them from normalise(x)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, norm: LayerNorm, net: Any) -> Tensor:
        ctx.norm, ctx.net = norm, net
        rows = x.reshape(-1, x.shape[-1])
        inner, mean, deviation = _normalise(rows, norm)
        (to_value, to_gate), (of_value, of_gate) = net[0].proj.weight.chunk(2), net[0].proj.bias.chunk(2)
        value, gate = linear(inner, to_value, of_value), linear(inner, to_gate, of_gate)
        ctx.save_for_backward(rows, mean, deviation, value, gate)
        found = linear(gelu(gate).mul_(value), net[2].weight, net[2].bias)
        return found.add_(rows).view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        rows, mean, deviation, value, gate = ctx.saved_tensors
        to_value, to_gate = ctx.net[0].proj.weight.chunk(2)
        of_found = gradient.reshape(rows.shape)
        of_product = of_found.mm(ctx.net[2].weight)
        of_inner = gelu(gate).mul_(of_product).mm(to_value)
        of_inner.addmm_(torch.ops.aten.gelu_backward(of_product.mul_(value), gate), to_gate)
        found = _denormalise(of_inner, rows, mean, deviation, ctx.norm).add_(of_found)
        return found.view(gradient.shape), None, None


def _normalise(rows: Tensor, norm: LayerNorm) -> tuple[Tensor, Tensor, Tensor]:
    """With the means and the inverse deviations."""
    return torch.native_layer_norm(rows, norm.normalized_shape, norm.weight, norm.bias, norm.eps)


def _denormalise(gradient: Tensor, rows: Tensor, mean: Tensor, deviation: Tensor, norm: LayerNorm) -> Tensor:
    shape, only_rows = norm.normalized_shape, (True, False, False)
    found: Tensor = _normalise_back(
        gradient, rows, shape, mean, deviation, norm.weight, norm.bias, only_rows
    )[0]
    return found


def _split(rows: Tensor, batch: int, heads: int) -> Tensor:
    """(batch * length, heads * width) as (batch, heads, length, width)."""
    return rows.view(batch, -1, heads, rows.shape[1] // heads).transpose(1, 2)


def _join(heads: Tensor) -> Tensor:
    """The other way round."""
    return heads.transpose(1, 2).reshape(-1, heads.shape[1] * heads.shape[3])


def _project(rows: Tensor, layer: Any, down: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """What a layer with its adapter makes of rows, and what `down` does: (rank, rows).

    Narrow matrices lie on their side everywhere here: products of a quarter of the time.
    """
    base = layer.base_layer
    low = down.mm(rows.t())
    return linear(rows, base.weight, base.bias).addmm_(low.t(), up.t(), alpha=layer.scaling[ADAPTER]), low


def _learn(
    gradient: Tensor, rows: Tensor, low: Tensor, layer: Any, up: Tensor
) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """The gradients of an adapter's `down` and `up`, and that of `low`."""
    scaling = layer.scaling[ADAPTER]
    narrow = up.t().mm(gradient.t()).mul_(scaling)
    return (narrow.mm(rows), low.mm(gradient).mul_(scaling).t()), narrow


def _descend(
    gradient: Tensor, narrow: Tensor, layer: Any, down: Tensor, total: Tensor | None = None
) -> Tensor:
    """The gradient of a layer's input, added to the total."""
    weight = layer.base_layer.weight
    total = gradient.mm(weight) if total is None else total.addmm_(gradient, weight)
    return total.addmm_(narrow.t(), down)

"""A transformer block of the UNet as three functions whose backward passes are written by hand.

A block is ninety small operations, and on a CPU half of its time went to what stands around them: autograd's nodes,
peft's and diffusers' modules. The three functions make the same sums, keep what the adapter's gradient needs, and
make again what is cheap: the normalised input and the gate.
"""

from __future__ import annotations

from functools import cached_property
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
        self._adapted = [*_projections(block.attn1), *_projections(block.attn2)]

    @cached_property
    def _parts(self) -> tuple[_Part, _Part]:
        """Taken apart at the first step: until then the layers' weights may be replaced."""
        return _Part(self._block.norm1, self._block.attn1), _Part(self._block.norm2, self._block.attn2)

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
        if masked or text is None or text.requires_grad or not self._is_uniform(x):
            plain: Tensor = self._plain(x, attention_mask, text, encoder_attention_mask, *rest, **named)
            return plain
        for part, source in zip(self._parts, (None, text), strict=True):
            x = _Attention.apply(x, source, part, *part.factors)  # type: ignore[no-untyped-call]
        found: Tensor = _FeedForward.apply(x, self._block.norm3, self._block.ff.net)  # type: ignore[no-untyped-call]
        return found

    def _is_uniform(self, x: Tensor) -> bool:
        uniform = x.dtype == self._parts[0].factors[0].dtype and not torch.is_autocast_enabled("cpu")
        return uniform and x.device.type == "cpu" and all(map(is_active, self._adapted))


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
        and not any(layer.base_layer.weight.requires_grad for layer in _projections(part))
    )


def _projections(part: Any) -> tuple[Any, Any, Any, Any]:
    return part.to_q, part.to_k, part.to_v, part.to_out[0]


class _Layer:
    """A frozen projection with its adapter, on matrices of (rows, width).

    Narrow matrices lie on their side, (rank, rows): products in a quarter of the time.
    """

    def __init__(self, layer: Any) -> None:
        self._weight, self._bias = layer.base_layer.weight, layer.base_layer.bias
        self.down, self.up = layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight
        self._scaling = layer.scaling[ADAPTER]

    def project(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """What the layer makes of rows, and what `down` does."""
        low = self.down.mm(rows.t())
        return linear(rows, self._weight, self._bias).addmm_(low.t(), self.up.t(), alpha=self._scaling), low

    def learn(self, gradient: Tensor, rows: Tensor, low: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The gradients of `down` and `up`, and, but for the scaling, that of `low`."""
        narrow, nothing = self.up.t().mm(gradient.t()), low.new_empty(())
        of_down = torch.addmm(nothing, narrow, rows, beta=0, alpha=self._scaling)
        return of_down, torch.addmm(nothing, low, gradient, beta=0, alpha=self._scaling).t(), narrow

    def descend(self, gradient: Tensor, narrow: Tensor, total: Tensor | None = None) -> Tensor:
        """The gradient of the rows, added to the total."""
        total = gradient.mm(self._weight) if total is None else total.addmm_(gradient, self._weight)
        return total.addmm_(narrow.t(), self.down, alpha=self._scaling)


class _Part:
    """An attention's layers, and the norm before it."""

    def __init__(self, norm: LayerNorm, part: Any) -> None:
        self.norm, self.heads = norm, part.heads
        self.layers = [_Layer(layer) for layer in _projections(part)]
        self.factors = [factor for layer in self.layers for factor in (layer.down, layer.up)]


class _Attention(Function):
    """x + output(attention from normalise(x) to itself, or to a text)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, text: Tensor | None, part: _Part, *factors: Tensor) -> Tensor:
        """factors are those of the part, for autograd to know what learns."""
        ctx.part, ctx.shape = part, x.shape
        rows = x.reshape(-1, x.shape[-1])
        inner, mean, deviation = _normalise(rows, part.norm)
        source = inner if text is None else text.reshape(-1, text.shape[-1])
        to_query, to_key, to_value, to_output = part.layers
        query, low_query = to_query.project(inner)
        key, low_key = to_key.project(source)
        value, low_value = to_value.project(source)
        heads = [_split(each, x.shape[0], part.heads) for each in (query, key, value)]
        mixed, sums = _attend(*heads)
        found, low_output = to_output.project(_join(mixed))
        low = low_query, low_key, low_value, low_output
        ctx.save_for_backward(rows, mean, deviation, text, *heads, mixed, sums, *low)
        return found.add_(rows).view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        rows, mean, deviation, text, *heads, mixed, sums, low_query, low_key, low_value, low_output = (
            ctx.saved_tensors
        )
        part = ctx.part
        to_query, to_key, to_value, to_output = part.layers
        gradient = gradient.reshape(rows.shape)
        inner = _normalise(rows, part.norm)[0]
        source = inner if text is None else text.reshape(-1, text.shape[-1])

        *of_output, narrow = to_output.learn(gradient, _join(mixed), low_output)
        of_mixed = _split(to_output.descend(gradient, narrow), ctx.shape[0], part.heads)
        of_heads = _attend_back(of_mixed, *heads, mixed, sums, 0.0, False)
        query, key, value = map(_join, of_heads)
        *of_query, narrow = to_query.learn(query, inner, low_query)
        of_inner = to_query.descend(query, narrow)
        *of_key, narrow = to_key.learn(key, source, low_key)
        if text is None:
            to_key.descend(key, narrow, of_inner)
        *of_value, narrow = to_value.learn(value, source, low_value)
        if text is None:
            to_value.descend(value, narrow, of_inner)
        found = _denormalise(of_inner, rows, mean, deviation, part.norm).add_(gradient).view(ctx.shape)
        return (found, None, None, *of_query, *of_key, *of_value, *of_output)


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

"""Select the layers that get an adapter, and the rank and learning rate of each."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch.nn import Conv2d, Linear, Module

from lora_api.job import Adapter, BlockOverride, Targets

from ...errors import BadConfigurationError

UNET = "unet"
TEXT_ENCODERS = ("text_encoder", "text_encoder_2")
ATTENTION: Mapping[str, tuple[str, ...]] = {
    UNET: ("to_k", "to_out.0", "to_q", "to_v"),
    **dict.fromkeys(TEXT_ENCODERS, ("k_proj", "out_proj", "q_proj", "v_proj")),
}
"""Suffixes of the attention projections, as in diffusers' trainers, by the module's name in the pipeline."""
FEED_FORWARD: Mapping[str, tuple[str, ...]] = {
    UNET: ("ff.net.0.proj", "ff.net.2"),
    **dict.fromkeys(TEXT_ENCODERS, ("mlp.fc1", "mlp.fc2")),
}
"""Suffixes of the feed-forward layers, by the module's name in the pipeline."""
BLOCK_LAYERS = re.compile(
    r"(down_blocks\.\d+|mid_block|up_blocks\.\d+)\.(attentions|resnets|downsamplers|upsamplers)\."
)
"""Layers that kohya's LoRA-C3Lier adapts: those in the UNet's blocks, without embeddings and the outer convolutions."""


@dataclass(frozen=True)
class Selection:
    """The target layers of a module, in the form that peft takes."""

    targets: list[str]
    """Suffixes or full names of layers."""
    ranks: dict[str, int]
    """Ranks that differ from the common rank, by a regular expression of the layer's name (peft's `rank_pattern`)."""


def select(module: Module, component: str, rank: int, kind: Adapter) -> Selection:
    """Select the target layers of a component.

    Args:
        component: the module's name in the pipeline.
        rank: the rank of layers without an override.
    """
    is_unet = component == UNET
    if kind.targets == Targets.ATTENTION and not (is_unet and kind.blocks):
        # Suffixes, so that the adapter's configuration in the published file stays short.
        return Selection(list(ATTENTION[component]), {})
    layers = {
        name: layer
        for name, layer in module.named_modules()
        if _is_target(name, layer, component, kind.targets)
    }
    ranks = (
        {name: _rank(name, layer, rank, kind) for name, layer in layers.items()}
        if is_unet
        else dict.fromkeys(layers, rank)
    )
    if is_unet:
        _refuse_unknown_blocks(module, kind)
        _refuse_blocks_without_targets(layers, kind)
    if not any(ranks.values()):
        raise BadConfigurationError(
            f"training.adapter.blocks gives every layer of the {component} rank 0: leave one block"
        )
    # Full names, because a suffix would also match layers of excluded blocks.
    return Selection(
        sorted(name for name, own in ranks.items() if own),
        {f"^{re.escape(name)}": own for name, own in ranks.items() if own not in (0, rank)},
    )


def _refuse_unknown_blocks(module: Module, kind: Adapter) -> None:
    names = {name for name, _ in module.named_modules()}
    unknown = sorted({each.block for each in kind.blocks} - names)
    if unknown:
        blocks = sorted(name for name in names if re.fullmatch(r"(down|up)_blocks\.\d+|mid_block", name))
        raise BadConfigurationError(
            f"training.adapter.blocks: the base model has no {', '.join(unknown)}; its blocks are {', '.join(blocks)}"
        )


def _refuse_blocks_without_targets(layers: Mapping[str, Module], kind: Adapter) -> None:
    """Refuse settings of a block in which no layer gets an adapter: the first block of SDXL has no attention."""
    for each in kind.blocks:
        if not any(name.startswith(f"{each.block}.") for name in layers):
            raise BadConfigurationError(
                f"training.adapter.blocks: {each.block} has no layer that targets {kind.targets} adapts; leave it out, or "
                f"set training.adapter.targets to {Targets.FULL}"
            )


def block_override(name: str, kind: Adapter) -> BlockOverride | None:
    """Return the override of the UNet block that a layer or parameter belongs to; None if it has none."""
    return next((each for each in kind.blocks if name.startswith(f"{each.block}.")), None)


def _is_target(name: str, layer: Any, component: str, targets: Targets) -> bool:
    if component == UNET and targets == Targets.FULL:
        return isinstance(layer, Linear | Conv2d) and BLOCK_LAYERS.match(name) is not None
    suffixes = ATTENTION[component]
    if targets != Targets.ATTENTION:
        suffixes += FEED_FORWARD[component]
    return isinstance(layer, Linear) and name.endswith(tuple(f".{suffix}" for suffix in suffixes))


def _rank(name: str, layer: Module, rank: int, kind: Adapter) -> int:
    override = block_override(name, kind)
    if override and override.rank is not None:
        return override.rank
    if isinstance(layer, Conv2d) and layer.kernel_size != (1, 1) and kind.convolution_rank:
        return kind.convolution_rank
    return rank

"""kohya's adapter format, which ComfyUI, Forge, A1111 and kohya's scripts read: names and tensors.

LoKr, LoHa and DoRA are stored as LyCORIS stores them, and the metadata names LyCORIS as the module. So LyCORIS defines
what the tensors mean. docs/reference/adapter-files.md lists programs that read them differently.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from peft.tuners.loha.layer import LoHaLayer
from peft.tuners.lokr.layer import LoKrLayer
from torch import Tensor

from ..model.adapter import ADAPTER, UNET

TEXT_ENCODERS = {"text_encoder": "lora_te1", "text_encoder_2": "lora_te2"}
BLOCKS = (
    # Name in diffusers, name in Stability's numbering (see `_unet_module`), and number of the first block.
    (r"down_blocks\.(\d+)\.resnets\.(\d+)\.(.+)", "input_blocks.{0}.0.{1}", 1),
    (r"down_blocks\.(\d+)\.attentions\.(\d+)\.(.+)", "input_blocks.{0}.1.{1}", 1),
    (r"up_blocks\.(\d+)\.resnets\.(\d+)\.(.+)", "output_blocks.{0}.0.{1}", 0),
    (r"up_blocks\.(\d+)\.attentions\.(\d+)\.(.+)", "output_blocks.{0}.1.{1}", 0),
)
MIDDLE = {"resnets.0": "0", "attentions.0": "1", "resnets.1": "2"}
"""Numbers of the middle block's modules in Stability's numbering."""
RESIDUAL = {
    "conv1": "in_layers.2",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
    "time_emb_proj": "emb_layers.1",
}
"""Stability's names of a residual block's layers, by diffusers' names."""
LOKR = ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b")
LOHA = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")


def kohya_name(component: str, name: str, layers_per_block: int) -> str:
    """Convert a layer's name to kohya's format.

    Args:
        component: the model's name in the pipeline.
        name: the layer's name in the model.
        layers_per_block: `layers_per_block` of the UNet's configuration.
    """
    if component == UNET:
        return f"lora_unet_{_unet_module(name, layers_per_block)}"
    return f"{TEXT_ENCODERS[component]}_{with_text_model(component, name).replace('.', '_')}"


def with_text_model(component: str, name: str) -> str:
    """Add the prefix `text_model.` to the name of a text encoder's layer, if it is missing.

    transformers 5 omits it in the first text encoder, but every reader expects it.
    """
    if component == UNET or name.startswith("text_model."):
        return name
    return f"text_model.{name}"


def _unet_module(name: str, layers_per_block: int) -> str:
    """Convert the name of a UNet layer to Stability's block numbering, which kohya's scripts use for SDXL.

    In this numbering, every layer of a down or up block is a separate block, and so is a down-sampler. Within a block,
    number 0 is the residual block, 1 the attention, and 2 the up-sampler, which in SDXL follows an attention.
    """
    stride = layers_per_block + 1
    for pattern, place, first in BLOCKS:
        if match := re.fullmatch(pattern, name):
            number = first + int(match[1]) * stride + int(match[2])
            return _flat(place.format(number, RESIDUAL.get(match[3], match[3])))
    if match := re.fullmatch(r"mid_block\.(\w+\.\d)\.(.+)", name):
        return _flat(f"middle_block.{MIDDLE[match[1]]}.{RESIDUAL.get(match[2], match[2])}")
    if match := re.fullmatch(r"down_blocks\.(\d+)\.downsamplers\.0\.conv", name):
        return _flat(f"input_blocks.{(int(match[1]) + 1) * stride}.0.op")
    if match := re.fullmatch(r"up_blocks\.(\d+)\.upsamplers\.0\.conv", name):
        return _flat(f"output_blocks.{int(match[1]) * stride + layers_per_block}.2.conv")
    raise ValueError(f"kohya's format has no name for {name}")


def _flat(name: str) -> str:
    return name.replace(".", "_")


@torch.no_grad()
def layer_tensors(layer: Any) -> dict[str, Tensor]:
    """Return a layer's adapter tensors by their names in kohya's and LyCORIS's files."""
    scaling, rank = layer.scaling[ADAPTER], layer.r[ADAPTER]
    if isinstance(layer, LoKrLayer | LoHaLayer):
        names = LOKR if isinstance(layer, LoKrLayer) else LOHA
        tensors = {name: parts[ADAPTER] for name in names if ADAPTER in (parts := getattr(layer, name))}
        # The first factor is multiplied by the scale, and alpha is set to the rank, so that readers do not scale.
        # LyCORIS scales twice when it merges such a layer, and not at all if both factors of LoKr are not decomposed.
        first = next(iter(tensors))
        return {**tensors, first: tensors[first] * scaling, "alpha": torch.tensor(float(rank))}
    alpha = torch.tensor(float(scaling * rank))  # a reader scales by alpha / rank
    tensors = {
        "lora_down.weight": layer.lora_A[ADAPTER].weight,
        "lora_up.weight": layer.lora_B[ADAPTER].weight,
        "alpha": alpha,
    }
    if layer.lora_variant:
        base = layer.get_base_layer().weight
        magnitude = layer.lora_magnitude_vector[ADAPTER].weight
        # LyCORIS multiplies the changed weight by this magnitude, after dividing it by its norm.
        tensors["dora_scale"] = magnitude.reshape(-1, *[1] * (base.dim() - 1))
    return tensors


@torch.no_grad()
def trained_weight(layer: Any) -> Tensor:
    """Compute a layer's weight with the adapter merged by peft: float32, the shape of the base weight."""
    weight: Tensor = layer.get_base_layer().weight.float()
    if getattr(layer, "lora_variant", None):
        weight = layer.lora_variant[ADAPTER].merge_safe(layer, ADAPTER, weight)
    else:
        weight = weight + layer.get_delta_weight(ADAPTER).float()
    return weight


def read_weight(base: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
    """Compute a layer's changed weight from its tensors in a file, as LyCORIS does.

    Args:
        base: the layer's base weight.
        tensors: the layer's tensors by their names in the file, without the layer's name.

    Returns:
        float32, the shape of `base`.
    """
    base, alpha = base.float(), float(tensors["alpha"])
    if "hada_w1_a" in tensors:
        w1a, w1b, w2a, w2b = (tensors[name] for name in LOHA)
        change = (w1a @ w1b) * (w2a @ w2b) * (alpha / w1b.shape[0])
    elif any(name.startswith("lokr_") for name in tensors):
        (w1, rank1), (w2, rank2) = (_factor(tensors, name) for name in ("lokr_w1", "lokr_w2"))
        rank = rank2 or rank1
        if w2.dim() == 4:  # a convolution whose larger factor is not decomposed
            w1 = w1[:, :, None, None]
        change = torch.kron(w1, w2) * (alpha / rank if rank else 1.0)
    else:
        up, down = tensors["lora_up.weight"].flatten(1), tensors["lora_down.weight"].flatten(1)
        change = up @ down * (alpha / down.shape[0])
    changed = base + change.to(base.device).reshape(base.shape)
    if "dora_scale" in tensors:
        changed *= tensors["dora_scale"].to(base.device) / _row_norms(changed)
    return changed


def _factor(tensors: Mapping[str, Tensor], name: str) -> tuple[Tensor, int | None]:
    """Compute one factor of a Kronecker product, and its rank; None if the factor is not decomposed."""
    if name in tensors:
        return tensors[name], None
    a, b = tensors[f"{name}_a"], tensors[f"{name}_b"]
    return a @ b, b.shape[0]


def _row_norms(weight: Tensor) -> Tensor:
    """Compute the norm of each output's weights: (out, 1) or, for a convolution, (out, 1, 1, 1)."""
    norms: Tensor = torch.linalg.vector_norm(weight.flatten(1), dim=1)
    return norms.reshape(-1, *[1] * (weight.dim() - 1))

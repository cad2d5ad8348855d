"""kohya's format, that of ComfyUI, Forge, A1111 and kohya's own scripts: names, tensors, and how they are read.

LoKr and LoHa are LyCORIS's, in the same kind of file. What a file means is what ComfyUI 0.3.77
(comfy/weight_adapter) makes of it, which Forge and others took over.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from peft.tuners.loha.layer import LoHaLayer
from peft.tuners.lokr.layer import LoKrLayer
from torch import Tensor

from .adapter import ADAPTER, UNET

TEXT_ENCODERS = {"text_encoder": "lora_te1", "text_encoder_2": "lora_te2"}
BLOCKS = (
    # diffusers' blocks; Stability's list of blocks, and the place in it for i, j and layers per block.
    (r"down_blocks\.(\d+)\.resnets\.(\d+)\.(.+)", "input_blocks.{0}.0.{1}", 1),
    (r"down_blocks\.(\d+)\.attentions\.(\d+)\.(.+)", "input_blocks.{0}.1.{1}", 1),
    (r"up_blocks\.(\d+)\.resnets\.(\d+)\.(.+)", "output_blocks.{0}.0.{1}", 0),
    (r"up_blocks\.(\d+)\.attentions\.(\d+)\.(.+)", "output_blocks.{0}.1.{1}", 0),
)
MIDDLE = {"resnets.0": "0", "attentions.0": "1", "resnets.1": "2"}
RESIDUAL = {
    "conv1": "in_layers.2",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
    "time_emb_proj": "emb_layers.1",
}
LOKR = ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b")
LOHA = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")


def kohya_name(component: str, name: str, layers_per_block: int) -> str:
    """A module's name in kohya's files.

    Args:
        component: the pipeline's name for the model that it is in.
        name: the module's, in that model.
        layers_per_block: the UNet's.
    """
    if component == UNET:
        return f"lora_unet_{_unet_module(name, layers_per_block)}"
    return f"{TEXT_ENCODERS[component]}_{with_text_model(component, name).replace('.', '_')}"


def with_text_model(component: str, name: str) -> str:
    """transformers 5 drops `text_model` from the first encoder's names; every reader expects it."""
    if component == UNET or name.startswith("text_model."):
        return name
    return f"text_model.{name}"


def _unet_module(name: str, layers_per_block: int) -> str:
    """kohya's scripts train SDXL in Stability's own block numbering.

    There, every layer of a down or up block is a block of its own, followed by the down-sampler's; in each,
    number 0 is the residual block, 1 the attention, and 2 the up-sampler, which in SDXL comes after attention.
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
    """An adapted layer's tensors by what kohya's and LyCORIS's files call them."""
    scaling, rank = layer.scaling[ADAPTER], layer.r[ADAPTER]
    # A reader scales by alpha / rank.
    alpha = torch.tensor(float(scaling * rank))
    if isinstance(layer, LoKrLayer):
        found = {name: matrices[ADAPTER] for name in LOKR if ADAPTER in (matrices := getattr(layer, name))}
        if "lokr_w1" in found and "lokr_w2" in found:  # no reader scales what has no rank
            found["lokr_w1"] = found["lokr_w1"] * scaling
        return {**found, "alpha": alpha}
    if isinstance(layer, LoHaLayer):
        return {**{name: getattr(layer, name)[ADAPTER] for name in LOHA}, "alpha": alpha}
    found = {
        "lora_down.weight": layer.lora_A[ADAPTER].weight,
        "lora_up.weight": layer.lora_B[ADAPTER].weight,
        "alpha": alpha,
    }
    if layer.lora_variant:
        base = layer.get_base_layer().weight.float()
        changed = base + layer.get_delta_weight(ADAPTER).float()
        magnitude = layer.lora_magnitude_vector[ADAPTER].weight.reshape(_row_norms(base).shape)
        # DoRA divides by the changed weight's norm, its readers by the base weight's: the file makes up for it.
        found["dora_scale"] = magnitude * _row_norms(base) / _row_norms(changed)
    return found


@torch.no_grad()
def trained_weight(layer: Any) -> Tensor:
    """An adapted layer's weight as peft merges it: float32."""
    weight: Tensor = layer.get_base_layer().weight.float()
    if getattr(layer, "lora_variant", None):
        weight = layer.lora_variant[ADAPTER].merge_safe(layer, ADAPTER, weight)
    else:
        weight = weight + layer.get_delta_weight(ADAPTER).float()
    return weight


def read_weight(base: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
    """What a reader makes of a layer's tensors: its changed weight, float32.

    Args:
        base: the layer's own weight.
        tensors: by their names in the file, without the layer's.
    """
    base, alpha = base.float(), float(tensors["alpha"])
    if "hada_w1_a" in tensors:
        w1a, w1b, w2a, w2b = (tensors[name] for name in LOHA)
        change = (w1a @ w1b) * (w2a @ w2b) * (alpha / w1b.shape[0])
    elif any(name.startswith("lokr_") for name in tensors):
        (w1, rank1), (w2, rank2) = (_factor(tensors, name) for name in ("lokr_w1", "lokr_w2"))
        rank = rank2 or rank1
        change = torch.kron(w1, w2) * (alpha / rank if rank else 1.0)
    else:
        up, down = tensors["lora_up.weight"].flatten(1), tensors["lora_down.weight"].flatten(1)
        change = up @ down * (alpha / down.shape[0])
    changed = base + change.to(base.device).reshape(base.shape)
    if "dora_scale" in tensors:
        changed *= tensors["dora_scale"].to(base.device) / _row_norms(base)
    return changed


def _factor(tensors: Mapping[str, Tensor], name: str) -> tuple[Tensor, int | None]:
    """One side of a Kronecker product, and its rank where it has one."""
    if name in tensors:
        return tensors[name], None
    a, b = tensors[f"{name}_a"], tensors[f"{name}_b"]
    return a @ b, b.shape[0]


def _row_norms(weight: Tensor) -> Tensor:
    """The norm of what makes each output: (outputs, 1) or, of a convolution, (outputs, 1, 1, 1)."""
    norms: Tensor = torch.linalg.vector_norm(weight.flatten(1), dim=1)
    return norms.reshape(-1, *[1] * (weight.dim() - 1))

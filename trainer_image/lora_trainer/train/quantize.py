"""The frozen UNet in fewer bits, by bitsandbytes, for GPUs that 16 bits do not fit on."""

from __future__ import annotations

import torch
from diffusers import UNet2DConditionModel

from lora_api.job import QuantizeBase


def quantize(unet: UNet2DConditionModel, kind: QuantizeBase) -> None:
    """Put the linear layers of the UNet's transformers, most of its weights, into 4 or 8 bits.

    NF4 is QLoRA's 4-bit format (Dettmers et al. 2023, arXiv:2305.14314), Int8 that of LLM.int8()
    (Dettmers et al. 2022, arXiv:2208.07339). The weights shrink when the UNet next moves to a device.
    """
    if kind == QuantizeBase.NONE:
        return
    for name, module in list(unet.named_modules()):
        if isinstance(module, torch.nn.Linear) and ".attentions." in name:
            parent, _, child = name.rpartition(".")
            setattr(unet.get_submodule(parent), child, _small(module, kind))
    # What peft goes by to choose the kind of its layers.
    unet.is_loaded_in_4bit = kind == QuantizeBase.NF4
    unet.is_loaded_in_8bit = kind == QuantizeBase.INT8


def _small(layer: torch.nn.Linear, kind: QuantizeBase) -> torch.nn.Module:
    from bitsandbytes import nn

    sides = (layer.in_features, layer.out_features, layer.bias is not None)
    weight = layer.weight.data
    small: torch.nn.Module
    if kind == QuantizeBase.NF4:
        small = nn.Linear4bit(*sides, compute_dtype=weight.dtype, quant_type="nf4")
        small.weight = nn.Params4bit(weight, requires_grad=False, quant_type="nf4")
    else:
        small = nn.Linear8bitLt(*sides, has_fp16_weights=False)
        small.weight = nn.Int8Params(weight, requires_grad=False, has_fp16_weights=False)
    small.bias = layer.bias
    return small

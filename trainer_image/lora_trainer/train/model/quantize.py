"""Quantization of the frozen UNet by bitsandbytes, for GPUs whose memory is too small for 16 bits."""

from __future__ import annotations

import torch
from diffusers import UNet2DConditionModel

from lora_api.job import QuantizeBase


def quantize(unet: UNet2DConditionModel, kind: QuantizeBase) -> None:
    """Quantize the linear layers of the UNet's transformers, which are most of its weights, to 4 or 8 bits.

    NF4 is QLoRA's 4-bit format (Dettmers et al. 2023, arXiv:2305.14314), Int8 that of LLM.int8()
    (Dettmers et al. 2022, arXiv:2208.07339). bitsandbytes converts the weights when the UNet is
    next moved to a device.
    """
    if kind == QuantizeBase.NONE:
        return
    for name, module in list(unet.named_modules()):
        if isinstance(module, torch.nn.Linear) and is_quantizable(name):
            parent, _, child = name.rpartition(".")
            setattr(unet.get_submodule(parent), child, _quantized_layer(module, kind))
    # peft reads these attributes to choose its layer classes.
    unet.is_loaded_in_4bit = kind == QuantizeBase.NF4
    unet.is_loaded_in_8bit = kind == QuantizeBase.INT8


def is_quantizable(name: str) -> bool:
    """Return whether the linear layer with this name is in a transformer and is not an adapter's matrix."""
    return ".attentions." in name and ".lora_" not in name


def _quantized_layer(layer: torch.nn.Linear, kind: QuantizeBase) -> torch.nn.Module:
    """Build the quantized layer that replaces a linear layer."""
    from bitsandbytes import nn

    arguments = (layer.in_features, layer.out_features, layer.bias is not None)
    weight = layer.weight.data
    quantized: torch.nn.Module
    if kind == QuantizeBase.NF4:
        quantized = nn.Linear4bit(*arguments, compute_dtype=weight.dtype, quant_type="nf4")
        quantized.weight = nn.Params4bit(weight, requires_grad=False, quant_type="nf4")
    else:
        quantized = nn.Linear8bitLt(*arguments, has_fp16_weights=False)
        quantized.weight = nn.Int8Params(weight, requires_grad=False, has_fp16_weights=False)
    quantized.bias = layer.bias
    return quantized

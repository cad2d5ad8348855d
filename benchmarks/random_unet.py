"""A UNet with random weights and an adapter, for benchmarks that download nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel

from lora_api.job import Method, QuantizeBase, Training
from lora_trainer.train.model.adapter import UNET, add_adapter
from lora_trainer.train.model.extract import make_trainable
from lora_trainer.train.model.quantize import quantize
from lora_trainer.train.validation import DTYPES


def build_unet(training: Training, folder: Path, device: str = "cuda") -> Any:
    """Build a UNet with random weights and the job's adapter.

    Args:
        folder: a pipeline's folder, of which only `unet/config.json` is read.
    """
    dtype = DTYPES[training.mixed_precision]
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(folder, subfolder="unet"))
    unet.to(dtype).to_empty(device=device)
    randomize(unet)
    unet.requires_grad_(False)
    if training.quantize_base != QuantizeBase.NONE:
        unet.to("cpu")  # bitsandbytes quantizes weights when they move from the CPU to the GPU
        quantize(unet, training.quantize_base)
        unet.to(device)
    if training.method == Method.DREAMBOOTH_EXTRACT:
        make_trainable(unet)
        # Trained parameters are kept in float32.
        for parameter in unet.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
    else:
        add_adapter(unet, UNET, training.rank, training.alpha, seed=0, kind=training.adapter)
    return unet.train()


def randomize(module: Any) -> None:
    """Fill parameters with values that keep activations finite: small weights, norm weights of 1, biases of 0."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.02)
            else:
                parameter.fill_(1.0 if "norm" in name and name.endswith("weight") else 0.0)

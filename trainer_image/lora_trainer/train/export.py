"""The adapter as files that others load: diffusers' format and kohya's.

Both are written from peft's tensors by the table here and loaded back. diffusers' own conversion to kohya's
format takes the rank for alpha, and its own file is exact for alpha other than the rank only with the
adapter's configuration in the metadata.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel
from peft import get_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from torch import Tensor

from lora_api.steps import TrainStep

from ..errors import StepError
from .tensors import write_tensors

FILE_NAMES = {"diffusers": "adapter.safetensors", "kohya": "adapter-kohya.safetensors"}
READ_BACK = "read_back"


class ExportError(StepError):
    """A written file does not give back the adapter that was trained."""


def write_diffusers(path: Path, unet: UNet2DConditionModel) -> None:
    """The file that `StableDiffusionXLPipeline.load_lora_weights` takes."""
    tensors = {f"unet.{name}": tensor for name, tensor in get_peft_model_state_dict(unet).items()}
    config = unet.peft_config["default"]
    settings = {
        "unet.r": config.r,
        "unet.lora_alpha": config.lora_alpha,
        "unet.target_modules": sorted(config.target_modules),
        "unet.use_rslora": config.use_rslora,
        "unet.use_dora": config.use_dora,
        "unet.init_lora_weights": config.init_lora_weights,
        "unet.peft_type": "LORA",
    }
    metadata = {"format": "pt", "lora_adapter_metadata": json.dumps(settings, sort_keys=True)}
    write_tensors(path, tensors, metadata)


def write_kohya(path: Path, unet: UNet2DConditionModel, metadata: Mapping[str, str]) -> None:
    """The file that ComfyUI, A1111 and kohya's scripts take.

    Args:
        metadata: what to say of the training, in kohya's `ss_` names.
    """
    layers = unet.config.layers_per_block
    tensors: dict[str, Tensor] = {}
    for name, module in unet.named_modules():
        if isinstance(module, LoraLayer) and "default" in module.lora_A:
            base = f"lora_unet_{kohya_module(name, layers)}"
            tensors[f"{base}.lora_down.weight"] = module.lora_A["default"].weight
            tensors[f"{base}.lora_up.weight"] = module.lora_B["default"].weight
            # A reader scales by alpha / rank.
            alpha = module.scaling["default"] * module.r["default"]
            tensors[f"{base}.alpha"] = torch.tensor(float(alpha))
    write_tensors(path, tensors, dict(metadata))


def kohya_metadata(config: TrainStep) -> dict[str, str]:
    """What other programs show of an adapter: kohya's `ss_` names and Stability's modelspec."""
    spec = config.spec
    training, concept = spec.training, spec.concept
    size = f"{training.resolution}x{training.resolution}"
    return {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": "stable-diffusion-xl-v1-base/lora",
        "modelspec.title": config.name,
        "modelspec.trigger_phrase": f"{concept.token} {concept.class_name}",
        "modelspec.resolution": size,
        "ss_base_model_version": "sdxl_base_v1-0",
        "ss_sd_model_name": spec.base_model,
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(training.rank),
        "ss_network_alpha": str(training.alpha),
        "ss_output_name": config.name,
        "ss_resolution": size,
        "ss_learning_rate": str(training.learning_rate),
        "ss_max_train_steps": str(training.max_steps),
        "ss_seed": str(training.seed),
    }


def kohya_module(name: str, layers_per_block: int) -> str:
    """A UNet module's name in kohya's scripts, which train SDXL in Stability's own block numbering.

    There, every layer of a down or up block is a block of its own, followed by the down-sampler's;
    in each, number 1 is the attention.
    """
    stride = layers_per_block + 1
    if match := re.match(r"down_blocks\.(\d+)\.attentions\.(\d+)\.(.+)", name):
        name = f"input_blocks.{1 + int(match[1]) * stride + int(match[2])}.1.{match[3]}"
    elif match := re.match(r"up_blocks\.(\d+)\.attentions\.(\d+)\.(.+)", name):
        name = f"output_blocks.{int(match[1]) * stride + int(match[2])}.1.{match[3]}"
    elif match := re.match(r"mid_block\.attentions\.0\.(.+)", name):
        name = f"middle_block.1.{match[1]}"
    return name.replace(".", "_")


def verify(path: Path, unet: UNet2DConditionModel) -> None:
    """Load a written file as diffusers' users do, and compare it with what was trained, layer by layer.

    Raises:
        ExportError: when a layer's tensors or its scale are not the trained ones.
    """
    state, alphas, metadata = StableDiffusionXLPipeline.lora_state_dict(
        path.parent, weight_name=path.name, unet_config=unet.config, return_lora_metadata=True
    )
    with warnings.catch_warnings():
        # peft warns of what is meant here: a second adapter beside the first.
        warnings.filterwarnings("ignore", message="Already found a `peft_config` attribute")
        StableDiffusionXLPipeline.load_lora_into_unet(
            state, network_alphas=alphas, unet=unet, adapter_name=READ_BACK, metadata=metadata
        )
    unet.set_adapter("default")
    try:
        for name, module in unet.named_modules():
            if isinstance(module, LoraLayer) and not _same(module):
                raise ExportError(f"{path.name} does not give back the adapter at {name}")
    finally:
        unet.delete_adapters(READ_BACK)


def _same(layer: LoraLayer) -> bool:
    if READ_BACK not in layer.lora_A or layer.scaling[READ_BACK] != layer.scaling["default"]:
        return False
    # Loading rounds the adapter to the UNet's own number format.
    return all(
        torch.equal(pair[READ_BACK].weight, pair["default"].weight.to(pair[READ_BACK].weight.dtype))
        for pair in (layer.lora_A, layer.lora_B)
    )

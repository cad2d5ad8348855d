"""The adapter as files that others load: diffusers' format and kohya's.

Both are written from peft's tensors by the table here and loaded back. diffusers' own conversion to kohya's
format takes the rank for alpha, and its own file is exact for alpha other than the rank only with the
adapter's configuration in the metadata.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel
from peft.tuners.lora import LoraLayer
from torch import Tensor
from torch.nn import Module

from lora_api.steps import TrainStep

from ..errors import StepError
from .adapter import UNET, Adapted
from .tensors import write_tensors

FILE_NAMES = {"diffusers": "adapter.safetensors", "kohya": "adapter-kohya.safetensors"}
KOHYA_TEXT_ENCODERS = {"text_encoder": "lora_te1", "text_encoder_2": "lora_te2"}
READ_BACK = "read_back"


class ExportError(StepError):
    """A written file does not give back the adapter that was trained."""


def write_diffusers(path: Path, adapted: Adapted) -> None:
    """The file that `StableDiffusionXLPipeline.load_lora_weights` takes."""
    tensors: dict[str, Tensor] = {}
    settings: dict[str, object] = {}
    for component, module in adapted.items():
        for name, layer in lora_layers(module):
            base = f"{component}.{_with_text_model(component, name)}"
            tensors[f"{base}.lora_A.weight"] = layer.lora_A["default"].weight
            tensors[f"{base}.lora_B.weight"] = layer.lora_B["default"].weight
        config = module.peft_config["default"]
        fields = {
            "r": config.r,
            "lora_alpha": config.lora_alpha,
            "target_modules": sorted(config.target_modules),
            "init_lora_weights": config.init_lora_weights,
            "peft_type": "LORA",
        }
        settings |= {f"{component}.{field}": value for field, value in fields.items()}
    metadata = {"format": "pt", "lora_adapter_metadata": json.dumps(settings, sort_keys=True)}
    write_tensors(path, tensors, metadata)


def write_kohya(path: Path, adapted: Adapted, metadata: Mapping[str, str]) -> None:
    """The file that ComfyUI, A1111 and kohya's scripts take.

    Args:
        metadata: what to say of the training, in kohya's `ss_` names.
    """
    tensors: dict[str, Tensor] = {}
    for component, module in adapted.items():
        for name, layer in lora_layers(module):
            base = kohya_name(component, name, adapted[UNET].config.layers_per_block)
            tensors[f"{base}.lora_down.weight"] = layer.lora_A["default"].weight
            tensors[f"{base}.lora_up.weight"] = layer.lora_B["default"].weight
            # A reader scales by alpha / rank.
            tensors[f"{base}.alpha"] = torch.tensor(float(layer.scaling["default"] * layer.r["default"]))
    write_tensors(path, tensors, dict(metadata))


def lora_layers(module: Module) -> Iterator[tuple[str, Any]]:
    """The layers that peft put an adapter on, by name."""
    for name, layer in module.named_modules():
        if isinstance(layer, LoraLayer) and "default" in layer.lora_A:
            yield name, layer


def kohya_name(component: str, name: str, layers_per_block: int) -> str:
    """A module's name in kohya's files."""
    if component == UNET:
        return f"lora_unet_{kohya_module(name, layers_per_block)}"
    prefix = KOHYA_TEXT_ENCODERS[component]
    return f"{prefix}_{_with_text_model(component, name).replace('.', '_')}"


def _with_text_model(component: str, name: str) -> str:
    """transformers 5 drops `text_model` from the first encoder's names; every reader expects it."""
    if component == UNET or name.startswith("text_model."):
        return name
    return f"text_model.{name}"


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


def verify(path: Path, adapted: Adapted) -> None:
    """Load a written file as diffusers' users do, and compare it with what was trained, layer by layer.

    Loading may round the adapters in memory to the model's own number format: write every file before.

    Raises:
        ExportError: when a layer's tensors or its scale are not the trained ones.
    """
    state, alphas, metadata = StableDiffusionXLPipeline.lora_state_dict(
        path.parent, weight_name=path.name, unet_config=adapted[UNET].config, return_lora_metadata=True
    )
    how = {"network_alphas": alphas, "metadata": metadata, "adapter_name": READ_BACK}
    for component, module in adapted.items():
        with warnings.catch_warnings():
            # peft warns of what is meant here: a second adapter beside the first.
            warnings.filterwarnings("ignore", message="Already found a `peft_config` attribute")
            if component == UNET:
                StableDiffusionXLPipeline.load_lora_into_unet(state, unet=module, **how)
            else:
                StableDiffusionXLPipeline.load_lora_into_text_encoder(
                    state, text_encoder=module, prefix=component, **how
                )
        module.set_adapter("default")
        for name, layer in lora_layers(module):
            if not _same(layer):
                raise ExportError(f"{path.name} does not give back the adapter at {component}.{name}")
        _forget(module)


def _forget(module: Any) -> None:
    if isinstance(module, UNet2DConditionModel):
        module.delete_adapters(READ_BACK)
    else:
        module.delete_adapter(READ_BACK)


def _same(layer: Any) -> bool:
    if READ_BACK not in layer.lora_A or layer.scaling[READ_BACK] != layer.scaling["default"]:
        return False
    pairs = [
        (matrices[READ_BACK].weight, matrices["default"].weight) for matrices in (layer.lora_A, layer.lora_B)
    ]
    return all(torch.equal(read, trained.to(read.dtype)) for read, trained in pairs)

"""The adapter as files that others load: diffusers' format and kohya's.

Both are written from peft's tensors by tables of our own and read back. diffusers' own conversion to kohya's
format takes the rank for alpha, and its own file is exact for alpha other than the rank only with the
adapter's configuration in the metadata.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel
from peft import LoraConfig
from safetensors.torch import load_file
from torch import Tensor

from ..errors import StepError
from .adapter import ADAPTER, UNET, Adapted, adapter_layers
from .kohya import kohya_name, layer_tensors, read_weight, trained_weight, with_text_model
from .metadata import content_hashes
from .tensors import write_tensors

FILE_NAMES = {"diffusers": "adapter.safetensors", "kohya": "adapter-kohya.safetensors"}
READ_BACK = "read_back"
CONFIG = (
    "r",
    "lora_alpha",
    "rank_pattern",
    "init_lora_weights",
    "use_dora",
    "use_rslora",
)
"""What diffusers needs of peft's configuration to make the same adapter again."""
TOLERANCE = 1e-3
"""Of the change of a weight, how far what a reader computes may be from what peft does."""
ROUNDING = 1e-6
"""Of a weight, how far float32 may take two ways of computing it apart."""


class ExportError(StepError):
    """A written file does not give back the adapter that was trained."""


def write_diffusers(path: Path, adapted: Adapted) -> None:
    """The file that `StableDiffusionXLPipeline.load_lora_weights` takes."""
    tensors: dict[str, Tensor] = {}
    settings: dict[str, object] = {}
    for component, module in adapted.items():
        for name, layer in adapter_layers(module):
            base = f"{component}.{with_text_model(component, name)}"
            tensors[f"{base}.lora_A.weight"] = layer.lora_A[ADAPTER].weight
            tensors[f"{base}.lora_B.weight"] = layer.lora_B[ADAPTER].weight
            if layer.lora_variant:
                # peft writes this name without ".weight", and reads both; transformers 5 reads only this.
                tensors[f"{base}.lora_magnitude_vector.weight"] = layer.lora_magnitude_vector[ADAPTER].weight
        config = module.peft_config[ADAPTER]
        fields = {field: getattr(config, field) for field in CONFIG}
        fields |= {"target_modules": sorted(config.target_modules), "peft_type": "LORA"}
        settings |= {f"{component}.{field}": value for field, value in fields.items()}
    metadata = {"format": "pt", "lora_adapter_metadata": json.dumps(settings, sort_keys=True)}
    write_tensors(path, tensors, metadata)


def write_kohya(path: Path, adapted: Adapted, metadata: Mapping[str, str]) -> None:
    """The file that ComfyUI, Forge, A1111 and kohya's scripts take.

    Args:
        metadata: what to say of the training, see `metadata.describe`.
    """
    tensors: dict[str, Tensor] = {}
    for component, module in adapted.items():
        for name, layer in adapter_layers(module):
            base = kohya_name(component, name, adapted[UNET].config.layers_per_block)
            tensors |= {f"{base}.{suffix}": tensor for suffix, tensor in layer_tensors(layer).items()}
    write_tensors(path, tensors, {**metadata, **content_hashes(tensors)})


def verify(path: Path, adapted: Adapted) -> None:
    """Read a written file as its users do, and compare it with what was trained, layer by layer.

    diffusers loads its own format, and kohya's for plain LoRA; other kinds in kohya's format are read by the
    rules of ComfyUI. Loading may round the adapters in memory to the model's own number format: write every
    file before.

    Raises:
        ExportError: when a layer is not the trained one.
    """
    config = adapted[UNET].peft_config[ADAPTER]
    plain = isinstance(config, LoraConfig) and not config.use_dora
    if plain or path.name == FILE_NAMES["diffusers"]:
        _load(path, adapted)
    else:
        _read(path, adapted)


def _load(path: Path, adapted: Adapted) -> None:
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
        module.set_adapter(ADAPTER)
        for name, layer in adapter_layers(module):
            if not _same(layer):
                raise ExportError(f"{path.name} does not give back the adapter at {component}.{name}")
        _forget(module)


def _forget(module: Any) -> None:
    if isinstance(module, UNet2DConditionModel):
        module.delete_adapters(READ_BACK)
    else:
        module.delete_adapter(READ_BACK)


def _same(layer: Any) -> bool:
    if READ_BACK not in layer.lora_A or layer.scaling[READ_BACK] != layer.scaling[ADAPTER]:
        return False
    learnt = [layer.lora_A, layer.lora_B]
    if layer.lora_variant:
        learnt.append(layer.lora_magnitude_vector)
    if any(READ_BACK not in matrices for matrices in learnt):
        return False
    pairs = [(matrices[READ_BACK].weight, matrices[ADAPTER].weight) for matrices in learnt]
    return all(torch.equal(read, trained.to(read.dtype)) for read, trained in pairs)


@torch.no_grad()
def _read(path: Path, adapted: Adapted) -> None:
    layers: dict[str, dict[str, Tensor]] = {}
    for key, tensor in load_file(path).items():
        base, _, suffix = key.partition(".")
        layers.setdefault(base, {})[suffix] = tensor
    for component, module in adapted.items():
        for name, layer in adapter_layers(module):
            base = layer.get_base_layer().weight.float()
            read = layers.get(kohya_name(component, name, adapted[UNET].config.layers_per_block))
            wanted = trained_weight(layer)
            # A layer that learnt nothing, as the text encoders' last, still differs by what float32 rounds.
            allowed = TOLERANCE * (wanted - base).norm() + ROUNDING * base.norm()
            if not read or (read_weight(base, read) - wanted).norm() > allowed:
                raise ExportError(f"{path.name} does not give back the adapter at {component}.{name}")

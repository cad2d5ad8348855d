"""Adapter files in diffusers' and kohya's formats.

Both are written from peft's tensors by the code here, and read back. diffusers' conversion to kohya's format is not
used, because it takes the rank as alpha. In diffusers' own format, an alpha that differs from the rank is only kept in
the metadata, which therefore has the adapter's configuration.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel
from peft import LoraConfig
from safetensors.torch import load_file
from torch import Tensor

from ...errors import StageError
from ..model.adapter import ADAPTER, UNET, Adapted, adapter_layers
from .kohya import kohya_name, layer_tensors, read_weight, trained_weight, with_text_model
from .metadata import content_hashes
from .tensors import write_tensors

FILE_NAMES = {"diffusers": "adapter.safetensors", "kohya": "adapter-kohya.safetensors"}
READ_BACK = "read_back"
"""Name in peft of the adapter that `verify` loads."""
CONFIG = (
    "r",
    "lora_alpha",
    "rank_pattern",
    "init_lora_weights",
    "use_dora",
    "use_rslora",
)
"""Fields of peft's configuration that diffusers needs to build the same adapter."""
TOLERANCE = 1e-3
"""Largest error of a changed weight as a reader computes it, relative to the norm of the change."""
ROUNDING = 1e-6
"""Rounding error that float32 may cause in a changed weight, relative to the norm of the base weight."""


class ExportError(StageError):
    """A written file, when read back, does not have the trained adapter."""


def write_diffusers(path: Path, adapted: Adapted, notes: Mapping[str, str] | None = None) -> None:
    """Write the file that `StableDiffusionXLPipeline.load_lora_weights` loads.

    Args:
        notes: further metadata, which diffusers ignores.
    """
    tensors: dict[str, Tensor] = {}
    settings: dict[str, object] = {}
    for component, module in adapted.items():
        for name, layer in adapter_layers(module):
            base = f"{component}.{with_text_model(component, name)}"
            tensors[f"{base}.lora_A.weight"] = layer.lora_A[ADAPTER].weight
            tensors[f"{base}.lora_B.weight"] = layer.lora_B[ADAPTER].weight
            if layer.lora_variant:
                # peft writes this name without ".weight" and reads both forms; transformers 5 reads only this one.
                tensors[f"{base}.lora_magnitude_vector.weight"] = layer.lora_magnitude_vector[ADAPTER].weight
        config = module.peft_config[ADAPTER]
        fields = {field: getattr(config, field) for field in CONFIG}
        fields |= {"target_modules": sorted(config.target_modules), "peft_type": "LORA"}
        settings |= {f"{component}.{field}": value for field, value in fields.items()}
    metadata = {"format": "pt", "lora_adapter_metadata": json.dumps(settings, sort_keys=True)}
    write_tensors(path, tensors, {**metadata, **content_hashes(tensors), **(notes or {})})


def write_kohya(path: Path, adapted: Adapted, metadata: Mapping[str, str]) -> None:
    """Write the file that ComfyUI, Forge, A1111 and kohya's scripts load.

    Args:
        metadata: description of the training: see `metadata.describe`.
    """
    tensors: dict[str, Tensor] = {}
    for component, module in adapted.items():
        for name, layer in adapter_layers(module):
            base = kohya_name(component, name, adapted[UNET].config.layers_per_block)
            tensors |= {f"{base}.{suffix}": tensor for suffix, tensor in layer_tensors(layer).items()}
    write_tensors(path, tensors, {**metadata, **content_hashes(tensors)})


def verify(path: Path, adapted: Adapted) -> None:
    """Read a written file as its users do, and compare it with the trained adapter, layer by layer.

    diffusers loads its own format, and kohya's format for plain LoRA. Other adapters in kohya's format are read by
    the rules of LyCORIS.

    Raises:
        ExportError: if a layer differs from the trained one.
    """
    config = adapted[UNET].peft_config[ADAPTER]
    plain = isinstance(config, LoraConfig) and not config.use_dora
    if plain or path.name == FILE_NAMES["diffusers"]:
        _load(path, adapted)
    else:
        _read(path, adapted)


def _load(path: Path, adapted: Adapted) -> None:
    """Load a file with diffusers as a second adapter, compare it, and remove it."""
    state, alphas, metadata = StableDiffusionXLPipeline.lora_state_dict(
        path.parent, weight_name=path.name, unet_config=adapted[UNET].config, return_lora_metadata=True
    )
    options = {"network_alphas": alphas, "metadata": metadata, "adapter_name": READ_BACK}
    for component, module in adapted.items():
        # diffusers converts a text encoder with all its adapters to the encoder's number format.
        trained = [(parameter, parameter.data) for parameter in _parameters(module)]
        with warnings.catch_warnings():
            # peft warns about a second adapter, which is intended here.
            warnings.filterwarnings("ignore", message="Already found a `peft_config` attribute")
            if component == UNET:
                StableDiffusionXLPipeline.load_lora_into_unet(state, unet=module, **options)
            else:
                StableDiffusionXLPipeline.load_lora_into_text_encoder(
                    state, text_encoder=module, prefix=component, **options
                )
        module.set_adapter(ADAPTER)
        for parameter, values in trained:
            parameter.data = values
        for name, layer in adapter_layers(module):
            if not _same(layer):
                raise ExportError(f"{path.name} differs from the trained adapter at {component}.{name}")
        _forget(module)


def _forget(module: Any) -> None:
    """Remove the second adapter; diffusers and transformers name the method differently."""
    if isinstance(module, UNet2DConditionModel):
        module.delete_adapters(READ_BACK)
    else:
        module.delete_adapter(READ_BACK)


def _same(layer: Any) -> bool:
    """Return whether the loaded adapter has the same scaling and tensors as the trained one."""
    if READ_BACK not in layer.lora_A:
        return False
    # Alpha is rounded to float32 in a kohya file, and with rsLoRA it is rarely a whole number.
    if not math.isclose(layer.scaling[READ_BACK], layer.scaling[ADAPTER], rel_tol=ROUNDING):
        return False
    matrices = _matrices(layer)
    if any(READ_BACK not in each for each in matrices):
        return False
    pairs = [(each[READ_BACK].weight, each[ADAPTER].weight) for each in matrices]
    return all(torch.equal(read, trained.to(read.dtype)) for read, trained in pairs)


def _matrices(layer: Any) -> list[Any]:
    """Return a layer's parts, each of which has one module for each adapter."""
    matrices = [layer.lora_A, layer.lora_B]
    return [*matrices, layer.lora_magnitude_vector] if layer.lora_variant else matrices


def _parameters(module: Any) -> list[Tensor]:
    """Return the parameters of the trained adapter."""
    return [each[ADAPTER].weight for _, layer in adapter_layers(module) for each in _matrices(layer)]


@torch.no_grad()
def _read(path: Path, adapted: Adapted) -> None:
    """Compute each layer's weight from a file in kohya's format, and compare it with the trained one."""
    layers: dict[str, dict[str, Tensor]] = {}
    for key, tensor in load_file(path).items():
        base, _, suffix = key.partition(".")
        layers.setdefault(base, {})[suffix] = tensor
    for component, module in adapted.items():
        for name, layer in adapter_layers(module):
            base = layer.get_base_layer().weight.float()
            read = layers.get(kohya_name(component, name, adapted[UNET].config.layers_per_block))
            expected = trained_weight(layer)
            # Some layers do not change, such as the last one of a text encoder, but differ by rounding in float32.
            allowed = TOLERANCE * (expected - base).norm() + ROUNDING * base.norm()
            if not read or (read_weight(base, read) - expected).norm() > allowed:
                raise ExportError(f"{path.name} differs from the trained adapter at {component}.{name}")

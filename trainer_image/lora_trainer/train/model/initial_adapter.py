"""Initial adapter: training can start from the weights of a published adapter."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lora_api.job import Training
from lora_api.json_bounds import load_json
from lora_api.training import InitialAdapter

from ...errors import BadConfigurationError
from ...store import Bucket, ObjectChangedError, ObjectMissingError
from ..export.kohya import with_text_model
from ..export.metadata import TOKENS_KEY
from .adapter import ADAPTER, UNET, Adapted, adapter_layers

FIELD = "training.from"
ALSO_WITH_RECIPE = "also where a recipe would set them"
"""End of messages that name fields of the job, because a recipe may have set them."""


def fetch_initial_adapter(initial: InitialAdapter, namespace: str, bucket: Bucket, folder: Path) -> Path:
    """Download the adapter's file and check its digest.

    Args:
        bucket: the output bucket. Keys of other namespaces are refused: their adapters belong to other tenants.

    Raises:
        BadConfigurationError: if the file does not exist, or is not the one with this digest.
    """
    if not initial.key.startswith(f"{namespace}/"):
        raise BadConfigurationError(f"{FIELD}.key must begin with {namespace}/, the job's namespace")
    path = folder / "initial.safetensors"
    try:
        bucket.get_verified_file(initial.key, path, initial.sha256.removeprefix("sha256:"))
    except ObjectMissingError:
        raise BadConfigurationError(f"{FIELD}: {bucket.uri(initial.key)} does not exist") from None
    except ObjectChangedError as error:
        raise BadConfigurationError(
            f"{FIELD}: the sha256 of {bucket.uri(initial.key)} is {error.sha256}, not {initial.sha256}"
        ) from None
    return path


@torch.no_grad()
def load_initial_adapter(path: Path, modules: Adapted, training: Training) -> None:
    """Copy the weights of an adapter in diffusers' format into the adapters of the modules.

    Raises:
        BadConfigurationError: if the adapter does not fit the job's settings; the message names the setting.
    """
    try:
        with safe_open(path, "pt") as file:
            own = file.metadata() or {}
            metadata = load_json(own.get("lora_adapter_metadata", "{}").encode())
            if not isinstance(metadata, dict):
                raise ValueError("its lora_adapter_metadata is not a JSON object")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, ValueError) as error:
        raise BadConfigurationError(
            f"{FIELD}: the file is not an adapter in diffusers' format: {error}"
        ) from error
    if TOKENS_KEY in own:
        raise BadConfigurationError(
            f"{FIELD}: the adapter was trained with token embeddings ({own[TOKENS_KEY]}), which this job would lose; start from "
            "another adapter, or train without training.from"
        )
    _refuse_other_scale(metadata, training)
    expected = _parameters(modules)
    missing, surplus = sorted(expected.keys() - tensors.keys()), sorted(tensors.keys() - expected.keys())
    if missing or surplus:
        lacking = f"lacks {missing[0]}" if missing else f"also has {surplus[0]}"
        raise BadConfigurationError(
            f"{FIELD}: the adapter has other layers than this job's, it {lacking}; use its base model, and set "
            f"training.adapter (targets, blocks and useDoRA) and training.textEncoder.train as its job did, {ALSO_WITH_RECIPE}"
        )
    for name, parameter in expected.items():
        if tensors[name].shape != parameter.shape:
            raise BadConfigurationError(
                f"{FIELD}: {name} is {tuple(tensors[name].shape)}, this job's is {tuple(parameter.shape)}; "
                f"use its {_rank_fields(name, parameter)} and its base model, {ALSO_WITH_RECIPE}"
            )
        if not tensors[name].isfinite().all():
            raise BadConfigurationError(f"{FIELD}: {name} of the adapter is not finite: use another adapter")
    for name, parameter in expected.items():
        parameter.copy_(tensors[name])


def _parameters(modules: Adapted) -> dict[str, Tensor]:
    """Return the adapters' parameters by their names in diffusers' format, as in `write_diffusers`."""
    named: dict[str, Tensor] = {}
    for component, module in modules.items():
        for name, layer in adapter_layers(module):
            base = f"{component}.{with_text_model(component, name)}"
            named[f"{base}.lora_A.weight"] = layer.lora_A[ADAPTER].weight
            named[f"{base}.lora_B.weight"] = layer.lora_B[ADAPTER].weight
            if layer.lora_variant:
                named[f"{base}.lora_magnitude_vector.weight"] = layer.lora_magnitude_vector[ADAPTER].weight
    return named


def _rank_fields(name: str, parameter: Tensor) -> str:
    """Name the fields that the rank of a layer may come from, by one of its parameters."""
    fields = ["training.rank"]
    if name.startswith(f"{UNET}."):
        fields.append("training.adapter.blocks")
        if parameter.shape[2:] == (3, 3):
            fields.append("training.adapter.convolutionRank")
    return ", ".join(fields)


def _refuse_other_scale(metadata: Mapping[str, Any], training: Training) -> None:
    """Compare the settings that scale the change: alpha and rsLoRA.

    Files without this metadata have an alpha equal to their rank.
    """
    alpha = metadata.get("unet.lora_alpha", training.rank)
    if alpha != training.alpha:
        # A recipe sets no rank beside an alpha of the job's.
        rank = metadata.get("unet.r", training.rank)
        raise BadConfigurationError(
            f"{FIELD}: the adapter's alpha is {alpha}: set training.alpha: {alpha} and training.rank: {rank}, {ALSO_WITH_RECIPE}"
        )
    rslora = bool(metadata.get("unet.use_rslora", False))
    if rslora != training.adapter.use_rslora:
        raise BadConfigurationError(
            f"{FIELD}: the adapter was trained with useRSLoRA {str(rslora).lower()}: set training.adapter.useRSLoRA to it"
        )

"""The number formats that modules compute in during training."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

from lora_api.job import Adapter, AdapterType


def is_cast_once(adapter: Adapter) -> bool:
    """Return whether trained weights are converted to 16 bits once a step.

    Other adapters keep float32 weights in the forward pass, under autocast, because DoRA divides by norms, and LoKr and
    LoHa multiply small factors: these operations need float32.
    """
    return adapter.type == AdapterType.LORA and not adapter.use_dora


def compute_dtype(adapter: Adapter, dtype: torch.dtype) -> torch.dtype:
    """Return the number format of trained weights in a forward pass.

    Args:
        dtype: number format of the frozen base model.
    """
    return dtype if is_cast_once(adapter) else torch.float32


def autocast(device: str, adapter: Adapter, dtype: torch.dtype) -> AbstractContextManager[object]:
    """Return the context of a forward pass: autocast if the weights have two number formats, else no effect."""
    if dtype == torch.float32 or is_cast_once(adapter):
        return nullcontext()
    return torch.autocast(device, dtype)

"""Checks for values that are not finite, and error messages with advice."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from lora_api.exits import ExitCode
from lora_api.reasons import Reason

from ..errors import StageError

MAX_QUOTED = 60


class DivergedError(StageError):
    """Training produced values that are not finite, and would do so again with the same settings."""

    exit_code = ExitCode.BAD_DATA
    default_reason = Reason.DIVERGED


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Return whether every element is finite, with one synchronisation of the device."""
    norms = torch._foreach_norm([tensor.detach().float() for tensor in tensors])
    return bool(torch.stack(norms).isfinite().all()) if norms else True


def quote(text: str) -> str:
    """Quote the beginning of a caption for a message."""
    return repr(text if len(text) <= MAX_QUOTED else text[:MAX_QUOTED] + "...")


def encoding_error(what: str, dtype: torch.dtype) -> str:
    """Describe a latent or an embedding that is not finite, with advice.

    Args:
        what: a name of the latent or embedding, with its image or caption.
        dtype: number format of the encoder.
    """
    if dtype == torch.float32:
        return f"{what} is not finite: the weights of the base model's encoder are damaged; fetch the model again"
    name = str(dtype).removeprefix("torch.")
    return (
        f"{what} is not finite in {name}: set training.mixedPrecision to "
        f"{'bf16 or fp32' if dtype == torch.float16 else 'fp32'}, or use a base model whose VAE is made for {name}"
    )


TEXT_EMBEDDING = "the text embedding"
"""Beginning of the places that are results of the text encoders, not of the UNet."""

BASE_WEIGHT = "the base model's weight"
"""Beginning of the places that are frozen weights of the UNet."""


def divergence_advice(place: str, dtype: torch.dtype) -> str:
    """Advise which settings to change.

    Args:
        place: a result of `loop.locate_not_finite`.
    """
    if place.startswith(TEXT_EMBEDDING):
        return "lower training.textEncoder.learningRate or training.tokenEmbeddings.learningRate"
    advice = "lower training.learningRate, or raise training.lrWarmupSteps"
    if place.startswith(BASE_WEIGHT):
        advice = "replace the files of the base model, or choose another baseModel"
    if dtype == torch.float16:
        advice += ", or set training.mixedPrecision to bf16 or fp32"
    return advice

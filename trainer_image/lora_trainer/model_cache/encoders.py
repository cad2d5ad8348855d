"""Models that transformers loads, beside the base model: scoring and segmentation models."""

from __future__ import annotations

from pathlib import Path

from lora_api.profile import BaseModelSource
from lora_api.reasons import Reason

from ..errors import BadSetupError
from ..store import Bucket
from .cache import fill, find
from .resolve import origin_of


def provide_encoder(
    source: BaseModelSource, bucket: Bucket, cache: Path, *, prefetched: bool, what: str
) -> Path:
    """Return the folder of a model, which is downloaded unless the cache was filled by a prefetch Job.

    Args:
        bucket: the input bucket, for models of the `store` source.
        prefetched: whether the cache was filled before and is read-only.
        what: the kind of the model for the error's message, for example `scoring model`.

    Raises:
        StageError: when the model cannot be fetched, or is not in a cache that was filled before.
    """
    origin = origin_of(source, bucket, "encoder")
    if not prefetched:
        return fill(origin, cache).folder
    cached = find(origin, cache)
    if cached is None:
        raise BadSetupError(
            f"the {what} {source.identity()} is not in the model cache: run the prefetch command with "
            "`kind: encoder` for it",
            Reason.MODEL_UNAVAILABLE,
        )
    return cached.folder

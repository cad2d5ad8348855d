"""Where models come from, as the cache sees it."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from lora_api.base import Lenient
from lora_api.manifest import FileEntry
from lora_api.profile import BaseModelSource, StoreModel

from ..store import Bucket

MODEL, VAE = "model", "vae"
"""Folders of an entry."""


class Contents(Lenient):
    """contents.json of an entry."""

    identity: str
    """Of the weights: a commit or the ETags, so that caches never mix two models."""
    files: list[FileEntry]
    """Keyed by their path in the entry."""


class Origin(Protocol):
    """One model at one place."""

    @property
    def address(self) -> str:
        """What tells it from all others; the entry is named after it."""

    def still_has(self, identity: str) -> bool:
        """Whether what was fetched under an identity is what would be fetched now."""

    def fetch(self, folder: Path) -> Contents:
        """Bring all files into `folder`, verified; what an earlier try left there may be used.

        Raises:
            BadConfigurationError: when there is no such model.
            UnavailableError: when it cannot be had now.
        """


def origin_of(source: BaseModelSource, bucket: Bucket | None) -> Origin:
    """
    Args:
        bucket: the input bucket, where models of the `store` source lie.
    """
    if isinstance(source, StoreModel):
        from .bucket import StoreOrigin

        assert bucket is not None
        return StoreOrigin(source, bucket)
    from .hub import HubOrigin

    return HubOrigin(source)

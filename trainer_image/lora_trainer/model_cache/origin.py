"""The interface between the cache and the places that models are fetched from."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from lora_api.base import Lenient
from lora_api.manifest import FileEntry

MODEL, VAE = "model", "vae"
"""Folders of a cache entry: the pipeline, and the VAE that replaces the pipeline's own."""


class Contents(Lenient):
    """The contents.json of an entry."""

    identity: str
    """Identity of the weights, derived from a commit or from ETags. Models with different weights have different ones."""
    files: list[FileEntry]
    """The files; each key is a path relative to the entry."""


class Origin(Protocol):
    """A model at one place."""

    @property
    def address(self) -> str:
        """Unique address of the model. The cache entry is named after it."""

    def still_has(self, identity: str) -> bool:
        """Return whether a fetch would still give the contents of this identity."""

    def fetch(self, folder: Path) -> Contents:
        """Fetch all files into `folder` and verify them. Files of an earlier attempt may be reused.

        Raises:
            BadConfigurationError: if the model does not exist.
            UnavailableError: if it cannot be fetched now.
        """

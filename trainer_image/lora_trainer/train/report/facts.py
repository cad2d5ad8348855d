"""What a report tells, gathered from the run; no drawing and no HTML."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lora_api.manifest import CaptionsManifest, FileEntry, Manifest
from lora_api.steps import TrainStep

from ..records import Record
from .pictures import Shown


@dataclass(frozen=True)
class Timing:
    """Where the time went, in seconds."""

    prepare: float
    """Of the pod that published: the model and the pictures fetched, encoded and loaded."""
    train: float
    """Of all steps, whichever pod ran them."""
    publish: float
    """Of the pod that published: previews drawn, files written and verified."""


@dataclass(frozen=True)
class Facts:
    """One attempt.

    `fetch` gives the bytes of a key in the output bucket, or None where there is none.
    """

    config: TrainStep
    manifest: Manifest
    """As it will be published, without the report itself."""
    records: Sequence[Record]
    trained_on: Sequence[Shown]
    bases: Mapping[str, str]
    """The key of the base model's picture of each prompt, from the same noise."""
    captions: CaptionsManifest | None
    timing: Timing
    device: str
    fetch: Callable[[str], bytes | None]
    layers: Mapping[str, Any] | None = None
    """`extract.report`, for an adapter that was taken out of a fine-tuned model."""

    @property
    def files(self) -> list[FileEntry]:
        """The adapter's files and what was measured; previews are shown, not listed."""
        return [entry for entry in self.manifest.files if not entry.key.endswith(".png")]

"""The data that a report shows, without layout."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lora_api.manifest import CaptionsManifest, FileEntry, Manifest
from lora_api.stages import TrainConfig

from ..records import Record
from .images import TrainingImage


@dataclass(frozen=True)
class Timing:
    """Durations in seconds."""

    prepare: float
    """Preparation before the first step, in the pod that published."""
    train: float
    """All steps in all pods."""
    publish: float
    """Generation of the last previews, and writing and verification of the files."""


@dataclass(frozen=True)
class ReportData:
    """The data of one attempt."""

    config: TrainConfig
    manifest: Manifest
    """The manifest to be published, without the report itself."""
    records: Sequence[Record]
    training_images: Sequence[TrainingImage]
    base_previews: Mapping[str, str]
    """Keys of the base previews by prompt."""
    captions: CaptionsManifest | None
    """The manifest of the captions; None if it is missing."""
    timing: Timing
    device: str
    """Name of the GPU or CPU."""
    fetch: Callable[[str], bytes | None]
    """Returns the content of a key in the output bucket, or None if there is none."""
    layers: Mapping[str, Any] | None = None
    """Result of `extract.report`; None unless the adapter was extracted."""

    @property
    def files(self) -> list[FileEntry]:
        """All published files except previews."""
        return [entry for entry in self.manifest.files if not entry.key.endswith(".png")]

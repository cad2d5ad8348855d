"""What is written last, and only when everything it names lies complete in the store."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from .base import Lenient, Model
from .job import Concept, Publish, Training
from .profile import BaseModelSource
from .status import AdapterStatus, PreviewStatus, Usage


class FileEntry(Model):
    """One stored object."""

    key: str
    bytes: int
    sha256: str
    """64 hexadecimal digits."""


class CaptionsManifest(Lenient):
    """The annotation step's commit mark."""

    captions_sha256: str
    dataset_sha256: str
    prompt_version: str = ""
    model: str = ""
    usage: Usage | None = None
    files: list[FileEntry]


class CheckpointManifest(Lenient):
    """A checkpoint is complete when this lies beside it and every sha256 matches."""

    step: int
    input_hash: str
    files: list[FileEntry]


class Selection(Lenient):
    """Which step's adapter was published, where steps were measured on held-out samples."""

    publish: Publish
    step: int
    held_out_loss: float | None = None
    """After that step."""
    stopped_early: bool = False


class Manifest(Lenient):
    """A published adapter."""

    namespace: str
    name: str
    uid: str
    attempt: int
    input_hash: str
    adapter: AdapterStatus
    concept: Concept | None = None
    base_model: BaseModelSource | None = None
    resolution: int = 1024
    """Side of the pictures that were trained on, in pixels."""
    files: list[FileEntry]
    previews: list[PreviewStatus] = []
    steps: int
    seed: int
    first_loss: float
    """Mean over the first tenth of the steps."""
    final_loss: float
    """Mean over the last tenth of the steps."""
    selection: Selection | None = None
    versions: dict[str, str]


class ReusePointer(Lenient):
    manifest_key: str
    sha256: str


def canonical_json(data: Any) -> bytes:
    """One spelling for one value: sorted keys, no spaces, UTF-8, no NaN."""
    return json.dumps(
        data, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode()


def sha256_hex(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def dataset_sha256(objects: list[tuple[str, str]]) -> str:
    """The identity of a dataset: its object keys and their ETags, in any order."""
    return sha256_hex(canonical_json(sorted(objects)))


def input_hash(
    *,
    dataset: str,
    captions: str,
    concept: Concept,
    training: Training,
    formats: list[str],
    base_model: str,
    trainer_version: str,
) -> str:
    """The identity of an adapter before it exists: equal hashes give equal bytes.

    Args:
        dataset: `dataset_sha256` of the images.
        captions: sha256 of metadata.jsonl.
        base_model: the profile model's `identity()`.
    """
    inputs = {
        "dataset": dataset,
        "captions": captions,
        "concept": concept.to_wire(),
        "training": training.to_wire(),
        "formats": sorted(formats),
        "baseModel": base_model,
        "trainerVersion": trainer_version,
    }
    return f"sha256:{sha256_hex(canonical_json(inputs))}"

"""Manifests, which mark a result in the store as complete, and the hashes that identify datasets and adapters.

A manifest lists the files of a result. It is written last, after all of them.
"""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any

from pydantic import Field

from .base import Lenient, Model
from .fields import Count, ObjectKey, Sha256
from .job import Concept, Publish, Recipe, Training, Variant
from .keys import folder_of, is_below, parse_manifest_key
from .profile import BaseModelSource, ScoringModels
from .status import AdapterStatus, PreviewStatus, Usage

MAX_FILES = 20_000


class ManifestError(ValueError):
    """A manifest that does not describe one complete publication."""


class FileEntry(Model):
    """One stored object."""

    key: ObjectKey
    """Object key in the output bucket."""
    bytes: Annotated[int, Field(ge=0, le=2**53)]
    """Size, in bytes."""
    sha256: Sha256
    """SHA-256 digest of the content."""


Files = Annotated[list[FileEntry], Field(max_length=MAX_FILES)]


class CaptionsManifest(Lenient):
    """Manifest of the captions, the last file that the annotation stage writes."""

    captions_sha256: Sha256
    """SHA-256 digest of metadata.jsonl."""
    dataset_sha256: Sha256
    """Hash of the dataset, from `dataset_sha256`."""
    prompt_version: str = ""
    """Version of the prompt that the language model got. Empty: no model was asked."""
    model: str = ""
    """Language model that wrote the captions. Empty: none did."""
    usage: Usage | None = None
    files: Files


class CheckpointManifest(Lenient):
    """Manifest of a checkpoint, which is complete when this lies beside it and every sha256 matches."""

    step: Count
    input_hash: Annotated[str, Field(max_length=71)]
    files: Files


class Selection(Lenient):
    """The step whose adapter was published, if steps were measured on held-out samples."""

    publish: Publish
    """The rule of the spec that selected the step."""
    step: int
    """The step whose adapter was published."""
    held_out_loss: float | None = None
    """Loss on the held-out samples after that step."""
    likeness: float | None = None
    """Similarity of images generated after that step to the training images; None: not measured."""
    fidelity: float | None = None
    """Similarity of these images to their prompts, relative to the base model's; None: not measured."""
    score: float | None = None
    """Score that likeness and fidelity give; None: not measured."""
    stopped_early: bool = False
    """Whether training ended before the last step, by validation.patience."""


class VariantResult(Lenient):
    """The result of a variant of the training."""

    variant: Variant
    """The settings that differ from those of the job."""
    published: bool = False
    """Whether its adapter was published."""
    steps: int = 0
    """Number of optimizer steps."""
    step: int = 0
    """The step whose adapter would be published."""
    final_loss: float | None = None
    """Mean over the last tenth of the steps."""
    held_out_loss: float | None = None
    """Loss on the held-out samples after `step`."""
    score: float | None = None
    """Score of the images generated after `step`; None: not measured."""
    error: str = ""
    """Why the training of this variant failed; empty where it did not."""


class Memory(Lenient):
    """The memory that the plan expected and the memory that training used, on the training device."""

    planned_bytes: int
    """The largest phase of the plan, libraries included."""
    peak_bytes: int | None = None
    """The most that PyTorch had allocated on the GPU at once; absent on a CPU."""


class EmbeddingsEntry(Lenient):
    """The embeddings of the new tokens that an adapter was trained with."""

    key: ObjectKey
    """Object key of the file, which has a matrix for each text encoder: clip_l and clip_g."""
    tokens: Annotated[list[str], Field(max_length=8)]
    """The new tokens, one for each row of the matrices. Prompts have them in place of the concept's token."""


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
    """Side of the training images, in pixels."""
    files: Files
    previews: list[PreviewStatus] = []
    steps: int
    seed: int
    first_loss: float
    """Mean over the first tenth of the steps."""
    final_loss: float
    """Mean over the last tenth of the steps."""
    selection: Selection | None = None
    variants: list[VariantResult] = []
    """The results of all variants; empty where the job has none."""
    versions: dict[str, str]
    memory: Memory | None = None
    embeddings: EmbeddingsEntry | None = None
    """The embeddings of the new tokens; None without training.tokenEmbeddings."""

    def check(self, key: str) -> None:
        """Check that this is the manifest of one publication, stored under a key.

        Commands that download or reuse a publication read the keys that it names, so each key must be in the
        manifest's folder.

        Raises:
            ManifestError: when the manifest names no files, or other keys than those of its own publication.
        """
        parsed = parse_manifest_key(key)
        if parsed is None or self.adapter.manifest_key != key:
            raise ManifestError(f"{key} is not the key of this manifest")
        keys, attempt = parsed
        if (keys.namespace, keys.name, keys.uid, attempt) != (
            self.namespace,
            self.name,
            self.uid,
            self.attempt,
        ):
            raise ManifestError(f"{key} is not under the prefix of the job that the manifest names")
        if not self.files:
            raise ManifestError(f"{key} names no files")
        folder, adapter = folder_of(key), self.adapter.location[1]
        embeddings = self.embeddings.key if self.embeddings else ""
        keys_named = (*(entry.key for entry in self.files), adapter, self.adapter.report_key, embeddings)
        for named in keys_named:
            if named and not is_below(named, folder):
                raise ManifestError(f"{key} names {named}, which is not beside it")
        if embeddings and not any(entry.key == embeddings for entry in self.files):
            raise ManifestError(f"{key} does not name the embeddings among its files")
        if not any((entry.key, entry.sha256) == (adapter, self.adapter.sha256) for entry in self.files):
            raise ManifestError(f"{key} does not name the adapter among its files")


class ReusePointer(Lenient):
    """A pointer to the manifest of an adapter, stored under its input hash."""

    manifest_key: ObjectKey
    sha256: Sha256
    """SHA-256 digest of the manifest."""


def canonical_json(data: Any) -> bytes:
    """Encode a value so that equal values give equal bytes: sorted keys, no spaces, UTF-8, no NaN."""
    return json.dumps(
        data, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode()


def sha256_hex(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def dataset_sha256(objects: list[tuple[str, str]]) -> str:
    """Hash a dataset.

    Args:
        objects: the object key and the ETag of each file, in any order; of a mask that a model made, its file name and
            sha256.
    """
    return sha256_hex(canonical_json(sorted(objects)))


def models_identity(base_model: BaseModelSource, scoring: ScoringModels | None, training: Training) -> str:
    """Identify the models that an adapter depends on: the base model and, with BestScore, the scoring models."""
    identity = base_model.identity()
    if scoring and training.validation.publish == Publish.BEST_SCORE:
        identity += f"+scored by {scoring.identity()}"
    return identity


def input_hash(
    *,
    dataset: str,
    captions: str,
    concept: Concept,
    training: Training,
    formats: list[str],
    captions_published: bool = False,
    base_model: str,
    trainer_version: str,
) -> str:
    """Hash everything that determines an adapter. Two jobs with equal hashes get the same adapter.

    Args:
        dataset: `dataset_sha256` of the images, the masks that came with them, and those that a model made.
        captions: sha256 of metadata.jsonl.
        concept: the concept of the spec.
        training: the training settings of the spec, with the values of its recipe (`JobSpec.with_recipe`).
        formats: the file formats of the spec, in any order.
        captions_published: whether the captions are published beside the adapter.
        base_model: `models_identity` of the profile's models.
        trainer_version: the version of this project.

    Raises:
        ValueError: when the recipe has not been applied.
    """
    if training.recipe is not Recipe.NONE:
        raise ValueError("the recipe has not been applied: its values are part of the input hash")
    inputs: dict[str, Any] = {
        "dataset": dataset,
        "captions": captions,
        "concept": concept.to_wire(),
        "training": _hashed_settings(training),
        "formats": sorted(formats),
        "baseModel": base_model,
        "trainerVersion": trainer_version,
    }
    if captions_published:  # omitted otherwise, so that the hashes of earlier versions stay
        inputs["captionsPublished"] = True
    return f"sha256:{sha256_hex(canonical_json(inputs))}"


def _hashed_settings(training: Training) -> dict[str, Any]:
    """Return the settings on the wire, without fields that would change the hashes of earlier versions."""
    wire = training.to_wire()
    del wire["recipe"]
    if not wire["variants"]:
        del wire["variants"]
    if not wire["tokenEmbeddings"]["train"]:
        del wire["tokenEmbeddings"]
    return wire

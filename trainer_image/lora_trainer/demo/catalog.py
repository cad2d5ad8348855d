"""The adapters and the captions in the store."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from pydantic import ValidationError

from lora_api.job import Concept, ConceptType
from lora_api.keys import JobKeys, parse_captions_key, parse_manifest_key
from lora_api.manifest import Manifest, ManifestError

from ..store import Bucket

MAX_OBJECTS = 50_000
"""Maximum number of objects of the output bucket that are listed."""
MAX_MANIFEST_BYTES = 4 << 20
"""Larger manifests are not read, because the page keeps what it reads in memory."""
NEVER = datetime.min.replace(tzinfo=UTC)
"""Sorts objects whose time is not known behind all others."""


@dataclass(frozen=True)
class Catalog:
    """Contents of the output bucket, newest first."""

    adapters: list[Manifest]
    captioned: list[JobKeys]
    """Jobs that have captions."""


def read_catalog(bucket: Bucket, read: Callable[[str], bytes]) -> Catalog:
    """List published adapters and jobs with captions.

    The manifest is written last, so adapters without one are incomplete and not shown.

    Args:
        read: reads a manifest. It may cache the content, because a manifest is written only once.
    """
    objects = bucket.list("", MAX_OBJECTS)
    objects.sort(key=lambda item: item.modified or NEVER, reverse=True)
    keys = [item.key for item in objects]
    small = [item.key for item in objects if item.bytes <= MAX_MANIFEST_BYTES]
    manifests = [_parse(key, read(key)) for key in small if parse_manifest_key(key)]
    captioned = [job for key in keys if (job := parse_captions_key(key))]
    return Catalog([manifest for manifest in manifests if manifest], captioned)


def joined_opening(concepts: Iterable[Concept]) -> str:
    """Return the opening of a prompt that names every concept once; empty without concepts."""
    # Attempts of one job have the same concept.
    openings = list(dict.fromkeys((concept.type, concept.opening) for concept in concepts))
    subjects = [text.removeprefix("a photo of ") for kind, text in openings if kind is not ConceptType.STYLE]
    styles = [text.removeprefix("an image in ") for kind, text in openings if kind is ConceptType.STYLE]
    start = f"a photo of {' and '.join(subjects)}" if subjects else "an image" if styles else ""
    return f"{start} in {' and '.join(styles)}" if styles else start


def title(manifest: Manifest) -> str:
    """Build a unique, readable name of an adapter."""
    concept = f"{manifest.concept.token} {manifest.concept.class_name}" if manifest.concept else "adapter"
    return f"{concept} · {manifest.namespace}/{manifest.name} · {manifest.uid[:8]} #{manifest.attempt}"


def job_keys(manifest: Manifest) -> JobKeys:
    """Return the keys of the job that published an adapter."""
    return JobKeys(manifest.namespace, manifest.name, manifest.uid)


def share_base_model(manifests: Sequence[Manifest]) -> bool:
    """Return whether all adapters were trained on the same base model."""
    return len({manifest.base_model and manifest.base_model.identity() for manifest in manifests}) <= 1


def shared_token(manifests: Sequence[Manifest]) -> str:
    """Return a token that an adapter has embeddings for and another adapter uses too; empty if there is none.

    Case is ignored, as in prompts (`insert_tokens`).
    """
    for manifest in manifests:
        others = [each.concept.token.lower() for each in manifests if each is not manifest and each.concept]
        if manifest.embeddings and manifest.concept and manifest.concept.token.lower() in others:
            return manifest.concept.token
    return ""


def _parse(key: str, data: bytes) -> Manifest | None:
    """Parse a manifest; None if its format is not supported, or it is not the manifest of the publication at its key."""
    try:
        manifest = Manifest.model_validate_json(data)
        manifest.check(key)
    except (ValidationError, ManifestError):
        return None
    return manifest

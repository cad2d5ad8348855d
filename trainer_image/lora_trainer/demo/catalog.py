"""What there is to show: the adapters and the captions that lie in the store."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from pydantic import ValidationError

from lora_api.keys import JobKeys
from lora_api.manifest import Manifest

from ..store import Bucket

MOST_OBJECTS = 50_000
NEVER = datetime.min.replace(tzinfo=UTC)
MANIFEST = re.compile(r"[^/.][^/]*/[^/]+/[^/]+/attempt-\d+/manifest\.json")
CAPTIONS = re.compile(r"([^/.][^/]*)/([^/]+)/([^/]+)/captions/metadata\.jsonl")


@dataclass(frozen=True)
class Catalog:
    """Newest first."""

    adapters: list[Manifest]
    captioned: list[JobKeys]
    """Jobs that have captions."""


def read_catalog(bucket: Bucket, read: Callable[[str], bytes]) -> Catalog:
    """Every published adapter and every job with captions.

    A manifest is the commit mark of a publication: an adapter without one is not shown.

    Args:
        read: gives the bytes of a key that is written only once.
    """
    found = bucket.list("", MOST_OBJECTS)
    found.sort(key=lambda item: item.modified or NEVER, reverse=True)
    keys = [item.key for item in found]
    manifests = [_parse(read(key)) for key in keys if MANIFEST.fullmatch(key)]
    captioned = [JobKeys(*match.groups()) for key in keys if (match := CAPTIONS.fullmatch(key))]
    return Catalog([manifest for manifest in manifests if manifest], captioned)


def title(manifest: Manifest) -> str:
    """An adapter's name for people, unlike any other's."""
    concept = f"{manifest.concept.token} {manifest.concept.class_name}" if manifest.concept else "adapter"
    return f"{concept} · {manifest.namespace}/{manifest.name} · {manifest.uid[:8]} #{manifest.attempt}"


def drawable_together(chosen: Sequence[Manifest]) -> bool:
    """Whether adapters were trained on one base model."""
    return len({manifest.base_model and manifest.base_model.identity() for manifest in chosen}) <= 1


def _parse(data: bytes) -> Manifest | None:
    """None for one of another version, which these pages could not show."""
    try:
        return Manifest.model_validate_json(data)
    except ValidationError:
        return None

"""Adapters on this machine: downloaded once, and taken only as their manifests describe them."""

from __future__ import annotations

from pathlib import Path

from lora_api.manifest import Manifest

from ..errors import BadDataError
from ..store import Bucket, ObjectMissingError, file_sha256


def fetch_adapter(bucket: Bucket, manifest: Manifest, folder: Path) -> Path:
    """An adapter's file, whose sha256 is the manifest's.

    Raises:
        BadDataError: when it is missing or differs from what was published.
    """
    wanted = manifest.adapter.sha256
    path = folder / f"{wanted}.safetensors"
    if path.is_file() and file_sha256(path) == wanted:
        return path
    entry = next((entry for entry in manifest.files if entry.sha256 == wanted), None)
    if entry is None:
        raise BadDataError(f"the manifest of {manifest.namespace}/{manifest.name} does not list its adapter")
    try:
        bucket.get_file(entry.key, path)
    except ObjectMissingError:
        raise BadDataError(
            f"{bucket.uri(entry.key)} is gone from the store: put it back, or train again"
        ) from None
    if file_sha256(path) != wanted:
        path.unlink()
        raise BadDataError(
            f"{bucket.uri(entry.key)} is not the file that was published (its sha256 differs): "
            "it was not loaded; put the published file back, or train again"
        )
    return path

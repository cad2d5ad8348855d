"""Adapter files on this machine. Each is downloaded once and verified against its manifest."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from lora_api.manifest import FileEntry, Manifest

from ..errors import BadDataError
from ..store import Bucket, ObjectChangedError, ObjectMissingError, file_sha256

SHA256 = re.compile(r"[0-9a-f]{64}")


def fetch_adapter(bucket: Bucket, manifest: Manifest, folder: Path) -> Path:
    """Download an adapter and verify its sha256.

    Args:
        folder: folder of downloaded adapters. The file is named by its sha256, and is not downloaded again.

    Raises:
        BadDataError: if the sha256 is malformed, the manifest does not list the file, it is missing, or its content differs.
    """
    expected = manifest.adapter.sha256
    if not SHA256.fullmatch(expected):
        # The sha256 becomes a file name, and a manifest from the store must not be able to choose a path.
        raise BadDataError(f"the manifest of {manifest.namespace}/{manifest.name} has no valid sha256")
    return _fetch(bucket, manifest, lambda entry: entry.sha256 == expected, folder)


def fetch_embeddings(bucket: Bucket, manifest: Manifest, folder: Path) -> Path | None:
    """Download the embeddings of an adapter's new tokens and verify their sha256; None if it has none.

    Args:
        folder: folder of downloaded adapters. The file is named by its sha256, and is not downloaded again.

    Raises:
        BadDataError: if the manifest does not list the file, it is missing, or its content differs.
    """
    if manifest.embeddings is None:
        return None
    key = manifest.embeddings.key
    return _fetch(bucket, manifest, lambda entry: entry.key == key, folder)


def _fetch(bucket: Bucket, manifest: Manifest, is_wanted: Callable[[FileEntry], bool], folder: Path) -> Path:
    """Download one file of a manifest, unless it is in the folder."""
    entry = next(filter(is_wanted, manifest.files), None)
    if entry is None:
        raise BadDataError(
            f"the manifest of {manifest.namespace}/{manifest.name} does not list all files of its adapter"
        )
    path = folder / f"{entry.sha256}.safetensors"
    if path.is_file() and file_sha256(path) == entry.sha256:
        return path
    try:
        bucket.get_verified_file(entry.key, path, entry.sha256, entry.bytes)
    except ObjectMissingError:
        raise BadDataError(
            f"{bucket.uri(entry.key)} is missing from the store: restore the file or train again"
        ) from None
    except ObjectChangedError:
        raise BadDataError(
            f"{bucket.uri(entry.key)} was changed after it was published (its sha256 differs) and was not loaded: "
            "restore the published file or train again"
        ) from None
    return path

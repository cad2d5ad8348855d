"""Folders to and from the store, for local mode: the customer's pictures in, the adapter out."""

from __future__ import annotations

import hashlib
from pathlib import Path

from minio import Minio

from lora_api.manifest import Manifest


class DownloadError(RuntimeError):
    """What came out of the store is not what its manifest says."""


def upload_folder(client: Minio, bucket: str, folder: Path, prefix: str, mirror: bool) -> int:
    """Copy a folder's files under a key prefix, unchanged ones excepted.

    Args:
        mirror: also remove objects under the prefix that the folder does not have.

    Returns:
        How many files were sent.
    """
    prefix = prefix.rstrip("/") + "/"
    there = {
        item.object_name: (item.etag or "").strip('"')
        for item in client.list_objects(bucket, prefix=prefix, recursive=True)
    }
    sent = 0
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        key = prefix + path.relative_to(folder).as_posix()
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
        if there.pop(key, None) != digest:
            client.fput_object(bucket, key, str(path), part_size=5 << 30)
            sent += 1
    if mirror:
        for key in there:
            client.remove_object(bucket, str(key))
    return sent


def download_adapter(client: Minio, bucket: str, manifest_key: str, folder: Path) -> Manifest:
    """Everything a manifest names, into a folder, each file checked against its sha256.

    Raises:
        DownloadError: naming the file that differs.
    """
    response = client.get_object(bucket, manifest_key)
    try:
        manifest = Manifest.model_validate_json(response.read())
    finally:
        response.close()
        response.release_conn()
    root = manifest_key.rsplit("/", 1)[0] + "/"
    for entry in manifest.files:
        path = folder / entry.key.removeprefix(root)
        client.fget_object(bucket, entry.key, str(path))
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != entry.sha256:
                raise DownloadError(f"{path} differs from what was published; download it again")
    return manifest

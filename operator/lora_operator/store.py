"""Folders to and from the store: the customer's pictures in, the adapter out."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import urllib3
from minio import Minio
from minio.error import MinioException, S3Error
from pydantic import ValidationError

from lora_api.manifest import Manifest


class DownloadError(RuntimeError):
    """What a manifest names cannot be had, or is not what it says."""


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
    """Everything a manifest names, into a folder, each file only if its sha256 is the manifest's.

    Raises:
        DownloadError: naming the file that is gone or differs, or saying why the store cannot be used.
    """
    with _plainly(manifest_key):
        response = client.get_object(bucket, manifest_key)
        try:
            manifest = Manifest.model_validate_json(response.read())
        finally:
            response.close()
            response.release_conn()
    root = manifest_key.rsplit("/", 1)[0] + "/"
    for entry in manifest.files:
        path = folder / entry.key.removeprefix(root)
        partial = path.with_name(f"{path.name}.part")
        with _plainly(entry.key):
            client.fget_object(bucket, entry.key, str(partial))
        with partial.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != entry.sha256:
            partial.unlink()
            raise DownloadError(
                f"s3://{bucket}/{entry.key} is not the file that was published (its sha256 differs) and was not kept"
            )
        partial.replace(path)
    return manifest


@contextmanager
def _plainly(key: str) -> Iterator[None]:
    try:
        yield
    except S3Error as error:
        raise DownloadError(f"the store does not give {key}: {error.message} ({error.code})") from None
    except (MinioException, urllib3.exceptions.HTTPError) as error:
        reason = error.reason if isinstance(error, urllib3.exceptions.MaxRetryError) else error
        raise DownloadError(f"the store cannot be reached: {reason}") from None
    except ValidationError:
        raise DownloadError(f"{key} is no manifest that this version can read") from None

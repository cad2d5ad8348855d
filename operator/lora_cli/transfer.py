"""Transfers between folders and the store: upload photographs, download published adapters."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from pydantic import TypeAdapter, ValidationError

from .errors import CommandError, UsageError
from .exits import Exit

if TYPE_CHECKING:
    from lora_api.manifest import FileEntry, Manifest
    from lora_trainer.store import Bucket

ONE_PART = 5 << 30
"""Bytes of the largest part that S3 allows. The ETag of a file uploaded in one part is its MD5, so that unchanged
files can be recognized."""
MAX_OBJECTS = 100_000
"""Largest number of objects that are listed under a prefix."""
SHA256 = re.compile(r"[0-9a-f]{64}")
MAX_MANIFEST_FILES = 10_000
IMAGE_MAGIC = (b"\xff\xd8\xff", b"\x89PNG\r\n", b"GIF8", b"II*\0", b"MM\0*")
"""The beginnings of JPEG, PNG, GIF and TIFF files."""


class DownloadError(CommandError):
    """A manifest names something that is missing, changed, or outside the adapter's folder."""

    exit_code = Exit.BAD_DATA


def upload_folder(bucket: Bucket, folder: Path, prefix: str, mirror: bool, *, dataset: bool = False) -> int:
    """Upload a folder's files under a key prefix, except unchanged ones and those in hidden folders.

    Args:
        mirror: also remove the objects under the prefix that have no file in the folder.
        dataset: whether the folder holds the images of a job. Links out of it must then lead to images.

    Returns:
        The number of files that were uploaded.

    Raises:
        UsageError: when a file's name cannot be a key, or a link leads out of the folder. Nothing was uploaded then.
    """
    from lora_trainer.annotate.sources import walk_files

    prefix = prefix.rstrip("/") + "/"
    stored = {item.key: item.etag for item in bucket.list(prefix, MAX_OBJECTS)}
    paths = {}
    for path in walk_files(folder):
        if dataset:
            _refuse_link(folder, path)
        if key := _key_of(folder, path, prefix):
            paths[key] = path
    uploaded = 0
    for key, path in paths.items():
        if stored.pop(key, None) != _md5(path):
            bucket.put_file(key, path, part_size=ONE_PART)
            uploaded += 1
    if mirror:
        for key in stored:
            bucket.remove(key)
    return uploaded


def _key_of(folder: Path, path: Path, prefix: str) -> str:
    """Return the key of a file; empty for a system file whose name cannot be one, such as the `Icon\\r` of macOS.

    Raises:
        UsageError: for another file whose name cannot be a key.
    """
    from lora_api.fields import ObjectKey
    from lora_trainer.annotate.ignored import ignored_reason

    name = path.relative_to(folder)
    try:
        return TypeAdapter(ObjectKey).validate_python(prefix + name.as_posix())
    except ValidationError as error:
        if ignored_reason(PurePosixPath(name)):
            return ""
        reason = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise UsageError(f"{str(folder / name)!r} cannot be stored: its key {reason}; rename it") from None


def _refuse_link(folder: Path, path: Path) -> None:
    """Refuse a link out of a folder, unless it leads to an image. A folder from elsewhere could link to a private file.

    Raises:
        UsageError: when the link leads to anything else.
    """
    if path.resolve().is_relative_to(folder.resolve()):
        return
    with path.open("rb") as file:
        head = file.read(12)
    if not (head.startswith(IMAGE_MAGIC) or head[8:] == b"WEBP" or head[4:8] == b"ftyp"):
        raise UsageError(
            f"{path} links to a file outside of {folder} that is not an image: copy it, or remove the link"
        )


def upload_file(bucket: Bucket, path: Path, key: str) -> int:
    """Upload a file to a key, unless an equal object is stored there. Return the number of uploads, 0 or 1."""
    digest = _md5(path)
    if any(item.key == key and item.etag == digest for item in bucket.list(key, MAX_OBJECTS)):
        return 0
    bucket.put_file(key, path, part_size=ONE_PART)
    return 1


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def download_adapter(bucket: Bucket, manifest_key: str, folder: Path) -> Manifest:
    """Download every file that a manifest names into a folder, and then the manifest.

    A file is kept only if its sha256 matches the manifest. All files are written inside the folder.

    Raises:
        DownloadError: when a file is missing, differs, or would be written outside the folder; the message names it.
        StageError: when the store refuses a request or does not answer.
    """
    from lora_api.manifest import FileEntry, Manifest, sha256_hex

    root = manifest_key.rpartition("/")[0] + "/"
    data = _read(bucket, manifest_key)
    try:
        manifest = Manifest.model_validate_json(data)
    except ValidationError:
        raise DownloadError(
            f"{bucket.uri(manifest_key)} is not a manifest that this version can read"
        ) from None
    if len(manifest.files) > MAX_MANIFEST_FILES:
        raise DownloadError(f"{bucket.uri(manifest_key)} names more than {MAX_MANIFEST_FILES} files")
    # All paths are checked before the first file is written, so that a forged manifest leaves no files.
    entries = [
        *manifest.files,
        FileEntry(key=manifest_key, bytes=len(data), sha256=sha256_hex(data)),
    ]
    paths = {entry.key: safe_path(folder, root, entry) for entry in entries}
    for entry in entries:
        _download(bucket, entry, paths[entry.key])
    return manifest


def safe_path(folder: Path, root: str, entry: FileEntry) -> Path:
    """Return the path that an object of a manifest is written to, always inside the folder.

    Args:
        root: the key prefix of the manifest, ending in a slash.

    Raises:
        DownloadError: when the key is not below the root, has an empty part, one that begins with a dot (such as `.bashrc`)
            or a control character, a link on this machine leads out of the folder, or the sha256 is malformed.
    """
    relative = entry.key.removeprefix(root)
    parts = relative.split("/")
    if (
        not entry.key.startswith(root)
        or any(part == "" or part.startswith(".") for part in parts)
        or "\\" in relative
        or not relative.isprintable()
        or PurePosixPath(relative).is_absolute()
    ):
        raise DownloadError(
            f"the manifest names {entry.key!r}, which is not a file of this adapter; nothing was written"
        )
    if not SHA256.fullmatch(entry.sha256):
        raise DownloadError(f"the manifest has no valid sha256 for {entry.key!r}; nothing was written")
    path = folder.joinpath(*parts)
    if not path.resolve().is_relative_to(folder.resolve()):
        raise DownloadError(f"{path} leads out of {folder} by a link; nothing was written")
    return path


def _download(bucket: Bucket, entry: FileEntry, path: Path) -> None:
    from lora_trainer.store import ObjectChangedError, ObjectMissingError

    partial = path.with_name(f"{path.name}.part")
    # A symbolic link at the path of a temporary file would redirect the write. The bucket adds a `.part` of its own.
    for temporary in (partial, partial.with_name(f"{partial.name}.part")):
        temporary.unlink(missing_ok=True)
    try:
        bucket.get_verified_file(entry.key, partial, entry.sha256, entry.bytes)
    except ObjectMissingError:
        raise DownloadError(f"{bucket.uri(entry.key)} is missing from the store") from None
    except ObjectChangedError:
        raise DownloadError(
            f"{bucket.uri(entry.key)} is not the file that was published (its sha256 differs); it was not kept"
        ) from None
    partial.replace(path)


def _read(bucket: Bucket, key: str) -> bytes:
    from lora_trainer.store import ObjectMissingError

    try:
        return bucket.get(key)
    except ObjectMissingError:
        raise DownloadError(f"{bucket.uri(key)} is missing from the store") from None

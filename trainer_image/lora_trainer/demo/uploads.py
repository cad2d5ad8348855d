"""Images that a user uploads in the page to train on."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from PIL import Image

from lora_api.dataset import Dataset, OnBadImage

from ..annotate.listing import list_dataset
from ..annotate.loading import PILLOW_FORMATS, SUFFIXES, is_heif
from ..annotate.masks import split_masks
from ..errors import BadDataError, NoInputError
from ..store import StoredObject

MAX_FILES = 200
MAX_BYTES = 1 << 30
"""Limits of one upload, which is held in memory."""
MAX_NAME = 200
"""Bytes of a name. File systems take 255."""
CAPTION_SUFFIXES = (".txt", ".caption", ".jsonl", ".csv", ".json")
IMAGE_SUFFIXES = tuple(sorted({suffix for group in SUFFIXES.values() for suffix in group}))


@dataclass(frozen=True)
class Upload:
    """One uploaded file."""

    name: str
    data: bytes


class _Files:
    """The files of an upload as a source of the annotation stage."""

    def __init__(self, files: Sequence[Upload]) -> None:
        self._files = {file.name: file.data for file in files}

    def uri(self, key: str) -> str:
        return key

    def list(self, prefix: str, limit: int) -> list[StoredObject]:
        names = sorted(name for name in self._files if name.startswith(prefix))
        return [StoredObject(name, len(self._files[name]), "") for name in names[:limit]]

    def get(self, key: str) -> bytes:
        return self._files[key]


def check_uploads(files: Sequence[Upload]) -> list[Upload]:
    """Check the files of an upload, which a program other than a browser may have sent.

    Returns:
        The files, with the last part of their names only.

    Raises:
        BadDataError: when there is no image, there are too many files, or two have the same name.
    """
    if len(files) > MAX_FILES or sum(len(file.data) for file in files) > MAX_BYTES:
        raise BadDataError(
            f"upload at most {MAX_FILES} files and {MAX_BYTES >> 20} MiB: 5 to 20 images are enough"
        )
    named: dict[str, Upload] = {}
    for file in files:
        name = PurePosixPath(file.name.replace("\\", "/")).name
        suffix = PurePosixPath(name).suffix.lower()
        if not name or name.startswith(".") or not name.isprintable() or len(name.encode()) > MAX_NAME:
            raise BadDataError(f"{file.name!r} cannot be used as a file name: rename the file")
        if suffix not in IMAGE_SUFFIXES + CAPTION_SUFFIXES:
            raise BadDataError(f"{name} is neither an image nor a file of captions: remove it")
        if name in named:
            raise BadDataError(f"two files are named {name}: rename one")
        named[name] = Upload(name, file.data)
    if not any(is_image(name) for name in named):
        raise BadDataError("there is no image among the files: add 5 to 20 photographs")
    return list(named.values())


def count_photographs(files: Sequence[Upload]) -> int:
    """Count the images that the annotation stage would read. Masks are not among them."""
    try:
        listing = list_dataset(_Files(files), "")
    except NoInputError:
        return 0
    return len(split_masks(listing.images)[0])


def find_count_problem(photographs: int, dataset: Dataset) -> str:
    """Return what is wrong with the number of photographs; empty if the job would accept it.

    More than the limit are no problem if the job skips some.
    """
    low, high = dataset.min_images, dataset.max_images
    if photographs < low:
        return (
            f"{photographs} photographs, and the job takes {low} to {high}: add {low - photographs}, "
            "or lower dataset.minImages in the manifest"
        )
    if photographs > high and dataset.on_bad_image is OnBadImage.FAIL:
        return (
            f"{photographs} photographs, and the job takes {low} to {high}: remove {photographs - high}, "
            "or raise dataset.maxImages in the manifest"
        )
    return ""


def is_image(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES


def unreadable_images(files: Sequence[Upload]) -> list[str]:
    """Return the names of the files with an image's suffix whose content is in no format that is read."""
    return [file.name for file in files if is_image(file.name) and not _has_image_header(file.data)]


def _has_image_header(data: bytes) -> bool:
    try:
        with Image.open(io.BytesIO(data), formats=PILLOW_FORMATS):
            return True
    except Exception:  # decoders raise errors of many kinds for damaged data
        return is_heif(data)


def digest(files: Sequence[Upload]) -> str:
    """Hash names and contents, so that other images get another folder."""
    hashed = hashlib.sha256()
    for file in sorted(files, key=lambda file: file.name):
        hashed.update(f"{file.name}\0{len(file.data)}\0".encode() + file.data)
    return hashed.hexdigest()[:12]


def write_uploads(folder: Path, files: Sequence[Upload]) -> None:
    """Write the files into a folder, and remove all other files from it."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    kept = {file.name for file in files}
    for other in folder.iterdir():
        if other.name not in kept:
            other.unlink()
    for file in files:
        (folder / file.name).write_bytes(file.data)

"""The files of a dataset, sorted into images, captions and ignored files."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from lora_api.status import SkippedImage

from ..errors import BadDataError, NoInputError
from ..store import StoredObject
from .existing import CAPTION_SUFFIXES
from .file_names import suffix_of, without_suffix
from .ignored import REGULARISATION_IMAGE, TABLE, ignored_reason, repeats_of, unused_folder
from .raw import RAW_SUFFIXES
from .sources import Source

MAX_OBJECTS = 1000
"""Maximum number of files of a dataset."""


class TooManyFilesError(BadDataError):
    """A prefix or folder has more than `MAX_OBJECTS` files."""


@dataclass(frozen=True)
class Listing:
    """The files under a dataset's prefix. Each list is sorted by key."""

    images: list[StoredObject] = field(default_factory=list)
    captions: list[StoredObject] = field(default_factory=list)
    ignored: list[SkippedImage] = field(default_factory=list)
    """Files that are not meant as images. The report lists them; they do not fail the job."""
    warnings: list[str] = field(default_factory=list)


def list_dataset(source: Source, prefix: str) -> Listing:
    """List a prefix and sort its files.

    Args:
        prefix: with a slash at its end; empty for a whole folder.

    Raises:
        NoInputError: when there is no image.
        BadDataError: when there are more than 1,000 objects; the listing stops there.
    """
    objects = source.list(prefix, MAX_OBJECTS + 1)
    if len(objects) > MAX_OBJECTS:
        raise TooManyFilesError(
            f"more than {MAX_OBJECTS} objects lie under {source.uri(prefix)}; give the dataset a prefix of its own"
        )
    listing = Listing()
    repeats: set[str] = set()
    plain_folders: Counter[str] = Counter()
    ordered = sorted(objects, key=lambda item: item.key)
    # A RAW file is ignored only if a readable image of the same name is beside it.
    developed = {
        without_suffix(item.key).lower()
        for item in ordered
        if suffix_of(item.key) in (".jpg", ".jpeg", ".heic", ".png")
    }
    for item in ordered:
        path = PurePosixPath(item.key.removeprefix(prefix))
        suffix = suffix_of(item.key)
        reason = ignored_reason(path)
        if not reason and suffix in RAW_SUFFIXES and without_suffix(item.key).lower() in developed:
            reason = "a RAW file beside its developed image"
        if folder := unused_folder(path):
            plain_folders[folder] += 1
        if reason:
            listing.ignored.append(SkippedImage(key=item.key, reason=f"{reason}; ignored"))
        elif suffix in CAPTION_SUFFIXES:
            listing.captions.append(item)
        else:
            # A file with any other suffix counts as an image: its content decides, not its name.
            listing.images.append(item)
            if folder := repeats_of(path):
                repeats.add(folder)
    for folder in sorted(repeats):
        listing.warnings.append(
            f"{folder}/: its images are used like all others; the repeats and the concept in the folder's name are not"
        )
    tables = [item.key.removeprefix(prefix) for item in listing.ignored if TABLE in item.reason]
    listing.warnings.extend(f"{name}: {TABLE}" for name in tables)
    regularisation = sum(item.reason.startswith(REGULARISATION_IMAGE) for item in listing.ignored)
    if regularisation:
        listing.warnings.append(
            f"{regularisation} regularisation images are not used: set training.priorPreservation.enabled instead"
        )
    for folder, count in sorted(plain_folders.items()):
        listing.warnings.append(
            f"{folder}/: {count} images are not used, because programs keep small copies in folders of this name; "
            "rename it to use them"
        )
    if not listing.images:
        raise NoInputError(f"no images lie under {source.uri(prefix)}; upload them or correct dataset.prefix")
    return listing

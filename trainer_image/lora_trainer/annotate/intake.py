"""The customer's files in, numbered clean pictures out; what cannot be used is named with its reason.

Files are read into memory one after the other and written to the store under numbers: nothing of a
customer's key ever becomes a name on this machine or a new key.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

from PIL import Image

from lora_api.job import Crop, JobSpec, OnBadImage, Training
from lora_api.keys import JobKeys
from lora_api.manifest import FileEntry
from lora_api.status import SkippedImage

from ..errors import BadDataError, NoInputError
from ..store import Bucket, ObjectMissingError, Store, StoredObject
from .crop import WHOLE, Box, middle_square, smart_square
from .decode import MAX_FILE_BYTES, SUFFIXES, BadImageError, CleanImage, decode
from .duplicates import near_duplicates, perceptual_hash

log = logging.getLogger(__name__)

MAX_OBJECTS = 1000
CAPTION_SUFFIXES = {".txt", ".jsonl"}
HOUSEKEEPING = {"thumbs.db", "desktop.ini"}
MESSAGE_CHARACTERS = 1500


@dataclass(frozen=True)
class Listing:
    """What lies under a dataset's prefix, each sorted by key."""

    images: list[StoredObject]
    captions: list[StoredObject]
    ignored: list[StoredObject]
    """What operating systems leave behind: named in the report, no reason to fail."""


@dataclass(frozen=True)
class Picture:
    """A clean picture in the store, and what is known of it."""

    file_name: str
    """Its name in metadata.jsonl."""
    source: StoredObject
    entry: FileEntry
    pixels_sha256: str
    width: int
    height: int
    source_width: int
    source_height: int
    source_format: str
    shown: Box
    """The part that is trained on, and so the part that a language model is shown."""
    look: bytes
    """That part as a small JPEG."""
    look_size: tuple[int, int]
    crop: Box | None
    """The part to train on; None for the trainer's own cut from the middle."""
    perceptual_hash: int
    warnings: list[str]


@dataclass(frozen=True)
class Intake:
    """What became of every file under the prefix."""

    pictures: list[Picture]
    bad: list[SkippedImage]
    litter: list[SkippedImage]

    @property
    def skipped(self) -> list[SkippedImage]:
        return self.bad + self.litter


def list_dataset(bucket: Bucket, prefix: str) -> Listing:
    """List a prefix and sort what lies there into pictures, captions and litter.

    Raises:
        NoInputError: when no picture lies there.
        BadDataError: when more than 1,000 objects do; the listing stops there.
    """
    found = bucket.list(prefix, MAX_OBJECTS + 1)
    if len(found) > MAX_OBJECTS:
        raise BadDataError(
            f"more than {MAX_OBJECTS} objects lie under {bucket.uri(prefix)}; give the dataset a prefix of its own"
        )
    listing = Listing([], [], [])
    for item in sorted(found, key=lambda item: item.key):
        path = PurePosixPath(item.key.removeprefix(prefix))
        if path.name.startswith(".") or path.name.lower() in HOUSEKEEPING or "__MACOSX" in path.parts:
            listing.ignored.append(item)
        elif path.suffix.lower() in CAPTION_SUFFIXES:
            listing.captions.append(item)
        else:
            listing.images.append(item)
    if not listing.images:
        raise NoInputError(f"no images lie under {bucket.uri(prefix)}; upload them or correct dataset.prefix")
    return listing


def take_in(store: Store, keys: JobKeys, spec: JobSpec, listing: Listing) -> Intake:
    """Clean every image of a listing and store it, one at a time. `check_intake` judges the outcome.

    Raises:
        BadDataError: as soon as there are more than maxImages good ones.
    """
    most = spec.dataset.max_images
    pictures: list[Picture] = []
    bad: list[SkippedImage] = []
    for item in listing.images:
        try:
            clean = fetch_image(store.input, item)
        except BadImageError as error:
            log.warning("%s: %s", item.key, error)
            bad.append(SkippedImage(key=item.key, reason=str(error)))
            continue
        if len(pictures) == most:
            raise BadDataError(
                f"more than maxImages={most} good images lie under {spec.dataset.prefix} "
                f"({len(listing.images)} files); narrow the prefix or raise dataset.maxImages"
            )
        pictures.append(store_picture(store.output, keys.image(len(pictures)), item, clean, spec.training))
    litter = [SkippedImage(key=item.key, reason="not an image; ignored") for item in listing.ignored]
    return Intake(_mark_duplicates(pictures), bad, litter)


def check_intake(spec: JobSpec, intake: Intake) -> None:
    """Refuse a dataset with bad files, unless the job skips them, or with too few good ones.

    Raises:
        BadDataError: naming each bad file with its reason.
    """
    if intake.bad and spec.dataset.on_bad_image is OnBadImage.FAIL:
        raise BadDataError(
            f"{len(intake.bad)} of the files cannot be used "
            f"(set dataset.onBadImage: Skip to go on without them): {name_each(intake.bad)}"
        )
    check_enough(spec, len(intake.pictures), intake.bad)


def fetch_image(bucket: Bucket, item: StoredObject) -> CleanImage:
    """Download and decode one object.

    Raises:
        BadImageError: when it is too large (it is not downloaded then), gone, or no usable image.
    """
    if item.bytes > MAX_FILE_BYTES:
        raise BadImageError(f"larger than {MAX_FILE_BYTES >> 20} MB")
    try:
        return decode(bucket.get(item.key))
    except ObjectMissingError:
        raise BadImageError("it was deleted while the job read the dataset") from None


def store_picture(
    bucket: Bucket, key: str, item: StoredObject, clean: CleanImage, training: Training
) -> Picture:
    """Write a clean picture under its key and note what the rest of the step needs of it."""
    entry = bucket.put(key, clean.png(), "image/png")
    width, height = clean.image.size
    shown = framing(clean.image, training.crop)
    look, look_width, look_height = clean.look(shown)
    return Picture(
        file_name=PurePosixPath(key).name,
        source=item,
        entry=entry,
        pixels_sha256=clean.pixels_sha256(),
        width=width,
        height=height,
        source_width=clean.source_width,
        source_height=clean.source_height,
        source_format=clean.source_format,
        shown=shown,
        look=look,
        look_size=(look_width, look_height),
        crop=shown if training.crop is Crop.SMART else None,
        perceptual_hash=perceptual_hash(clean.image),
        warnings=[*clean.warnings, *_remarks(item.key, clean, training.resolution)],
    )


def framing(image: Image.Image, crop: Crop) -> Box:
    """The part of a picture that is trained on. Buckets keep its shape, which the trainer sees to."""
    if crop is Crop.SMART:
        return smart_square(image)
    return middle_square(*image.size) if crop is Crop.CENTER else WHOLE


def _remarks(key: str, clean: CleanImage, resolution: int) -> list[str]:
    remarks = []
    if PurePosixPath(key).suffix.lower() not in SUFFIXES[clean.source_format]:
        remarks.append(f"it is a {clean.source_format} by its content, whatever its name says")
    if min(clean.image.size) < resolution:
        remarks.append(
            f"its short side of {min(clean.image.size)} pixels is enlarged to train at {resolution}"
        )
    return remarks


def _mark_duplicates(pictures: list[Picture]) -> list[Picture]:
    marked = list(pictures)
    for index, earlier in near_duplicates([picture.perceptual_hash for picture in pictures]).items():
        remark = f"nearly the same as {pictures[earlier].source.key}"
        marked[index] = replace(pictures[index], warnings=[*pictures[index].warnings, remark])
    return marked


def check_enough(spec: JobSpec, good: int, skipped: list[SkippedImage]) -> None:
    """Raises: BadDataError when fewer than minImages are good."""
    dataset = spec.dataset
    if good < dataset.min_images:
        named = f"; not used: {name_each(skipped)}" if skipped else ""
        raise BadDataError(
            f"{good} good images under {dataset.prefix}, at least minImages={dataset.min_images} are needed{named}"
        )


def name_each(skipped: Iterable[SkippedImage]) -> str:
    """`key: reason; key: reason; and 3 more`, of bounded length."""
    items = [f"{item.key[-200:]!r}: {item.reason[:200]}" for item in skipped]
    text = ""
    for index, item in enumerate(items):
        if len(text) + len(item) > MESSAGE_CHARACTERS:
            return f"{text}and {len(items) - index} more"
        text += f"{item}; "
    return text.removesuffix("; ")

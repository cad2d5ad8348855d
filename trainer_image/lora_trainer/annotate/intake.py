"""The intake of a dataset: reads its files, cleans the images and stores them under numbers.

A file that cannot be used is reported with its reason. Files are read into memory one after the other. No part of a
customer's key becomes a file name on this machine or part of a new key.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

from PIL import Image

from lora_api.caption_rows import Box
from lora_api.job import Crop, JobSpec, OnBadImage, Training
from lora_api.keys import JobKeys
from lora_api.manifest import FileEntry
from lora_api.status import SkippedImage

from ..aspect import trained_share
from ..errors import BadDataError
from ..store import Bucket, ObjectMissingError, ObjectTooLargeError, Store, StoredObject
from .crop import frame_image
from .decode import MAX_FILE_BYTES, CleanImage, decode, encode_png
from .duplicates import Fingerprint, copies, duplicate_warnings
from .listing import Listing
from .loading import SUFFIXES, BadImageError
from .masks import ENDING, MaskMethod, MaskOrigin, choose_mask, fit_mask, mask_method, split_masks
from .sources import Source

log = logging.getLogger(__name__)

MESSAGE_CHARACTERS = 1500
"""Maximum length of the list of files in an error message, in characters."""

SMALLEST_SHARE = {Crop.SMART: 0.5, Crop.CENTER: 0.5, Crop.BUCKETS: 0.75}
"""Share of an image that is trained on, below which there is a warning. Buckets promise to keep the aspect ratio."""


@dataclass(frozen=True)
class DatasetImage:
    """A clean image in the store, with its properties."""

    file_name: str
    """Name of the image in metadata.jsonl."""
    source: StoredObject
    """The customer's file."""
    entry: FileEntry
    """The clean image in the output bucket."""
    pixels_sha256: str
    width: int
    """Width of the clean image, in pixels."""
    height: int
    source_width: int
    """Width of the customer's image after orientation, in pixels."""
    source_height: int
    source_format: str
    shown: Box
    """The part of the image that is trained on, and that the language model is shown."""
    thumbnail: bytes
    """The shown part as a small JPEG."""
    thumbnail_size: tuple[int, int]
    """Width and height of the thumbnail, in pixels."""
    crop: Box | None
    """The part to train on; None: the trainer crops the centre itself."""
    fingerprint: Fingerprint
    warnings: list[str]
    mask: FileEntry | None = None
    """The mask of the subject in the output bucket. It has the size of the clean image."""
    mask_source: StoredObject | None = None
    """The customer's file of the mask; None: there is no mask, or this stage made it."""
    mask_origin: MaskOrigin = MaskOrigin.NONE

    @property
    def sources(self) -> list[StoredObject]:
        """The customer's files that the image and its mask are made of."""
        return [self.source, *([self.mask_source] if self.mask_source else [])]

    @property
    def hashed(self) -> list[tuple[str, str]]:
        """The items of `dataset_sha256`: the customer's files, and a mask by a model.

        A mask by GrabCut follows from the image and this version. One by a model also depends on the model's files.
        """
        made = self.mask if self.mask_origin is MaskOrigin.MODEL else None
        masks = [(PurePosixPath(made.key).name, made.sha256)] if made else []
        return [(file.key, file.etag) for file in self.sources] + masks


@dataclass(frozen=True)
class Intake:
    """The outcome of every file under the prefix."""

    images: list[DatasetImage]
    bad: list[SkippedImage]
    """Images that cannot be used. They fail the job unless it skips them."""
    ignored: list[SkippedImage]
    """Files that are not meant as images. They never fail the job."""

    @property
    def skipped(self) -> list[SkippedImage]:
        """The bad and the ignored files."""
        return self.bad + self.ignored

    @property
    def distinct(self) -> int:
        """Number of images that are not copies of another one."""
        return len(self.images) - len(copies([image.fingerprint for image in self.images]))


def clean_dataset(
    store: Store, keys: JobKeys, spec: JobSpec, listing: Listing, segment: MaskMethod | None = None
) -> Intake:
    """Clean and store every image of a listing, one at a time. `check_intake` then checks the outcome.

    Args:
        segment: makes masks by the segmentation model; required where annotation.masks is Model.

    Raises:
        BadDataError: as soon as there are more than maxImages good ones.
    """
    limit = spec.dataset.max_images
    method = mask_method(spec.annotation.masks, segment)
    images: list[DatasetImage] = []
    bad: list[SkippedImage] = []
    items, masks, orphans = split_masks(listing.images)
    for item in items:
        mask, file = None, masks.get(item.key)
        try:
            clean = fetch_image(store.input, item, spec.training)
            if file:
                mask = fit_mask(fetch_image(store.input, file, spec.training), clean)
        except BadImageError as error:
            log.warning("%s: %s", item.key, error)
            bad.append(SkippedImage(key=item.key, reason=str(error)))
            continue
        if len(images) == limit:
            raise BadDataError(
                f"more than maxImages={limit} good images lie under {spec.dataset.prefix} "
                f"({len(listing.images)} files); narrow the prefix or raise dataset.maxImages"
            )
        framed, shown = frame_image(clean, spec.training)
        image = store_image(
            store.output, keys.image(len(images)), item, framed, shown=shown, training=spec.training
        )
        mask, file = choose_mask(mask, file, framed.image, shown, image.warnings, method=method)
        origin = MaskOrigin.OWN if file else MaskOrigin(spec.annotation.masks)
        images.append(_with_mask(store.output, keys, image, mask, file, origin=origin))
    return Intake(_mark_duplicates(images), bad, [*listing.ignored, *orphans])


def _with_mask(
    bucket: Bucket,
    keys: JobKeys,
    image: DatasetImage,
    mask: Image.Image | None,
    file: StoredObject | None,
    *,
    origin: MaskOrigin,
) -> DatasetImage:
    """Store an image's mask beside the clean image, and return the image with it.

    Args:
        file: the customer's file of the mask; None if the mask was made.
        origin: origin of the mask, if there is one.
    """
    if mask is None:
        return image
    key = keys.image_named(f"{PurePosixPath(image.file_name).stem}{ENDING}.png")
    entry = bucket.put(key, encode_png(mask), "image/png")
    return replace(image, mask=entry, mask_source=file, mask_origin=origin)


def check_intake(spec: JobSpec, intake: Intake) -> None:
    """Refuse a dataset with bad files, unless the job skips them, or with too few good ones.

    Raises:
        BadDataError: with each bad file and its reason.
    """
    if intake.bad and spec.dataset.on_bad_image is OnBadImage.FAIL:
        raise BadDataError(
            f"{len(intake.bad)} of the files cannot be used "
            f"(set dataset.onBadImage: Skip to train without them): {name_each(intake.bad)}"
        )
    check_enough(spec, len(intake.images), intake.bad)
    if intake.distinct < spec.dataset.min_images:
        raise BadDataError(
            f"{intake.distinct} different images under {spec.dataset.prefix} ({len(intake.images)} files, the others are "
            f"copies), at least {spec.dataset.min_images} are needed: add images, or lower dataset.minImages"
        )


def fetch_image(source: Source, item: StoredObject, training: Training) -> CleanImage:
    """Download and decode one object.

    Raises:
        BadImageError: when it is too large to be downloaded, has been deleted, or is not a usable image.
    """
    if item.bytes > MAX_FILE_BYTES:
        raise BadImageError(f"larger than {MAX_FILE_BYTES >> 20} MB")
    try:
        return decode(source.get(item.key), training.resolution)
    except ObjectMissingError:
        raise BadImageError("it was deleted while the stage read the dataset") from None
    except ObjectTooLargeError:
        raise BadImageError(f"larger than {MAX_FILE_BYTES >> 20} MB once it is decompressed") from None


def store_image(
    bucket: Bucket, key: str, item: StoredObject, clean: CleanImage, *, shown: Box, training: Training
) -> DatasetImage:
    """Store a clean image, and return it with the properties that the rest of the stage needs.

    Args:
        key: the key of the clean image in the bucket.
        item: the customer's file.
        clean, shown: the image and the part of it to train on, from `frame_image`.
    """
    entry = bucket.put(key, clean.png(), "image/png")
    width, height = clean.image.size
    thumbnail, thumb_width, thumb_height = clean.thumbnail_jpeg(shown)
    return DatasetImage(
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
        thumbnail=thumbnail,
        thumbnail_size=(thumb_width, thumb_height),
        crop=shown if training.crop is Crop.SMART else None,
        fingerprint=Fingerprint.of(clean.image),
        warnings=[*clean.warnings, *image_warnings(item.key, clean, training)],
    )


def image_warnings(key: str, clean: CleanImage, training: Training) -> list[str]:
    """Return the warnings about an image that is used: a misleading suffix, a small size, and a large part cut off."""
    warnings = []
    if PurePosixPath(key).suffix.lower() not in SUFFIXES[clean.source_format]:
        warnings.append(f"it is a {clean.source_format} by its content, whatever its name says")
    if min(clean.image.size) < training.resolution:
        warnings.append(
            f"its short side of {min(clean.image.size)} pixels is enlarged to train at {training.resolution}"
        )
    share = trained_share(clean.source_width, clean.source_height, training)
    if share < SMALLEST_SHARE[training.crop]:
        advice = "crop it to a shorter image"
        if training.crop is not Crop.BUCKETS:
            advice += ", or set training.crop to Buckets"
        warnings.append(f"only {share:.0%} of it is trained on, because it is so long: {advice}")
    return warnings


def _mark_duplicates(images: list[DatasetImage]) -> list[DatasetImage]:
    """Add a warning to each image that is a copy of an earlier one or nearly the same."""
    marked = list(images)
    warnings = duplicate_warnings(
        [image.fingerprint for image in images], [image.source.key for image in images]
    )
    for index, warning in warnings.items():
        marked[index] = replace(images[index], warnings=[*images[index].warnings, warning])
    return marked


def check_enough(spec: JobSpec, good: int, skipped: list[SkippedImage]) -> None:
    """Check that enough images are good.

    Raises:
        BadDataError: when fewer than minImages are, or none would be left beside the held-out ones.
    """
    dataset = spec.dataset
    if good < dataset.min_images:
        named = f"; not used: {name_each(skipped)}" if skipped else ""
        raise BadDataError(
            f"{good} good images under {dataset.prefix}, at least {dataset.min_images} are needed: add images, or lower "
            f"dataset.minImages{named}"
        )
    held_out = spec.training.validation.held_out_images
    if good <= held_out:
        raise BadDataError(
            f"{good} good images under {dataset.prefix} and training.validation.heldOutImages={held_out}: leave at least "
            "one image to train on"
        )


def name_each(skipped: Iterable[SkippedImage]) -> str:
    """Return `key: reason; key: reason; and 3 more`, with about MESSAGE_CHARACTERS characters at most."""
    items = [f"{item.key[-200:]!r}: {item.reason[:200]}" for item in skipped]
    text = ""
    for index, item in enumerate(items):
        if len(text) + len(item) > MESSAGE_CHARACTERS:
            return f"{text}and {len(items) - index} more"
        text += f"{item}; "
    return text.removesuffix("; ")

"""The inspection of a folder of images before a job runs: which would be used, how they would be cropped, and warnings.

It calls the functions of the annotation stage, so that its outcome is the same.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw

from lora_api.caption_rows import Box
from lora_api.job import Masks, Training
from lora_api.status import SkippedImage

from ..errors import NoInputError
from ..store import StoredObject
from .crop import find_heads, frame_image
from .decode import CleanImage
from .duplicates import Fingerprint, copies, duplicate_warnings
from .existing import CaptionFiles, read_existing
from .intake import fetch_image, image_warnings
from .listing import MAX_OBJECTS, Listing, TooManyFilesError, list_dataset
from .loading import BadImageError
from .masks import MaskMethod, choose_mask, fit_mask, mask_method, split_masks
from .sources import LocalFolder

TILE = 320
"""Side of a tile of the contact sheet, in pixels."""
LABEL_HEIGHT = 34
"""Height of the text below a tile, in pixels."""
COLUMNS = 5

SHARP_SIDE = 512
"""Long side of the trained part when its sharpness is measured, in pixels."""
BLURRED = 25.0
"""Variance of the Laplacian below which an image counts as blurred. Sharp photographs have hundreds."""

DARK, BRIGHT = 60, 195
"""Mean luma, from 0 to 255, below which an image counts as dark and above which it counts as bright."""


@dataclass(frozen=True)
class InspectedImage:
    """One image as the annotation stage would use it."""

    key: str
    width: int
    """Width of the file's image after orientation, in pixels."""
    height: int
    format: str
    crop: Box
    sharpness: float
    """Variance of the Laplacian of the trained part."""
    brightness: float
    """Mean luma of the trained part, from 0 to 255."""
    framing: str
    """The part of a person that is shown, such as `half-length`, or `no face`."""
    warnings: list[str]
    tile: Image.Image
    """A small copy of the image with its crop marked. What is outside of its mask is blue."""


@dataclass(frozen=True)
class Inspection:
    """The outcome of an inspection."""

    images: list[InspectedImage]
    bad: list[SkippedImage]
    """Images that cannot be used, which a job refuses or skips."""
    ignored: list[SkippedImage]
    """Files that are not meant as images, such as system files and videos."""
    captions: CaptionFiles
    distinct: int
    """Number of images that are not copies of another one."""
    warnings: list[str] = field(default_factory=list)
    """Warnings about the folder as a whole and its caption files."""

    @property
    def skipped(self) -> list[SkippedImage]:
        """The bad and the ignored files."""
        return self.bad + self.ignored

    @property
    def coverage(self) -> dict[str, dict[str, int]]:
        """The number of images by shape, light and framing, in which a small dataset should vary."""
        return {
            "shape": dict(Counter(_shape(image.width, image.height) for image in self.images)),
            "light": dict(Counter(_light(image.brightness) for image in self.images)),
            "framing": dict(Counter(image.framing for image in self.images)),
        }


def inspect_folder(
    folder: Path, training: Training, masks: Masks = Masks.OWN, segment: MaskMethod | None = None
) -> Inspection:
    """Read a folder as the annotation stage reads a prefix.

    Args:
        masks: annotation.masks of the job.
        segment: makes masks where `masks` is Model; None: such masks are not shown.

    Raises:
        NoInputError: when there is no image.
        BadDataError: when there are more than 1,000 files.
    """
    method = mask_method(masks, segment)
    source, listing = _list_folder(folder)
    images: list[InspectedImage] = []
    prints: list[Fingerprint] = []
    bad: list[SkippedImage] = []
    items, files, orphans = split_masks(listing.images)
    for item in items:
        mask, file = None, files.get(item.key)
        try:
            clean = fetch_image(source, item, training)
            if file:
                mask = fit_mask(fetch_image(source, file, training), clean)
        except BadImageError as error:
            bad.append(SkippedImage(key=item.key, reason=str(error)))
            continue
        prints.append(Fingerprint.of(clean.image))
        images.append(_inspect(item.key, clean, training, mask, file, method=method))
    for index, warning in duplicate_warnings(prints, [image.key for image in images]).items():
        images[index].warnings.append(warning)
    captions = read_existing(source, "", listing.captions, [item.key for item in items])
    distinct = len(images) - len(copies(prints))
    warnings = [*listing.warnings, *captions.warnings]
    return Inspection(images, bad, [*listing.ignored, *orphans], captions, distinct, warnings)


def read_captions(folder: Path) -> tuple[dict[str, str], list[str]]:
    """Read the captions of a folder as the annotation stage does.

    Returns:
        the captions by the image's key, empty where an image has none, and warnings.

    Raises:
        NoInputError: when there is no image.
        BadDataError: when there are more than 1,000 files.
    """
    source, listing = _list_folder(folder)
    keys = [item.key for item in split_masks(listing.images)[0]]
    files = read_existing(source, "", listing.captions, keys)
    return {key: files.captions.get(key, "") for key in keys}, [*listing.warnings, *files.warnings]


def _list_folder(folder: Path) -> tuple[LocalFolder, Listing]:
    """List a folder as a dataset, with errors that name the folder instead of a prefix."""
    if not folder.is_dir():
        raise NoInputError(f"{folder} is not a folder: name the folder that holds the photographs")
    source = LocalFolder(folder)
    try:
        return source, list_dataset(source, "")
    except NoInputError:
        raise NoInputError(
            f"{folder} has no images: put photographs into it, or name another folder"
        ) from None
    except TooManyFilesError:
        raise TooManyFilesError(
            f"{folder} has more than {MAX_OBJECTS} files: name a folder that holds the photographs alone"
        ) from None


def contact_sheet(inspection: Inspection) -> Image.Image:
    """Draw all images with their crops, COLUMNS in a row, with name and warnings below."""
    rows = max(1, -(-len(inspection.images) // COLUMNS))
    sheet = Image.new("RGB", (COLUMNS * TILE, rows * (TILE + LABEL_HEIGHT)), "white")
    draw = ImageDraw.Draw(sheet)
    for index, image in enumerate(inspection.images):
        left, top = index % COLUMNS * TILE, index // COLUMNS * (TILE + LABEL_HEIGHT)
        x, y = left + (TILE - image.tile.width) // 2, top + (TILE - image.tile.height) // 2
        sheet.paste(image.tile, (x, y))
        draw.text((left + 4, top + TILE + 2), image.key[-48:], fill="black")
        draw.text((left + 4, top + TILE + 16), "; ".join(image.warnings)[:50], fill=(180, 0, 0))
    return sheet


def _inspect(
    key: str,
    clean: CleanImage,
    training: Training,
    mask: Image.Image | None,
    file: StoredObject | None,
    *,
    method: MaskMethod | None,
) -> InspectedImage:
    warnings = [*clean.warnings, *image_warnings(key, clean, training)]
    framed, region = frame_image(clean, training)
    mask, _ = choose_mask(mask, file, framed.image, region, warnings, method=method)
    grey = np.asarray(_trained_part(framed.image, region).convert("L"))
    sharpness = float(cv2.Laplacian(grey, cv2.CV_64F).var())
    if sharpness < BLURRED:
        warnings.append("blurred")
    return InspectedImage(
        key=key,
        width=clean.source_width,
        height=clean.source_height,
        format=clean.source_format,
        crop=region,
        sharpness=round(sharpness, 1),
        brightness=round(float(grey.mean()), 1),
        framing=_framing(grey),
        warnings=warnings,
        tile=_tile(framed.image, region, mask),
    )


def _trained_part(image: Image.Image, region: Box) -> Image.Image:
    width, height = image.size
    box = (region[0] * width, region[1] * height, region[2] * width, region[3] * height)
    part = image.crop((round(box[0]), round(box[1]), round(box[2]), round(box[3])))
    scale = SHARP_SIDE / max(part.size)
    return part.resize(
        (max(1, round(part.width * scale)), max(1, round(part.height * scale))), Image.Resampling.LANCZOS
    )


def _tile(image: Image.Image, region: Box, mask: Image.Image | None) -> Image.Image:
    small = image.copy()
    small.thumbnail((TILE, TILE))
    if mask is not None:
        outside = Image.blend(small, Image.new("RGB", small.size, "blue"), 0.6)
        small = Image.composite(small, outside, mask.resize(small.size))
    # The part that is not trained on is dimmed.
    dimmed = Image.blend(small, Image.new("RGB", small.size, "white"), 0.65)
    box = tuple(round(value * side) for value, side in zip(region, (*small.size, *small.size), strict=True))
    dimmed.paste(small.crop(box), box[:2])  # type: ignore[arg-type]
    ImageDraw.Draw(dimmed).rectangle((box[0], box[1], box[2] - 1, box[3] - 1), outline=(0, 160, 0), width=2)
    return dimmed


def _framing(grey: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> str:
    heads = find_heads(np.ascontiguousarray(grey))
    if not heads:
        return "no face"
    # The height of the largest head, as a fraction of the trained part.
    height = heads[0][3] - heads[0][1]
    return "close-up of a face" if height > 0.5 else "half-length" if height > 0.22 else "full-length"


def _shape(width: int, height: int) -> str:
    return "square" if 0.9 < width / height < 1.1 else "landscape" if width > height else "portrait"


def _light(brightness: float) -> str:
    return "dark" if brightness < DARK else "bright" if brightness > BRIGHT else "medium"

"""Masks of subjects.

They come with a dataset, as NAME-mask.png beside the image NAME or as other programs name them, or are made for the
images without.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from enum import StrEnum
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from lora_api.caption_rows import Box
from lora_api.job import JobSpec, Masks
from lora_api.status import SkippedImage
from lora_api.training import Masking

from ..store import StoredObject
from .decode import CleanImage
from .file_names import without_suffix
from .grabcut import NoSubjectError, pixel_window, subject_mask
from .loading import BadImageError

if TYPE_CHECKING:  # a circular import: intake imports this module
    from .intake import DatasetImage

ENDING = "-mask"
"""End of a mask's file name, before the suffix."""
CERTAIN_ENDINGS = (ENDING, "-masklabel")
"""Ends of names that only masks have. OneTrainer writes the second one."""
OTHER_ENDINGS = ("_mask", ".mask")
"""Ends of the names of masks that photographs may have as well. They count beside an image of the same name only."""
FOLDERS = ("mask", "masks")
"""Names of folders with masks. Their files count as masks if the folder beside or above has an image of the same name."""
IMAGE_FOLDERS = ("", "images/", "image/", "img/", "imgs/")
WHITE = 128
"""Smallest grey value of a mask, from 0 to 255, that marks the subject."""

MaskMethod = Callable[[Image.Image, Box], Image.Image]
"""Makes a mask as `grabcut.subject_mask` does: from a clean image and the region that is trained on."""


class MaskOrigin(StrEnum):
    """Origin of an image's mask, as the dataset report names it."""

    NONE = "None"
    OWN = "Own"
    GRAB_CUT = "GrabCut"
    MODEL = "Model"


def split_masks(
    images: Sequence[StoredObject],
) -> tuple[list[StoredObject], dict[str, StoredObject], list[SkippedImage]]:
    """Separate the masks of a dataset from its images.

    Returns:
        the images, the masks by the key of their image, and the masks without an image.
    """
    by_stem = {without_suffix(item.key).lower(): item.key for item in images}
    masks: dict[str, StoredObject] = {}
    orphans: list[SkippedImage] = []
    others: list[StoredObject] = []
    for item in images:
        owner = next((by_stem[stem] for stem in _owners(item.key) if stem in by_stem), None)
        if owner and owner not in masks:
            masks[owner] = item
        elif owner or _is_mask(item.key):
            reason = "another mask of its image" if owner else "a mask without its image"
            orphans.append(SkippedImage(key=item.key, reason=f"{reason}; ignored"))
        else:
            others.append(item)
    return others, masks, orphans


def fit_mask(mask: CleanImage, image: CleanImage) -> Image.Image:
    """Resize a decoded mask to the size of the clean image.

    Raises:
        BadImageError: if the mask's file has another size than the image's file.
    """
    sizes = [(each.source_width, each.source_height) for each in (mask, image)]
    if sizes[0] != sizes[1]:
        raise BadImageError(
            f"its mask is {sizes[0][0]}x{sizes[0][1]} pixels and the image {sizes[1][0]}x{sizes[1][1]}: "
            "they must be equal"
        )
    return mask.image.convert("L").resize(image.image.size, Image.Resampling.BILINEAR)


def choose_mask(
    mask: Image.Image | None,
    file: StoredObject | None,
    image: Image.Image,
    region: Box,
    warnings: list[str],
    *,
    method: MaskMethod | None,
) -> tuple[Image.Image | None, StoredObject | None]:
    """Choose the mask of a clean image: its own if that can be used, otherwise one that is made.

    Args:
        mask: the image's own mask from `fit_mask`, if it has one.
        file: the file of its own mask.
        image: the clean image from `frame_image`, which may have cut it after the mask was fitted.
        region: the part of the image that is trained on.
        warnings: receives the reasons if a mask is not used or not made, and the notes about an own one.
        method: makes the masks of images without one; None: none are made.

    Returns:
        the mask, if there is one, and its file, if it is the image's own.
    """
    if mask is not None and file is not None:
        own = _usable(mask, file, image, region, warnings)
        if own is not None:
            return own, file
    return (make_mask(image, region, warnings, method) if method else None), None


def _usable(
    mask: Image.Image, file: StoredObject, image: Image.Image, region: Box, warnings: list[str]
) -> Image.Image | None:
    """Return an image's own mask, or None if it cannot be used."""
    if mask.size != image.size:
        reason = "the image is too long and was cut"
    elif np.asarray(mask)[pixel_window(region, mask.size)].max() < WHITE:
        reason = "it is black in the part to train on, and white marks the subject"
    else:
        warnings.extend(mask_notes(file))
        return mask
    warnings.append(f"its mask {PurePosixPath(file.key).name} is not used: {reason}")
    return None


def mask_method(masks: Masks, segment: MaskMethod | None) -> MaskMethod | None:
    """Return what makes the masks of images without one; None where nothing does.

    Args:
        segment: makes masks by the segmentation model, for Model.
    """
    return {Masks.OWN: None, Masks.GRAB_CUT: subject_mask, Masks.MODEL: segment}[masks]


def make_mask(
    image: Image.Image, region: Box, warnings: list[str], method: MaskMethod = subject_mask
) -> Image.Image | None:
    """Make the mask of a clean image, if possible.

    Args:
        region: the part of the image that is trained on.
        warnings: receives the reason if there is no mask.
        method: GrabCut, or a segmentation model.
    """
    try:
        return method(image, region)
    except NoSubjectError as error:
        warnings.append(f"no mask was made: {error}; put NAME{ENDING}.png beside it")
        return None


def mask_warnings(spec: JobSpec, images: Sequence[DatasetImage]) -> list[str]:
    """Return the warning that settings for masks have no effect on these images, or that their masks have none."""
    masking = spec.training.masking
    masked = sum(image.mask is not None for image in images)
    masks = spec.annotation.masks
    if masks is not Masks.OWN and all(image.mask_source for image in images):
        return [f"annotation.masks: {masks} has no effect: every image has a mask of its own"]
    if masked and masking.outside_weight == 1:
        return [f"{masked} masks are not used: training.masking.outsideWeight is 1"]
    if not masked and masking != Masking():
        return [f"training.masking.outsideWeight has no effect: no image has a mask NAME{ENDING}.png"]
    return []


def mask_notes(mask: StoredObject | None) -> list[str]:
    """Return the warning that a file was taken for a mask whose name is not the documented one."""
    if mask is None or without_suffix(mask.key).lower().endswith(ENDING):
        return []
    return [f"{PurePosixPath(mask.key).name} is used as its mask; rename it if it is an image"]


def _owners(key: str) -> Iterator[str]:
    """Yield the keys, without suffix and in lower case, of the images that a file may be the mask of."""
    if PurePosixPath(key).suffix.lower() != ".png":
        return
    stem = without_suffix(key).lower()
    yield from (stem.removesuffix(end) for end in (*CERTAIN_ENDINGS, *OTHER_ENDINGS) if stem.endswith(end))
    above, folder, name = stem.rsplit("/", 2) if stem.count("/") > 1 else ("", *stem.rpartition("/")[::2])
    if folder in FOLDERS:
        parent = f"{above}/" if above else ""
        for end in ("", *CERTAIN_ENDINGS, *OTHER_ENDINGS):
            if name.endswith(end):
                yield from (f"{parent}{beside}{name.removesuffix(end)}" for beside in IMAGE_FOLDERS)


def _is_mask(key: str) -> bool:
    return (
        without_suffix(key).lower().endswith(CERTAIN_ENDINGS) and PurePosixPath(key).suffix.lower() == ".png"
    )

"""Masks of subjects that come with a dataset: NAME-mask.png beside the image NAME."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from PIL import Image

from lora_api.status import SkippedImage
from lora_api.training import Masking

from ..store import StoredObject
from .decode import CleanImage
from .file_names import without_suffix
from .loading import BadImageError

if TYPE_CHECKING:  # a circular import: intake imports this module
    from .intake import DatasetImage

ENDING = "-mask"
"""End of a mask's file name, before the suffix."""


def split_masks(
    images: Sequence[StoredObject],
) -> tuple[list[StoredObject], dict[str, StoredObject], list[SkippedImage]]:
    """Separate the masks of a dataset from its images.

    Returns:
        the images, the masks by the key of their image, and the masks without an image.
    """
    by_stem = {without_suffix(item.key).lower(): item.key for item in images if not _is_mask(item.key)}
    masks: dict[str, StoredObject] = {}
    orphans: list[SkippedImage] = []
    for item in images:
        if _is_mask(item.key):
            owner = by_stem.get(without_suffix(item.key).lower().removesuffix(ENDING))
            if owner:
                masks[owner] = item
            else:
                orphans.append(SkippedImage(key=item.key, reason="a mask without its image; ignored"))
    return [item for item in images if not _is_mask(item.key)], masks, orphans


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


def mask_warnings(masking: Masking, images: Sequence[DatasetImage]) -> list[str]:
    """Return the warning that training.masking has no effect on these images, or that their masks have none."""
    masked = sum(image.mask is not None for image in images)
    if masked and masking.outside_weight == 1:
        return [f"{masked} masks are not used: training.masking.outsideWeight is 1"]
    if not masked and masking != Masking():
        return [f"training.masking.outsideWeight has no effect: no image has a mask NAME{ENDING}.png"]
    return []


def _is_mask(key: str) -> bool:
    return without_suffix(key).lower().endswith(ENDING) and PurePosixPath(key).suffix.lower() == ".png"

"""Training images of the report, and thumbnails as data URIs with a limit on their total size."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

from PIL import Image

from lora_api.caption_rows import Box

from ..data.dataset import DatasetImage, find_crop_region

MAX_BYTES = 3 << 20
"""Limit of the total size of all thumbnails in bytes, before base64 encoding, which adds a third."""
SIDES = (512, 384, 256, 192, 128, 96, 64)
"""Sides of thumbnails in pixels, of which the largest that fits is used."""
QUALITY = 80
"""Quality of WebP images, from 0 to 100."""


@dataclass(frozen=True)
class TrainingImage:
    """A training image with its caption and crop."""

    key: str
    """Key in the output bucket."""
    caption: str
    crop: Box | None
    """Left, top, right and bottom as fractions of the image; None for the whole image."""
    enlarged: float = 1.0
    """Factor by which the crop was resized to the training resolution; at most 1 if the image was large enough."""


def describe_image(image: DatasetImage, key: str, resolution: int, keep_shape: bool) -> TrainingImage:
    """Describe an image and the crop that `dataset.crop_image` uses.

    Args:
        key: key of the image in the output bucket.
    """
    width, height = Image.open(io.BytesIO(image.data)).size
    region = find_crop_region((width, height), image.crop, resolution, keep_shape)
    left, top, right, bottom = region.box
    crop = (left / width, top / height, right / width, bottom / height)
    return TrainingImage(key, image.caption, None if crop == (0, 0, 1, 1) else crop, region.scale)


class Thumbnails:
    """Makes thumbnails, each with at most an equal share of the limit."""

    def __init__(self, count: int, max_bytes: int = MAX_BYTES) -> None:
        """Set the number of thumbnails that share the limit."""
        self._share = max_bytes // max(count, 1)

    def data_uri(self, data: bytes) -> str | None:
        """Encode the largest WebP that fits the share; None if not even the smallest fits."""
        image = Image.open(io.BytesIO(data)).convert("RGB")
        for side in SIDES:
            small = image.copy()
            small.thumbnail((side, side), Image.Resampling.LANCZOS)
            out = io.BytesIO()
            small.save(out, "webp", quality=QUALITY)
            if out.tell() <= self._share:
                return f"data:image/webp;base64,{base64.b64encode(out.getvalue()).decode()}"
        return None

"""The sizes that images of other shapes than a square are trained at. Both stages need them."""

from __future__ import annotations

import math

from lora_api.job import Crop, Training


def aspect_bucket(width: float, height: float, resolution: int) -> tuple[int, int]:
    """Find the training size, of at most `resolution` squared pixels, whose aspect ratio is nearest to an image's.

    Sides are multiples of a sixteenth of the resolution, rounded down to a multiple of the 8 pixels of a latent
    position (64 at 1024, as in SDXL's training: arXiv:2307.01952, 2.3). No side is more than twice the resolution.

    Returns:
        Width and height in pixels.
    """
    unit = max(8, resolution // 16 // 8 * 8)
    sides = range(unit, 2 * resolution + 1, unit)
    sizes = [(across, resolution**2 // across // unit * unit) for across in sides]
    sizes = [(across, down) for across, down in sizes if down in sides]
    ratio = math.log(width / height)
    return min(sizes, key=lambda size: (abs(math.log(size[0] / size[1]) - ratio), -size[0] * size[1]))


def trained_share(width: int, height: int, training: Training) -> float:
    """Return the share of an image that is left after the crop to its training size.

    Args:
        width: width of the image, in pixels.
    """
    across, down = 1, 1
    if training.crop is Crop.BUCKETS:
        across, down = aspect_bucket(width, height, training.resolution)
    ratio = across * height / (down * width)
    return min(ratio, 1 / ratio)

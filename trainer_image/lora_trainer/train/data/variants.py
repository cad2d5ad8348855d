"""Variants of an image: mirrored, at other resolutions, or with slightly different crops."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product

import torch

from lora_api.caption_rows import Box
from lora_api.job import Training

from .rng import generator_for


@dataclass(frozen=True)
class CropRegion:
    """The region of an image that is used for training, and the size that it is resized to."""

    box: Box
    """Left, top, right and bottom, in pixels of the image."""
    width: int
    """Width after resizing, in pixels."""
    height: int
    """Height after resizing, in pixels."""
    scale: float
    """Factor of the resizing; above 1 if the region is enlarged."""


@dataclass(frozen=True)
class Jitter:
    """A smaller region within a crop region."""

    size: float
    """Side of the smaller region, as a share of the crop region's side."""
    x: float
    """Horizontal position in the remaining space, from 0 (left) to 1 (right)."""
    y: float
    """Vertical position in the remaining space, from 0 (top) to 1 (bottom)."""

    def move(self, region: CropRegion) -> CropRegion:
        """Shrink and move a region. The size after resizing stays the same."""
        left, top, right, bottom = region.box
        width, height = (right - left) * self.size, (bottom - top) * self.size
        left += self.x * (right - left - width)
        top += self.y * (bottom - top - height)
        return replace(region, box=(left, top, left + width, top + height), scale=region.scale / self.size)


@dataclass(frozen=True)
class Variant:
    """The parameters of one variant of an image."""

    resolution: int
    """Side of the training image in pixels, as for `dataset.crop_image`."""
    flip: bool = False
    jitter: Jitter | None = None


def variants_of(training: Training, image: str) -> list[Variant]:
    """List the variants of an image that a job trains on. The first is the plain image.

    Args:
        image: name or hash of the image, on which the random crops depend, as well as on the seed.
    """
    settings = training.augmentation
    jitters: list[Jitter | None] = [None]
    if settings.crop_jitter:
        for number in range(1, settings.crop_variants):
            generator = generator_for(training.seed, "crop jitter", image, number)
            share, x, y = torch.rand(3, generator=generator).tolist()
            jitters.append(Jitter(1 - share * float(settings.crop_jitter), x, y))
    resolutions = [training.resolution, *settings.extra_resolutions]
    flips = [False, True] if settings.flip else [False]
    return [Variant(side, flip, jitter) for side, flip, jitter in product(resolutions, flips, jitters)]

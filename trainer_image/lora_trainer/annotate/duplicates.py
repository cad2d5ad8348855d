"""Detection of images that are nearly the same, which distort a dataset, and of copies, which count as one image.

The method is a DCT hash (Zauner 2010, 'Implementation and benchmarking of perceptual image hash functions') with
OpenCV's transform. Libraries that offer this hash depend on SciPy, which would enlarge the annotation image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from PIL import Image

NEAR_BITS = 6
"""Maximum number of the hash's 64 bits in which near duplicates differ.

Re-encoding and scaling change fewer bits, another photograph changes many more.
"""

COPY_DIFFERENCE = 3.0
"""Maximum mean difference of copies over 32 x 32 pixels, on a scale of 255.

Re-encoding and scaling change less, the next frame of a burst changes more.
"""


@dataclass(frozen=True)
class Fingerprint:
    """The properties by which images are compared."""

    perceptual_hash: int
    """64 bits, see `perceptual_hash()`."""
    pixels: bytes
    """The image as 32 x 32 RGB pixels, 8 bits per channel."""

    @classmethod
    def of(cls, image: Image.Image) -> Fingerprint:
        """Compute the fingerprint of an image."""
        small = image.resize((32, 32), Image.Resampling.LANCZOS, reducing_gap=4)
        return cls(_hash(small), small.convert("RGB").tobytes())

    def is_copy_of(self, other: Fingerprint) -> bool:
        if (self.perceptual_hash ^ other.perceptual_hash).bit_count() > NEAR_BITS:
            return False
        first, second = (np.frombuffer(item.pixels, np.uint8).astype(np.int16) for item in (self, other))
        return float(np.abs(first - second).mean()) < COPY_DIFFERENCE


def perceptual_hash(image: Image.Image) -> int:
    """Compute 64 bits that are equal or nearly equal for images that look the same."""
    return _hash(image.resize((32, 32), Image.Resampling.LANCZOS, reducing_gap=4))


def _hash(small: Image.Image) -> int:
    grey = np.asarray(small.convert("L"), dtype=np.float32)
    low = cv2.dct(grey)[:8, :8].flatten()
    # The first coefficient is the mean brightness, which does not count towards the median.
    bits = low > np.median(low[1:])
    return int("".join("1" if bit else "0" for bit in bits), 2)


def near_duplicates(hashes: Sequence[int]) -> dict[int, int]:
    """Map the index of each image that is nearly the same as an earlier one to the earlier one's index."""
    matches: dict[int, int] = {}
    for index, value in enumerate(hashes):
        for earlier in range(index):
            if (value ^ hashes[earlier]).bit_count() <= NEAR_BITS:
                matches[index] = earlier
                break
    return matches


def duplicate_warnings(fingerprints: Sequence[Fingerprint], keys: Sequence[str]) -> dict[int, str]:
    """Return a warning for each image that is a copy of an earlier one or nearly the same, by the image's index.

    Args:
        keys: the keys of the images, for the warnings.
    """
    same = copies(fingerprints)
    near = near_duplicates([item.perceptual_hash for item in fingerprints])
    return {
        index: f"{'a copy of' if index in same else 'nearly the same as'} {keys[earlier]}"
        for index, earlier in near.items()
    }


def copies(fingerprints: Sequence[Fingerprint]) -> dict[int, int]:
    """Map the index of each image that is a copy of an earlier one to the earlier one's index."""
    matches: dict[int, int] = {}
    for index, one in enumerate(fingerprints):
        earlier = next((n for n in range(index) if one.is_copy_of(fingerprints[n])), None)
        if earlier is not None:
            matches[index] = earlier
    return matches

"""Pictures that are nearly the same, which teach nothing and weigh twice.

A DCT hash (Zauner 2010, 'Implementation and benchmarking of perceptual image hash functions') on OpenCV's
transform: the libraries that offer it would bring SciPy into the small image for these few lines.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from PIL import Image

NEAR_BITS = 6
"""Of 64: what re-encoding and scaling change is below, what another photograph changes far above."""


def perceptual_hash(image: Image.Image) -> int:
    """64 bits, equal or nearly so for pictures that look the same."""
    grey = np.asarray(
        image.resize((32, 32), Image.Resampling.LANCZOS, reducing_gap=4).convert("L"), dtype=np.float32
    )
    low = cv2.dct(grey)[:8, :8].flatten()
    bits = low > np.median(low[1:])
    return int("".join("1" if bit else "0" for bit in bits), 2)


def near_duplicates(hashes: Sequence[int]) -> dict[int, int]:
    """For each picture that is nearly the same as an earlier one: its index and the earlier one's."""
    found: dict[int, int] = {}
    for index, value in enumerate(hashes):
        for earlier in range(index):
            if (value ^ hashes[earlier]).bit_count() <= NEAR_BITS:
                found[index] = earlier
                break
    return found

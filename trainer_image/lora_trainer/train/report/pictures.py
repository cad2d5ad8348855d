"""Pictures inside of the page: thumbnails as data URIs that together stay under a bound."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

from PIL import Image

from ..dataset import Box, Picture, find_part

MOST_BYTES = 3 << 20
"""For all pictures of a report, as files; base64 makes a third more of them."""
SIDES = (512, 384, 256, 192, 128, 96, 64)
QUALITY = 80


@dataclass(frozen=True)
class Shown:
    """A picture that was trained on: where it lies, what was said of it, and which part was used."""

    key: str
    caption: str
    part: Box | None
    """left, top, right, bottom as fractions; None: all of it."""


def show(picture: Picture, key: str, resolution: int, keep_shape: bool) -> Shown:
    """A picture with the part of it that `dataset.cut` takes."""
    width, height = Image.open(io.BytesIO(picture.data)).size
    left, top, right, bottom = find_part((width, height), picture.crop, resolution, keep_shape).box
    part = (left / width, top / height, right / width, bottom / height)
    return Shown(key, picture.caption, None if part == (0, 0, 1, 1) else part)


class Thumbnails:
    """Makes thumbnails of at most an equal share of the bound each."""

    def __init__(self, count: int, most_bytes: int = MOST_BYTES) -> None:
        """count is how many pictures there are in all."""
        self._share = most_bytes // max(count, 1)

    def data_uri(self, data: bytes) -> str | None:
        """A WebP as large as its share allows; None where not even the smallest fits."""
        picture = Image.open(io.BytesIO(data)).convert("RGB")
        for side in SIDES:
            small = picture.copy()
            small.thumbnail((side, side), Image.Resampling.LANCZOS)
            out = io.BytesIO()
            small.save(out, "webp", quality=QUALITY)
            if out.tell() <= self._share:
                return f"data:image/webp;base64,{base64.b64encode(out.getvalue()).decode()}"
        return None

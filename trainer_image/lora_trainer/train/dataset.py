"""The job's pictures and captions as the annotation step left them, cut for training."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from torch import Tensor

from lora_api.keys import JobKeys
from lora_api.manifest import sha256_hex

from ..errors import BadDataError
from ..store import Bucket, ObjectMissingError

Box = tuple[float, float, float, float]


class CaptionLine(BaseModel):
    """A line of metadata.jsonl. Fields that this step does not know are the business of others."""

    model_config = ConfigDict(extra="ignore")

    file_name: str
    text: str
    crop: Box | None = None
    """left, top, right, bottom as fractions of the image: the part to train on."""

    @model_validator(mode="after")
    def _box_has_an_inside(self) -> Self:
        if self.crop:
            left, top, right, bottom = self.crop
            if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
                raise ValueError("crop must be [left, top, right, bottom], rising, from 0 to 1")
        return self


@dataclass(frozen=True)
class Picture:
    """A clean image and its caption."""

    name: str
    data: bytes
    caption: str
    crop: Box | None
    """None: crop a square from the centre."""

    @property
    def sha256(self) -> str:
        return sha256_hex(self.data)


@dataclass(frozen=True)
class Cut:
    """A picture as it is trained on."""

    pixels: Tensor
    """float32, (3, height, width), from -1 to 1."""
    time_ids: tuple[int, int, int, int, int, int]
    """SDXL's conditioning (arXiv:2307.01952, 2.2): original height and width, crop's top and left, target
    height and width."""


def read_pictures(bucket: Bucket, keys: JobKeys, captions_sha256: str, use_crops: bool) -> list[Picture]:
    """Download the captions that were approved, and their images.

    Args:
        use_crops: take the crop boxes that the captions name.

    Raises:
        BadDataError: when the captions are not those, or an image is missing.
    """
    try:
        captions = bucket.get(keys.captions)
    except ObjectMissingError:
        raise BadDataError(f"there are no captions at {bucket.uri(keys.captions)}") from None
    if sha256_hex(captions) != captions_sha256.removeprefix("sha256:"):
        raise BadDataError(
            f"{bucket.uri(keys.captions)} has changed since it was approved: "
            f"its sha256 is {sha256_hex(captions)}, not {captions_sha256}"
        )
    pictures = [
        _read_picture(bucket, keys, line, use_crops)
        for line in captions.decode().splitlines()
        if line.strip()
    ]
    if not pictures:
        raise BadDataError(f"{bucket.uri(keys.captions)} has no lines: there is nothing to train on")
    return pictures


def _read_picture(bucket: Bucket, keys: JobKeys, line: str, use_crops: bool) -> Picture:
    try:
        caption = CaptionLine.model_validate_json(line)
        data = bucket.get(keys.image_named(caption.file_name))
    except ValidationError as error:
        raise BadDataError(f"a line of metadata.jsonl is wrong: {error.errors()[0]['msg']}") from None
    except ObjectMissingError:
        raise BadDataError(f"the image {caption.file_name!r} that the captions name is not there") from None
    return Picture(caption.file_name, data, caption.text, caption.crop if use_crops else None)


def cut(picture: Picture, resolution: int, keep_shape: bool = False) -> Cut:
    """Crop the largest part of the target's shape out of the middle of a picture (or of its crop box).

    The crop's corner is given in pixels of the picture as resized, as SDXL was trained.

    Args:
        resolution: side of the target, in pixels; with `keep_shape`, of a square of its area.
        keep_shape: take the bucket next to the picture's shape instead of a square.

    Raises:
        BadDataError: when the image cannot be decoded.
    """
    image = _decode(picture)
    part = find_part(image.size, picture.crop, resolution, keep_shape)
    target = (part.width, part.height)
    resized = image.resize(target, Image.Resampling.LANCZOS, box=part.box)
    corner = (round(part.box[1] * part.scale), round(part.box[0] * part.scale))
    return Cut(to_pixels(resized), (image.height, image.width, *corner, part.height, part.width))


@dataclass(frozen=True)
class Part:
    """The part of a picture that is trained on."""

    box: Box
    """left, top, right, bottom in pixels of the picture."""
    width: int
    height: int
    """In pixels, as trained on."""
    scale: float
    """Pixels as trained on for a pixel of the picture."""


def find_part(size: tuple[int, int], crop: Box | None, resolution: int, keep_shape: bool) -> Part:
    """What `cut` takes of a picture of this width and height."""
    left, top, right, bottom = crop or (0.0, 0.0, 1.0, 1.0)
    left, right = left * size[0], right * size[0]
    top, bottom = top * size[1], bottom * size[1]
    width, height = resolution, resolution
    if keep_shape:
        width, height = bucket(right - left, bottom - top, resolution)
    scale = max(width / (right - left), height / (bottom - top))
    left, top = (left + right - width / scale) / 2, (top + bottom - height / scale) / 2
    right, bottom = min(left + width / scale, size[0]), min(top + height / scale, size[1])
    return Part((left, top, right, bottom), width, height, scale)


def bucket(width: float, height: float, resolution: int) -> tuple[int, int]:
    """The training size, of at most `resolution` squared pixels, whose shape is next to a picture's.

    Sides are multiples of a sixteenth of the resolution (64 at 1024, as SDXL was trained: arXiv:2307.01952,
    2.3), and of the 8 pixels of a latent; none is more than twice the resolution.

    Returns:
        width and height in pixels.
    """
    unit = max(8, resolution // 16 // 8 * 8)
    sides = range(unit, 2 * resolution + 1, unit)
    sizes = [(across, resolution**2 // across // unit * unit) for across in sides]
    sizes = [(across, down) for across, down in sizes if down in sides]
    wanted = math.log(width / height)
    return min(sizes, key=lambda size: (abs(math.log(size[0] / size[1]) - wanted), -size[0] * size[1]))


def to_pixels(image: Image.Image) -> Tensor:
    """float32, (3, height, width), from -1 to 1."""
    array = np.asarray(image, dtype=np.float32) / 127.5 - 1.0
    return torch.from_numpy(array).permute(2, 0, 1).contiguous()


def _decode(picture: Picture) -> Image.Image:
    try:
        return Image.open(io.BytesIO(picture.data)).convert("RGB")
    except (UnidentifiedImageError, OSError, ValueError, Image.DecompressionBombError) as error:
        raise BadDataError(f"the image {picture.name!r} cannot be decoded: {error}") from error

"""The images and captions that the annotation stage published, and their crops for training."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.nn.functional import avg_pool2d

from lora_api.caption_rows import Box, CaptionRow, CaptionRowsError, read_rows
from lora_api.keys import JobKeys
from lora_api.manifest import sha256_hex

from ...aspect import aspect_bucket
from ...errors import BadDataError
from ...store import Bucket, ObjectMissingError
from .variants import CropRegion, Variant

LATENT_SCALE = 8
"""Pixels of an image per latent position, in each direction."""


@dataclass(frozen=True)
class DatasetImage:
    """An image, as the annotation stage re-encoded it, and its caption."""

    name: str
    """File name, or the key in the store for an image of the class."""
    data: bytes
    """Encoded image file."""
    caption: str
    crop: Box | None
    """Crop box: left, top, right, bottom as fractions of the image; None for the whole image."""
    more_captions: tuple[str, ...] = ()
    """Further captions, one of which may be chosen for a sample."""
    repeats: int = 1
    """How often the image is used in an epoch."""
    mask: bytes | None = None
    """Encoded greyscale image of the same size, in which the subject is white; None if there is none."""

    @property
    def sha256(self) -> str:
        return sha256_hex(self.data)


@dataclass(frozen=True)
class CroppedImage:
    """An image that is cropped and resized for training."""

    pixels: Tensor
    """float32, (3, height, width), from -1 to 1."""
    time_ids: tuple[int, int, int, int, int, int]
    """SDXL's conditioning (arXiv:2307.01952, 2.2): original height and width, crop's top and left, target
    height and width."""
    mask: Tensor | None = None
    """float32, (1, height / 8, width / 8), from 0 to 1, where 1 is the subject; None if the image has no mask."""


def read_images(bucket: Bucket, keys: JobKeys, captions_sha256: str, use_crops: bool) -> list[DatasetImage]:
    """Download the approved captions and their images.

    Args:
        captions_sha256: the digest that the approved captions file must have.
        use_crops: whether to use the crop boxes in the captions file.

    Raises:
        BadDataError: if the captions have changed since their approval, or an image is missing.
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
    try:
        rows = read_rows(captions)
    except CaptionRowsError as error:
        raise BadDataError(f"{bucket.uri(keys.captions)}: {error}") from None
    images = [_read_image(bucket, keys, row, use_crops) for row in rows]
    if not images:
        raise BadDataError(f"{bucket.uri(keys.captions)} has no rows: there is nothing to train on")
    return images


def _read_image(bucket: Bucket, keys: JobKeys, caption: CaptionRow, use_crops: bool) -> DatasetImage:
    try:
        data = bucket.get(keys.image_named(caption.file_name))
    except ObjectMissingError:
        raise BadDataError(
            f"the image {caption.file_name!r} of metadata.jsonl is missing from the store"
        ) from None
    mask = None
    if caption.mask:
        try:
            mask = bucket.get(keys.image_named(caption.mask))
        except ObjectMissingError:
            raise BadDataError(
                f"the mask {caption.mask!r} of {caption.file_name!r} is missing from the store"
            ) from None
    return DatasetImage(
        name=caption.file_name,
        data=data,
        caption=caption.text,
        crop=caption.crop if use_crops else None,
        more_captions=tuple(caption.captions or ()),
        repeats=caption.repeats or 1,
        mask=mask,
    )


def crop_image(
    image: DatasetImage, resolution: int, keep_shape: bool = False, variant: Variant | None = None
) -> CroppedImage:
    """Crop the largest region with the target's aspect ratio from the centre of an image or crop box, and resize it.

    `time_ids` has the crop's corner in pixels of the resized image, as in SDXL's training.

    Args:
        resolution: side of the square target, in pixels; with `keep_shape`, side of a square with its area. Ignored
            if there is a variant.
        keep_shape: whether the target is the nearest aspect bucket instead of a square.
        variant: resolution, crop jitter and mirroring; None for the plain image.

    Raises:
        BadDataError: if the image or its mask cannot be decoded, or their sizes differ.
    """
    decoded = _decode(image)
    variant = variant or Variant(resolution)
    region = find_crop_region(decoded.size, image.crop, variant.resolution, keep_shape)
    if variant.jitter:
        region = variant.jitter.move(region)
    pixels = to_pixels(_resize(decoded, region))
    mask = None
    if image.mask is not None:
        mask = to_mask(_resize(_decode_mask(image, decoded.size), region))
    left, top, right, _ = region.box
    if variant.flip:
        pixels, mask = pixels.flip(-1), mask.flip(-1) if mask is not None else None
        left = decoded.width - right  # the corner of the mirrored image
    corner = (round(top * region.scale), round(left * region.scale))
    time_ids = (decoded.height, decoded.width, *corner, region.height, region.width)
    return CroppedImage(pixels, time_ids, mask)


def _resize(image: Image.Image, region: CropRegion) -> Image.Image:
    return image.resize((region.width, region.height), Image.Resampling.LANCZOS, box=region.box)


def to_mask(image: Image.Image) -> Tensor:
    """Average a greyscale mask for each latent position: float32, (1, height / 8, width / 8), from 0 to 1."""
    array = torch.from_numpy(np.asarray(image, dtype=np.float32) / 255.0)
    return avg_pool2d(array[None, None], LATENT_SCALE)[0]


def find_crop_region(
    size: tuple[int, int], crop: Box | None, resolution: int, keep_shape: bool
) -> CropRegion:
    """Find the region that `crop_image` uses.

    Args:
        size: width and height of the image, in pixels.
        crop: crop box: left, top, right, bottom as fractions of the image.
    """
    left, top, right, bottom = crop or (0.0, 0.0, 1.0, 1.0)
    left, right = left * size[0], right * size[0]
    top, bottom = top * size[1], bottom * size[1]
    width, height = resolution, resolution
    if keep_shape:
        width, height = aspect_bucket(right - left, bottom - top, resolution)
    scale = max(width / (right - left), height / (bottom - top))
    left, top = (left + right - width / scale) / 2, (top + bottom - height / scale) / 2
    right, bottom = min(left + width / scale, size[0]), min(top + height / scale, size[1])
    return CropRegion((left, top, right, bottom), width, height, scale)


def _decode_mask(image: DatasetImage, size: tuple[int, int]) -> Image.Image:
    try:
        mask = Image.open(io.BytesIO(image.mask or b"")).convert("L")
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise BadDataError(f"the mask of {image.name!r} cannot be decoded: {error}") from error
    if mask.size != size:
        raise BadDataError(
            f"the mask of {image.name!r} is {mask.width}x{mask.height}, the image {size[0]}x{size[1]}: they must be equal"
        )
    return mask


def to_image(pixels: Tensor) -> Image.Image:
    """Convert pixels to an image. This is the inverse of `to_pixels`."""
    array = ((pixels + 1) * 127.5).round().clamp(0, 255).byte().permute(1, 2, 0).numpy()
    return Image.fromarray(np.ascontiguousarray(array))


def to_pixels(image: Image.Image) -> Tensor:
    """Convert an RGB image to pixels: float32, (3, height, width), from -1 to 1."""
    array = np.asarray(image, dtype=np.float32) / 127.5 - 1.0
    return torch.from_numpy(array).permute(2, 0, 1).contiguous()


def _decode(image: DatasetImage) -> Image.Image:
    try:
        return Image.open(io.BytesIO(image.data)).convert("RGB")
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise BadDataError(f"the image {image.name!r} cannot be decoded: {error}") from error

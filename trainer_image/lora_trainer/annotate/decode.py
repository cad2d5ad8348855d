"""From the bytes that a customer uploaded to one clean RGB image.

Everything is decided from the content: a file's name says nothing. What is refused is refused from the
header, before any pixel is decoded, wherever that is possible.
"""

from __future__ import annotations

import hashlib
import warnings
from contextlib import suppress
from dataclasses import dataclass, field
from io import BytesIO

import numpy as np
import pillow_heif
from PIL import ExifTags, Image, ImageCms, ImageOps, UnidentifiedImageError

pillow_heif.register_heif_opener(thumbnails=False)

SIDEWAYS = (5, 6, 7, 8)
"""EXIF orientations that exchange width and height."""

MAX_FILE_BYTES = 30 * 1024 * 1024
MAX_PIXELS = 50_000_000
MAX_WEBP_PIXELS = 25_000_000
"""Pillow's WebP decoder holds a picture four times over."""

MIN_SIDE = 256
CLEAN_SIDE = 2048
"""The longest side of a clean image: no training resolution profits from more."""

DRAFT_SIZE = (CLEAN_SIDE - 64, CLEAN_SIDE - 64)
"""A JPEG is decoded at a half, a quarter or an eighth where that leaves it this large: 4032 pixels become 2016."""

LOOK_SIDE = 768
"""The longest side of what a language model is shown."""

SUFFIXES = {
    "JPEG": (".jpg", ".jpeg"),
    "MPO": (".jpg", ".jpeg", ".mpo"),
    "PNG": (".png",),
    "WEBP": (".webp",),
    "GIF": (".gif",),
    "BMP": (".bmp",),
    "TIFF": (".tif", ".tiff"),
    "HEIF": (".heic", ".heif"),
}
"""What is decoded, by Pillow's names, and how such files are called. MPO is a phone's JPEG with more inside."""

OPENERS = tuple(name for name in SUFFIXES if name != "MPO")
"""Pillow's JPEG reader opens MPO too."""

FRAMED = ("GIF", "PNG", "WEBP", "TIFF")
"""Formats whose further images are an animation or pages, not the same picture in another form."""


class BadImageError(ValueError):
    """An image that cannot be used; the message says why, for its owner to read."""


@dataclass(frozen=True)
class CleanImage:
    """A picture ready to be stored: RGB, upright, without metadata, at most 2,048 pixels on its long side."""

    image: Image.Image
    source_width: int
    """After orientation, before it was made smaller."""
    source_height: int
    source_format: str
    warnings: list[str] = field(default_factory=list)

    def png(self) -> bytes:
        out = BytesIO()
        self.image.save(out, "PNG", compress_level=1)
        return out.getvalue()

    def look(self, box: tuple[float, float, float, float]) -> tuple[bytes, int, int]:
        """A part of the picture as a JPEG for a language model, its width and its height.

        Args:
            box: left, top, right, bottom as fractions of the picture.
        """
        width, height = self.image.size
        left, top, right, bottom = box
        small = self.image.crop(
            (round(left * width), round(top * height), round(right * width), round(bottom * height))
        )
        small.thumbnail((LOOK_SIDE, LOOK_SIDE), Image.Resampling.LANCZOS)
        out = BytesIO()
        small.save(out, "JPEG", quality=88)
        return out.getvalue(), small.width, small.height

    def pixels_sha256(self) -> str:
        """The picture's identity, whatever version of a PNG encoder writes it."""
        header = f"RGB {self.image.width} {self.image.height}\n".encode()
        return hashlib.sha256(header + self.image.tobytes()).hexdigest()


def decode(data: bytes) -> CleanImage:
    """Decode, orient and clean one image.

    Raises:
        BadImageError: saying what is wrong with it.
    """
    if not data:
        raise BadImageError("the file is empty")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's remarks on odd metadata, which is dropped anyway
            return _decode(data)
    except BadImageError:
        raise
    except UnidentifiedImageError:
        raise BadImageError(f"not an image in a format that can be read ({readable_formats()})") from None
    except Image.DecompressionBombError:
        raise BadImageError(f"more than {MAX_PIXELS // 1_000_000} megapixels") from None
    except Exception as error:
        # Decoders of hostile bytes raise almost anything: OSError, ValueError, struct.error, IndexError ...
        said = " ".join(str(error).split())
        raise BadImageError(f"damaged or cut off: {said[:200]}") from None


def readable_formats() -> str:
    return ", ".join(OPENERS)


def _decode(data: bytes) -> CleanImage:
    with Image.open(BytesIO(data), formats=OPENERS) as image:
        source_format = image.format or ""
        most = MAX_WEBP_PIXELS if source_format == "WEBP" else MAX_PIXELS
        if image.width * image.height > most:
            raise BadImageError(f"{image.width} x {image.height} is more than {most // 1_000_000} megapixels")
        if min(image.size) < MIN_SIDE:
            raise BadImageError(
                f"{image.width} x {image.height} is too small: each side needs {MIN_SIDE} pixels"
            )
        remarks = []
        if source_format in FRAMED and getattr(image, "is_animated", False):
            remarks.append("more than one frame: only the first is used")
        swapped = image.getexif().get(ExifTags.Base.Orientation, 1) in SIDEWAYS
        width, height = image.size[::-1] if swapped else image.size
        image.draft("RGB", DRAFT_SIZE)
        image.load()
        clean = _reduced(image)
    ImageOps.exif_transpose(clean, in_place=True)
    if clean.mode in ("RGB", "L", "CMYK"):  # the others have to become RGB before they can be scaled
        clean.thumbnail((CLEAN_SIDE, CLEAN_SIDE), Image.Resampling.LANCZOS)
    clean = to_rgb(clean)
    clean.thumbnail((CLEAN_SIDE, CLEAN_SIDE), Image.Resampling.LANCZOS)
    clean.info.clear()
    return CleanImage(clean, width, height, source_format, remarks)


def _reduced(image: Image.Image) -> Image.Image:
    """A picture of many megapixels at a whole fraction of its size, before anything else copies it."""
    factor = max(image.size) // CLEAN_SIDE
    if factor < 2:
        return image
    exif = image.getexif()
    smooth = image.convert("RGBA" if image.has_transparency_data else "RGB") if image.mode in "1P" else image
    small = _rescale(smooth).reduce(factor) if smooth.mode.startswith("I;") else smooth.reduce(factor)
    small.info["exif"] = exif.tobytes()  # the orientation is still to be applied
    return small


def to_rgb(image: Image.Image) -> Image.Image:
    """Any of Pillow's modes as sRGB: 16-bit grey is rescaled, alpha lies over white, colour profiles are applied."""
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = _rescale(image)
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        white = Image.new("RGBA", layer.size, "white")
        return Image.alpha_composite(white, layer).convert("RGB")
    profile = image.info.get("icc_profile")
    if profile and image.mode in ("RGB", "CMYK"):
        with suppress(ImageCms.PyCMSError, OSError):  # a damaged profile is as good as none
            source, srgb = ImageCms.ImageCmsProfile(BytesIO(profile)), ImageCms.createProfile("sRGB")
            converted = ImageCms.profileToProfile(image, source, srgb, outputMode="RGB")
            return converted or image
    return image.convert("RGB")


def _rescale(image: Image.Image) -> Image.Image:
    """Grey of more than 8 bits by its range, where Pillow's own conversion clips.

    Integers are taken as 0..65535; real numbers from the picture's least to its greatest.
    """
    grey = np.asarray(image)
    if grey.dtype.kind == "f":
        low, high = float(np.nanmin(grey)), float(np.nanmax(grey))
        grey = np.nan_to_num((grey - low) * (255.0 / ((high - low) or 1.0)))
    else:
        grey = np.clip(grey, 0, 0xFFFF) >> 8
    return Image.fromarray(grey.astype(np.uint8))

"""Conversion of images with more than 8 bits per channel."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, TiffImagePlugin

from .boxes import primary_properties
from .colour import PNG_SIGNATURE

STRIP_ROWS = 256
"""Number of rows that are converted at a time."""
# Tags of TIFF.
BITS_PER_SAMPLE = 258
COMPRESSION = 259
PHOTOMETRIC = 262
PLANAR_CONFIGURATION = 284
UNCOMPRESSED, WHITE_IS_ZERO, SEPARATE_PLANES = 1, 0, 2
DARK = 0x3F
"""The largest value that 14-bit samples have when 16-bit pixels are reduced to 8 bits."""


def rescale(image: Image.Image, notes: list[str]) -> Image.Image:
    """Scale a grey image of more than 8 bits to mode L. Pillow's own conversion clips instead.

    The range of integers is 0 to 65535, smaller if no pixel uses the upper bits, and larger if a pixel is above it.
    The range of floats is that of the image's values.

    Args:
        notes: receives a warning if the range was guessed.
    """
    grey = np.asarray(image)
    if grey.dtype.kind == "f":
        low, high = float(np.nanmin(grey)), float(np.nanmax(grey))
        scaled = np.nan_to_num((grey - low) * (255.0 / ((high - low) or 1.0)))
        return Image.fromarray(scaled.astype(np.uint8))
    bits = used_bits(grey)
    if bits != 16:
        notes.append(f"its values use {bits} of {16 if bits < 16 else 32} bits and are scaled")
    highest = (1 << bits) - 1
    inverted = getattr(image, "tag_v2", {}).get(PHOTOMETRIC) == WHITE_IS_ZERO  # Pillow inverts 8 bits only
    result = np.empty(grey.shape, np.uint8)
    # Strips limit the memory: whole copies of a large image would exceed the pod's limit.
    for top in range(0, len(grey), STRIP_ROWS):
        strip = np.clip(grey[top : top + STRIP_ROWS], 0, highest)
        if inverted:
            strip = highest - strip
        result[top : top + STRIP_ROWS] = strip >> (bits - 8)
    return Image.fromarray(result)


def used_bits(values: NDArray[Any]) -> int:
    """Return the number of bits that integer samples use: 8, 10, 12, 14, 16 or more."""
    highest = int(values.max(initial=0))
    if highest == 0:
        return 16
    return next((bits for bits in (8, 10, 12, 14, 16) if highest < 1 << bits), highest.bit_length())


def widen_rgb(image: Image.Image, data: bytes, notes: list[str]) -> Image.Image:
    """Scale up a 16-bit colour PNG or TIFF whose samples use fewer bits. Pillow reads such a file as almost black.

    Args:
        image: the file as Pillow read it; returned unchanged if it is of another kind.
        data: the file.
        notes: receives a warning if the image was scaled.
    """
    if image.mode not in ("RGB", "RGBA") or not (_is_deep_colour_png(data) or _is_deep_tiff(image)):
        return image
    extrema = image.convert("RGB").getextrema()
    if max(high for _, high in extrema) > DARK:  # type: ignore[misc]
        return image
    pixels = decode_deep(data)
    if pixels is None or pixels.shape[:2] != (image.height, image.width):
        return image
    bits = used_bits(pixels[..., :3])
    if bits == 16:
        return image
    notes.append(f"its values use {bits} of 16 bits and are scaled")
    wide = Image.fromarray((np.ascontiguousarray(pixels[..., :3]) >> (bits - 8)).astype(np.uint8))
    if image.mode == "RGBA":
        wide.putalpha(image.getchannel("A"))
    wide.info = dict(image.info)
    return wide


def fix_planes(image: Image.Image) -> None:
    """Let Pillow read an uncompressed TIFF with a plane of 16 bits for each channel, which it takes for 8 bits.

    Args:
        image: an image that is not loaded yet; only a TIFF is changed.
    """
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return
    tags = image.tag_v2
    planes = (tags.get(PLANAR_CONFIGURATION), tags.get(COMPRESSION)) == (SEPARATE_PLANES, UNCOMPRESSED)
    if planes and _is_deep_tiff(image):
        order = "L" if tags.prefix == b"II" else "B"
        # The arguments of a tile begin with the raw mode, which is the channel's name where it is taken for 8 bits.
        image.tile = [
            tile._replace(args=(f"{tile.args[0]};16{order}", *tile.args[1:]))
            if isinstance(tile.args, tuple) and tile.args[0] in tuple("RGBACMYKX")
            else tile
            for tile in image.tile
        ]


def deep_bits(data: bytes) -> int:
    """Return the number of bits per channel of a colour AVIF or PNG with more than 8; 0 for all other files."""
    if _is_deep_colour_png(data):
        return 16
    # The box `pixi` has 4 bytes of version and flags, the number of channels, and a byte for each channel.
    depths = primary_properties(data).get(b"pixi", b"")[5:] if data[4:8] == b"ftyp" else b""
    bits = max(depths, default=0)
    return bits if bits > 8 else 0


def decode_deep(data: bytes) -> NDArray[np.uint16] | None:
    """Decode a colour image of more than 8 bits per channel, which Pillow reduces to 8 bits.

    Returns:
        The samples as they are stored, (height, width, 3 or 4), in the order RGB(A), before any rotation. None if the
        image is of another kind.
    """
    import cv2  # imported here because it is large and only rare files need it

    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None or pixels.dtype != np.uint16 or pixels.ndim != 3:
        return None
    # OpenCV's channels are in the order BGR(A). The reversed view of BGR copies nothing.
    rgb = pixels[..., ::-1] if pixels.shape[2] == 3 else pixels[..., [2, 1, 0, 3]]
    return np.asarray(rgb, dtype=np.uint16)


def _is_deep_tiff(image: Image.Image) -> bool:
    bits = getattr(image, "tag_v2", {}).get(BITS_PER_SAMPLE, ())
    return bool(bits) and set(bits if isinstance(bits, tuple) else (bits,)) == {16}


def _is_deep_colour_png(data: bytes) -> bool:
    if not data.startswith(PNG_SIGNATURE) or len(data) < 26:
        return False
    # Bytes 24 and 25 are in the IHDR chunk. Colour types 2 and 6 are RGB and RGBA.
    depth, colour_type = struct.unpack_from(">BB", data, 24)
    return depth == 16 and colour_type in (2, 6)

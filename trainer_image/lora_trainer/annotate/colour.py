"""The colour space of an image and its conversion to sRGB.

A file can name its colour space in several places: an ICC profile, CICP code points (the nclx box of HEIC and AVIF, or
PNG's cICP), PNG's gAMA and cHRM, or EXIF's ColorSpace. `find_colour_space` checks them in their order of precedence.
`to_srgb` converts the pixels, before transparency is laid over white; `convert_pixels` does so at any bit depth.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageCms

from .boxes import primary_properties

Floats = NDArray[np.float32]
Primaries = tuple[float, float, float, float, float, float, float, float]
"""CIE xy chromaticities: x and y of red, green, blue and white."""

D65 = (0.3127, 0.3290)
BT709: Primaries = (0.640, 0.330, 0.300, 0.600, 0.150, 0.060, *D65)
PRIMARIES: dict[int, Primaries] = {
    1: BT709,
    4: (0.67, 0.33, 0.21, 0.71, 0.14, 0.08, 0.310, 0.316),
    5: (0.64, 0.33, 0.29, 0.60, 0.15, 0.06, *D65),
    6: (0.630, 0.340, 0.310, 0.595, 0.155, 0.070, *D65),
    7: (0.630, 0.340, 0.310, 0.595, 0.155, 0.070, *D65),
    9: (0.708, 0.292, 0.170, 0.797, 0.131, 0.046, *D65),
    11: (0.680, 0.320, 0.265, 0.690, 0.150, 0.060, 0.314, 0.351),
    12: (0.680, 0.320, 0.265, 0.690, 0.150, 0.060, *D65),
}
"""CICP's ColourPrimaries (ITU-T H.273, table 2). 12 is Display P3, which phones use."""
ADOBE_RGB: Primaries = (0.64, 0.33, 0.21, 0.71, 0.15, 0.06, *D65)
ADOBE_GAMMA = 563 / 256
"""Exponent of Adobe RGB's power law."""

BT709_LIKE = (1, 6, 14, 15)
"""TransferCharacteristics with the curve of BT.709."""
SRGB, LINEAR, PQ, HLG = 13, 8, 16, 18
"""CICP's TransferCharacteristics (ITU-T H.273, table 3)."""
SDR_WHITE = 203.0 / 10_000
"""The level of diffuse white in HDR as a share of PQ's 10,000 cd/m2 (ITU-R BT.2408). It becomes sRGB's white."""
HLG_PEAK = 1_000.0 / 10_000
"""The nominal peak of an HLG display, as a share of PQ's 10,000 cd/m2 (ITU-R BT.2100, table 5)."""
HLG_GAMMA = 1.2
"""The system gamma of HLG at its nominal peak."""

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"

MAX_STRIP_PIXELS = 1 << 19
"""Number of pixels that are converted at a time, which bounds the memory for floats."""


@dataclass(frozen=True)
class ColourSpace:
    """Primaries and a transfer function."""

    primaries: Primaries = BT709
    transfer: int = SRGB
    """A code of CICP's TransferCharacteristics."""
    gamma: float = 0.0
    """The exponent of a power law that replaces `transfer`; 0: none."""

    @property
    def is_srgb(self) -> bool:
        """Whether pixels of this colour space need no conversion."""
        # Photographs that name BT.709's transfer are encoded for sRGB displays, and browsers treat both alike.
        # 2 means unspecified.
        return self.primaries == BT709 and not self.gamma and self.transfer in (SRGB, *BT709_LIKE, 2)

    @property
    def is_hdr(self) -> bool:
        """Whether values can be brighter than diffuse white, which no ICC profile describes."""
        return self.transfer in (PQ, HLG)


def find_colour_space(info: Mapping[Any, Any], exif: Image.Exif, data: bytes) -> bytes | ColourSpace | None:
    """Return the ICC profile or the colour space that an image names, or None for sRGB.

    Args:
        info: the image's `info` from Pillow or pillow-heif.
        data: the whole file, since Pillow drops PNG's cICP and AVIF's nclx.
    """
    codes = _cicp_codes(info, data)
    # 2 means unspecified.
    space = (
        _space_of_tags(info, exif) if codes is None else ColourSpace(PRIMARIES.get(codes[0], BT709), codes[1])
    )
    # A profile beside HDR is for readers that know no HDR. PNG's cICP takes precedence over iCCP in any case.
    ignores_profile = codes is not None and (space.is_hdr or data.startswith(PNG_SIGNATURE))
    if (profile := info.get("icc_profile")) and not ignores_profile:
        return bytes(profile)
    return None if space.is_srgb else space


def _space_of_tags(info: Mapping[Any, Any], exif: Image.Exif) -> ColourSpace:
    """Return the colour space that PNG's sRGB, gAMA and cHRM or EXIF name; sRGB if they name none."""
    if "srgb" not in info and ("gamma" in info or "chromaticity" in info):
        return _png_space(info)
    if "srgb" not in info and _is_adobe_rgb(exif):
        return ColourSpace(ADOBE_RGB, gamma=ADOBE_GAMMA)
    return ColourSpace()


def to_srgb(image: Image.Image, space: bytes | ColourSpace | None, notes: list[str]) -> Image.Image:
    """Convert an image of mode L, RGB, CMYK or LAB to sRGB in mode RGB.

    Args:
        notes: receives a warning if the profile cannot be used.
    """
    if isinstance(space, bytes):
        converted = _by_profile(image, space)
        if converted is not None:
            return converted
        notes.append("its colour profile is damaged or for another kind of image, and is not used")
    if image.mode == "LAB":
        converted = ImageCms.profileToProfile(
            image, ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), outputMode="RGB"
        )
        assert converted is not None
        return converted
    rgb = image.convert("RGB")
    if not isinstance(space, ColourSpace):
        return rgb
    return Image.fromarray(convert_pixels(np.asarray(rgb), 255, space))


def _by_profile(image: Image.Image, profile: bytes) -> Image.Image | None:
    """Convert an image by an ICC profile; None when the profile is damaged or for another mode."""
    try:
        source, target = ImageCms.ImageCmsProfile(BytesIO(profile)), ImageCms.createProfile("sRGB")
        if image.mode == "L" and source.profile.xcolor_space.strip() == "RGB":
            image = image.convert("RGB")  # programs keep the profile when they turn an image grey
        return ImageCms.profileToProfile(image, source, target, outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, ValueError):
        return None


def convert_pixels(pixels: NDArray[Any], white: int, space: ColourSpace) -> NDArray[np.uint8]:
    """Convert pixels to sRGB: a table makes them linear, a matrix maps the primaries, and a table encodes them.

    Args:
        pixels: unsigned integers, (height, width, 3).
        white: the largest value that a pixel can have.

    Returns:
        The sRGB pixels, (height, width, 3).
    """
    table = _to_linear(np.linspace(0, 1, white + 1, dtype=np.float32), space)
    source = _adapt(space.primaries) @ _to_xyz(space.primaries)
    matrix = (np.linalg.inv(_to_xyz(BT709)) @ source).astype(np.float32)
    luminance = source[1].astype(np.float32)
    # 16 bits of linear light are finer than 8 bits of sRGB even where its curve is steepest.
    encoded = np.rint(_srgb_curve(np.linspace(0, 1, 1 << 16)) * 255).astype(np.uint8)
    result = np.empty(pixels.shape, np.uint8)
    rows = max(1, MAX_STRIP_PIXELS // pixels.shape[1])
    for top in range(0, len(pixels), rows):
        light = table[pixels[top : top + rows]]
        if space.transfer == HLG:
            light *= _hlg_display_factor(light @ luminance)[..., None]
        linear = np.clip(light @ matrix.T, 0, 1)
        result[top : top + rows] = encoded[np.rint(linear * 65535).astype(np.uint16)]
    return result


def _hlg_display_factor(scene_luminance: Floats) -> Floats:
    """Return what maps HLG's scene light to that of a display, relative to diffuse white (the OOTF of ITU-R BT.2100)."""
    power = np.maximum(scene_luminance, 1e-9) ** (HLG_GAMMA - 1)
    return np.asarray(power * (HLG_PEAK / SDR_WHITE), dtype=np.float32)


def _to_linear(values: Floats, space: ColourSpace) -> Floats:
    """Convert encoded values from 0 to 1 to linear light, for HLG to that of the scene.

    The constants are those of ITU-T H.273, table 3.
    """
    if space.gamma:
        return np.asarray(values**space.gamma, dtype=np.float32)
    if space.transfer in BT709_LIKE or space.transfer in (SRGB, 2):
        return _inverse_srgb(values)
    if space.transfer == LINEAR:
        return values
    if space.transfer == PQ:
        power = np.maximum(values, 0) ** (1 / 78.84375)
        light = (np.maximum(power - 0.8359375, 0) / (18.8515625 - 18.6875 * power)) ** (1 / 0.1593017578125)
        return np.asarray(light / SDR_WHITE, dtype=np.float32)
    if space.transfer == HLG:
        low = values**2 / 3
        high = (np.exp((values - 0.55991073) / 0.17883277) + 0.28466892) / 12
        return np.asarray(np.where(values <= 0.5, low, high), dtype=np.float32)
    return np.asarray(values ** {4: 2.2, 5: 2.8}.get(space.transfer, 2.2), dtype=np.float32)


def _inverse_srgb(values: Floats) -> Floats:
    return np.asarray(
        np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4), dtype=np.float32
    )


def _srgb_curve(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(np.where(values <= 0.0031308, values * 12.92, 1.055 * values ** (1 / 2.4) - 0.055))


def _to_xyz(primaries: Primaries) -> NDArray[np.float64]:
    """Return the matrix from linear RGB to XYZ, (3, 3)."""
    points = np.array(primaries, dtype=np.float64).reshape(4, 2)
    xyz = np.stack([points[:, 0] / points[:, 1], np.ones(4), (1 - points.sum(axis=1)) / points[:, 1]])
    return np.asarray(xyz[:, :3] * np.linalg.solve(xyz[:, :3], xyz[:, 3]))


def _adapt(primaries: Primaries) -> NDArray[np.float64]:
    """Return the matrix of the Bradford adaptation of XYZ from a space's white to D65, (3, 3)."""
    bradford = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
    whites = [bradford @ np.array([x / y, 1, (1 - x - y) / y]) for x, y in (D65, primaries[6:])]
    return np.asarray(np.linalg.inv(bradford) @ np.diag(whites[0] / whites[1]) @ bradford)


def _cicp_codes(info: Mapping[Any, Any], data: bytes) -> tuple[int, int] | None:
    """Return the codes of primaries and transfer in a HEIC, an AVIF or a PNG, or None."""
    nclx = info.get("nclx_profile")
    if isinstance(nclx, Mapping):
        return int(nclx.get("color_primaries", 2)), int(nclx.get("transfer_characteristics", 2))
    head = data[: 1 << 16]
    if head[4:8] == b"ftyp" and len(colour := primary_properties(data).get(b"colrnclx", b"")) >= 8:
        primaries, transfer = struct.unpack_from(">4xHH", colour)
        return int(primaries), int(transfer)
    # The chunk must come before IDAT. Without IDAT in the head, find() returns -1 and the remainder is the head's end.
    if head.startswith(PNG_SIGNATURE) and 0 < (start := head.find(b"cICP")) < (
        head.find(b"IDAT") % len(head)
    ):
        return head[start + 4], head[start + 5]
    return None


def _png_space(info: Mapping[Any, Any]) -> ColourSpace:
    """Return the colour space of PNG's gAMA and cHRM. A gamma of 1/2.2 stands for sRGB's curve."""
    gamma = float(info.get("gamma") or 0)
    # No device has a gamma outside of these bounds, which would leave only black or only white.
    exponent = 1 / gamma if 0.2 <= gamma <= 4 else 0.0
    chromaticity = info.get("chromaticity")
    primaries = BT709
    if (
        isinstance(chromaticity, tuple | list)
        and len(chromaticity) == 8
        and all(value > 0 for value in chromaticity)
    ):
        white, rest = chromaticity[:2], chromaticity[2:]
        named = tuple(float(value) for value in (*rest, *white))
        different = max(abs(a - b) for a, b in zip(named, BT709, strict=True)) > 0.002
        if different and _are_a_triangle(named):
            primaries = named  # type: ignore[assignment]
    return ColourSpace(primaries, gamma=0.0 if abs(exponent - 2.2) < 0.05 else exponent)


def _are_a_triangle(primaries: tuple[float, ...]) -> bool:
    """Return whether red, green and blue are three different colours, not on a line."""
    (rx, ry, gx, gy, bx, by), white = primaries[:6], primaries[6:]
    area = abs((gx - rx) * (by - ry) - (bx - rx) * (gy - ry)) / 2
    return area > 0.01 and all(0 < value < 1 for value in white)


def colour_note(info: Mapping[Any, Any], exif: Image.Exif, space: bytes | ColourSpace | None) -> str:
    """Return a warning for an image that says it is not sRGB, without saying what it is; otherwise empty."""
    tag = exif.get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.ColorSpace)
    if tag == 65535 and space is None and not {"srgb", "icc_profile", "nclx_profile"}.intersection(info):
        return "its EXIF names no known colour space: it is read as sRGB"
    return ""


def _is_adobe_rgb(exif: Image.Exif) -> bool:
    """Return whether EXIF names Adobe RGB: ColorSpace 2, or 'uncalibrated' with the interoperability index R03."""
    space = exif.get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.ColorSpace) or exif.get(
        ExifTags.Base.ColorSpace
    )
    index = exif.get_ifd(ExifTags.IFD.Interop).get(1) if space == 65535 else None
    return space == 2 or str(index).startswith("R03")

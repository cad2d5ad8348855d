"""Decoding of image files to upright sRGB pixels, which are reduced while or right after they are decoded.

The annotation pod has little memory. A JPEG is decoded at a fraction of its size, and a HEIC is reduced directly from
the decoder's buffer. A file that cannot be decoded within the pod's limit is refused; the message says how much memory
it needs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps

from .colour import ColourSpace, colour_note, convert_pixels, find_colour_space, to_srgb
from .depth import decode_deep, deep_bits, fix_planes, rescale, widen_rgb
from .jpeg import MAX_SCANS, read_structure
from .raw import is_raw_tiff

SUFFIXES = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "MPO": (".jpg", ".jpeg", ".mpo"),
    "PNG": (".png",),
    "WEBP": (".webp",),
    "GIF": (".gif",),
    "BMP": (".bmp",),
    "TIFF": (".tif", ".tiff"),
    "HEIF": (".heic", ".heif", ".hif"),
    "AVIF": (".avif",),
}
"""The formats that are decoded, by Pillow's names, with their file suffixes. MPO is a JPEG with further images in it,
as phones write it."""

PILLOW_FORMATS = tuple(name for name in SUFFIXES if name not in ("MPO", "HEIF"))
"""Formats that Pillow opens. Its JPEG reader opens MPO too; pillow-heif opens HEIF."""

MAX_PAGES = 32
"""Pages of a TIFF that are looked at."""
MULTI_FRAME_FORMATS = ("GIF", "PNG", "WEBP", "TIFF", "AVIF")
"""Formats in which further images are frames of an animation or pages. In other formats they are previews or depth
maps of the same image."""

SWAPPED_ORIENTATIONS = (5, 6, 7, 8)
"""EXIF orientations in which width and height are exchanged."""

MAX_PIXELS = {
    "JPEG": 120_000_000,
    "MPO": 120_000_000,
    "HEIF": 120_000_000,
    "AVIF": 120_000_000,
    "WEBP": 25_000_000,
}
"""Maximum number of pixels, by format. Pillow's WebP decoder holds four copies of an image in memory."""
MAX_OTHER_PIXELS = 50_000_000
"""Maximum number of pixels in all other formats."""

BYTES_PER_PIXEL = {
    "HEIF": 5.2,
    "AVIF": 8.2,
    "progressive JPEG": 3.6,
    "HDR HEIF": 18.2,
    "HDR AVIF": 24.6,
    "HDR PNG": 20.5,
}
"""Measured peak memory per pixel, in bytes, of decoders that can only decode a whole image at full size."""
BASE_MEMORY = 90 << 20
"""The stage's own memory, in bytes."""

STRIP_ROWS = 64
"""Height of the strips in which a HEIC is reduced, in rows of the result."""
HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1", b"hevm", b"hevs")


class BadImageError(ValueError):
    """An image that cannot be used. The message is shown to the user."""


@dataclass(frozen=True)
class LoadedImage:
    """A decoded image."""

    image: Image.Image
    """Upright, sRGB, mode RGB, not much larger than the target."""
    width: int
    """Width of the source after orientation, in pixels."""
    height: int
    source_format: str
    warnings: list[str]


Target = Callable[[tuple[int, int]], tuple[int, int]]
"""Maps the size of a source, (width, height) in pixels, to a desired size."""


def load(data: bytes, target: Target, least: Target, min_side: int) -> LoadedImage:
    """Decode one image.

    Args:
        target: the size that the caller is going to give the image.
        least: the smallest acceptable size. A JPEG is decoded at a half, a quarter or an eighth of its size if the
            result is at least this large.
        min_side: the smallest side that an image may have, in pixels.

    Raises:
        BadImageError: when it is too large or too small, or a RAW file.
        Exception: whatever a decoder raises for damaged files.
    """
    if is_heif(data):
        return _load_heif(data, target, min_side)
    with Image.open(BytesIO(data), formats=PILLOW_FORMATS) as image:
        source_format = image.format or ""
        if source_format == "TIFF" and is_raw_tiff(getattr(image, "tag_v2", None)):
            raise BadImageError("a RAW file of a camera: export it as JPEG, PNG or TIFF")
        notes = []
        if source_format in MULTI_FRAME_FORMATS and getattr(image, "is_animated", False):
            if source_format == "TIFF":
                _select_largest_page(image)
                notes.append("more than one page: only the largest is used")
            else:
                notes.append("more than one frame: only the first is used")
        fix_planes(image)
        check_size(image.size, source_format, min_side)
        _check_decoder(data, source_format, image.size)
        exif = read_exif(image, notes)
        # Pillow rotates a TIFF when it loads it, and its size is already the upright one.
        sideways = source_format != "TIFF" and exif.get(ExifTags.Base.Orientation, 1) in SWAPPED_ORIENTATIONS
        width, height = image.size[::-1] if sideways else image.size
        desired = target(image.size)
        space = find_colour_space(dict(image.info), exif, data)
        notes += filter(None, [colour_note(image.info, exif, space)])
        small = _reduced_hdr(data, image, desired, space, notes)
        if small is not None:
            small.info["exif"], space = exif.tobytes(), None
        else:
            image.draft("RGB", least(image.size))
            image.load()
            small = _reduced(widen_rgb(image, data, notes), desired, notes)
    upright = ImageOps.exif_transpose(small) or small
    return LoadedImage(flatten(upright, space, notes), width, height, source_format, notes)


def _select_largest_page(image: Image.Image) -> None:
    """Select the largest page of a TIFF. Some programs write a preview as the first page."""
    areas = []
    for page in range(min(getattr(image, "n_frames", 1), MAX_PAGES)):
        image.seek(page)
        areas.append(image.width * image.height)
    image.seek(areas.index(max(areas)))


def read_exif(image: Image.Image, notes: list[str]) -> Image.Exif:
    """Return the EXIF data of an image; empty, and dropped from it with a warning, if the data cannot be read."""
    if image.format == "PNG" and "exif" not in image.info:
        image.load()  # the data may follow the pixels, whose errors are those of the image
    try:
        exif = image.getexif()
        dict(exif.get_ifd(ExifTags.IFD.Exif))
        return exif
    except MemoryError:
        raise
    except Exception:
        # Pillow raises almost any other exception: SyntaxError, struct.error, TypeError ...
        image.info.pop("exif", None)
        image._exif = None
        notes.append("its EXIF data is damaged and is not used, so that it may not be upright")
        return Image.Exif()


def _load_heif(data: bytes, target: Target, min_side: int) -> LoadedImage:
    try:
        import pillow_heif
    except ImportError:
        # A container image that is built with HEIF=false lacks pillow-heif, whose wheels have GPL code.
        raise BadImageError(
            "HEIC is not supported by this installation: export it as JPEG, PNG or TIFF"
        ) from None
    file = pillow_heif.open_heif(data, convert_hdr_to_8bit=True)
    size: tuple[int, int] = file.size
    check_size(size, "HEIF", min_side)
    # The decoder rotates the image itself, so its EXIF orientation must not be applied again.
    info: dict[str, Any] = dict(file.info)
    exif = Image.Exif()
    if info.get("exif"):
        exif.load(info["exif"])
    notes: list[str] = []
    if len(file) > 1:
        notes.append("more than one image: only the primary one is used")
    space, bits = find_colour_space(info, exif, data), info["bit_depth"]
    if isinstance(space, ColourSpace) and space.is_hdr and bits > 8 and _fits_hdr("HEIF", size, bits, notes):
        pixels = _heif_pixels(pillow_heif.open_heif(data, convert_hdr_to_8bit=False))
        small = _reduced_strips(
            pixels, target(size), partial(_hdr_to_srgb, space=space, bits=bits, shift=16 - bits)
        )
        space = None
    else:
        _check_memory("HEIF", size)
        small = _reduced_strips(_heif_pixels(file), target(size), partial(Image.fromarray, mode=file.mode))
    return LoadedImage(flatten(small, space, notes), *size, "HEIF", notes)


def _heif_pixels(file: Any) -> NDArray[Any]:
    """Return the decoder's buffer of a HEIC as an array without a copy.

    Returns:
        (height, width) or (height, width, channels), of 8 or 16 bits.
    """
    width, height = file.size
    mode, _, deep = file.mode.partition(";")
    rows = np.frombuffer(file.data, np.uint16 if deep else np.uint8).reshape(height, -1)
    return (
        rows[:, :width] if len(mode) == 1 else rows[:, : width * len(mode)].reshape(height, width, len(mode))
    )


def _reduced_hdr(
    data: bytes,
    image: Image.Image,
    desired: tuple[int, int],
    space: bytes | ColourSpace | None,
    notes: list[str],
) -> Image.Image | None:
    """Decode an AVIF or a PNG in HDR at its full depth to sRGB, and reduce it; None for all other files.

    Args:
        image: the file as Pillow opened it. Only its header is used.
    """
    if not (isinstance(space, ColourSpace) and space.is_hdr and (bits := deep_bits(data))):
        return None
    if not _fits_hdr(image.format or "", image.size, bits, notes):
        return None
    pixels = decode_deep(data)
    if pixels is None or pixels.shape[:2] != image.size[::-1]:
        return None
    return _reduced_strips(pixels, desired, partial(_hdr_to_srgb, space=space, bits=bits))


def _hdr_to_srgb(pixels: NDArray[np.uint16], space: ColourSpace, bits: int, shift: int = 0) -> Image.Image:
    """Convert HDR pixels to an sRGB image, with an alpha channel if they have one.

    Args:
        pixels: (height, width) or (height, width, channels), `bits` for each channel, shifted left by `shift`.
    """
    values = np.atleast_3d(pixels) >> shift
    colours = values[..., :3] if values.shape[2] > 2 else np.repeat(values[..., :1], 3, axis=2)
    image = Image.fromarray(convert_pixels(colours, (1 << bits) - 1, space))
    if values.shape[2] in (2, 4):
        image.putalpha(Image.fromarray((values[..., -1] >> (bits - 8)).astype(np.uint8)))
    return image


def _reduced_strips(
    pixels: NDArray[Any], desired: tuple[int, int], convert: Callable[[NDArray[Any]], Image.Image]
) -> Image.Image:
    """Reduce pixels by an integer factor, strip by strip from the decoder's buffer. Pillow would copy all of it.

    Args:
        pixels: (height, width) or (height, width, channels).
        desired: width and height that the result is not smaller than.
        convert: makes an image of a strip, before it is reduced.
    """
    height, width = pixels.shape[:2]
    factor = max(1, min(width // desired[0], height // desired[1]))
    reduced, step = None, STRIP_ROWS * factor
    for top in range(0, height, step):
        strip = convert(np.ascontiguousarray(pixels[top : top + step]))
        if reduced is None:
            reduced = Image.new(strip.mode, (-(-width // factor), -(-height // factor)))
        reduced.paste(strip.reduce(factor) if factor > 1 else strip, (0, top // factor))
    assert reduced is not None  # every image has rows
    return reduced


def is_heif(data: bytes) -> bool:
    """Return whether a file is a HEIC. AVIF has the same container with other brands."""
    return data[4:8] == b"ftyp" and data[8:12] in HEIF_BRANDS and b"avif" not in data[8:40]


def check_size(size: tuple[int, int], source_format: str, min_side: int) -> None:
    """Check the size of an image.

    Raises:
        BadImageError: when it is too large or too small.
    """
    width, height = size
    limit = MAX_PIXELS.get(source_format, MAX_OTHER_PIXELS)
    if width * height > limit:
        raise BadImageError(f"{width} x {height} is more than {limit // 1_000_000} megapixels")
    if min(size) < min_side:
        raise BadImageError(f"{width} x {height} is too small: each side needs {min_side} pixels")


def _check_decoder(data: bytes, source_format: str, size: tuple[int, int]) -> None:
    if source_format == "AVIF":
        _check_memory("AVIF", size)
    if source_format in ("JPEG", "MPO"):
        structure = read_structure(data)
        if structure.scans > MAX_SCANS:
            raise BadImageError(f"more than {MAX_SCANS} scans: no camera writes such a JPEG")
        if structure.progressive:
            _check_memory("progressive JPEG", size)


def _check_memory(decoder: str, size: tuple[int, int]) -> None:
    if (needed := _needed_memory(decoder, size)) > memory_limit():
        raise BadImageError(
            f"{size[0]} x {size[1]} as {decoder} needs about {needed >> 20} MiB to decode, and the container has "
            f"{memory_limit() >> 20}: raise resources.annotate.memory or save it smaller"
        )


def _needed_memory(decoder: str, size: tuple[int, int]) -> int:
    return BASE_MEMORY + int(size[0] * size[1] * BYTES_PER_PIXEL[decoder])


def _fits_hdr(source_format: str, size: tuple[int, int], bits: int, notes: list[str]) -> bool:
    """Return whether an HDR image can be decoded at its full depth. Otherwise it is decoded to 8 bits, with a warning."""
    needed = _needed_memory(f"HDR {source_format}", size)
    if needed <= memory_limit():
        return True
    notes.append(
        f"8 of its {bits} bits are used, since all need about {needed >> 20} MiB to decode and the container has "
        f"{memory_limit() >> 20}: raise resources.annotate.memory for exact colours"
    )
    return False


@cache
def memory_limit() -> int:
    """Return the memory limit of this container in bytes; a very large number where there is none."""
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            text = Path(path).read_text().strip()
        except OSError:
            continue
        if text.isdecimal():
            return int(text)
    return 1 << 62


def _reduced(image: Image.Image, desired: tuple[int, int], notes: list[str]) -> Image.Image:
    """Reduce an image by an integer factor to a size not below the desired one.

    This comes before all other conversions, which copy the image.
    """
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        exif = image.getexif()
        image = rescale(image, notes)
        image.info["exif"] = exif.tobytes()
    factor = min(image.width // max(desired[0], 1), image.height // max(desired[1], 1))
    if factor < 2:
        return image
    exif = image.getexif()
    info: dict[Any, Any] = {name: image.info[name] for name in ("transparency",) if name in image.info}
    smooth = image.convert("RGBA" if image.has_transparency_data else "RGB") if image.mode in "1P" else image
    small = smooth.reduce(factor)
    if smooth is image:
        small.info |= info
    small.info["exif"] = exif.tobytes()  # the orientation is still to be applied
    return small


def flatten(image: Image.Image, space: bytes | ColourSpace | None, notes: list[str]) -> Image.Image:
    """Convert an image of any of Pillow's modes to sRGB in mode RGB, then lay it over white.

    Args:
        space: what `find_colour_space` returned for it.
        notes: receives warnings.
    """
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = rescale(image, notes)
    alpha = None
    if image.has_transparency_data:
        layer = image.convert("LA" if image.mode in ("L", "LA", "La") else "RGBA")
        alpha = layer.getchannel("A")
        image = layer.convert("RGB") if layer.mode == "RGBA" else layer.getchannel("L")
    elif image.mode not in ("RGB", "L", "CMYK", "LAB"):
        image = image.convert("RGB")
    rgb = to_srgb(image, space, notes)
    if alpha is None:
        return rgb
    white = Image.new("RGB", rgb.size, "white")
    white.paste(rgb, mask=alpha)
    return white

"""Hostile and unusual image files, each with its expected outcome.

`python -m tests.support.image_files DIR` writes them out.
"""

from __future__ import annotations

import struct
import sys
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import pillow_heif
from PIL import Image, PngImagePlugin

pillow_heif.register_heif_opener()


@dataclass(frozen=True)
class Case:
    make: Callable[[], bytes]
    refused: str = ""
    """Pattern of the reason; empty for accepted files."""
    remark: str = ""
    """Part of the warning for an accepted file."""


def four_colours(mode: str = "RGB", width: int = 320, height: int = 288) -> Image.Image:
    """Return an image with a red quarter in the upper left, green right of it, blue below, and white in the rest."""
    image = Image.new("RGB", (width, height), "white")
    w, h = width // 2, height // 2
    image.paste((220, 20, 20), (0, 0, w, h))
    image.paste((20, 200, 20), (w, 0, width, h))
    image.paste((20, 20, 220), (0, h, w, height))
    return image.convert(mode)


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    out = BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def oriented(orientation: int) -> bytes:
    """Return a JPEG that shows `four_colours()` after its EXIF orientation is applied."""
    back = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    image = four_colours()
    if orientation in back:
        image = image.transpose(back[orientation])
    exif = Image.Exif()
    exif[274] = orientation
    return encode(image, "JPEG", quality=95, exif=exif)


def grey16(kind: str) -> bytes:
    ramp = np.tile(np.linspace(0, 65535, 320).astype(np.uint16), (288, 1))
    return encode(Image.fromarray(ramp), kind)


def transparent() -> bytes:
    image = four_colours("RGBA")
    image.putalpha(Image.new("L", image.size, 0))
    return encode(image, "PNG")


def palette() -> bytes:
    image = four_colours().quantize(8)
    return encode(image, "PNG", transparency=0)


def animated(kind: str) -> bytes:
    frames = [four_colours(), Image.new("RGB", (320, 288), "black")]
    return encode(frames[0], kind, save_all=True, append_images=frames[1:])


def png_header(width: int, height: int, body: bytes = b"") -> bytes:
    """Return a PNG whose header claims a size that its data does not have."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(body))
        + chunk(b"IEND", b"")
    )


def jpeg_header(width: int, height: int) -> bytes:
    data = bytearray(encode(four_colours(), "JPEG"))
    start = data.index(b"\xff\xc0")
    data[start + 5 : start + 9] = struct.pack(">HH", height, width)
    return bytes(data)


def text_bomb() -> bytes:
    info = PngImagePlugin.PngInfo()
    info.add_itxt("comment", "a" * (80 << 20), zip=True)
    return encode(four_colours(), "PNG", pnginfo=info)


def large(mode: str, kind: str, side: int = 7000) -> bytes:
    """Return an image of one colour and just under 50 megapixels."""
    return encode(Image.new(mode, (side, side)), kind)


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 400 400\n%%EndComments\n(/etc/passwd) run\nshowpage\n%%EOF\n"
SVG = b'<svg xmlns="http://www.w3.org/2000/svg" width="400" height="400"><image href="file:///etc/passwd"/></svg>'

CORPUS: dict[str, Case] = {
    "plain.jpg": Case(lambda: encode(four_colours(), "JPEG", quality=95)),
    "plain.png": Case(lambda: encode(four_colours(), "PNG")),
    "plain.webp": Case(lambda: encode(four_colours(), "WEBP", lossless=True)),
    "plain.bmp": Case(lambda: encode(four_colours(), "BMP")),
    "plain.tiff": Case(lambda: encode(four_colours(), "TIFF")),
    "plain.gif": Case(lambda: encode(four_colours(), "GIF")),
    "phone.heic": Case(lambda: encode(four_colours(), "HEIF", quality=95)),
    **{f"exif-{n}.jpg": Case(lambda n=n: oriented(n)) for n in range(1, 9)},
    "cmyk.jpg": Case(lambda: encode(four_colours("CMYK"), "JPEG", quality=95)),
    "palette.png": Case(palette),
    "alpha.png": Case(transparent),
    "grey16.png": Case(lambda: grey16("PNG")),
    "grey16.tiff": Case(lambda: grey16("TIFF")),
    "nan.tiff": Case(lambda: encode(Image.fromarray(np.full((300, 300), np.nan, np.float32)), "TIFF")),
    "float.tiff": Case(lambda: encode(four_colours("F"), "TIFF")),
    "one-bit.png": Case(lambda: encode(four_colours("1"), "PNG")),
    "animated.gif": Case(lambda: animated("GIF"), remark="only the first"),
    "animated.webp": Case(lambda: animated("WEBP"), remark="only the first"),
    "pages.tiff": Case(lambda: animated("TIFF"), remark="only the largest"),
    "misnamed.jpg": Case(lambda: encode(four_colours(), "PNG"), remark="PNG by its content"),
    "two-in-one.jpg": Case(lambda: encode(four_colours(), "MPO", save_all=True, append_images=[four_colours("L").convert("RGB")])),
    "zero.jpg": Case(lambda: b"", "empty"),
    "text.jpg": Case(lambda: b"this is not an image\n" * 50, "not an image"),
    "html.png": Case(lambda: b"<html><body>404</body></html>", "not an image"),
    "eps.jpg": Case(lambda: EPS, "not an image"),
    "vector.jpg": Case(lambda: SVG, "SVG, a drawing: export it as PNG"),
    "pdf.jpg": Case(lambda: encode(four_colours(), "PDF"), "PDF, which is not read"),
    "icon.png": Case(lambda: encode(four_colours(), "ICO"), "not an image"),
    "truncated.jpg": Case(lambda: encode(four_colours(), "JPEG")[:-600], "damaged or cut off"),
    "truncated.png": Case(lambda: encode(Image.effect_noise((320, 288), 90), "PNG")[:-900], "damaged or cut off"),
    "truncated.heic": Case(lambda: encode(four_colours(), "HEIF")[:-300], "damaged or cut off"),
    "start-only.jpg": Case(lambda: encode(four_colours(), "JPEG")[:20], "not an image|damaged"),
    "flipped.png": Case(lambda: flip(encode(four_colours(), "PNG"), 60), "damaged or cut off"),
    "small.png": Case(lambda: encode(four_colours(width=255, height=400), "PNG"), "too small"),
    "tiny.gif": Case(lambda: encode(four_colours(width=1, height=1), "GIF"), "too small"),
    "header-900mp.png": Case(lambda: png_header(30_000, 30_000), "megapixels"),
    "header-4gp.jpg": Case(lambda: jpeg_header(65_500, 65_500), "megapixels"),
    "header-max.png": Case(lambda: png_header(2**31 - 1, 2**31 - 1), "megapixels|damaged"),
    "bomb-100mp.png": Case(lambda: encode(Image.new("1", (10_000, 10_000)), "PNG"), "megapixels"),
    "promises-49mp.png": Case(lambda: png_header(7000, 7000, b"\0" * 1000), "damaged or cut off"),
    "text-bomb.png": Case(text_bomb, "without metadata"),
    "large.png": Case(lambda: large("RGBA", "PNG")),
    "large.jpg": Case(lambda: large("CMYK", "JPEG")),
    "large.webp": Case(lambda: large("RGBA", "WEBP", 4990)),
    "larger.webp": Case(lambda: large("RGB", "WEBP", 5010), "25 megapixels"),
    "large.gif": Case(lambda: large("P", "GIF")),
    "large16.png": Case(lambda: large("I;16", "PNG")),
    "large.tiff": Case(lambda: encode(Image.new("CMYK", (7000, 7000)), "TIFF", compression="tiff_deflate")),
}  # fmt: skip


def flip(data: bytes, index: int) -> bytes:
    return data[:index] + bytes([data[index] ^ 0x55]) + data[index + 1 :]


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for name, case in CORPUS.items():
        (folder / name).write_bytes(case.make())

"""Photographs in every format and colour space come out as the converted original, within 1 of 255 on the mean.

The converted original is the file as OpenCV reads it, converted here by the formulas of the colour space. A file of few
bits or with a lossy encoding differs from the photograph that it was made from; both differences are printed.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import cv2
import numpy as np
import pillow_heif
import pytest
from PIL import Image, ImageCms

from lora_trainer.annotate import loading
from lora_trainer.annotate.decode import decode

pillow_heif.register_heif_opener()

ADOBE = np.array([[2.04159, -0.56501, -0.34473], [-0.96924, 1.87597, 0.04156], [0.01344, -0.11836, 1.01517]])
P3 = np.array([[2.49350, -0.93138, -0.40271], [-0.82949, 1.76266, 0.02362], [0.03585, -0.07617, 0.95688]])
SRGB = np.array([[0.41239, 0.35758, 0.18048], [0.21264, 0.71517, 0.07219], [0.01933, 0.11919, 0.95053]])
"""From linear RGB to XYZ for sRGB, from XYZ to linear RGB for the others (D65)."""

P3_PRIMARIES = {
    b"rXYZ": (0.51512, 0.24120, -0.00105),
    b"gXYZ": (0.29198, 0.69225, 0.04189),
    b"bXYZ": (0.15710, 0.06657, 0.78407),
}
"""Display P3's colorants in an ICC profile, adapted to D50."""


Reading = Callable[[np.ndarray], np.ndarray]


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    out = BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def linear(image: Image.Image) -> np.ndarray:
    values = np.asarray(image.convert("RGB"), dtype=np.float64) / 255
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def srgb_curve(light: np.ndarray) -> np.ndarray:
    light = np.clip(light, 0, 1)
    return np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055)


def in_space(image: Image.Image, matrix: np.ndarray, gamma: float = 0.0) -> Image.Image:
    """An sRGB image's colours as values of another space."""
    values = np.clip(linear(image) @ (matrix @ SRGB).T, 0, 1)
    curve = values ** (1 / gamma) if gamma else srgb_curve(values)
    return Image.fromarray(np.rint(curve * 255).astype(np.uint8))


def from_space(matrix: np.ndarray, gamma: float = 0.0) -> Reading:
    """Return a function that converts values of a colour space from 0 to 1 to sRGB."""

    def read(values: np.ndarray) -> np.ndarray:
        curve = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
        light = values**gamma if gamma else curve
        return srgb_curve(light @ (np.linalg.inv(SRGB) @ np.linalg.inv(matrix)).T)

    return read


def hlg(image: Image.Image, luminance: np.ndarray = SRGB[1]) -> np.ndarray:
    """An image as HLG for a display of 1,000 cd/m2 (ITU-R BT.2100, table 5), with white at 203 cd/m2."""
    display = linear(image) * 203 / 1000
    scene = np.maximum(display @ luminance, 1e-9)[..., None] ** ((1 - 1.2) / 1.2) * display
    high = 0.17883277 * np.log(np.maximum(12 * scene - 0.28466892, 1e-9)) + 0.55991073
    return np.where(scene <= 1 / 12, np.sqrt(3 * scene), high)


def from_hlg(values: np.ndarray) -> np.ndarray:
    high = (np.exp((values - 0.55991073) / 0.17883277) + 0.28466892) / 12
    scene = np.where(values <= 0.5, values**2 / 3, high)
    return srgb_curve(np.maximum(scene @ SRGB[1], 1e-9)[..., None] ** 0.2 * scene * 1000 / 203)


def pq(image: Image.Image) -> np.ndarray:
    """An image in the curve of PQ (SMPTE ST 2084), with white at 203 cd/m2."""
    power = (linear(image) * 203 / 10_000) ** 0.1593017578125
    return ((0.8359375 + 18.8515625 * power) / (1 + 18.6875 * power)) ** 78.84375


def from_pq(values: np.ndarray) -> np.ndarray:
    power = values ** (1 / 78.84375)
    light = (np.maximum(power - 0.8359375, 0) / (18.8515625 - 18.6875 * power)) ** (1 / 0.1593017578125)
    return srgb_curve(light * 10_000 / 203)


def p3_profile() -> bytes:
    """sRGB's profile with Display P3's colorants."""
    data = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    for index in range(struct.unpack_from(">I", data, 128)[0]):
        tag, offset, _ = struct.unpack_from(">4sII", data, 132 + 12 * index)
        if tag in P3_PRIMARIES:
            struct.pack_into(">3i", data, offset + 8, *(round(v * 65536) for v in P3_PRIMARIES[tag]))
    return bytes(data)


def exif_colour(space: int) -> Image.Exif:
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0xA001] = space
    if space == 65535:
        exif.get_ifd(0x8769)[0xA005] = {1: "R03"}
    return exif


def with_chunk(png: bytes, kind: bytes, data: bytes) -> bytes:
    chunk = struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    return png[:33] + chunk + png[33:]


def with_nclx(avif: bytes, primaries: int, transfer: int) -> bytes:
    start = avif.index(b"colrnclx") + 8
    return avif[:start] + struct.pack(">HH", primaries, transfer) + avif[start + 4 :]


def avif(image: Image.Image) -> bytes:
    return encode(image, "AVIF", quality=100, subsampling="4:4:4", speed=9)


def hdr_avif(values: np.ndarray, bits: int, transfer: int) -> bytes:
    """An AVIF of values from 0 to 1, with BT.709's primaries."""
    if bits == 8:
        return with_nclx(avif(Image.fromarray(np.rint(values * 255).astype(np.uint8))), 1, transfer)
    samples = np.rint(values[..., ::-1] * ((1 << bits) - 1)).astype(np.uint16)
    options = [cv2.IMWRITE_AVIF_DEPTH, bits, cv2.IMWRITE_AVIF_QUALITY, 100, cv2.IMWRITE_AVIF_SPEED, 9]
    done, data = cv2.imencode(".avif", samples, options)
    assert done
    return with_nclx(data.tobytes(), 1, transfer)


def hdr_png(values: np.ndarray, transfer: int) -> bytes:
    done, data = cv2.imencode(".png", np.rint(values[..., ::-1] * 65535).astype(np.uint16))
    assert done
    return with_chunk(data.tobytes(), b"cICP", bytes([1, transfer, 0, 1]))


def hdr_heic(values: np.ndarray, transfer: int) -> bytes:
    height, width, _ = values.shape
    samples = np.rint(values * 65535).astype(np.uint16)
    file = pillow_heif.from_bytes(mode="RGB;16", size=(width, height), data=samples.tobytes())
    out = BytesIO()
    colour = {"color_primaries": 1, "transfer_characteristics": transfer, "matrix_coefficients": 1}
    file.save(out, quality=-1, chroma=444, **colour)
    return out.getvalue()


def translucent(image: Image.Image) -> Image.Image:
    image = image.copy()
    image.putalpha(255)
    return image


@dataclass(frozen=True)
class Case:
    """A kind of file."""

    encode: Callable[[Image.Image], bytes]
    reading: Reading | None = lambda values: values
    """What turns its values from 0 to 1 to those of sRGB; None if OpenCV does not read them as they are stored."""
    bits: int = 8
    is_lossy: bool = False
    """The encoding alone changes values by about 1 of 255 or more."""


FROM_P3, FROM_ADOBE = from_space(P3), from_space(ADOBE, 2.19921875)
CASES = {
    "sRGB jpeg": Case(lambda i: encode(i, "JPEG", quality=97, subsampling=0)),
    "sRGB avif": Case(avif),
    "sRGB heic": Case(lambda i: encode(i, "HEIF", quality=98)),
    "sRGB 16-bit tiff": Case(lambda i: encode(i, "TIFF")),
    "P3 jpeg": Case(lambda i: encode(in_space(i, P3), "JPEG", quality=97, subsampling=0, icc_profile=p3_profile()), FROM_P3),
    "P3 png": Case(lambda i: encode(in_space(i, P3), "PNG", icc_profile=p3_profile()), FROM_P3),
    "P3 png with alpha": Case(lambda i: encode(translucent(in_space(i, P3)), "PNG", icc_profile=p3_profile()), FROM_P3),
    "P3 webp": Case(lambda i: encode(in_space(i, P3), "WEBP", lossless=True, icc_profile=p3_profile()), FROM_P3),
    "P3 tiff": Case(lambda i: encode(in_space(i, P3), "TIFF", icc_profile=p3_profile()), FROM_P3),
    "P3 avif": Case(lambda i: encode(in_space(i, P3), "AVIF", quality=100, subsampling="4:4:4", speed=9, icc_profile=p3_profile()), FROM_P3),
    "P3 heic": Case(lambda i: encode(in_space(i, P3), "HEIF", quality=98, icc_profile=p3_profile()), FROM_P3),
    "P3 heic by nclx": Case(lambda i: encode(in_space(i, P3), "HEIF", quality=98, color_primaries=12, transfer_characteristics=13, matrix_coefficients=6, full_range_flag=1), FROM_P3),
    "P3 avif by nclx": Case(lambda i: with_nclx(avif(in_space(i, P3)), 12, 13), FROM_P3),
    "P3 png by cICP": Case(lambda i: with_chunk(encode(in_space(i, P3), "PNG"), b"cICP", bytes([12, 13, 0, 1])), FROM_P3),
    "Adobe RGB by EXIF": Case(lambda i: encode(in_space(i, ADOBE, 2.19921875), "JPEG", quality=97, subsampling=0, exif=exif_colour(2)), FROM_ADOBE),
    "Adobe RGB by R03": Case(lambda i: encode(in_space(i, ADOBE, 2.19921875), "JPEG", quality=97, subsampling=0, exif=exif_colour(65535)), FROM_ADOBE),
    "linear png by gAMA": Case(lambda i: with_chunk(encode(in_space(i, np.linalg.inv(SRGB), 1.8), "PNG"), b"gAMA", struct.pack(">I", 55556)), from_space(np.linalg.inv(SRGB), 1.8)),
    "LAB tiff": Case(lambda i: encode(ImageCms.profileToProfile(i, ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"), "TIFF"), None),
    "EXIF says sRGB": Case(lambda i: encode(i, "JPEG", quality=97, subsampling=0, exif=exif_colour(1))),
    "JPEG in tiff": Case(lambda i: encode(i, "TIFF", compression="jpeg", quality=90), is_lossy=True),
    "JPEG in tiff of YCbCr": Case(lambda i: encode(i.convert("YCbCr"), "TIFF", compression="jpeg", quality=90), is_lossy=True),
    "JPEG in tiff of CMYK": Case(lambda i: encode(i.convert("CMYK"), "TIFF", compression="jpeg", quality=97)),
    "P3 JPEG in tiff": Case(lambda i: encode(in_space(i, P3), "TIFF", compression="jpeg", quality=90, icc_profile=p3_profile()), FROM_P3, is_lossy=True),
    "lossy webp": Case(lambda i: encode(i, "WEBP", quality=95), is_lossy=True),
    "4:2:0 jpeg": Case(lambda i: encode(i, "JPEG", quality=80, subsampling=2), is_lossy=True),
    "HLG avif of 8 bits": Case(lambda i: hdr_avif(hlg(i), 8, 18), from_hlg, is_lossy=True),
    "HLG avif of 10 bits": Case(lambda i: hdr_avif(hlg(i), 10, 18), from_hlg, 10),
    "HLG avif of 12 bits": Case(lambda i: hdr_avif(hlg(i), 12, 18), from_hlg, 12),
    "HLG heic of 10 bits": Case(lambda i: hdr_heic(hlg(i), 18)),
    "HLG png": Case(lambda i: hdr_png(hlg(i), 18), from_hlg, 16),
    "PQ avif of 8 bits": Case(lambda i: hdr_avif(pq(i), 8, 16), from_pq, is_lossy=True),
    "PQ avif of 10 bits": Case(lambda i: hdr_avif(pq(i), 10, 16), from_pq, 10),
    "PQ avif of 12 bits": Case(lambda i: hdr_avif(pq(i), 12, 16), from_pq, 12),
    "PQ heic of 10 bits": Case(lambda i: hdr_heic(pq(i), 16)),
    "PQ png": Case(lambda i: hdr_png(pq(i), 16), from_pq, 16),
}  # fmt: skip


@pytest.fixture(scope="module")
def originals(photographs: list[Path]) -> list[Image.Image]:
    images = []
    for path in photographs[:3]:
        with Image.open(path) as image:
            images.append(image.convert("RGB").resize((640, 480), Image.Resampling.LANCZOS))
    return images


def converted_file(data: bytes, case: Case) -> np.ndarray | None:
    """A file as OpenCV reads it, converted to sRGB from 0 to 255; None if OpenCV does not read the format."""
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION | cv2.IMREAD_ANYDEPTH
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    if pixels is None or case.reading is None:
        return None
    return case.reading(pixels[..., ::-1] / ((1 << case.bits) - 1)) * 255


def mean_difference(first: np.ndarray, second: np.ndarray) -> float:
    return float(np.abs(first.astype(float) - second.astype(float)).mean())


@pytest.mark.parametrize("name", CASES)
def test_colours_of_photographs(name, originals):
    case = CASES[name]
    for image in originals:
        data, original = case.encode(image), np.asarray(image)
        clean = np.asarray(decode(data).image)
        assert clean.shape == original.shape
        to_original, reference = mean_difference(clean, original), converted_file(data, case)
        if reference is None:
            print(f"{name}: {to_original:.2f} of 255 from the original")
            assert to_original < 1.0
            continue
        to_file = mean_difference(clean, reference)
        print(f"{name}: {to_file:.2f} of 255 from the converted file, {to_original:.2f} from the original")
        assert to_file < 1.0
        assert to_original < (mean_difference(reference, original) + 0.5 if case.is_lossy else 1.0)


def test_colours_are_converted_before_transparency_is_laid_over_white():
    image = Image.new("RGB", (300, 300), (200, 100, 50))
    half = in_space(image, P3)
    half.putalpha(128)
    clean = decode(encode(half, "PNG", icc_profile=p3_profile())).image
    expected = [round(c * 128 / 255 + 255 * 127 / 255) for c in (200, 100, 50)]
    assert all(abs(a - b) <= 2 for a, b in zip(clean.getpixel((9, 9)), expected, strict=True))


def test_a_profile_of_another_mode_is_as_good_as_none():
    image = Image.new("L", (300, 300), 90)
    assert decode(encode(image, "PNG", icc_profile=p3_profile())).image.getpixel((5, 5)) == (90, 90, 90)


def grey_profile(gamma: float) -> bytes:
    """An ICC profile for grey images."""
    white = struct.pack(">3i", 63190, 65536, 54061)
    tags = [
        (b"desc", b"desc\0\0\0\0\0\0\0\2g\0" + bytes(78)),
        (b"cprt", b"text\0\0\0\0x\0\0\0"),
        (b"wtpt", b"XYZ \0\0\0\0" + white),
        (b"kTRC", b"curv\0\0\0\0" + struct.pack(">IHH", 1, round(gamma * 256), 0)),
    ]
    table, body = struct.pack(">I", len(tags)), b""
    for name, data in tags:
        table += struct.pack(">4sII", name, 132 + 12 * len(tags) + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    head = (
        b"\0\0\0\0\2\x10\0\0mntrGRAYXYZ "
        + struct.pack(">6H", 2020, 1, 1, 0, 0, 0)
        + b"acsp"
        + bytes(28)
        + white
    )
    return struct.pack(">I", 128 + len(table + body)) + head.ljust(124, b"\0") + table + body


@pytest.mark.parametrize("mode", ["L", "LA"])
def test_grey_images_have_the_curve_of_their_profile(mode, originals):
    grey = originals[0].convert("L")
    encoded = Image.fromarray(np.rint(linear(grey)[..., 0] ** (1 / 1.8) * 255).astype(np.uint8))
    clean = decode(encode(encoded.convert(mode), "PNG", icc_profile=grey_profile(1.8)))
    assert clean.warnings == []
    assert np.abs(np.asarray(clean.image.convert("L"), int) - np.asarray(grey, int)).mean() < 1


@pytest.mark.parametrize("profile", [grey_profile(1.8), b"no profile" * 20], ids=["grey", "damaged"])
def test_a_profile_that_cannot_be_used_is_a_warning(profile, originals):
    clean = decode(encode(originals[0], "JPEG", quality=97, icc_profile=profile))
    assert "colour profile" in clean.warnings[0]


def test_an_unknown_colour_space_of_exif_is_a_warning(originals):
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0xA001] = 65535
    clean = decode(encode(originals[0], "JPEG", exif=exif))
    assert "read as sRGB" in clean.warnings[0]
    assert decode(CASES["Adobe RGB by R03"].encode(originals[0])).warnings == []


@pytest.mark.parametrize("gamma", [0, 1, 2**32 - 1])
@pytest.mark.parametrize("corner", [0, 30000])
def test_impossible_gammas_and_primaries_of_png_are_ignored(gamma, corner):
    plain = encode(Image.effect_noise((300, 300), 90).convert("RGB"), "PNG")
    data = with_chunk(plain, b"gAMA", struct.pack(">I", gamma))
    data = with_chunk(data, b"cHRM", struct.pack(">8I", 31270, 32900, *[corner] * 6))
    assert decode(data).image.tobytes() == decode(plain).image.tobytes()


def test_hdr_that_does_not_fit_into_memory_is_read_with_8_bits(originals, monkeypatch):
    for data, kind in (
        (hdr_avif(pq(originals[0]), 10, 16), "AVIF"),
        (hdr_heic(pq(originals[0]), 16), "HEIF"),
    ):
        exact = decode(data)
        assert exact.warnings == []
        monkeypatch.setattr(loading, "memory_limit", lambda: (90 << 20) + 640 * 480 * 10)
        clean = decode(data)
        monkeypatch.undo()
        assert clean.warnings[0].startswith("8 of its 10 bits are used")
        assert "resources.annotate.memory" in clean.warnings[0]
        assert mean_difference(np.asarray(clean.image), np.asarray(exact.image)) < 4, kind


def test_hdr_takes_precedence_over_a_profile(originals):
    """A profile beside HDR is for readers that know no HDR. In PNG, cICP precedes a profile in any case."""
    image = originals[0]
    with_profile = encode(image, "AVIF", quality=100, subsampling="4:4:4", speed=9, icc_profile=p3_profile())
    if b"colrnclx" in with_profile:
        hdr = with_nclx(with_profile, 1, 16)
        assert decode(hdr).image.tobytes() == decode(with_nclx(avif(image), 1, 16)).image.tobytes()
    png = with_chunk(encode(image, "PNG", icc_profile=p3_profile()), b"cICP", bytes([1, 13, 0, 1]))
    assert decode(png).image.tobytes() == image.tobytes()


def test_a_translucent_hdr_image_lies_over_white(originals):
    values = np.dstack([pq(originals[0]), np.full((480, 640), 0.5)])
    done, data = cv2.imencode(".png", np.rint(values[..., [2, 1, 0, 3]] * 65535).astype(np.uint16))
    assert done
    clean = decode(with_chunk(data.tobytes(), b"cICP", bytes([1, 16, 0, 1]))).image
    over_white = (np.asarray(originals[0], float) + 255) / 2
    assert mean_difference(np.asarray(clean), over_white) < 1


def test_a_large_hdr_image_is_reduced(originals):
    large = originals[0].resize((4480, 3360), Image.Resampling.NEAREST)
    clean = decode(hdr_png(pq(originals[0]).repeat(7, axis=0).repeat(7, axis=1), 16))
    assert clean.warnings == []
    assert clean.image.size == (2048, 1536)
    large.thumbnail((2048, 1536), Image.Resampling.LANCZOS)
    assert mean_difference(np.asarray(clean.image), np.asarray(large)) < 1.5


def test_a_palette_has_the_colours_of_its_profile(originals):
    few = in_space(originals[0], P3).quantize(64)
    by_palette = decode(encode(few, "PNG", icc_profile=p3_profile())).image
    by_pixel = decode(encode(few.convert("RGB"), "PNG", icc_profile=p3_profile())).image
    assert by_palette.tobytes() == by_pixel.tobytes()

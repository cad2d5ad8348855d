"""Sizes, depths and formats of files from cameras, made here."""

from __future__ import annotations

import re
import struct
import subprocess
import sys
import zlib
from io import BytesIO
from pathlib import Path

import cv2
import numpy as np
import pillow_heif
import pytest
from PIL import Image, PngImagePlugin, TiffImagePlugin

from lora_trainer.annotate import loading
from lora_trainer.annotate.decode import MAX_FILE_BYTES, decode, target_size
from lora_trainer.annotate.jpeg import read_structure
from lora_trainer.annotate.listing import MAX_OBJECTS
from lora_trainer.annotate.loading import BadImageError
from tests.support.image_files import four_colours

pillow_heif.register_heif_opener()


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    out = BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def smooth(width: int, height: int) -> Image.Image:
    noise = np.random.default_rng(width).integers(0, 255, (12, 16, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BILINEAR)


PEAK = """
import re, sys
from pathlib import Path
from lora_trainer.annotate.decode import decode
clean = decode(Path(sys.argv[1]).read_bytes())
peak = int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) // 1024
print(peak, *clean.image.size, clean.source_width, clean.source_height)
"""


def decode_apart(data: bytes, folder: Path) -> list[int]:
    """Peak memory in MB, width, height, and the source's: of a process of its own."""
    path = folder / "image"
    path.write_bytes(data)
    done = subprocess.run([sys.executable, "-c", PEAK, path], check=True, capture_output=True, text=True)
    return [int(word) for word in done.stdout.split()]


@pytest.mark.parametrize("size", [(8160, 6120), (12000, 9000), (16382, 4000)])
def test_large_jpegs_fit_into_the_pod(size, tmp_path):
    peak, width, height, *source = decode_apart(encode(smooth(*size), "JPEG", quality=80), tmp_path)
    assert peak < 300
    assert tuple(source) == size
    assert (width, height) == pytest.approx(target_size(*size, 1024), abs=160)
    assert min(width, height) >= 1024


def test_a_48_megapixel_heic_fits_into_the_pod(tmp_path):
    data = encode(Image.new("RGB", (8064, 6048), (90, 120, 30)), "HEIF", quality=40)
    peak, width, height, *_ = decode_apart(data, tmp_path)
    assert peak < 380
    assert (width, height) == (2048, 1536)


def test_an_avif_of_12_megapixels(tmp_path):
    data = encode(smooth(4032, 3024), "AVIF", quality=60, speed=10)
    peak, width, height, *_ = decode_apart(data, tmp_path)
    assert peak < 300
    assert (width, height) == (2048, 1536)


@pytest.mark.parametrize("kind", ["HEIF", "AVIF"])
def test_what_does_not_fit_is_refused_with_the_memory_that_it_needs(kind, monkeypatch):
    monkeypatch.setattr(loading, "memory_limit", lambda: 100 << 20)
    with pytest.raises(BadImageError, match=r"MiB to decode.*resources\.annotate\.memory"):
        decode(encode(smooth(2400, 1800), kind, quality=50))


def test_the_clean_image_keeps_what_the_training_resolution_needs():
    wide = smooth(6000, 1500)
    assert decode(encode(wide, "JPEG"), 1024).image.size == pytest.approx((4096, 1024), abs=4)
    assert decode(encode(wide, "JPEG"), 512).image.size == pytest.approx((2048, 512), abs=2)
    assert decode(encode(wide, "PNG"), 1536).image.size == (6000, 1500)
    assert target_size(4032, 3024, 1024) == (2048, 1536)


def test_bombs_of_scans_are_refused_and_ordinary_progressive_files_are_not():
    progressive = encode(smooth(900, 600), "JPEG", progressive=True)
    structure = read_structure(progressive)
    assert structure.progressive
    assert 2 <= structure.scans <= 20
    decode(progressive)
    last = progressive.rindex(b"\xff\xda")
    bomb = progressive[:last] + progressive[last:-2] * 500 + progressive[-2:]
    with pytest.raises(BadImageError, match="scans"):
        decode(bomb)


def test_scans_are_counted_in_the_image_and_not_in_what_follows_it():
    plain = encode(smooth(900, 600), "JPEG")
    assert read_structure(plain + b"\xff\xda" * 1000).scans == 1
    decode(plain + b"\xff\xda\x00\x02" * 1000)


def test_a_large_progressive_jpeg_is_refused_where_its_coefficients_do_not_fit(monkeypatch):
    monkeypatch.setattr(loading, "memory_limit", lambda: 92 << 20)
    with pytest.raises(BadImageError, match="progressive JPEG"):
        decode(encode(smooth(1200, 900), "JPEG", progressive=True))
    decode(encode(smooth(1200, 900), "JPEG"))


def png16(values: np.ndarray) -> bytes:
    """A 16-bit PNG of (height, width, channels), which Pillow cannot write in colour."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width, channels = values.shape
    header = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 3: 2, 4: 6}[channels], 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_sixteen_bit_pngs_of_fewer_bits_are_not_black(bits, channels):
    ramp = np.linspace(0, (1 << bits) - 1, 320).astype(np.uint16)
    values = np.repeat(np.tile(ramp, (288, 1))[..., None], channels, axis=2)
    if channels == 4:
        values[..., 3] = 0xFFFF
    clean = decode(png16(values))
    row = [clean.image.getpixel((x, 100))[0] for x in (0, 80, 160, 240, 319)]
    assert row == pytest.approx([0, 64, 128, 191, 255], abs=1), row
    assert any("16 bits" in warning for warning in clean.warnings) == (bits < 16)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_sixteen_bit_tiffs_of_fewer_bits_are_not_black(bits, channels):
    ramp = np.tile(np.linspace(0, (1 << bits) - 1, 320).astype(np.uint16), (288, 1))
    values = ramp if channels == 1 else np.repeat(ramp[..., None], channels, axis=2)
    done, data = cv2.imencode(".tiff", values)
    assert done
    clean = decode(data.tobytes())
    row = [clean.image.getpixel((x, 100))[0] for x in (0, 80, 160, 240, 319)]
    assert row == pytest.approx([0, 64, 128, 191, 255], abs=1), row
    assert any("16 bits" in warning for warning in clean.warnings) == (bits < 16)


def planar_tiff(values: np.ndarray, byte_order: str) -> bytes:
    """An uncompressed TIFF with a plane of 16 bits for each channel of (height, width, channels)."""
    height, width, channels = values.shape
    planes = np.moveaxis(values, 2, 0).astype(f"{byte_order}u2")
    entries = [
        (256, 4, 1, width), (257, 4, 1, height), (259, 3, 1, 1), (262, 3, 1, 2), (277, 3, 1, channels),
        (278, 4, 1, height), (284, 3, 1, 2),
        (258, 3, channels, 8 + 2 + 12 * 9 + 4), (273, 4, channels, 8 + 2 + 12 * 9 + 4 + 8),
    ]  # fmt: skip
    data = 8 + 2 + 12 * 9 + 4 + 8 + 4 * channels
    directory = b"".join(
        struct.pack(f"{byte_order}HHI", tag, kind, count)
        + struct.pack(f"{byte_order}{'HH' if kind == 3 and count == 1 else 'I'}", *((value, 0) if kind == 3 and count == 1 else (value,)))
        for tag, kind, count, value in sorted(entries)
    )  # fmt: skip
    head = (b"II*\0" if byte_order == "<" else b"MM\0*") + struct.pack(f"{byte_order}I", 8)
    bits = struct.pack(f"{byte_order}{channels}H", *[16] * channels).ljust(8, b"\0")
    offsets = struct.pack(
        f"{byte_order}{channels}I", *(data + index * planes[0].nbytes for index in range(channels))
    )
    count = struct.pack(f"{byte_order}H", len(entries))
    return head + count + directory + bytes(4) + bits + offsets + planes.tobytes()


@pytest.mark.parametrize("byte_order", ["<", ">"])
def test_a_tiff_with_planes_of_sixteen_bits_is_read(byte_order):
    image = np.asarray(smooth(400, 300))
    clean = decode(planar_tiff(image.astype(np.uint16) * 257, byte_order))
    assert np.array_equal(np.asarray(clean.image), image)


@pytest.mark.parametrize("bits", [12, 16])
def test_sixteen_bits_in_which_white_is_zero_are_inverted(bits):
    ramp = np.tile(np.linspace((1 << bits) - 1, 0, 320).astype(np.uint16), (288, 1))
    data = bytearray(encode(Image.fromarray(ramp), "TIFF"))
    with Image.open(BytesIO(bytes(data))) as image:
        assert image.tag_v2[262] == 1
    at = data.index(struct.pack("<HHI", 262, 3, 1))
    data[at + 8 : at + 10] = struct.pack("<H", 0)
    row = [decode(bytes(data)).image.getpixel((x, 9))[0] for x in (0, 160, 319)]
    assert row == pytest.approx([0, 128, 255], abs=1)


def test_integers_above_sixteen_bits_are_scaled_and_not_white():
    ramp = np.tile(np.linspace(0, (1 << 24) - 1, 320).astype(np.int32), (288, 1))
    clean = decode(encode(Image.fromarray(ramp), "TIFF"))
    assert [clean.image.getpixel((x, 9))[0] for x in (0, 160, 319)] == pytest.approx([0, 128, 255], abs=1)
    assert "24 of 32 bits" in clean.warnings[0]


def pages_of_heic() -> bytes:
    file = pillow_heif.HeifFile()
    file.add_from_pillow(smooth(400, 300))
    file.add_from_pillow(smooth(320, 320))
    out = BytesIO()
    file.save(out, quality=80, primary_index=1)
    return out.getvalue()


def test_of_a_tiff_with_a_small_preview_the_large_page_is_used():
    file = BytesIO()
    preview, large = Image.new("RGB", (160, 120), "red"), smooth(640, 512)
    preview.save(file, "TIFF", save_all=True, append_images=[large])
    clean = decode(file.getvalue())
    assert clean.image.size == large.size
    assert clean.image.tobytes() == large.tobytes()
    assert clean.warnings == ["more than one page: only the largest is used"]


def test_of_a_heic_with_several_images_the_primary_one_is_used_with_a_warning():
    clean = decode(pages_of_heic())
    assert clean.image.size == (320, 320)
    assert "primary" in clean.warnings[0]


def float_tiff() -> bytes:
    done, data = cv2.imencode(".tiff", np.zeros((300, 300, 3), np.float32))
    assert done
    return data.tobytes()


def with_large_text() -> bytes:
    info = PngImagePlugin.PngInfo()
    info.add_text("XML:com.adobe.xmp", "x" * (2 << 20), zip=True)
    return encode(smooth(400, 300), "PNG", pnginfo=info)


NOT_READ = {
    "jpeg xl": (b"\xff\x0a" + bytes(400), "JPEG XL"),
    "jpeg xl in boxes": (b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(400), "JPEG XL"),
    "jpeg 2000": (b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(400), "JPEG 2000"),
    "photoshop": (b"8BPS\0\1" + bytes(400), "Photoshop"),
    "drawing": (b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>', "SVG, a drawing"),
    "pdf": (b"%PDF-1.7\n" + bytes(400), "PDF"),
    "zip": (b"PK\x03\x04" + bytes(400), "unpack"),
    "video": (b"\0\0\0\x18ftypisom" + bytes(400), "a video"),
    "cut avif": (encode(smooth(400, 300), "AVIF")[:-900], "damaged or cut off"),
    "float tiff": (float_tiff(), "8 or 16 bits"),
    "large metadata": (with_large_text(), "without metadata"),
    "git lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n", "git lfs pull"),
    "web page": (
        b"\n<!DOCTYPE html><html>Sign in</html>",
        "a web page or an error of a server, not an image",
    ),
    "error of a store": (
        b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>',
        "download it again",
    ),
    "apple double": (b"\0\x05\x16\x07\0\2\0\0Mac OS X" + bytes(90), "side file"),
    "matroska": (b"\x1aE\xdf\xa3" + bytes(90), "a video"),
    "avi": (b"RIFF\0\0\0\0AVI " + bytes(90), "a video"),
    "zeros": (bytes(4096), "zero bytes"),
    "as text": (encode(smooth(400, 300), "PNG").replace(b"\r\n", b"\n"), "damaged"),
    "bytes before it": (b"\r\n" + encode(smooth(400, 300), "JPEG"), "damaged: something was put before"),
    "netpbm": (encode(smooth(400, 300), "PPM"), "Netpbm"),
}


@pytest.mark.parametrize("name", NOT_READ)
def test_what_is_not_read_is_named_with_what_to_do(name):
    data, words = NOT_READ[name]
    with pytest.raises(BadImageError, match=words):
        decode(data)


def with_chunk(png: bytes, kind: bytes, data: bytes, at: int = 33) -> bytes:
    checksum = struct.pack(">I", zlib.crc32(kind + data))
    return png[:at] + struct.pack(">I", len(data)) + kind + data + checksum + png[at:]


def test_an_image_with_damaged_exif_is_used_with_a_warning():
    image = smooth(400, 300)
    png = encode(image, "PNG")
    for data in (
        with_chunk(png, b"eXIf", b"no EXIF at all"),
        with_chunk(png, b"eXIf", b"no EXIF at all", len(png) - 12),
        encode(image, "WEBP", lossless=True, exif=b"no EXIF at all"),
    ):
        clean = decode(data)
        assert np.array_equal(np.asarray(clean.image), np.asarray(image))
        assert "EXIF data is damaged" in clean.warnings[0]


def test_damaged_pixels_are_not_taken_for_damaged_exif():
    noise = np.random.default_rng(0).integers(0, 256, (300, 400), dtype=np.uint8)
    data = encode(Image.fromarray(noise), "PNG")
    with pytest.raises(BadImageError, match="damaged or cut off"):
        decode(data[:-40] + b"\x55\xaa" + data[-38:])


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "AVIF"])
def test_orientations_of_every_format(kind, orientation):
    back = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}
    image = four_colours()
    stored = image.transpose(Image.Transpose(back[orientation])) if orientation in back else image
    exif = Image.Exif()
    exif[274] = orientation
    clean = decode(encode(stored, kind, exif=exif))
    assert (clean.source_width, clean.source_height) == clean.image.size == image.size
    assert np.abs(np.asarray(clean.image, int) - np.asarray(image, int)).mean() < 6


@pytest.mark.parametrize("orientation", range(1, 9))
def test_tiffs_report_their_upright_size(orientation):
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[274] = orientation
    clean = decode(encode(smooth(400, 300), "TIFF", tiffinfo=tags))
    upright = (400, 300) if orientation < 5 else (300, 400)
    assert clean.image.size == (clean.source_width, clean.source_height) == upright


def dng() -> bytes:
    """A DNG's first directory: a thumbnail with DNGVersion, as an ordinary TIFF reader sees it."""
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[50706] = b"\x01\x04\x00\x00"
    tags[254] = 1
    return encode(smooth(400, 300), "TIFF", tiffinfo=tags)


RAW = {
    "dng": dng(),
    "cr3": b"\0\0\0\x18ftypcrx \0\0\0\1crx isom" + b"\0" * 400,
    "cr2": b"II*\0\x10\0\0\0CR\x02\0" + b"\0" * 400,
    "raf": b"FUJIFILMCCD-RAW 0201" + b"\0" * 400,
    "orf": b"IIRO\x08\0\0\0" + b"\0" * 400,
    "rw2": b"IIU\0\x08\0\0\0" + b"\0" * 400,
}


@pytest.mark.parametrize("name", RAW)
def test_raw_files_are_refused_as_raw(name):
    with pytest.raises(BadImageError, match="RAW"):
        decode(RAW[name])


WITHOUT_HEIF = """
import sys
sys.modules["pillow_heif"] = None  # as in an image that is built with HEIF=false
from lora_trainer.annotate.decode import decode
from lora_trainer.annotate.listing import MAX_OBJECTS
from lora_trainer.annotate.loading import BadImageError
from lora_trainer.annotate.stage import annotate
plain, heic = (open(path, "rb").read() for path in sys.argv[1:])
print(decode(plain).image.size)
try:
    decode(heic)
except BadImageError as error:
    print(error)
"""


def test_without_the_gpl_code_of_pillow_heif_all_but_heic_is_read(tmp_path):
    (tmp_path / "plain.jpg").write_bytes(encode(smooth(640, 480), "JPEG"))
    (tmp_path / "photo.heic").write_bytes(encode(smooth(640, 480), "HEIF"))
    program = [sys.executable, "-c", WITHOUT_HEIF, tmp_path / "plain.jpg", tmp_path / "photo.heic"]
    size, refusal = subprocess.run(program, check=True, capture_output=True, text=True).stdout.splitlines()
    assert size == "(640, 480)"
    assert refusal == "HEIC is not supported by this installation: export it as JPEG, PNG or TIFF"


def test_the_build_argument_leaves_pillow_heif_out_of_both_images():
    text = (Path(__file__).parents[3] / "trainer_image/Dockerfile").read_text()
    for stage in re.split(r"^FROM ", text, flags=re.MULTILINE)[1:]:
        if "pip install" in stage and "-libraries" in stage.partition("\n")[0]:
            assert "ARG HEIF=true" in stage
            # in the command that installs: what a later layer removes is still in the image
            (install,) = [run for run in stage.split("\nRUN ") if "--require-hashes" in run]
            assert '{ [ "$HEIF" = true ] || /opt/venv/bin/pip uninstall -q -y pillow-heif; }' in install


def test_the_docs_name_the_limits_of_images():
    text = (Path(__file__).parents[3] / "docs/explanation/security.md").read_text()
    most = {name: pixels // 1_000_000 for name, pixels in loading.MAX_PIXELS.items()}
    assert most == {"JPEG": 120, "MPO": 120, "HEIF": 120, "AVIF": 120, "WEBP": 25}
    assert (MAX_OBJECTS, MAX_FILE_BYTES >> 20, loading.MAX_OTHER_PIXELS) == (1000, 64, 50_000_000)
    assert (
        "at most 1,000 objects, and 64 MB and 120 megapixels each (WebP 25; PNG, TIFF, GIF and BMP 50)"
        in text
    )

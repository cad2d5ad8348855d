"""Every file of the hostile corpus has its designed outcome."""

from __future__ import annotations

import subprocess
import sys
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image, ImageCms

from lora_trainer.annotate.decode import decode
from lora_trainer.annotate.loading import BadImageError
from tests.support.image_files import CORPUS, encode, four_colours

CORNERS = {
    (0.1, 0.1): (220, 20, 20),
    (0.9, 0.1): (20, 200, 20),
    (0.1, 0.9): (20, 20, 220),
    (0.9, 0.9): (255,) * 3,
}
FOUR_COLOURS = [
    name
    for name in CORPUS
    if name.startswith(("plain", "phone", "exif", "animated", "pages", "misnamed", "two"))
]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    subprocess.run([sys.executable, "-m", "tests.support.image_files", folder], check=True)
    return folder


@pytest.mark.parametrize("name", CORPUS)
def test_each_file_is_taken_or_refused_as_designed(name, corpus):
    case = CORPUS[name]
    data = (corpus / name).read_bytes()
    if case.refused:
        with pytest.raises(BadImageError, match=case.refused):
            decode(data)
        return
    clean = decode(data)
    assert clean.image.mode == "RGB"
    assert max(clean.image.size) <= 2048
    assert case.remark in "; ".join(clean.warnings) or "content" in case.remark
    assert bool(clean.warnings) == ("only" in case.remark)
    with Image.open(BytesIO(clean.png())) as stored:
        stored.load()
        assert (stored.size, stored.mode, stored.info) == (clean.image.size, "RGB", {})


def near(first, second, tolerance=40):
    return all(abs(a - b) <= tolerance for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("name", FOUR_COLOURS)
def test_colours_and_orientation_are_right(name):
    image = decode(CORPUS[name].make()).image
    assert image.size == (320, 288)
    for (x, y), colour in CORNERS.items():
        assert near(image.getpixel((int(x * 320), int(y * 288))), colour), (x, y)


def test_cmyk_keeps_its_colours():
    image = decode(CORPUS["cmyk.jpg"].make()).image
    assert near(image.getpixel((30, 30)), (220, 20, 20), 60)
    assert near(image.getpixel((300, 270)), (255, 255, 255))


@pytest.mark.parametrize("profile", ["exchanged", "damaged"])
def test_colour_profiles_are_applied(profile):
    """In a profile whose red and blue are exchanged, red pixels are blue."""
    swapped = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    red, blue = swapped.index(b"rXYZ"), swapped.index(b"bXYZ")
    swapped[red : red + 4], swapped[blue : blue + 4] = b"bXYZ", b"rXYZ"
    data = bytes(swapped) if profile == "exchanged" else b"no profile"
    image = decode(encode(four_colours(), "PNG", icc_profile=data)).image
    expected = (20, 20, 220) if profile == "exchanged" else (220, 20, 20)
    assert near(image.getpixel((30, 30)), expected, 10)


@pytest.mark.parametrize("name", ["grey16.png", "grey16.tiff"])
def test_sixteen_bits_are_rescaled_not_clipped(name):
    image = decode(CORPUS[name].make()).image
    ramp = [image.getpixel((x, 100))[0] for x in (0, 80, 160, 240, 319)]
    assert all(abs(value - want) <= 1 for value, want in zip(ramp, (0, 64, 128, 191, 255), strict=True)), ramp


def test_alpha_lies_over_white():
    assert decode(CORPUS["alpha.png"].make()).image.getpixel((30, 30)) == (255, 255, 255)


def test_a_large_sideways_image_is_upright_and_small():
    exif = Image.Exif()
    exif[274] = 6
    out = BytesIO()
    wide = Image.new("RGB", (6000, 3000), "white")
    wide.paste((220, 20, 20), (0, 0, 3000, 3000))
    wide.save(out, "PNG", exif=exif)
    clean = decode(out.getvalue())
    assert clean.image.size == (1024, 2048)
    assert (clean.source_width, clean.source_height) == (3000, 6000)
    assert near(clean.image.getpixel((500, 100)), (220, 20, 20))
    assert near(clean.image.getpixel((500, 2000)), (255, 255, 255))


def test_the_whole_corpus_fits_into_the_pods_memory(corpus):
    """In a process of its own, reading one file after the other as the step does."""
    script = """
import re, sys
from pathlib import Path
from lora_trainer.annotate.decode import decode
from lora_trainer.annotate.loading import BadImageError
for path in sorted(Path(sys.argv[1]).iterdir()):
    try:
        decode(path.read_bytes()).png()
    except BadImageError:
        pass
    peak = re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())
    print(int(peak[1]) // 1024, path.name)
"""
    done = subprocess.run([sys.executable, "-c", script, corpus], check=True, capture_output=True, text=True)
    lines = done.stdout.splitlines()
    assert len(lines) == len(CORPUS)
    peak = int(lines[-1].split()[0])
    assert peak < 480, lines  # MB; the pod has 512


def test_images_are_distinguished_by_their_pixels():
    first, same, other = (decode(CORPUS[name].make()) for name in ("plain.png", "plain.bmp", "exif-1.jpg"))
    assert first.pixels_sha256() == same.pixels_sha256() != other.pixels_sha256()


def test_what_a_model_is_shown_is_small(corpus):
    jpeg, width, height = decode((corpus / "large.jpg").read_bytes()).thumbnail_jpeg((0.0, 0.0, 1.0, 1.0))
    assert max(width, height) == 768
    assert len(jpeg) < 200_000


def test_a_model_is_shown_the_part_that_is_trained_on():
    clean = decode(CORPUS["plain.png"].make())
    jpeg, width, height = clean.thumbnail_jpeg((0.5, 0.0, 1.0, 0.5))
    assert (width, height) == (160, 144)
    with Image.open(BytesIO(jpeg)) as seen:
        assert near(seen.getpixel((80, 70)), (20, 200, 20))

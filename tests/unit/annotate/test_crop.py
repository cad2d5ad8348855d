"""Smart crop and near-duplicates."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from lora_api.job import Training
from lora_trainer.annotate.crop import _combine, centre_square, find_heads, frame_image, smart_square
from lora_trainer.annotate.decode import CleanImage
from lora_trainer.annotate.duplicates import NEAR_BITS, near_duplicates, perceptual_hash
from lora_trainer.aspect import trained_share
from tests.conftest import DATA
from tests.support.faces import BACKGROUND, face

SUBJECTS = {
    "dog": [(0.12, 0.2, 0.9, 1), (0.2, 0.1, 0.86, 0.98), (0.22, 0.19, 1, 0.93), (0.13, 0.17, 0.93, 0.9), (0.3, 0, 0.95, 1)],
    "teapot": [(0.3, 0.12, 0.86, 0.6), (0.3, 0.43, 0.63, 0.66), (0.02, 0.36, 0.57, 0.72), (0.38, 0.47, 0.67, 0.65), (0.2, 0.35, 0.6, 0.63)],
    "vase": [(0.18, 0.27, 0.41, 0.9), (0.24, 0.25, 0.46, 0.9), (0.37, 0.22, 0.58, 0.84), (0.5, 0.08, 0.84, 0.99), (0.23, 0.3, 0.44, 0.92), (0.17, 0.26, 0.35, 0.92)],
}  # fmt: skip
"""Where the subject is in each photograph, drawn by hand: left, top, right, bottom."""


def scene(width: int, height: int, x: float, y: float) -> Image.Image:
    """A red ball on a soft grey ground."""
    image = Image.effect_noise((width, height), 20).filter(ImageFilter.GaussianBlur(6)).convert("RGB")
    side = min(width, height) // 4
    left, top = int(x * (width - side)), int(y * (height - side))
    ImageDraw.Draw(image).ellipse((left, top, left + side, top + side), fill=(200, 30, 30))
    return image


@pytest.mark.parametrize("x", [0.0, 0.25, 0.5, 0.75, 1.0])
@pytest.mark.parametrize("wide", [True, False])
def test_the_square_holds_the_subject(x, wide):
    image = scene(900, 500, x, 0.5) if wide else scene(500, 900, 0.5, x)
    box = smart_square(image)
    low, high = (box[0], box[2]) if wide else (box[1], box[3])
    assert (box[1], box[3]) == (0.0, 1.0) if wide else (box[0], box[2]) == (0.0, 1.0)
    assert (high - low) * 900 == pytest.approx(500, abs=1)
    ball = 125 / 900
    start = x * (1 - ball)
    assert low <= start + 0.03
    assert high >= start + ball - 0.03


@pytest.mark.parametrize("place", [0.0, 0.1, 0.3, 0.5, 0.8, 1.0])
@pytest.mark.parametrize("wide", [True, False])
@pytest.mark.parametrize("lure", [0.0, 1.0])
def test_a_head_that_fits_stays_whole_whatever_else_stands_out(place, wide, lure):
    """The image has a red ball at one end, which outweighs the face in every map."""
    size = (1000, 500) if wide else (500, 1000)
    image = Image.new("RGB", size, BACKGROUND)
    along = int(lure * (1000 - 230))
    ImageDraw.Draw(image).ellipse(
        (along, 270, along + 220, 490) if wide else (270, along, 490, along + 220), fill=(230, 0, 0)
    )
    head = face(160)
    spot = int(place * (1000 - (head.width if wide else head.height)))
    image.paste(head, (spot, 40) if wide else (60, spot))
    assert find_heads(np.asarray(image.convert("L").resize((size[0] // 2, size[1] // 2))))
    box = smart_square(image)
    low, high = (box[0], box[2]) if wide else (box[1], box[3])
    assert low * 1000 <= spot + 2
    assert high * 1000 >= spot + (head.width if wide else head.height) - 2


def test_where_detectors_disagree_the_centre_wins():
    assert _combine([(0.5, 0.2), (0.5, 0.22), (0.1, 0.2)]) == pytest.approx(0.209, abs=0.01)
    assert _combine([(0.5, 0.1), (0.5, 0.9), (0.1, 0.2)]) == 0.5
    assert 0.2 < _combine([(0.5, 0.1), (0.5, 0.3)]) < 0.5
    assert _combine([]) == 0.5


@pytest.mark.parametrize("wide", [True, False])
@pytest.mark.parametrize("crop", ["Smart", "Center", "Buckets"])
def test_a_long_image_is_cut_around_the_part_that_is_trained_on(wide, crop):
    size = (3600, 600) if wide else (600, 3600)
    image = Image.new("RGB", size, "grey")
    ball = (3000, 100, 3400, 500) if wide else (100, 3000, 500, 3400)
    ImageDraw.Draw(image).ellipse(ball, fill=(200, 30, 30))
    clean = CleanImage(image, *image.size, "PNG")
    framed, region = frame_image(clean, Training.model_validate({"crop": crop}))
    if crop == "Buckets":
        assert framed.image.size == image.size
        return
    assert max(framed.image.size) == 2400
    assert min(framed.image.size) == 600
    side = (region[2] - region[0]) * framed.image.width, (region[3] - region[1]) * framed.image.height
    assert side == (pytest.approx(600, abs=1), pytest.approx(600, abs=1))
    part = framed.image.crop(tuple(round(v * s) for v, s in zip(region, framed.image.size * 2, strict=True)))
    red = np.asarray(part)[..., 0].astype(int) - np.asarray(part)[..., 1]
    assert (red > 100).sum() > 10_000 or crop == "Center"


def test_square_and_empty_images_are_cut_in_the_middle():
    assert smart_square(Image.new("RGB", (300, 300))) == (0.0, 0.0, 1.0, 1.0)
    assert smart_square(Image.new("RGB", (400, 300), "grey")) == (0.125, 0.0, 0.875, 1.0)


def test_the_middle_square():
    assert centre_square(400, 300) == (0.125, 0.0, 0.875, 1.0)
    assert centre_square(300, 400) == (0.0, 0.125, 1.0, 0.875)


@pytest.mark.skipif(not DATA.is_dir(), reason="the photographs are not here")
def test_the_subject_of_real_photographs_is_kept_better_than_by_a_cut_from_the_middle():
    """Strips of the photographs, 10:6 and 6:10, at every offset that shows most of the subject."""
    smart, middle = [], []
    for subject, boxes in SUBJECTS.items():
        for path, box in zip(sorted((DATA / subject).glob("*.jpg")), boxes, strict=True):
            with Image.open(path) as file:
                image = file.convert("RGB").resize((400, 400))
            for axis, offset in ((a, o) for a in (0, 1) for o in (0.0, 0.2, 0.4)):
                across, along = (box[1], box[3]), (box[0], box[2])
                if axis == 1:
                    across, along = along, across
                seen = min(across[1], offset + 0.6) - max(across[0], offset)
                if seen < 0.6 * (across[1] - across[0]):
                    continue
                low, high = int(offset * 400), int((offset + 0.6) * 400)
                strip = image.crop((0, low, 400, high) if axis == 0 else (low, 0, high, 400))
                cut = smart_square(strip)
                smart.append(kept((cut[0], cut[2]) if axis == 0 else (cut[1], cut[3]), along))
                middle.append(kept((0.2, 0.8), along))
    assert len(smart) > 60
    assert sum(smart) / len(smart) > 0.94
    assert sum(smart) > sum(middle)


def kept(cut: tuple[float, float], subject: tuple[float, float]) -> float:
    """The share of the subject's extent that is in the cut, of what could be."""
    inside = min(cut[1], subject[1]) - max(cut[0], subject[0])
    return max(inside, 0.0) / min(cut[1] - cut[0], subject[1] - subject[0])


def test_near_duplicates_are_those_that_look_the_same(photographs):
    images = []
    for path in photographs:
        with Image.open(path) as file:
            images.append(file.convert("RGB"))
    out = BytesIO()
    images[0].resize((400, 400)).save(out, "JPEG", quality=40)
    again = Image.open(out)
    hashes = [perceptual_hash(image) for image in [*images, again]]
    assert near_duplicates(hashes) == {5: 0}
    assert (hashes[0] ^ hashes[5]).bit_count() <= NEAR_BITS


@pytest.mark.parametrize(
    ("size", "crop", "share"),
    [
        ((1000, 1000), "Smart", 1),
        ((1500, 1000), "Center", 2 / 3),
        ((8000, 1000), "Buckets", 0.5),
        ((1000, 8000), "Buckets", 0.5),
        ((8000, 1000), "Smart", 0.125),
    ],
)
def test_the_share_that_is_trained_on(size: tuple[int, int], crop: str, share: float) -> None:
    assert trained_share(*size, Training.model_validate({"crop": crop})) == pytest.approx(share, rel=0.01)

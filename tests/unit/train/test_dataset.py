from __future__ import annotations

import io

import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from lora_trainer.errors import BadDataError
from lora_trainer.train.dataset import Box, CaptionLine, Picture, square


def picture(width: int, height: int, crop: Box | None = None) -> Picture:
    """Red grows to the right, green downwards."""
    image = Image.new("RGB", (width, height))
    image.putdata([(255 * x // width, 255 * y // height, 0) for y in range(height) for x in range(width)])
    out = io.BytesIO()
    image.save(out, "png")
    return Picture("000.png", out.getvalue(), "", crop)


def test_a_square_is_cut_from_the_middle() -> None:
    cut = square(picture(200, 100), 64)
    assert cut.pixels.shape == (3, 64, 64)
    # Original 100 x 200; half as wide again lies left of the crop: 50 px, scaled by 0.64.
    assert cut.time_ids == (100, 200, 0, 32, 64, 64)
    red = (cut.pixels[0] + 1) / 2
    assert red.min() == pytest.approx(0.25, abs=0.02)
    assert red.max() == pytest.approx(0.75, abs=0.02)


def test_a_crop_box_is_obeyed() -> None:
    cut = square(picture(200, 100, (0.5, 0.5, 0.75, 1.0)), 64)
    assert cut.time_ids == (100, 200, 64, 128, 64, 64)
    red = (cut.pixels[0] + 1) / 2
    assert (red.min(), red.max()) == (pytest.approx(0.5, abs=0.02), pytest.approx(0.75, abs=0.02))


def test_pixels_run_from_minus_one_to_one() -> None:
    out = io.BytesIO()
    Image.new("L", (8, 8), 255).save(out, "png")
    assert torch.all(square(Picture("w", out.getvalue(), "", None), 8).pixels == 1)


def test_a_broken_image_is_named() -> None:
    with pytest.raises(BadDataError, match=r"007\.png"):
        square(Picture("007.png", b"\x89PNG no", "", None), 64)


@pytest.mark.parametrize("crop", [[0.5, 0, 0.5, 1], [0, 0.9, 1, 0.1], [-0.1, 0, 1, 1], [0, 0, 1, 1.1]])
def test_a_box_without_an_inside_is_refused(crop: list[float]) -> None:
    with pytest.raises(ValidationError):
        CaptionLine.model_validate({"file_name": "a", "text": "b", "crop": crop})

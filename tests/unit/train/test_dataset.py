from __future__ import annotations

import io

import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from lora_api.caption_rows import Box, CaptionRow
from lora_trainer.aspect import aspect_bucket
from lora_trainer.errors import BadDataError
from lora_trainer.train.data.dataset import DatasetImage, crop_image


def dataset_image(width: int, height: int, crop: Box | None = None) -> DatasetImage:
    """Red grows to the right, green downwards."""
    image = Image.new("RGB", (width, height))
    image.putdata([(255 * x // width, 255 * y // height, 0) for y in range(height) for x in range(width)])
    out = io.BytesIO()
    image.save(out, "png")
    return DatasetImage("000.png", out.getvalue(), "", crop)


def test_a_square_is_cut_from_the_middle() -> None:
    piece = crop_image(dataset_image(200, 100), 64)
    assert piece.pixels.shape == (3, 64, 64)
    # Original 100 x 200; half as wide again lies left of the crop: 50 px, scaled by 0.64.
    assert piece.time_ids == (100, 200, 0, 32, 64, 64)
    red = (piece.pixels[0] + 1) / 2
    assert red.min() == pytest.approx(0.25, abs=0.02)
    assert red.max() == pytest.approx(0.75, abs=0.02)


def test_a_crop_box_is_obeyed() -> None:
    piece = crop_image(dataset_image(200, 100, (0.5, 0.5, 0.75, 1.0)), 64)
    assert piece.time_ids == (100, 200, 64, 128, 64, 64)
    red = (piece.pixels[0] + 1) / 2
    assert (red.min(), red.max()) == (pytest.approx(0.5, abs=0.02), pytest.approx(0.75, abs=0.02))


def test_pixels_run_from_minus_one_to_one() -> None:
    out = io.BytesIO()
    Image.new("L", (8, 8), 255).save(out, "png")
    assert torch.all(crop_image(DatasetImage("w", out.getvalue(), "", None), 8).pixels == 1)


def test_a_broken_image_is_named() -> None:
    with pytest.raises(BadDataError, match=r"007\.png"):
        crop_image(DatasetImage("007.png", b"\x89PNG no", "", None), 64)


@pytest.mark.parametrize("crop", [[0.5, 0, 0.5, 1], [0, 0.9, 1, 0.1], [-0.1, 0, 1, 1], [0, 0, 1, 1.1]])
def test_a_box_without_an_inside_is_refused(crop: list[float]) -> None:
    with pytest.raises(ValidationError):
        CaptionRow.model_validate({"file_name": "a", "text": "b", "crop": crop})


def test_buckets_are_those_that_sdxl_was_trained_in() -> None:
    assert aspect_bucket(1000, 1000, 1024) == (1024, 1024)
    # Of the table in SDXL's report, appendix I: height 832, width 1216; height 768, width 1344.
    assert aspect_bucket(1216, 832, 1024) == (1216, 832)
    assert aspect_bucket(1344, 768, 1024) == (1344, 768)
    assert aspect_bucket(768, 1344, 1024) == (768, 1344)
    assert aspect_bucket(10000, 10, 1024) == (2048, 512)


@pytest.mark.parametrize("shape", [(640, 480), (333, 500), (100, 100), (50, 400)])
def test_a_bucket_keeps_the_shape_within_its_area(shape: tuple[int, int]) -> None:
    width, height = aspect_bucket(*shape, 512)
    assert width % 32 == height % 32 == 0
    assert 0.8 * 512**2 <= width * height <= 512**2
    assert width / height == pytest.approx(shape[0] / shape[1], rel=0.15) or max(width, height) == 1024


def test_an_image_in_an_aspect_bucket_loses_only_what_does_not_fit() -> None:
    piece = crop_image(dataset_image(200, 100), 64, keep_shape=True)
    height, width = piece.pixels.shape[1:]
    assert (width, height) == aspect_bucket(200, 100, 64) == (88, 40)
    # 100 px high becomes 44 px at the width's scale: 2 px above the crop.
    assert piece.time_ids == (100, 200, 2, 0, 40, 88)
    red = (piece.pixels[0] + 1) / 2
    assert (red.min(), red.max()) == (pytest.approx(0, abs=0.02), pytest.approx(1, abs=0.02))

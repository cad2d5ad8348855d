"""Variants, repeats, captions and masks of the training images."""

from __future__ import annotations

import io
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from lora_api.caption_rows import read_rows
from lora_api.job import Training
from lora_trainer.errors import BadDataError
from lora_trainer.train.data.dataset import DatasetImage, crop_image
from lora_trainer.train.data.encode import Latent
from lora_trainer.train.data.rng import INSTANCE
from lora_trainer.train.data.streams import SampleStream
from lora_trainer.train.data.variants import Jitter, Variant, variants_of


def png(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "png")
    return out.getvalue()


def gradient(width: int = 128, height: int = 64, mask: Image.Image | None = None) -> DatasetImage:
    """Return an image whose red is its column and whose green is its row, both times two."""
    columns, rows = np.meshgrid(np.arange(width) * 2, np.arange(height) * 2)
    array = np.stack([columns % 256, rows, 0 * rows], axis=-1).astype(np.uint8)
    return DatasetImage("000.png", png(Image.fromarray(array)), "", None, mask=png(mask) if mask else None)


def test_a_mirrored_image_has_the_corner_of_its_own_crop() -> None:
    image = DatasetImage("000.png", gradient().data, "", (0.0, 0.0, 0.5, 1.0))
    plain, mirrored = crop_image(image, 64), crop_image(image, 64, variant=Variant(64, flip=True))
    assert torch.equal(mirrored.pixels, plain.pixels.flip(-1))
    assert plain.time_ids == (64, 128, 0, 0, 64, 64)
    assert mirrored.time_ids == (64, 128, 0, 64, 64, 64)


def test_a_jittered_crop_stays_inside_and_says_where_it_is() -> None:
    for x, y in ((0.0, 0.0), (1.0, 1.0), (0.3, 0.7)):
        piece = crop_image(gradient(), 64, variant=Variant(64, jitter=Jitter(0.5, x, y)))
        assert piece.pixels.shape == (3, 64, 64)
        # The crop is 32 of 64 pixels, enlarged twice; the square begins at column 32.
        left, top = 32 + 32 * x, 32 * y
        red, green = (piece.pixels[:2, 0, 0] + 1) * 127.5
        assert float(red) == pytest.approx(2 * left, abs=3)
        assert float(green) == pytest.approx(2 * top, abs=3)
        assert piece.time_ids == (64, 128, round(2 * top), round(2 * left), 64, 64)


def test_variants_are_those_of_the_settings_and_of_the_seed() -> None:
    training = Training.model_validate(
        {
            "resolution": 128,
            "augmentation": {"flip": True, "cropJitter": "0.2", "cropVariants": 3, "extraResolutions": [64]},
        }
    )
    variants = variants_of(training, "image")
    assert len(variants) == len(set(variants)) == 2 * 2 * 3
    assert variants[0] == Variant(128)
    assert {variant.resolution for variant in variants} == {64, 128}
    assert all(0.8 <= v.jitter.size <= 1 for v in variants if v.jitter)
    assert variants == variants_of(training, "image")
    assert variants != variants_of(training, "another")
    assert variants_of(Training(), "image") == [Variant(1024)]


def test_a_mask_is_cropped_and_mirrored_with_its_image() -> None:
    mask = Image.new("L", (128, 64))
    mask.paste(255, (32, 0, 64, 64))  # the left half of the square in the middle
    plain = crop_image(gradient(mask=mask), 64).mask
    assert plain is not None
    assert plain.shape == (1, 8, 8)
    torch.testing.assert_close(plain[0].mean(dim=0), torch.tensor([1.0] * 4 + [0.0] * 4), atol=0.05, rtol=0)
    mirrored = crop_image(gradient(mask=mask), 64, variant=Variant(64, flip=True)).mask
    assert mirrored is not None
    assert torch.equal(mirrored, plain.flip(-1))
    assert crop_image(gradient(), 64).mask is None


def test_a_mask_of_another_size_is_refused() -> None:
    with pytest.raises(BadDataError, match=r"mask of '000.png' is 64x64, the image 128x64"):
        crop_image(gradient(mask=Image.new("L", (64, 64))), 64)


def test_samples_take_all_variants_and_captions() -> None:
    latents = [
        Latent(torch.zeros(4, 8, 8), torch.zeros(4, 8, 8), torch.full((6,), float(n))) for n in range(3)
    ]
    stream = SampleStream(INSTANCE, latents[:1], ["a"], variants=[latents], more_captions=[["b", "c"]])
    seen = Counter(
        (float(stream.latent_of(0, n, 0).time_ids[0]), stream.caption_of(0, n, 0)) for n in range(900)
    )
    assert len(seen) == 9
    assert min(seen.values()) > 60
    assert stream.caption_of(0, 5, 0) == stream.caption_of(0, 5, 0)
    assert stream.all_captions == ["a", "b", "c"]
    plain = SampleStream(INSTANCE, latents, ["a", "b", "c"])
    assert plain.latent_of(0, 7, 2) is latents[2]
    assert plain.caption_of(0, 7, 2) == "c"


def test_rows_name_captions_repeats_and_masks() -> None:
    (row,) = read_rows(
        b'{"file_name": "a.png", "text": ["one", "two", "three"], "repeats": 3, "mask": "a-mask.png"}'
    )
    assert (row.text, row.captions, row.repeats, row.mask) == ("one", ["two", "three"], 3, "a-mask.png")
    (plain,) = read_rows(b'{"file_name": "a.png", "text": "one"}')
    assert (plain.captions, plain.repeats, plain.mask) == (None, None, None)
    assert plain.to_line() == '{"file_name": "a.png", "text": "one"}\n'

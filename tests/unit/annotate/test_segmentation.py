"""Masks by CLIPSeg models whose weights are set so that their answer is known."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

pytest.importorskip("torch")

import torch
from transformers import CLIPSegForImageSegmentation, CLIPSegModel

from lora_trainer.annotate.masks import make_mask
from lora_trainer.annotate.segmentation import THRESHOLD, Segmenter, prompt_of
from lora_trainer.errors import BadConfigurationError
from lora_trainer.model_cache.selection import encoder_files
from tests.support.segmenter import Marks, write_segmenter

WHOLE = (0.0, 0.0, 1.0, 1.0)
SIZE = (512, 256)
SQUARE = (128, 64, 384, 192)
"""In the model's input of 64 x 64 pixels, from 16 to 48: at the edges of patches."""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("segmenters")
    marks: tuple[Marks, ...] = ("bright", "nothing", "everything", "not finite", "random")
    return {name: write_segmenter(folder / name, name) for name in marks}


def square(level: int = 255) -> Image.Image:
    image = Image.new("RGB", SIZE)
    image.paste((level,) * 3, SQUARE)
    return image


@pytest.mark.parametrize("layout", ["one file", "hub"])
def test_what_the_model_marks_becomes_the_mask(tmp_path: Path, layout) -> None:
    folder = write_segmenter(tmp_path, layout=layout)
    mask = Segmenter(folder, "dog").mask(square(), WHOLE)
    assert (mask.mode, mask.size) == ("L", SIZE)
    pixels = np.asarray(mask)
    assert set(np.unique(pixels)) == {0, 255}
    rows, columns = np.nonzero(pixels)
    # Up to a pixel of the model's input, 4 x 8 pixels here, is between the patches' probabilities.
    assert np.abs(np.array([rows.min(), rows.max() + 1]) - [64, 192]).max() <= 4
    assert np.abs(np.array([columns.min(), columns.max() + 1]) - [128, 384]).max() <= 8


def test_probabilities_are_resized_and_then_compared_with_the_threshold(models: dict[str, Path]) -> None:
    """The same as Sam3ImageProcessor.post_process_semantic_segmentation, whose module needs torchvision.

    OpenCV's linear interpolation has the same sample positions.
    """
    image = Image.fromarray(np.random.default_rng(0).integers(80, 256, (16, 16, 3), dtype=np.uint8)).resize(
        (200, 120), Image.Resampling.NEAREST
    )
    segmenter = Segmenter(models["bright"], "dog")
    model = CLIPSegForImageSegmentation.from_pretrained(models["bright"]).eval()
    inputs = segmenter._processor(text=["dog"], images=[image], return_tensors="pt")
    assert inputs["pixel_values"].shape == (1, 3, 64, 64)
    with torch.no_grad():
        probabilities = model(**inputs).logits[0].sigmoid().numpy()
    assert probabilities.shape == (64, 64)
    expected = cv2.resize(probabilities, image.size, interpolation=cv2.INTER_LINEAR)
    assert np.allclose(segmenter._probabilities(image), expected, atol=1e-5)
    mask = np.asarray(segmenter.mask(image, WHOLE)) > 0
    certain = np.abs(expected - THRESHOLD) > 1e-4
    assert 0.1 < mask.mean() < 0.9
    assert (mask == (expected > THRESHOLD))[certain].all()


@pytest.mark.parametrize(("logit", "is_marked"), [(-0.9, False), (-0.8, True)])
def test_the_threshold_is_a_probability_of_30_percent(
    models: dict[str, Path], logit: float, is_marked: bool
) -> None:
    # the logits of 29% and 31% are -0.90 and -0.80
    segmenter = Segmenter(models["nothing"], "dog")
    with torch.no_grad():
        segmenter._model.decoder.transposed_convolution.bias.fill_(logit)
    assert (segmenter._probabilities(square()) > THRESHOLD).all() == is_marked


@pytest.mark.parametrize(
    ("marks", "reason"),
    [
        ("nothing", "the segmentation model found no 'dog' in it"),
        ("everything", "the segmentation model's mask covers 100% of it"),
        ("not finite", "the segmentation model failed: it returned values that are not finite"),
    ],
)
def test_an_image_without_a_usable_mask_is_warned_about(
    models: dict[str, Path], marks: str, reason: str
) -> None:
    warnings: list[str] = []
    segmenter = Segmenter(models[marks], "dog")
    assert make_mask(square(), WHOLE, warnings, segmenter.mask) is None
    assert warnings == [f"no mask was made: {reason}; put NAME-mask.png beside it"]


def test_a_model_that_fails_on_an_image_is_warned_about(
    models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(**inputs: object) -> None:
        raise RuntimeError("not enough memory: you tried to allocate 9 bytes\nand a trace")

    segmenter, warnings = Segmenter(models["bright"], "dog"), list[str]()
    monkeypatch.setattr(segmenter, "_model", fail)
    assert make_mask(square(), WHOLE, warnings, segmenter.mask) is None
    assert (
        "the segmentation model failed: not enough memory: you tried to allocate 9 bytes; put" in warnings[0]
    )


def test_only_the_part_that_is_trained_on_decides_whether_there_is_a_subject(models: dict[str, Path]) -> None:
    warnings: list[str] = []
    segmenter = Segmenter(models["bright"], "dog")
    assert make_mask(square(), (0.0, 0.0, 0.2, 1.0), warnings, segmenter.mask) is None
    assert "found no 'dog'" in warnings[0]


def test_the_prompt_decides_what_is_marked(models: dict[str, Path]) -> None:
    dog, cat = (Segmenter(models["random"], prompt)._probabilities(square()) for prompt in ("dog", "cat"))
    assert np.array_equal(dog, Segmenter(models["random"], "dog")._probabilities(square()))
    assert not np.allclose(dog, cat, atol=1e-4)


def test_a_long_prompt_is_cut(models: dict[str, Path]) -> None:
    assert Segmenter(models["random"], "\U0001f600" * 64)._probabilities(square()).shape == SIZE[::-1]


def test_a_prompt_has_the_words_of_the_class() -> None:
    assert prompt_of("teddy_bear") == "teddy bear"
    assert prompt_of("dog") == "dog"


def test_a_model_of_another_kind_is_refused(tmp_path: Path) -> None:
    from tests.unit.train.test_scoring import write_scoring_models

    _, clip = write_scoring_models(tmp_path)
    with pytest.raises(BadConfigurationError, match="is of the kind 'clip': name a CLIPSeg model"):
        Segmenter(clip, "dog")


def test_a_model_without_a_decoder_is_refused(models: dict[str, Path], tmp_path: Path) -> None:
    write_segmenter(tmp_path)
    CLIPSegModel.from_pretrained(models["bright"]).save_pretrained(tmp_path)
    with pytest.raises(BadConfigurationError, match=r"lacks [0-9]* of its weights, for example decoder"):
        Segmenter(tmp_path, "dog")


def test_pickled_weights_are_not_loaded(models: dict[str, Path], tmp_path: Path) -> None:
    write_segmenter(tmp_path)
    model = CLIPSegForImageSegmentation.from_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(BadConfigurationError, match="cannot be loaded"):
        Segmenter(tmp_path, "dog")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("model.safetensors", b"\x08\0\0\0\0\0\0\0{}      cut off"),
        ("config.json", b'{"model_type": "clipseg", "text_config": 3}'),
        ("processor_config.json", b'{"image_processor": {"size": "large"}}'),
    ],
)
def test_a_model_with_a_damaged_file_is_refused(tmp_path: Path, name: str, content: bytes) -> None:
    write_segmenter(tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BadConfigurationError, match="cannot be loaded"):
        Segmenter(tmp_path, "dog")


@pytest.mark.parametrize("layout", ["one file", "hub"])
def test_a_fetched_model_has_all_that_is_loaded(tmp_path: Path, layout) -> None:
    folder = write_segmenter(tmp_path / "all", layout=layout)
    (folder / "pytorch_model.bin").write_bytes(b"")
    names = encoder_files([path.name for path in folder.iterdir()])
    assert "pytorch_model.bin" not in names
    fetched = tmp_path / "fetched"
    fetched.mkdir()
    for name in names:
        (fetched / name).write_bytes((folder / name).read_bytes())
    probabilities = [Segmenter(path, "dog")._probabilities(square()) for path in (folder, fetched)]
    assert np.array_equal(*probabilities)


@pytest.mark.parametrize("kind", ["clipseg", "birefnet"])
def test_code_of_a_model_is_not_run(tmp_path: Path, kind: str) -> None:
    """Neither for a kind that transformers lacks, which is refused, nor for one that it has."""
    write_segmenter(tmp_path)
    (tmp_path / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    names = {"AutoConfig": "own.Config", "AutoModel": "own.Model", "AutoProcessor": "own.Processor"}
    config = json.loads((tmp_path / "config.json").read_text()) | {"model_type": kind, "auto_map": names}
    (tmp_path / "config.json").write_text(json.dumps(config))
    processor = json.loads((tmp_path / "processor_config.json").read_text()) | {"auto_map": names}
    (tmp_path / "processor_config.json").write_text(json.dumps(processor))
    if kind == "clipseg":
        Segmenter(tmp_path, "dog")
    else:
        with pytest.raises(BadConfigurationError, match="cannot be loaded"):
            Segmenter(tmp_path, "dog")
    assert not (tmp_path / "ran").exists()

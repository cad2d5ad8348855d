"""The small pipeline, on disk, without a network."""

from __future__ import annotations

from pathlib import Path

import pytest
from diffusers import StableDiffusionXLPipeline

from lora_trainer.train.export.tensors import tensors_to_bytes
from lora_trainer.train.model.tiny import tiny_tokenizer, write_tiny_sdxl


def test_the_same_seed_writes_the_same_weights(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        write_tiny_sdxl(tmp_path / name, seed=seed)
    weights = "unet/diffusion_pytorch_model.safetensors"
    a, b, c = ((tmp_path / name / weights).read_bytes() for name in "abc")
    assert a == b != c
    pipeline = StableDiffusionXLPipeline.from_pretrained(tmp_path / "a")
    assert pipeline.vae_scale_factor == 8
    assert pipeline.config.force_zeros_for_empty_prompt
    size = sum(path.stat().st_size for path in (tmp_path / "a").rglob("*") if path.is_file())
    assert size < 12e6


@pytest.mark.parametrize("pad", ["!", "<|endoftext|>"])
def test_any_text_is_tokenised_without_loss(pad: str) -> None:
    tokenizer = tiny_tokenizer(pad)
    text = "".join(map(chr, range(33, 127)))
    ids = tokenizer(text, add_special_tokens=False).input_ids
    assert tokenizer.decode(ids).replace(" ", "") == text.lower()
    assert len(tokenizer("a photo of", add_special_tokens=False).input_ids) == 3
    padded = tokenizer("a", padding="max_length").input_ids
    assert len(padded) == 77
    assert padded[-1] == tokenizer.convert_tokens_to_ids(pad)


def test_a_tensor_file_has_one_spelling() -> None:
    metadata = {str(index): "x" for index in range(20)}
    assert tensors_to_bytes({}, metadata) == tensors_to_bytes({}, dict(reversed(metadata.items())))

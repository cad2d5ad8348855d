"""New tokens in prompts, and their embeddings in a text encoder."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from torch.nn import Embedding

from lora_api.job import Concept
from lora_trainer.new_tokens import insert_all, insert_tokens, opening, token_names, trigger
from lora_trainer.train.model.tiny import write_tiny_sdxl
from lora_trainer.train.model.token_embeddings import ExtendedEmbedding, load_into
from lora_trainer.whole_words import has_word

NEW = token_names(2)


@pytest.mark.parametrize(
    ("text", "word", "expected"),
    [
        ("a photo of CUS statue", "CUS", "a photo of <s0><s1> statue"),
        ("CUS, CUS's shadow", "CUS", "<s0><s1>, <s0><s1>'s shadow"),
        ("CUSP and aCUS", "CUS", "CUSP and aCUS"),
        ("a photo of cus statue", "CUS", "a photo of <s0><s1> statue"),  # CLIP ignores case
        ("an ohwx  man", "ohwx man", "an <s0><s1>"),
        ("an ohwx man-made thing", "ohwx man", "an <s0><s1>-made thing"),
    ],
)
def test_the_token_is_replaced_as_a_whole_word(text: str, word: str, expected: str) -> None:
    assert insert_tokens(NEW, text, word) == expected
    assert has_word(text, word) == (text != expected)
    assert insert_tokens([], text, word) == text


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        ({"CUS": ["<a-1>"], "1": ["<b-0>"]}, "<a-1> and <b-0> at a focus 1x"),
        ({"1": ["<b-0>"], "CUS": ["<a-1>"]}, "<a-1> and <b-0> at a focus 1x"),
        ({"CUS": ["<a>"], "cus and 1": ["<b>"]}, "<b> at a focus 1x"),
        ({"CUS": [], "1": ["<b>"]}, "CUS and <b> at a focus 1x"),
        ({}, "CUS and 1 at a focus 1x"),
    ],
)
def test_tokens_of_several_adapters_are_inserted_in_one_pass(
    tokens: dict[str, list[str]], expected: str
) -> None:
    assert insert_all(tokens, "CUS and 1 at a focus 1x") == expected


def test_openings_and_triggers_have_the_new_tokens() -> None:
    concept = Concept.model_validate({"token": "CUS", "className": "statue"})
    assert trigger(concept, []) == "CUS statue"
    assert trigger(concept, NEW) == "<s0><s1> statue"
    assert opening(concept, NEW) == "a photo of <s0><s1> statue"
    style = Concept.model_validate({"token": "CUS", "className": "ink", "type": "Style"})
    assert opening(style, NEW) == "an image in <s0><s1> ink style"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_only_the_further_rows_get_a_gradient(dtype: torch.dtype) -> None:
    base = Embedding(10, 4, dtype=dtype).requires_grad_(False)
    rows = torch.randn(2, 4)
    extended = ExtendedEmbedding(base, rows.clone(), first=8)  # the base matrix may have unused rows
    ids = torch.tensor([[0, 8, 9, 7]])
    found = extended(ids)
    assert found.dtype == dtype
    assert torch.equal(found[0, [0, 3]], base.weight[[0, 7]])
    assert torch.equal(found[0, 1:3], rows.to(dtype))
    found.float().sum().backward()
    assert base.weight.grad is None
    assert torch.equal(extended.rows.grad, torch.ones(2, 4))


def test_both_encoders_of_a_pipeline_get_their_own_matrix(tmp_path: Path) -> None:
    write_tiny_sdxl(tmp_path)
    pipeline = StableDiffusionXLPipeline.from_pretrained(tmp_path)
    matrices = {key: torch.randn(2, 32) for key in ("clip_l", "clip_g")}
    load_into(pipeline, matrices, NEW)
    for key, tokenizer, encoder in (
        ("clip_l", pipeline.tokenizer, pipeline.text_encoder),
        ("clip_g", pipeline.tokenizer_2, pipeline.text_encoder_2),
    ):
        ids = tokenizer(" ".join(NEW), add_special_tokens=False).input_ids
        assert torch.equal(encoder.get_input_embeddings().weight[ids], matrices[key])

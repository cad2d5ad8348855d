"""The token counter against transformers' own CLIP tokenizer, built from the same merges."""

from __future__ import annotations

import gzip
import json
from importlib.resources import files
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_trainer.annotate import tokens


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory):
    transformers = pytest.importorskip("transformers")
    table = files("lora_trainer.annotate").joinpath("clip_merges.txt.gz").read_bytes()
    merges = gzip.decompress(table).decode().strip().split("\n")
    alphabet = list(tokens._byte_symbols().values())
    vocabulary = [*alphabet, *(s + "</w>" for s in alphabet), *(m.replace(" ", "") for m in merges)]
    vocabulary += ["<|startoftext|>", "<|endoftext|>"]
    folder = tmp_path_factory.mktemp("clip")
    (folder / "vocab.json").write_text(json.dumps({token: n for n, token in enumerate(vocabulary)}))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    return [load(transformers, folder, pad) for pad in ("<|endoftext|>", "!")]


def load(transformers, folder: Path, pad: str):
    return transformers.CLIPTokenizer.from_pretrained(folder, pad_token=pad)


def expected(reference, text: str) -> int:
    """The larger number of tokens of SDXL's two tokenizers, which differ in their padding."""
    return max(len(tokenizer(text, truncation=False)["input_ids"]) - 2 for tokenizer in reference)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a photo of CUS statue",
        "a photo of sks dog, close-up from above, lying on a red sofa, soft window light",
        "it's the dog's 2nd bowl -- $12.50!!",
        "wow!!!! great, a!b (!) !?!",
        "naïve café, Straße, 東京の犬, 🐕‍🦺 and ½ cup",
        "snake_case and __dunder__ x2y3",
        "word " * 100,
    ],
)
def test_counts_as_clip_does(reference, text):
    assert tokens.count_tokens(text) == expected(reference, text)


@settings(max_examples=300, deadline=None)
@given(text=st.text(st.characters(codec="utf-8", exclude_categories=("C", "Z")), max_size=40))
def test_counts_any_text_as_clip_does(reference, text):
    assert tokens.count_tokens(text) == expected(reference, text)


def test_cut_keeps_whole_words_within_the_budget():
    text = "a photo of CUS statue, " + "extraordinary " * 80
    cut = tokens.cut_to_tokens(text)
    assert text.startswith(cut)
    assert 70 < tokens.count_tokens(cut) <= tokens.TEXT_TOKENS
    assert tokens.cut_to_tokens("short text") == "short text"
    assert tokens.cut_to_tokens("x" * 2000) == ""

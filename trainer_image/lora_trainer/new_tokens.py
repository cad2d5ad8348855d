"""The new tokens of pivotal tuning, and the prompts that have them in place of the concept's token."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from lora_api.job import Concept, Training

from .whole_words import word_pattern

PREFIX = "token_embeddings"
"""First part of the names of the embeddings' parameters, in checkpoints too."""
MATRICES = ("clip_l", "clip_g")
"""Names of the text encoders' matrices in files of embeddings, as diffusers' script and ComfyUI have them."""


def token_names(count: int) -> list[str]:
    """Return the names of new tokens, as diffusers' train_dreambooth_lora_sdxl_advanced.py has them: <s0>, <s1>, ..."""
    return [f"<s{number}>" for number in range(count)]


def tokens_of(training: Training) -> list[str]:
    """Return the new tokens of a job; empty where it trains none."""
    return token_names(training.token_embeddings.tokens) if training.token_embeddings.train else []


def insert_tokens(tokens: Sequence[str], text: str, word: str) -> str:
    """Put the new tokens in place of the concept's token in a text.

    The token is replaced where it is a whole word, in upper or lower case.

    Args:
        tokens: the new tokens; empty leaves the text as it is.
        word: the concept's token.
    """
    return insert_all({word: tokens}, text)


def insert_all(tokens: Mapping[str, Sequence[str]], text: str) -> str:
    """Put the new tokens of several adapters in place of their concepts' tokens, as `insert_tokens` does for one.

    All are replaced in one pass, so that a token such as `1` is not searched in the names of another adapter's tokens.

    Args:
        tokens: the new tokens by the concept's token.
    """
    # The longest first: `CUS dog` before `CUS`.
    words = sorted((word for word in tokens if tokens[word]), key=len, reverse=True)
    if not words:
        return text
    pattern = "|".join(f"({word_pattern(word)})" for word in words)
    return re.sub(
        pattern,
        lambda match: "".join(tokens[words[(match.lastindex or 1) - 1]]),
        text,
        flags=re.IGNORECASE,
    )


def trigger(concept: Concept, tokens: Sequence[str]) -> str:
    """Return the words that call up a concept in a prompt."""
    return f"{''.join(tokens) or concept.token} {concept.class_name}"


def opening(concept: Concept, tokens: Sequence[str]) -> str:
    """Return `Concept.opening`, with the new tokens if there are any."""
    return insert_tokens(tokens, concept.opening, concept.token)

"""Warnings about jobs that are valid but probably not what their author wants."""

from __future__ import annotations

import re
from collections.abc import Iterator

from lora_api.job import JobSpec
from lora_api.rules import advice

COMMON_RANK = 20_000
"""Rank in CLIP's vocabulary, which is ordered by frequency. A word with a lower rank is common: the base model
knows its meaning."""
MIN_RANKED_LETTERS = 4
"""Letters from which the rank decides. Shorter texts may be frequent parts of words, whatever their rank."""
SHORT_WORDS = frozenset([
    "a", "an", "art", "bag", "bar", "bat", "bed", "bee", "big", "box", "boy", "bus", "cap", "car", "cat",
    "cow", "cup", "dad", "day", "dog", "eye", "fly", "fox", "fun", "gun", "guy", "hat", "hen", "her",
    "him", "his", "hot", "ice", "kid", "leg", "man", "map", "men", "mom", "new", "old", "one", "owl",
    "pan", "pen", "pet", "pig", "pot", "rat", "red", "sea", "she", "sky", "son", "sun", "tea", "the",
    "toy", "van", "war",
])  # fmt: skip
"""Common words of fewer letters."""


def find_hints(spec: JobSpec) -> Iterator[str]:
    """Yield a warning for each setting that has no effect or often gives a bad result."""
    for message in advice(spec):
        yield f"spec.{message}"
    token, noun = spec.concept.token, spec.concept.class_name
    if token.lower() == noun.lower():
        yield (
            f"spec.concept.token: {token!r} is the class itself: the adapter would change every {noun}; "
            "use a rare word, for example sks or CUS"
        )
    elif is_common_word(token):
        yield (
            f"spec.concept.token: {token!r} is a common word, whose meaning the base model knows; "
            "use a rare word, for example sks or CUS"
        )
    prefix = spec.dataset.prefix
    if any(part in (".", "..") for part in prefix.split("/")) or re.match(r"[A-Za-z]:\\|~", prefix):
        yield (
            f"spec.dataset.prefix: {prefix!r} looks like a path on this machine; it is a key prefix in the store's "
            "input bucket, in which '.' and '..' have no meaning. `lora run --images FOLDER` uploads a folder"
        )


def is_common_word(token: str) -> bool:
    """Return whether a token is one common word of CLIP's vocabulary."""
    from lora_trainer.annotate.tokens import word_rank

    word = token.lower()
    if len(word) < MIN_RANKED_LETTERS:
        return word in SHORT_WORDS
    rank = word_rank(word)
    return rank is not None and rank < COMMON_RANK

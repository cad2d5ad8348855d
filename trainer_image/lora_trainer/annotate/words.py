"""Words that are poor tokens of a concept, because the base model knows their meaning."""

from __future__ import annotations

from .tokens import word_rank

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


def find_token_problem(token: str, noun: str) -> str:
    """Return why a token is a poor name for a concept of the class `noun`; empty if it is a good one."""
    if token.lower() == noun.lower():
        return (
            f"{token!r} is the class itself: the adapter would change every {noun}; "
            "use a rare word, for example sks or CUS"
        )
    if is_common_word(token):
        return (
            f"{token!r} is a common word, whose meaning the base model knows; "
            "use a rare word, for example sks or CUS"
        )
    return ""


def is_common_word(token: str) -> bool:
    """Return whether a token is one common word of CLIP's vocabulary."""
    word = token.lower()
    if len(word) < MIN_RANKED_LETTERS:
        return word in SHORT_WORDS
    rank = word_rank(word)
    return rank is not None and rank < COMMON_RANK

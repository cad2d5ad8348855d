"""Counting of CLIP's tokens in a text, without torch or transformers.

SDXL's text encoders read 77 tokens, of which two mark the beginning and the end. Longer texts are truncated without a
warning. The method is CLIP's byte-pair encoding (Radford et al. 2021, https://github.com/openai/CLIP,
`simple_tokenizer.py`) with the text clean-up of transformers' `CLIPTokenizer`, which diffusers uses. The merges are
OpenAI's (see clip_merges.LICENSE.txt).
"""

from __future__ import annotations

import gzip
import re
import unicodedata
from collections.abc import Iterator
from functools import cache
from importlib.resources import files
from itertools import groupby, pairwise

TEXT_TOKENS = 75
"""Number of tokens of text that CLIP reads. The other two of its 77 mark the beginning and the end."""

_PIECE = re.compile(r"'s|'t|'re|'ve|'m|'ll|'d|[^\W_]+|(?:[^\w\s]|_)+")


def count_tokens(text: str) -> int:
    """Count the CLIP tokens of a text, without the marks of beginning and end.

    SDXL's second tokenizer pads with `!` and therefore makes every `!` a token of its own. The larger of the two
    numbers is returned.
    """
    text = unicodedata.normalize("NFC", text).lower()
    first = sum(map(_bpe_length, _pieces(text)))
    parts = text.split("!")
    if len(parts) == 1:
        return first
    return max(first, len(parts) - 1 + sum(_bpe_length(piece) for part in parts for piece in _pieces(part)))


def cut_to_tokens(text: str, limit: int = TEXT_TOKENS) -> str:
    """Return as many whole words from the start of a text as fit into `limit` tokens."""
    words = text.split()
    while words and count_tokens(" ".join(words)) > limit:
        words.pop()
    return " ".join(words).rstrip(" ,;:")


def word_rank(word: str) -> int | None:
    """Return the position of a word in CLIP's merges, which are ordered by frequency; None if it is not one token."""
    return _words().get(word.lower())


@cache
def _words() -> dict[str, int]:
    """Return the positions of the merges that result in a whole word, by the word."""
    joined = ((first + second, rank) for (first, second), rank in _ranks().items())
    return {text.removesuffix("</w>"): rank for text, rank in joined if text.endswith("</w>")}


def _pieces(text: str) -> Iterator[str]:
    """Yield CLIP's pre-tokens: contractions, runs of letters, single numerals, and runs of other characters."""
    for piece in _PIECE.findall(text):
        if piece.isalnum():
            for letters, run in groupby(piece, str.isalpha):
                word = "".join(run)
                yield from [word] if letters else word
        else:
            yield piece


@cache
def _bpe_length(piece: str) -> int:
    """Merge a piece's bytes in the order of rank until no merge applies, and return the number of parts."""
    ranks, symbols = _ranks(), _byte_symbols()
    parts = [symbols[byte] for byte in piece.encode()]
    parts[-1] += "</w>"
    while len(parts) > 1:
        rank, first, second = min((ranks.get((a, b), len(ranks)), a, b) for a, b in pairwise(parts))
        if rank == len(ranks):
            break
        merged: list[str] = []
        for part in parts:
            if part == second and merged and merged[-1] == first:
                merged[-1] = first + second
            else:
                merged.append(part)
        parts = merged
    return len(parts)


@cache
def _ranks() -> dict[tuple[str, str], int]:
    """Return the position of each merge in CLIP's list; lower ones are applied first."""
    table = gzip.decompress(files(__package__).joinpath("clip_merges.txt.gz").read_bytes())
    pairs = (line.split(" ") for line in table.decode().strip().split("\n"))
    return {(first, second): rank for rank, (first, second) in enumerate(pairs)}


@cache
def _byte_symbols() -> dict[int, str]:
    """Map every byte to the character that represents it in CLIP's merges.

    A printable character represents itself; the other bytes are represented by characters from U+0100 on.
    """
    printable = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    ]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + n) for n, byte in enumerate(others)}

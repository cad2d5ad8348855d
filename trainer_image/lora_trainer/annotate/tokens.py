"""How many of CLIP's tokens a text takes, without torch or transformers.

SDXL's text encoders read 77 tokens, of which two mark the beginning and the end; what is longer is cut
without a word. The method is CLIP's own byte-pair encoding (Radford et al. 2021,
https://github.com/openai/CLIP, `simple_tokenizer.py`), with the text clean-up of transformers'
`CLIPTokenizer`, which diffusers uses; the merges are OpenAI's (see clip_merges.LICENSE.txt).
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
"""Tokens of text that CLIP reads; the other two of its 77 are the marks of beginning and end."""

_PIECE = re.compile(r"'s|'t|'re|'ve|'m|'ll|'d|[^\W_]+|(?:[^\w\s]|_)+")


def count_tokens(text: str) -> int:
    """CLIP tokens of a text, marks of beginning and end not counted."""
    return sum(_bpe_length(piece) for piece in _pieces(unicodedata.normalize("NFC", text).lower()))


def cut_to_tokens(text: str, limit: int = TEXT_TOKENS) -> str:
    """The longest run of whole words from the start of a text that fits into `limit` tokens."""
    words = text.split()
    while words and count_tokens(" ".join(words)) > limit:
        words.pop()
    return " ".join(words).rstrip(" ,;:")


def _pieces(text: str) -> Iterator[str]:
    """CLIP's pre-tokens: contractions, runs of letters, single numerals, runs of anything else."""
    for piece in _PIECE.findall(text):
        if piece.isalnum():
            for letters, run in groupby(piece, str.isalpha):
                word = "".join(run)
                yield from [word] if letters else word
        else:
            yield piece


@cache
def _bpe_length(piece: str) -> int:
    """Merge the piece's bytes by rank until nothing merges; the number of parts left is its tokens."""
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
    table = gzip.decompress(files(__package__).joinpath("clip_merges.txt.gz").read_bytes())
    pairs = (line.split(" ") for line in table.decode().strip().split("\n"))
    return {(first, second): rank for rank, (first, second) in enumerate(pairs)}


@cache
def _byte_symbols() -> dict[int, str]:
    """CLIP writes every byte as a printable character: itself where it is one, else one from U+0100 on."""
    printable = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    ]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + n) for n, byte in enumerate(others)}

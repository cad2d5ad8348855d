"""Search for a concept's token in captions and prompts.

CLIP's tokenizers convert texts to lower case, so case does not matter to the model.
"""

from __future__ import annotations

import re


def word_pattern(text: str) -> str:
    """Return a regular expression for whole words, with any white space between them."""
    return r"(?<!\w)" + r"\s+".join(map(re.escape, text.split())) + r"(?!\w)"


def has_word(text: str, word: str) -> bool:
    """Return whether a text has a word, or several in this order, in upper or lower case. Part of a longer word does not count."""
    return re.search(word_pattern(word), text, re.IGNORECASE) is not None

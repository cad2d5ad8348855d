"""Parts of keys and file names, for comparisons."""

from __future__ import annotations

import unicodedata
from pathlib import PurePosixPath


def without_suffix(key: str) -> str:
    """Return a key without the suffix of its file name."""
    return key.removesuffix(PurePosixPath(key).suffix)


def suffix_of(key: str) -> str:
    """Return the suffix of a file name in lower case, without white space around it."""
    return PurePosixPath(key.strip()).suffix.lower()


def normal_name(name: str) -> str:
    """Normalise a file's name: Unicode NFC, forward slashes, no `./`."""
    parts = unicodedata.normalize("NFC", name).replace("\\", "/").split("/")
    return "/".join(part for part in parts if part not in ("", "."))

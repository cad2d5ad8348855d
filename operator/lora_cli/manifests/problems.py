"""Problems of a manifest, and the words that their messages share."""

from __future__ import annotations

import difflib
import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from .reader import SHOWN, Path


@dataclass(frozen=True)
class Problem:
    """One field that the API server would refuse."""

    path: Path
    """Path of the field from the root of the resource; empty for a problem of the whole."""
    message: str

    @property
    def field(self) -> str:
        return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in self.path).lstrip(".")

    def __str__(self) -> str:
        return f"{self.field}: {self.message}" if self.path else self.message


def unknown_fields(values: Mapping[str, Any], known: Collection[str], root: Path) -> Iterator[Problem]:
    for key in values:
        if key not in known:
            yield Problem((*root, key), f"is not a field{did_you_mean(str(key), known)}")


def did_you_mean(given: str, known: Collection[str]) -> str:
    """Return a hint with the most similar known name; empty if none is similar. Case, `_` and `-` do not count."""
    by_letters = {name.replace("_", "").lower(): name for name in known}
    near = by_letters.get(given.replace("_", "").replace("-", "").lower())
    if near is None:
        matches = difflib.get_close_matches(given, list(known), 1, 0.6)
        near = matches[0] if matches else None
    return f"; did you mean {near}?" if near and near != given else ""


def type_name(value: Any) -> str:
    match value:
        case None:
            return "nothing"
        case bool():
            return "true or false"
        case str():
            return "text"
        case int() | float():
            return "a number"
        case list():
            return "a list"
    return "a mapping of fields"


def show(value: Any) -> str:
    if isinstance(value, dict | list):
        return type_name(value)
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def quote_hint(value: Any, kind: type | None) -> str:
    """Return a hint to quote the value, where text is expected and YAML has read another type."""
    if kind is str and isinstance(value, bool | int | float):
        return "; put it in quotes"
    return ""

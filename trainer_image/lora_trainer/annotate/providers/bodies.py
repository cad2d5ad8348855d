"""Validators for reply bodies. They accept values of other types than documented, which some services send."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ValidationError

MAX_TOKENS = 100_000_000
"""Largest number of tokens of one request that is believed. No model reads as many."""


def read_count(value: Any) -> int | None:
    """Return a number of tokens, or None for a value that cannot be one: the number is then unknown, not zero."""
    if isinstance(value, str) and re.fullmatch(r"[0-9]{1,12}", value):
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if not math.isfinite(value) or not 0 <= value <= MAX_TOKENS or value != int(value):
        return None
    return int(value)


FILTERED = re.compile(
    r"filter|safety|prohibited|blocklist|recitation|spii|guardrail|sensitive|moderation|toxic|^refusal$",
    re.IGNORECASE,
)
FAILED = re.compile(
    r"error|abort|cancel|interrupt|insufficient_system_resource|unavailable|time_?out|timed_?out|fail",
    re.IGNORECASE,
)
CUT_OFF = re.compile(r"length|max_(?:\w+_)?tokens|context_window", re.IGNORECASE)


def is_filtered(reason: str | None) -> bool:
    """Return whether a finish reason, in the words of any service, stands for declined content."""
    return bool(reason and FILTERED.search(reason))


def is_cut_off(reason: str | None) -> bool:
    """Return whether a finish reason, in the words of any service, stands for a reply at the output limit."""
    return bool(reason and CUT_OFF.search(reason))


def is_failed(reason: str | None) -> bool:
    """Return whether a finish reason, in the words of any service, stands for a failure of the service itself."""
    return bool(reason and FAILED.search(reason))


TokenCount = Annotated[int | None, BeforeValidator(read_count)]


REASONING_PART = re.compile(r"reason|think|thought", re.IGNORECASE)
"""Types of the parts of a content that hold reasoning. Drafts of the reply are often among it."""


def join_text(value: Any) -> str:
    """Return the text of a message's content: a string, a part, a list of parts, or the object that the reply is.

    Parts with reasoning are left out.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, dict):
        if REASONING_PART.search(str(value.get("type", ""))) or value.get("thought") is True:
            return ""
        if value.get("type") in ("json", "json_object"):
            value = value.get("json")
        if isinstance(value, dict) and "text" not in value and "type" not in value:
            return json.dumps(value)  # the parsed reply in the place of its text
        return join_text(value.get("text")) if isinstance(value, dict) else ""
    if isinstance(value, list):
        return "".join(join_text(part) for part in value)
    return ""


def text_or_none(value: Any) -> str | None:
    """Return a finish reason as text. Some services number them."""
    return value if value is None else str(value)


def none_if_invalid(kind: type[BaseModel]) -> Callable[[Any], Any]:
    """Return a validator that parses a part of a body, and gives None, which means unknown, if it is not valid."""

    def parse(value: Any) -> Any:
        try:
            return kind.model_validate(value)
        except ValidationError:
            return None

    return parse

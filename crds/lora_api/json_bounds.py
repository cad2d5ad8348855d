"""Limits on the size and the nesting of JSON from other processes, checked before it is parsed.

Python's own parser recurses once for each bracket, so a short file of opening brackets ends in RecursionError.
"""

from __future__ import annotations

import json
import re
from typing import Any

MAX_BYTES = 4 << 20
MAX_NESTING = 32

_SURROGATE_ESCAPE = re.compile(rb"\\u[dD][89a-fA-F]")
# an escaped character, a quote or a bracket
_TOKEN = re.compile(rb'\\.|["\[\]{}]', re.DOTALL)


class JsonBoundsError(ValueError):
    """JSON that is too large or nested too deeply, or that is not JSON."""


def check_json(data: bytes, max_bytes: int = MAX_BYTES, max_nesting: int = MAX_NESTING) -> None:
    """Check the size and the nesting of JSON.

    Raises:
        JsonBoundsError: when a bound is exceeded.
    """
    if len(data) > max_bytes:
        raise JsonBoundsError(f"must have at most {max_bytes} bytes; it has {len(data)}")
    depth, in_string = 0, False
    for match in _TOKEN.finditer(data):
        token = match[0]
        if token == b'"':
            in_string = not in_string
        elif in_string or len(token) > 1:
            continue
        elif token in b"[{":
            depth += 1
            if depth > max_nesting:
                raise JsonBoundsError(f"must not be nested more than {max_nesting} levels")
        else:
            depth -= 1


def load_json(data: bytes, max_bytes: int = MAX_BYTES, max_nesting: int = MAX_NESTING) -> Any:
    """Parse JSON within bounds. An unpaired surrogate, which UTF-8 cannot encode, becomes U+FFFD, as in Go's parser.

    Raises:
        JsonBoundsError: when it exceeds a bound or is not JSON.
    """
    check_json(data, max_bytes, max_nesting)
    try:
        # The parser would guess UTF-16 and UTF-32, in which the bytes of brackets and quotation marks are also parts of
        # other characters.
        value = json.loads(data.decode("utf-8-sig"))
    except ValueError as error:
        # UnicodeDecodeError is a ValueError too
        raise JsonBoundsError(f"is not valid JSON: {error}") from None
    return _replace_surrogates(value) if _SURROGATE_ESCAPE.search(data) else value


def _replace_surrogates(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, list):
        return [_replace_surrogates(item) for item in value]
    if isinstance(value, dict):
        return {_replace_surrogates(key): _replace_surrogates(item) for key, item in value.items()}
    return value

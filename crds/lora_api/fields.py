"""Field types with bounds, for every text, number and object key that one process reads from another.

Three engines interpret the patterns: the API server's RE2, pydantic's and JSON Schema's. The patterns therefore use
no look-around, and contain characters outside ASCII literally instead of as escapes.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import AfterValidator, Field, GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

from .base import Int
from .redact import redact

MAX_INT32 = 2**31 - 1
MAX_KEY_BYTES = 1024
"""Longest object key that S3 allows, in bytes of UTF-8."""

BIDI = "{}{}-{}{}-{}{}-{}".format(*map(chr, (0x061C, 0x200E, 0x200F, 0x2028, 0x202E, 0x2066, 0x2069)))
"""Characters that reorder the text around them, and the two Unicode line separators.

Ranges for a regex character class, built from code points because editors do not show these characters.
"""
CONTROL = r"\x00-\x1f\x7f-" + chr(0x9F)
UNSAFE = CONTROL + BIDI + chr(0xFEFF)
"""Characters that can change how a terminal or a web page shows the rest of a line, for a regex character class."""
UNSAFE_IN_TEXT = r"\x00-\x08\x0b-\x1f\x7f-" + chr(0x9F) + BIDI + chr(0xFEFF)
"""The characters of `UNSAFE` except tab and line feed, for texts of several lines."""

LINE = f"^[^{UNSAFE}]*$"
LINES = f"^[^{UNSAFE_IN_TEXT}]*$"
LABEL = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?"
SUBDOMAIN = rf"{LABEL}(\.{LABEL})*"
QUALIFIED = r"[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?"

Positive = Annotated[Int, Field(ge=1, le=MAX_INT32)]
Count = Annotated[Int, Field(ge=0, le=MAX_INT32)]
Seconds = Annotated[Int, Field(ge=0, le=MAX_INT32)]
Quantity = Annotated[
    str, Field(max_length=32, pattern=r"^[0-9]{1,15}(\.[0-9]{1,9})?(m|k|M|G|T|Ki|Mi|Gi|Ti)?$")
]
"""A Kubernetes quantity, such as 500m or 32Gi."""
OptionalQuantity = Annotated[
    str, Field(max_length=32, pattern=r"^([0-9]{1,15}(\.[0-9]{1,9})?(m|k|M|G|T|Ki|Mi|Gi|Ti)?)?$")
]
Words = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9][A-Za-z0-9 _-]*$")]
"""One or several words of ASCII letters, digits, spaces, hyphens and underscores."""
OptionalSubdomain = Annotated[str, Field(max_length=253, pattern=f"^({SUBDOMAIN})?$")]
"""The name of a Kubernetes object (an RFC 1123 subdomain), or empty."""
OptionalLabelValue = Annotated[str, Field(max_length=63, pattern=f"^({QUALIFIED})?$")]
OptionalLabelKey = Annotated[str, Field(max_length=317, pattern=f"^(({SUBDOMAIN}/)?{QUALIFIED})?$")]
"""A label's or a taint's key: a name of at most 63 characters behind an optional DNS prefix of at most 253."""


def _check_unicode(value: dict[str, Any]) -> dict[str, Any]:
    """Refuse texts that UTF-8 cannot encode. pydantic checks fields of type str, but not the values of Any."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise ValueError("has an unpaired surrogate") from None
    return value


JsonObject = Annotated[dict[str, Any], AfterValidator(_check_unicode)]
"""A JSON object of any content that UTF-8 can encode."""

Prompt = Annotated[str, Field(max_length=500, pattern=LINE)]


def server_rules(*rules: tuple[str, str]) -> dict[str, Any]:
    """Write what a validator of a field checks beyond its schema as rules of the API server.

    The API server then refuses what the models refuse, before anything runs.

    Args:
        rules: pairs of a condition in CEL, in which `self` is the value, and the message for values that do not meet it.

    Returns:
        The `json_schema_extra` of the field or the model.
    """
    return {"x-kubernetes-validations": [{"rule": rule, "message": message} for rule, message in rules]}


def is_label_key(key: str) -> bool:
    """Whether Kubernetes accepts a text as the key of a label."""
    prefix, separator, name = key.rpartition("/")
    return (
        len(name) <= 63
        and re.fullmatch(QUALIFIED, name) is not None
        and (not separator or (len(prefix) <= 253 and re.fullmatch(SUBDOMAIN, prefix) is not None))
    )


def is_subdomain(name: str) -> bool:
    """Whether Kubernetes accepts a text as the name of an object of most kinds (RFC 1123)."""
    return len(name) <= 253 and re.fullmatch(SUBDOMAIN, name) is not None


def is_label(name: str) -> bool:
    """Whether Kubernetes accepts a text as the name of a namespace."""
    return len(name) <= 63 and re.fullmatch(LABEL, name) is not None


def is_printable(text: str) -> bool:
    """Whether a text has no control, line-breaking or text-reordering character."""
    return re.search(f"[{UNSAFE}]", text) is None


def _object_key(key: str) -> str:
    """Check that a key is relative, not too long, and safe to join to a folder."""
    parts = key.split("/")
    if any(part in ("", ".", "..") for part in parts):
        raise ValueError("must be a relative key without empty, '.' or '..' parts")
    if len(key.encode(errors="replace")) > MAX_KEY_BYTES:
        raise ValueError(f"must have at most {MAX_KEY_BYTES} bytes")
    if not is_printable(key) or "\\" in key:
        raise ValueError("must not contain control characters or backslashes")
    return key


ObjectKey = Annotated[
    str,
    Field(max_length=MAX_KEY_BYTES),
    AfterValidator(_object_key),
]
"""The key of one object in a bucket. Safe to join to a folder: it cannot lead out of it."""
OptionalObjectKey = Annotated[
    str, Field(max_length=MAX_KEY_BYTES), AfterValidator(lambda key: _object_key(key) if key else key)
]
"""An object key, or empty while it is not known."""
ObjectURI = Annotated[
    str,
    Field(max_length=1200, pattern="^s3://[^/]+/.+$"),
    AfterValidator(lambda uri: uri if _object_key(uri.removeprefix("s3://").partition("/")[2]) else ""),
]
"""The address of one object: s3://BUCKET/KEY."""
Sha256 = Annotated[str, Field(max_length=64, pattern="^[0-9a-f]{64}$")]
"""64 lower-case hexadecimal digits."""
OptionalSha256 = Annotated[str, Field(max_length=64, pattern="^([0-9a-f]{64})?$")]
InputHash = Annotated[str, Field(max_length=71, pattern="^(sha256:[0-9a-f]{64})?$")]
"""`sha256:` and 64 hexadecimal digits; empty while it is not known."""


@dataclass(frozen=True)
class Clipped:
    """A text for people: secrets are removed, unsafe characters replaced, and the rest is cut to a length.

    It never fails: a message of the API server or of a pod must not make a status unwritable.
    """

    max_length: int

    def clip(self, value: object) -> str:
        text = value if isinstance(value, str) else str(value)
        # Redact before clipping: a cut could leave half of a secret, which `redact` would not recognize. Only the
        # first 64 KiB are searched, because redacting a far longer text takes too long.
        text = redact(text[: 64 << 10])
        text = re.sub(f"[{UNSAFE_IN_TEXT}]", chr(0xFFFD), text)
        # a lone surrogate cannot be encoded; the API server refuses a request that contains one
        text = text.encode(errors="replace").decode()
        return text if len(text) <= self.max_length else text[: self.max_length - 1] + "…"

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_before_validator_function(self.clip, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        return {**handler(schema), "maxLength": self.max_length}


Message = Annotated[str, Clipped(4096)]
Short = Annotated[str, Clipped(253)]

"""The captions file metadata.jsonl: one image and its caption a line, in the format of Hugging Face's imagefolder.

The annotation stage writes these rows, people edit them, and the training stage reads them. All three use the
model below. `file_name` and `text` are required; rows that people bring may have other columns, which are kept.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Annotated, Any, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from .fields import ObjectKey
from .json_bounds import JsonBoundsError, check_json

Box = tuple[float, float, float, float]
"""Left, top, right and bottom edge, as fractions of an image's width and height."""

MAX_FILE_BYTES = 1 << 20
MAX_ROWS = 10_000
MAX_LINE_BYTES = 64 << 10
MAX_CAPTION_CHARACTERS = 16_384
"""Captions beside images may be this long; CLIP reads about the first 300 characters."""
MAX_MORE_CAPTIONS = 16
"""Largest number of further captions of an image."""
MAX_REPEATS = 100
"""Largest number of times that an image is trained on in an epoch."""


class CaptionRowsError(ValueError):
    """Rows that cannot be used. The message names the lines and what is wrong with each."""


def _first_text(value: object) -> object:
    """Accept captions as other tools write them: null is no caption, and the first of a list is used."""
    if value is None:
        return ""
    if isinstance(value, list | tuple):
        return next((item for item in value if isinstance(item, str)), "")
    return value


class CaptionRow(BaseModel):
    """One image and its caption."""

    model_config = ConfigDict(extra="allow", frozen=True)

    file_name: ObjectKey
    """Name of the image, relative to the folder of the captions file."""
    text: Annotated[str, BeforeValidator(_first_text), Field(max_length=MAX_CAPTION_CHARACTERS)]
    """The caption."""
    width: Annotated[int, Field(ge=1, le=100_000)] | None = None
    height: Annotated[int, Field(ge=1, le=100_000)] | None = None
    """Size of the clean image, in pixels."""
    crop: Box | None = None
    """The part of the image to train on. Unset: all of it."""
    captions: (
        Annotated[
            list[Annotated[str, Field(max_length=MAX_CAPTION_CHARACTERS)]],
            Field(max_length=MAX_MORE_CAPTIONS),
        ]
        | None
    ) = None
    """Further captions of the image. Each sample takes one of them or `text`, at random."""
    repeats: Annotated[int, Field(ge=1, le=MAX_REPEATS)] | None = None
    """Number of times that the image is trained on in an epoch. Unset: once."""
    mask: ObjectKey | None = None
    """Name of a greyscale image of the same size; white is the subject."""

    @model_validator(mode="before")
    @classmethod
    def _split_captions(cls, data: Any) -> Any:
        """Split a list of captions in `text`, as other tools write it, into `text` and `captions`."""
        if isinstance(data, dict) and isinstance(data.get("text"), list) and data.get("captions") is None:
            texts = [item for item in data["text"] if isinstance(item, str)]
            return {**data, "text": texts[0] if texts else "", "captions": texts[1:] or None}
        return data

    @model_validator(mode="after")
    def _check_crop(self) -> Self:
        if self.crop:
            left, top, right, bottom = self.crop
            if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
                raise ValueError("crop must be [left, top, right, bottom], rising, from 0 to 1")
        return self

    def to_line(self) -> str:
        """Write the row as one line of JSON. Fields that are not set are omitted."""
        return json.dumps(self.model_dump(mode="json", exclude_none=True), ensure_ascii=False) + "\n"


def write_rows(rows: Iterable[CaptionRow]) -> bytes:
    """Write rows as a metadata.jsonl in UTF-8.

    Raises:
        CaptionRowsError: when a row or the file is larger than `read_rows` accepts.
    """
    lines = []
    for row in rows:
        line = row.to_line().encode()
        if len(line) > MAX_LINE_BYTES:
            raise CaptionRowsError(
                f"the captions of {row.file_name} must have at most {MAX_LINE_BYTES} bytes together; they have {len(line)}"
            )
        lines.append(line)
    size = sum(map(len, lines))
    if size > MAX_FILE_BYTES:
        raise CaptionRowsError(
            f"the captions of all images must have at most {MAX_FILE_BYTES} bytes together; they have {size}"
        )
    return b"".join(lines)


def read_rows(data: bytes) -> list[CaptionRow]:
    """Read a metadata.jsonl. Empty lines and a byte-order mark are skipped.

    Args:
        data: the file, at most 1 MiB of UTF-8.

    Raises:
        CaptionRowsError: naming up to ten lines that are not JSON objects with a `file_name` and a `text`.
    """
    if len(data) > MAX_FILE_BYTES:
        raise CaptionRowsError(
            f"metadata.jsonl: must have at most {MAX_FILE_BYTES} bytes; it has {len(data)}"
        )
    rows: list[CaptionRow] = []
    wrong: list[str] = []
    for number, line in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            rows.append(parse_row(line))
        except CaptionRowsError as error:
            wrong.append(f"line {number}: {error}")
        if len(rows) > MAX_ROWS:
            raise CaptionRowsError(f"metadata.jsonl: must have at most {MAX_ROWS} rows")
    if wrong:
        more = f"; and {len(wrong) - 10} more lines" if len(wrong) > 10 else ""
        raise CaptionRowsError("metadata.jsonl: " + "; ".join(wrong[:10]) + more)
    return rows


def parse_row(line: bytes) -> CaptionRow:
    """Read one line.

    Raises:
        CaptionRowsError: when it is not a row.
    """
    try:
        check_json(line, MAX_LINE_BYTES)
        return CaptionRow.model_validate_json(line)
    except JsonBoundsError as error:
        raise CaptionRowsError(str(error)) from None
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))[:80] or "the line"
        raise CaptionRowsError(f"{where}: {first['msg'].removeprefix('Value error, ')}") from None

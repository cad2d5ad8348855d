"""metadata.jsonl as people edit it: read, validated, and the sha256 that approval names."""

from __future__ import annotations

from collections.abc import Collection

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..errors import BadDataError

MAX_CAPTION_CHARACTERS = 2000


class CaptionRow(BaseModel):
    """A line of metadata.jsonl. Other fields (width, height, crop ...) pass through untouched."""

    model_config = ConfigDict(extra="allow", frozen=True)

    file_name: str = Field(min_length=1)
    text: str = Field(max_length=MAX_CAPTION_CHARACTERS)


def read_rows(data: bytes) -> list[CaptionRow]:
    """The lines of a metadata.jsonl.

    Raises:
        BadDataError: naming each line that is not JSON with a `file_name` and a `text`.
    """
    rows, wrong = [], []
    for number, line in enumerate(data.split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            rows.append(CaptionRow.model_validate_json(line))
        except ValidationError as error:
            first = error.errors()[0]
            wrong.append(f"line {number}: {'.'.join(map(str, first['loc'])) or 'line'}: {first['msg']}")
    if wrong:
        raise BadDataError("metadata.jsonl is not in order: " + "; ".join(wrong[:10]))
    return rows


def validate_edited(data: bytes, images: Collection[str]) -> list[CaptionRow]:
    """Rows that a reviewer may have edited or left out, for images that are there.

    Raises:
        BadDataError: naming each line that cannot be trained on.
    """
    rows = read_rows(data)
    seen: set[str] = set()
    wrong = []
    for row in rows:
        if row.file_name not in images:
            wrong.append(f"{row.file_name!r} is not an image of this job")
        elif row.file_name in seen:
            wrong.append(f"{row.file_name} has two captions")
        elif not row.text.strip():
            wrong.append(f"the caption of {row.file_name} is empty")
        seen.add(row.file_name)
    if wrong:
        raise BadDataError("the edited captions cannot be used: " + "; ".join(wrong[:10]))
    return rows

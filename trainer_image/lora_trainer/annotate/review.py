"""Reading and validation of a metadata.jsonl that a reviewer may have edited."""

from __future__ import annotations

from collections.abc import Collection

from lora_api.caption_rows import MAX_CAPTION_CHARACTERS, CaptionRow, CaptionRowsError
from lora_api.caption_rows import read_rows as parse_rows

from ..errors import BadDataError

__all__ = ["MAX_CAPTION_CHARACTERS", "CaptionRow", "read_rows", "validate_edited"]


def read_rows(data: bytes) -> list[CaptionRow]:
    """Read the rows of a metadata.jsonl.

    Raises:
        BadDataError: with each line that cannot be used.
    """
    try:
        return parse_rows(data)
    except CaptionRowsError as error:
        raise BadDataError(str(error)) from None


def validate_edited(data: bytes, images: Collection[str]) -> list[CaptionRow]:
    """Read rows that a reviewer may have edited or removed.

    Args:
        images: file names of the job's clean images. A row may be missing, but must not name another image.

    Raises:
        BadDataError: with up to ten lines that cannot be trained on.
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

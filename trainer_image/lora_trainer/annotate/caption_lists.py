"""The rows of lists of captions, as other programs write them: metadata.jsonl and metadata.csv."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from io import StringIO
from typing import Any

from lora_api.caption_rows import MAX_CAPTION_CHARACTERS, MAX_LINE_BYTES, MAX_MORE_CAPTIONS, MAX_REPEATS
from lora_api.json_bounds import load_json

from .caption_format import plain_text

DELIMITERS = ",;\t|"
NAME_COLUMNS = (
    "file_name", "filename", "file", "image", "path", "name", "file_path", "filepath", "image_path", "image_file",
    "image_name", "img", "img_path",
)  # fmt: skip
"""Accepted names of the column with the image's name. The first one with a value is used."""
TEXT_COLUMNS = ("text", "caption", "prompt", "description", "captions")
"""Accepted names of the column with the caption. The first one with a value is used."""
REPEATS_COLUMN = "repeats"
"""A row may have repeats and no caption, which the stage then writes."""


@dataclass(frozen=True)
class ImageRow:
    """The columns of a row that are used."""

    file_name: str
    text: str
    more: tuple[str, ...] = ()
    """Further captions."""
    repeats: int | None = None
    notes: tuple[str, ...] = ()
    """What is wrong with columns that are not used."""


Row = tuple[int, ImageRow | str]
"""The number of a line, and either its columns, or a message that says why it cannot be used."""


def json_rows(text: str) -> Iterator[Row]:
    """Yield the rows of a metadata.jsonl: an object a line, or one list of objects."""
    # str.splitlines() would also split at U+2028 and others inside a caption.
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    if text.lstrip()[:1] == "[" and (items := _json_list(text)) is not None:
        lines = [json.dumps(item) for item in items]
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = load_json(line.strip().removesuffix(",").encode(), MAX_LINE_BYTES)
        except ValueError:
            yield number, "it is not JSON"
            continue
        if not isinstance(row, dict):
            yield number, "it is not a JSON object"
            continue
        yield number, _row({_column(column): value for column, value in row.items()})


def _json_list(text: str) -> list[Any] | None:
    """Return the items of a file that is one JSON list of objects; None for any other file."""
    try:
        data = load_json(text.encode())
    except ValueError:
        return None
    return data if isinstance(data, list) and all(isinstance(item, dict) for item in data) else None


def _column(name: str) -> str:
    """Return a column's name in the form of `NAME_COLUMNS`: `File Name` is `file_name`."""
    return re.sub(r"[\s-]+", "_", name.strip().lower())


def csv_rows(text: str) -> Iterator[Row]:
    """Yield the rows of a metadata.csv, whose first line names the columns."""
    first, _, rest = text.partition("\n")
    skipped = 0
    if first.lower().startswith("sep="):  # written by Excel
        first, text, skipped = rest.partition("\n")[0], rest, 1
    delimiter = max(DELIMITERS, key=lambda mark: (_is_header(first.split(mark)), first.count(mark)))
    reader = csv.reader(StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True, strict=True)
    header: list[str] = []
    while True:
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            why = "a quotation mark is not closed, so it and all rows behind it cannot be read"
            yield (
                skipped + reader.line_num,
                why if "unexpected end" in str(error) else f"it is not CSV: {error}",
            )
            continue
        if not row:
            continue
        if not header:
            header = [_column(column) for column in row]
            if not _is_header(row):
                yield skipped + 1, "its first line must name the columns file_name and text"
                return
            continue
        yield skipped + reader.line_num, _csv_row(header, row, delimiter)


def _is_header(columns: Iterable[str]) -> bool:
    names = {_column(column.strip().strip('"')) for column in columns}
    return bool(names.intersection(NAME_COLUMNS) and names.intersection((*TEXT_COLUMNS, REPEATS_COLUMN)))


def _csv_row(header: list[str], row: list[str], delimiter: str) -> ImageRow | str:
    if len(row) > len(header):
        # A caption with commas and without quotes. It is complete only where it is the last column.
        if header[-1] not in TEXT_COLUMNS:
            return f"it has {len(row)} columns and the first line {len(header)}: put the caption in quotes"
        last = len(header) - 1
        row = [*row[:last], f"{delimiter} ".join(row[last:])]
    return _row(dict(zip(header, row, strict=False)))


def _row(columns: dict[str, Any]) -> ImageRow | str:
    names = [_path(columns[column]) for column in NAME_COLUMNS if column in columns]
    name = next((text for text in names if text), "")
    if not name:
        return "it has no file_name"
    texts = [columns[column] for column in TEXT_COLUMNS if column in columns]
    if not texts and REPEATS_COLUMN not in columns:
        return "it has no text"
    value, captions = next(filter(None, texts), texts[0] if texts else None), columns.get("captions")
    more = [] if value is captions else _list(captions)
    if isinstance(value, list):  # several captions of one image
        strings = [item for item in value if isinstance(item, str)]
        value, more = (strings[0] if strings else ""), [*strings[1:], *more]
    if value is not None and not isinstance(value, str):
        return "its text is not a string"
    if value is not None and len(value) > MAX_CAPTION_CHARACTERS:
        return f"its text has more than {MAX_CAPTION_CHARACTERS} characters"
    return _with_extras(ImageRow(name, value or ""), more, columns.get(REPEATS_COLUMN))


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value] if value else []


def _with_extras(row: ImageRow, more: list[Any], repeats: Any) -> ImageRow:
    """Add further captions and the number of repeats to a row."""
    texts = [
        plain_text(item) for item in more if isinstance(item, str) and len(item) <= MAX_CAPTION_CHARACTERS
    ]
    used = tuple(dict.fromkeys(text for text in texts if text))[:MAX_MORE_CAPTIONS]
    notes = []
    if len(used) < len(more):
        notes.append(
            f"{len(more) - len(used)} of its further captions, which must be different texts of at most "
            f"{MAX_CAPTION_CHARACTERS} characters, {MAX_MORE_CAPTIONS} at most"
        )
    number = _whole_number(repeats)
    if number is not None and not 1 <= number <= MAX_REPEATS:
        number = None
    if number is None and repeats not in (None, ""):
        notes.append(f"its repeats, which must be a whole number from 1 to {MAX_REPEATS}")
    return replace(row, more=used, repeats=number, notes=tuple(notes))


def _whole_number(value: Any) -> int | None:
    """Return the value of a column, which is text in a CSV, as a number; None for anything but a whole number."""
    if isinstance(value, str) and re.fullmatch(r"[0-9]{1,3}", value.strip()):
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _path(value: Any) -> str:
    """Return the name in a column, which Hugging Face's datasets also write as an object with a path."""
    if isinstance(value, dict):
        value = value.get("path")
    return value.strip() if isinstance(value, str) else ""

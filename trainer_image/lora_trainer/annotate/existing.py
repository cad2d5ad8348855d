"""Captions that came with the images: metadata.jsonl, metadata.csv, IMAGE.txt and IMAGE.caption.

Every file and every row either becomes the caption of an image or is named in a warning.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from io import StringIO
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import unquote

from lora_api.caption_rows import MAX_CAPTION_CHARACTERS, MAX_LINE_BYTES, MAX_MORE_CAPTIONS, MAX_REPEATS
from lora_api.json_bounds import load_json

from ..store import ObjectMissingError, StoredObject
from .caption_format import plain_text
from .file_names import normal_name, without_suffix
from .sources import Source
from .text_encoding import UnreadableTextError, decode_text

MAX_LIST_BYTES = 1 << 20
MAX_TEXT_BYTES = 16 << 10
TEXT_SUFFIXES = (".txt", ".caption")
LIST_NAMES = ("metadata.jsonl", "metadata.csv")
CAPTION_SUFFIXES = {*TEXT_SUFFIXES, ".jsonl", ".ndjson", ".csv"}
DELIMITERS = ",;\t|"
NAME_COLUMNS = (
    "file_name", "filename", "file", "image", "path", "name", "file_path", "filepath", "image_path", "image_file",
    "image_name", "img", "img_path",
)  # fmt: skip
"""Accepted names of the column with the image's name. The first one with a value is used."""
TEXT_COLUMNS = ("text", "caption", "prompt", "description", "captions")
"""Accepted names of the column with the caption. The first one with a value is used."""
OUTSIDE_PATH = re.compile(
    r"file:|[a-z][a-z0-9+.-]{1,20}://|[\\/]|[a-z]:[\\/]|(?:.*[\\/])?\.\.[\\/]", re.IGNORECASE
)
"""The beginning of an absolute path, of an address, or of a path that leads out of the folder."""


@dataclass
class CaptionFiles:
    """The captions of a folder."""

    captions: dict[str, str] = field(default_factory=dict)
    """Captions by the key of the image."""
    more: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Further captions of an image, of which a list may have several, by its key."""
    repeats: dict[str, int] = field(default_factory=dict)
    """How often an image is trained on in an epoch, by its key, where a list says so."""
    problems: dict[str, str] = field(default_factory=dict)
    """Reasons why the caption file beside an image cannot be read, by the key of the image."""
    warnings: list[str] = field(default_factory=list)
    """Warnings about files and rows that are not used."""


def read_existing(
    source: Source, prefix: str, files: Sequence[StoredObject], images: Iterable[str]
) -> CaptionFiles:
    """Read the caption files of a folder.

    Args:
        prefix: the prefix of the dataset; warnings name files without it.
        files: all files with the suffix of a caption file.
        images: the keys of the images.
    """
    index, result = ImageIndex(images), CaptionFiles()
    lists = [item for item in files if PurePosixPath(item.key).name.lower() in LIST_NAMES]
    texts = [item for item in files if item.key.lower().endswith(TEXT_SUFFIXES)]
    # The first caption of an image is used. Lists come before text files, .jsonl before .csv, and .txt before .caption.
    texts.sort(key=lambda item: (not item.key.lower().endswith(".txt"), item.key))
    for item in [*sorted(lists, key=lambda item: not item.key.lower().endswith(".jsonl")), *texts]:
        name = item.key.removeprefix(prefix)
        limit = MAX_LIST_BYTES if item in lists else MAX_TEXT_BYTES
        targets = [] if item in lists else index.beside(item.key)
        try:
            text = _read(source, item, limit)
        except UnreadableTextError as error:
            result.warnings.append(f"{name}: {error}; not used")
            result.problems |= dict.fromkeys(targets, f"its caption file {name} cannot be read: {error}")
            continue
        if item in lists:
            _take_rows(name, text, item.key, index, result)
        elif not targets:
            result.warnings.append(f"{name}: no image of this name; not used")
        else:
            _take_text(name, text, targets, result)
    for item in files:
        if item not in lists and item not in texts:
            name = item.key.removeprefix(prefix)
            result.warnings.append(f"{name}: not read; only {' and '.join(LIST_NAMES)} are lists of captions")
    return result


class ImageIndex:
    """An index of the images by the names that caption files use for them."""

    def __init__(self, images: Iterable[str]) -> None:
        """
        Args:
            images: the keys of the images.
        """
        # Keys by normal name: without regard to Unicode's forms, to case, and without suffix and case.
        self._images = list(images)
        self._exact: dict[str, list[str]] = {}
        self._loose: dict[str, list[str]] = {}
        self._stems: dict[str, list[str]] = {}
        for key in self._images:
            path = normal_name(key)
            self._exact.setdefault(path, []).append(key)
            self._loose.setdefault(path.casefold(), []).append(key)
            self._stems.setdefault(without_suffix(path).casefold(), []).append(key)

    def named(self, folder: str, name: str) -> list[str]:
        """Return the images that a row of a list in `folder` names: one, none, or several if it is ambiguous.

        An exact match comes first, then one without regard to case, then one without suffix. Of a path on another
        machine, the longest end that names an image of the dataset is used. A name may repeat the end of the folder,
        as in `train/a.jpg` in `train/metadata.jsonl`.
        """
        for spelling in dict.fromkeys((name, unquote(name))):
            if folder + spelling in self._images:
                return [folder + spelling]
            if matches := self._lookup(normal_name(folder + spelling)):
                return matches
        if not OUTSIDE_PATH.match(name):
            repeated = next((end for end in _ends(folder) if normal_name(name).startswith(end)), None)
            return (
                self._lookup(normal_name(folder + normal_name(name).removeprefix(repeated)))
                if repeated
                else []
            )
        name = unquote(name)
        parts = normal_name(name).split("/")
        ends = (self._lookup(normal_name(folder + "/".join(parts[start:]))) for start in range(1, len(parts)))
        return next(filter(None, ends), [])

    def _lookup(self, path: str) -> list[str]:
        loose = path.casefold()
        return self._exact.get(path) or self._loose.get(loose) or self._stems.get(loose) or []

    def beside(self, key: str) -> list[str]:
        """Return the images to which a text file belongs: cat.txt belongs to cat.jpg, and to cat.png as well."""
        path = without_suffix(normal_name(key))
        matches = self._stems.get(path.casefold(), []) or self._loose.get(path.casefold(), [])
        # Two names may differ only in case, or only in the form of Unicode.
        same = [image for image in matches if without_suffix(key) in (without_suffix(image), image)]
        exact = [
            image for image in matches if path in (without_suffix(normal_name(image)), normal_name(image))
        ]
        return same or exact or matches


def _ends(folder: str) -> Iterator[str]:
    """Yield the ends of a folder's path, the longest first: `a/b/` and `b/`."""
    parts = normal_name(folder).split("/") if folder else []
    yield from ("/".join(parts[start:]) + "/" for start in range(len(parts)))


def _read(source: Source, item: StoredObject, limit: int) -> str:
    if item.bytes > limit:
        raise UnreadableTextError(f"it has more than {limit >> 10} KiB")
    try:
        data = source.get(item.key)
    except ObjectMissingError:
        raise UnreadableTextError("it was deleted while the stage read the dataset") from None
    if len(data) > limit:
        raise UnreadableTextError(f"it has more than {limit >> 10} KiB once it is decompressed")
    return decode_text(data)


def _take_text(name: str, text: str, targets: Sequence[str], result: CaptionFiles) -> None:
    """Add the caption of a text file to its images, unless they have one, or a warning."""
    caption = plain_text(text)
    if not caption:
        result.warnings.append(f"{name}: it is empty; not used")
        return
    captioned = [key for key in targets if key in result.captions]
    for key in targets:
        result.captions.setdefault(key, caption)
    if len(captioned) == len(targets):
        result.warnings.append(f"{name}: its image has a caption from another file; not used")


def _take_rows(name: str, text: str, key: str, index: ImageIndex, result: CaptionFiles) -> None:
    """Add the captions of a list to their images, or a warning for each row that is not used."""
    folder = key[: len(key) - len(PurePosixPath(key).name)]
    rows = _csv_rows(text) if key.lower().endswith(".csv") else _json_rows(text)
    for number, row in rows:
        where = f"{name} line {number}"
        if isinstance(row, str):
            result.warnings.append(f"{where}: {row}; not used")
            continue
        file_name, caption = row.file_name, plain_text(row.text)
        targets = index.named(folder, file_name)
        if len(targets) > 1:
            result.warnings.append(f"{where}: {file_name[:100]!r} names {len(targets)} images; not used")
        elif not targets:
            result.warnings.append(f"{where}: {file_name[:100]!r} is not an image of the dataset; not used")
        elif not caption:
            result.warnings.append(f"{where}: the caption of {file_name[:100]!r} is empty; not used")
        elif targets[0] in result.captions:
            result.warnings.append(f"{where}: {file_name[:100]!r} has a caption already; not used")
        else:
            result.captions[targets[0]] = caption
            result.warnings += [f"{where}: {note}; not used" for note in row.notes]
            if row.more:
                result.more[targets[0]] = row.more
            if row.repeats:
                result.repeats[targets[0]] = row.repeats


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


def _json_rows(text: str) -> Iterator[Row]:
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
    """Return a column's name in the form of the lists above: `File Name` is `file_name`."""
    return re.sub(r"[\s-]+", "_", name.strip().lower())


def _csv_rows(text: str) -> Iterator[Row]:
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
    return bool(names.intersection(NAME_COLUMNS) and names.intersection(TEXT_COLUMNS))


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
    if not texts:
        return "it has no text"
    value, captions = next(filter(None, texts), texts[0]), columns.get("captions")
    more = [] if value is captions else _list(captions)
    if isinstance(value, list):  # several captions of one image
        strings = [item for item in value if isinstance(item, str)]
        value, more = (strings[0] if strings else ""), [*strings[1:], *more]
    if value is not None and not isinstance(value, str):
        return "its text is not a string"
    if value is not None and len(value) > MAX_CAPTION_CHARACTERS:
        return f"its text has more than {MAX_CAPTION_CHARACTERS} characters"
    return _with_extras(ImageRow(name, value or ""), more, columns.get("repeats"))


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value] if value else []


def _with_extras(row: ImageRow, more: list[Any], repeats: Any) -> ImageRow:
    """Add further captions and the number of repeats, which a CSV has as text, to a row."""
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
    number = (
        int(repeats) if isinstance(repeats, str) and re.fullmatch(r"[0-9]{1,3}", repeats.strip()) else repeats
    )
    is_number = isinstance(number, int) and not isinstance(number, bool) and 1 <= number <= MAX_REPEATS
    if number not in (None, "") and not is_number:
        notes.append(f"its repeats, which must be a whole number from 1 to {MAX_REPEATS}")
    return replace(row, more=used, repeats=number if is_number else None, notes=tuple(notes))


def _path(value: Any) -> str:
    """Return the name in a column, which Hugging Face's datasets also write as an object with a path."""
    if isinstance(value, dict):
        value = value.get("path")
    return value.strip() if isinstance(value, str) else ""

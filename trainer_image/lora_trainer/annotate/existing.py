"""Captions that came with the images: metadata.jsonl, metadata.csv, IMAGE.txt and IMAGE.caption.

Every file and every row either becomes the caption of an image or is named in a warning.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from urllib.parse import unquote

from ..store import ObjectMissingError, StoredObject
from .caption_format import plain_text
from .caption_lists import ImageRow, csv_rows, json_rows
from .file_names import normal_name, without_suffix
from .sources import Source
from .text_encoding import UnreadableTextError, decode_text

MAX_LIST_BYTES = 1 << 20
MAX_TEXT_BYTES = 16 << 10
TEXT_SUFFIXES = (".txt", ".caption")
LIST_NAMES = ("metadata.jsonl", "metadata.csv")
CAPTION_SUFFIXES = {*TEXT_SUFFIXES, ".jsonl", ".ndjson", ".csv"}
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
    rows = csv_rows(text) if key.lower().endswith(".csv") else json_rows(text)
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
        elif not caption and not row.repeats:
            result.warnings.append(f"{where}: the caption of {file_name[:100]!r} is empty; not used")
        elif caption and targets[0] in result.captions:
            result.warnings.append(f"{where}: {file_name[:100]!r} has a caption already; not used")
        else:
            _take_row(row, caption, where, targets[0], result)


def _take_row(row: ImageRow, caption: str, where: str, key: str, result: CaptionFiles) -> None:
    """Add a row to its image. Without a caption it has only repeats, and the stage writes the caption."""
    result.warnings += [f"{where}: {note}; not used" for note in row.notes]
    if caption:
        result.captions[key] = caption
        if row.more:
            result.more[key] = row.more
    if row.repeats:
        result.repeats[key] = row.repeats

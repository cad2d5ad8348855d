"""Captions that came with the images: metadata.jsonl (`file_name`, and `text` or `prompt`) or IMAGE.txt."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import PurePosixPath

from ..store import Bucket, StoredObject
from .caption import plain_text

log = logging.getLogger(__name__)

MAX_LIST_BYTES = 1 << 20
MAX_TEXT_BYTES = 16 << 10


def read_existing(bucket: Bucket, prefix: str, files: list[StoredObject]) -> dict[str, str]:
    """Captions by the image's key without its suffix or with it, as the customer wrote them.

    A metadata.jsonl wins over text files. What cannot be read is left out and logged: the image then has no
    caption of its own, and the job's settings say what that means.
    """
    found: dict[str, str] = {}
    lists = [item for item in files if PurePosixPath(item.key).name == "metadata.jsonl"]
    texts = [item for item in files if item.key.lower().endswith(".txt")]
    for item in [*texts, *lists]:
        if item.bytes > (MAX_LIST_BYTES if item in lists else MAX_TEXT_BYTES):
            log.warning("%s is too large for captions; ignored", item.key)
            continue
        try:
            text = bucket.get(item.key).decode("utf-8-sig")
        except UnicodeDecodeError:
            log.warning("%s is not UTF-8; ignored", item.key)
            continue
        entries = _lines(item.key, text) if item in lists else [(item.key[: -len(".txt")], text)]
        found |= {key: caption for key, raw in entries if (caption := plain_text(raw))}
    return found


def caption_of(existing: dict[str, str], key: str) -> str | None:
    """The caption of an image: by its whole key, or by its key without the suffix (cat.txt for cat.jpg)."""
    stem = key.removesuffix(PurePosixPath(key).suffix)
    return existing.get(key) or existing.get(stem)


def _lines(key: str, text: str) -> Iterator[tuple[str, str]]:
    folder = key.removesuffix("metadata.jsonl")
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            caption = row.get("text", row.get("prompt"))
            yield folder + row["file_name"], str(caption or "")
        except (ValueError, AttributeError, KeyError, TypeError):
            log.warning("%s line %d has no file_name and text; ignored", key, number)

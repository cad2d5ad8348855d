"""Captions that came with the images, in whatever state."""

from __future__ import annotations

import json

import pytest

from lora_trainer.annotate.existing import MAX_LIST_BYTES, caption_of, read_existing
from lora_trainer.store import StoredObject


class Stub:
    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files

    def get(self, key: str) -> bytes:
        return self.files[key]


def read(**files: bytes) -> dict[str, str]:
    named = {f"set/{name.replace('_', '.')}": data for name, data in files.items()}
    listed = [StoredObject(key, len(data), "etag") for key, data in named.items()]
    return read_existing(Stub(named), "set/", listed)


def line(**row: object) -> bytes:
    return json.dumps(row).encode() + b"\n"


def test_text_files_and_lists():
    found = read(
        a_txt=b"\xef\xbb\xbfa photo of CUS\r\nstatue\n",
        b_TXT=b"in the rain",
        metadata_jsonl=line(file_name="c.png", text="at night")
        + b"\n"
        + line(file_name="a.jpg", prompt="wins"),
    )
    assert caption_of(found, "set/a.jpg") == "wins"
    assert caption_of(found, "set/a.webp") == "a photo of CUS statue"
    assert caption_of(found, "set/b.heic") == "in the rain"
    assert caption_of(found, "set/c.png") == "at night"
    assert caption_of(found, "set/d.png") is None


@pytest.mark.parametrize(
    "text",
    [b"", b" \n\t", b"\xff\xfe\x00", b"\x00\x01\x02", b"word " * 5000],
    ids=lambda text: repr(text[:4]),
)
def test_a_text_file_that_says_nothing_is_no_caption(text):
    assert caption_of(read(a_txt=text), "set/a.jpg") is None


@pytest.mark.parametrize(
    "data",
    [
        b"not json\n",
        b"[1, 2]\n",
        line(text="no name"),
        line(file_name=7, text="a number"),
        line(file_name="a.jpg"),
        line(file_name="a.jpg", text=""),
        line(file_name="a.jpg", text="x" * MAX_LIST_BYTES),
    ],
)
def test_a_line_that_cannot_be_read_is_left_out_and_the_others_stay(data):
    assert caption_of(read(metadata_jsonl=data), "set/a.jpg") is None
    if len(data) < MAX_LIST_BYTES:
        found = read(metadata_jsonl=data + line(file_name="b.jpg", text="good"))
        assert caption_of(found, "set/b.jpg") == "good"

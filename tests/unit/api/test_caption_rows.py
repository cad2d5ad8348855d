"""metadata.jsonl: what people and tools write, what an attacker writes, and what comes back."""

from __future__ import annotations

import json
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_api.caption_rows import MAX_FILE_BYTES, CaptionRow, CaptionRowsError, read_rows, write_rows
from lora_api.json_bounds import JsonBoundsError, load_json


def test_rows_come_back_as_they_were_written() -> None:
    rows = [
        CaptionRow(
            file_name="000.png", text="a photo of CUS statue", width=640, height=480, crop=(0, 0, 0.5, 1)
        ),
        CaptionRow(file_name="001.png", text="“ü”\u2028next line"),
    ]
    assert read_rows(write_rows(rows)) == rows
    assert write_rows(rows).splitlines()[0].startswith(b'{"file_name": "000.png", "text": "a photo')


def test_what_could_not_be_read_again_is_not_written() -> None:
    long = CaptionRow(file_name="000.png", text="a", captions=["ü" * 16_000] * 3)
    with pytest.raises(CaptionRowsError, match=r"the captions of 000\.png must have at most 65536 bytes"):
        write_rows([long])
    with pytest.raises(CaptionRowsError, match="the captions of all images must have at most 1048576 bytes"):
        write_rows([CaptionRow(file_name=f"{index}.png", text="a" * 16_000) for index in range(70)])


@pytest.mark.parametrize(
    ("written", "text"),
    [("a", "a"), (["a", "b"], "a"), ([], ""), (None, "")],
)
def test_the_text_is_read_as_tools_write_it(written: object, text: str) -> None:
    assert read_rows(json.dumps({"file_name": "a.png", "text": written}).encode())[0].text == text


def test_columns_of_other_tools_are_kept() -> None:
    (row,) = read_rows(b'\xef\xbb\xbf{"file_name": "a.png", "text": "b", "artist": "c"}\r\n\r\n')
    assert row.model_dump()["artist"] == "c"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"[" * 900_000, "at most"),
        (b"[" * 60_000, "nested"),
        (b'{"file_name": "a.png", "text": "x", "crop": [0.5, 0, 0.5, 1]}', "crop must be"),
        (b'{"file_name": "../../x.png", "text": "x"}', "relative key"),
        (b'{"file_name": "a\\u0000.png", "text": "x"}', "control characters"),
        (b'{"file_name": "a.png"}', "text"),
        (b'{"text": "a"}', "file_name"),
        (b"\xff", "line 1"),
        (b"null", "line 1"),
        (b" " * (MAX_FILE_BYTES + 1), "at most"),
    ],
)
def test_other_lines_are_refused_and_named(line: bytes, words: str) -> None:
    with pytest.raises(CaptionRowsError, match=words):
        read_rows(line)


@given(st.binary(max_size=300) | st.text(alphabet='[]{}",:\\a\n', max_size=300).map(str.encode))
def test_no_bytes_raise_anything_else(data: bytes) -> None:
    with suppress(CaptionRowsError):
        read_rows(data)


@given(st.text(alphabet='[]{}",:\\1', max_size=200))
def test_bounded_json_is_what_the_parser_says(text: str) -> None:
    try:
        expected = json.loads(text)
    except ValueError:
        with pytest.raises(JsonBoundsError):
            load_json(text.encode(), max_nesting=500)
    else:
        assert load_json(text.encode(), max_nesting=500) == expected


def test_brackets_inside_texts_are_not_nesting() -> None:
    assert load_json(json.dumps({"a": '"' + "[" * 100}).encode()) == {"a": '"' + "[" * 100}
    with pytest.raises(JsonBoundsError, match="nested"):
        load_json(b"[" * 33 + b"]" * 33)


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-16", "utf-32"])
def test_other_encodings_than_utf_8_are_refused(encoding: str) -> None:
    """The bytes of U+2200 hold a quotation mark, behind which a check of the bytes would take brackets for text."""
    with pytest.raises(JsonBoundsError):
        load_json(('["\u2200", ' + "[" * 60_000).encode(encoding))


def test_an_unpaired_surrogate_is_replaced() -> None:
    data = rb'{"\ud83d\ude00 \udc00": ["\\ud800", "a \uD83D"]}'
    assert load_json(data) == {"\N{GRINNING FACE} \ufffd": ["\\ud800", "a \ufffd"]}

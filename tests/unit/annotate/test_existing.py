"""Captions that came with the images, in whatever form: each file and row is used or named in a warning."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import pytest

from lora_trainer.annotate.existing import MAX_LIST_BYTES, CaptionFiles, read_existing
from lora_trainer.annotate.listing import list_dataset
from lora_trainer.annotate.sources import LocalFolder
from lora_trainer.annotate.text_encoding import UnreadableTextError, decode_text


def read(folder: Path, images: list[str], files: dict[str, bytes]) -> CaptionFiles:
    for name in images:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"image")
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    listing = list_dataset(LocalFolder(folder), "")
    assert sorted(item.key for item in listing.images) == sorted(images)
    return read_existing(LocalFolder(folder), "", listing.captions, images)


def line(**row: object) -> bytes:
    return json.dumps(row).encode() + b"\n"


def test_files_and_lists(tmp_path):
    found = read(
        tmp_path,
        ["a.jpg", "b.heic", "c.png", "d.png", "e.webp"],
        {
            "a.txt": b"\xef\xbb\xbfa photo of CUS\r\nstatue\n",
            "b.TXT": b"in the rain",
            "e.caption": b"by kohya",
            "metadata.jsonl": line(file_name="c.png", text="at night")
            + b"\n"
            + line(file_name="a.jpg", prompt="the list wins"),
        },
    )
    assert found.captions == {
        "a.jpg": "the list wins",
        "b.heic": "in the rain",
        "c.png": "at night",
        "e.webp": "by kohya",
    }
    assert found.warnings == ["a.txt: its image has a caption from another file; not used"]


ENCODINGS = ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "cp1252", "latin-1"]


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("name", ["a.txt", "a.caption", "metadata.jsonl", "metadata.csv"])
def test_usual_encodings(tmp_path, name, encoding):
    words = "a photo of CUS gâteau, in the café at dusk"
    content = {
        "metadata.jsonl": json.dumps({"file_name": "a.jpg", "text": words}, ensure_ascii=False) + "\n",
        "metadata.csv": f'file_name,text\r\na.jpg,"{words}"\r\n',
    }.get(name, words)
    assert read(tmp_path, ["a.jpg"], {name: content.encode(encoding)}).captions == {"a.jpg": words}


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_wide_text_with_a_mark(encoding):
    mark = {"utf-16-le": b"\xff\xfe", "utf-16-be": b"\xfe\xff"}[encoding]
    assert decode_text(mark + "café".encode(encoding)) == "café"


NFC, NFD = (unicodedata.normalize(form, "Käse.jpg") for form in ("NFC", "NFD"))


@pytest.mark.parametrize(
    ("image", "name"),
    [
        (NFC, NFD),
        (NFD, NFC),
        ("a.jpg", "./a.jpg"),
        ("sub/a.jpg", "sub\\a.jpg"),
        ("sub/a.jpg", "./sub//a.jpg"),
        ("IMG.JPG", "img.jpg"),
        ("IMG.JPG", "IMG"),
        ("a b (1).jpg", "a b (1).jpg"),
        ("10_statue/a.jpg", "10_statue/a.jpg"),
    ],
)
@pytest.mark.parametrize("form", ["jsonl", "csv"])
def test_names_in_lists(tmp_path, image, name, form):
    row = (
        line(file_name=name, text="words")
        if form == "jsonl"
        else f'file_name,text\n"{name}",words\n'.encode()
    )
    found = read(tmp_path, [image], {f"metadata.{form}": row})
    assert found.captions == {image: "words"}
    assert found.warnings == []


@pytest.mark.parametrize(
    ("image", "name"),
    [("IMG.JPG", "img.txt"), (NFD, NFC[:-4] + ".txt"), ("a.jpg", "a.jpg.txt"), ("A.PNG", "a.caption")],
)
def test_names_of_files(tmp_path, image, name):
    assert read(tmp_path, [image], {name: b"words"}).captions == {image: "words"}


def test_a_list_names_images_beside_it(tmp_path):
    found = read(
        tmp_path, ["x/a.jpg", "y/a.jpg"], {"y/metadata.jsonl": line(file_name="a.jpg", text="words")}
    )
    assert found.captions == {"y/a.jpg": "words"}


@pytest.mark.parametrize(
    "rows",
    [
        "[{0}, {1}]",
        "[\n  {0},\n  {1}\n]\n",
        "{0},\n{1},\n",
        "{0}\r{1}\r",
        "{0}\r\n{1}",
    ],
)
def test_lines_of_json_in_other_forms(tmp_path, rows):
    first, second = (json.dumps({"file_name": f"{name}.jpg", "text": f"words of {name}"}) for name in "ab")
    data = rows.replace("{0}", first).replace("{1}", second).encode()
    found = read(tmp_path, ["a.jpg", "b.jpg"], {"metadata.jsonl": data})
    assert found.captions == {"a.jpg": "words of a", "b.jpg": "words of b"}
    assert found.warnings == []


@pytest.mark.parametrize(
    "header",
    ["File Name,Caption", "image_path,text", ",file-name,text", "id,img,prompt", "filepath,captions"],
)
@pytest.mark.parametrize("delimiter", [",", "|", ";"])
def test_names_of_columns_in_other_spellings(tmp_path, header, delimiter):
    row = ",".join(["0"] * (header.count(",") - 1) + ["a.jpg", "words"])
    data = f"{header}\n{row}\n".replace(",", delimiter)
    assert read(tmp_path, ["a.jpg"], {"metadata.csv": data.encode()}).captions == {"a.jpg": "words"}


def test_the_delimiter_is_that_of_the_known_columns(tmp_path):
    data = b"file_name;text;a,note,with,commas\na.jpg;words;x\n"
    assert read(tmp_path, ["a.jpg"], {"metadata.csv": data}).captions == {"a.jpg": "words"}


@pytest.mark.parametrize(
    ("image", "name"),
    [
        ("sub/a.jpg", "https://example.com/data/sub/a.jpg"),
        ("sub/a.jpg", "s3://bucket/data/sub/a.jpg"),
        ("a b.jpg", "a%20b.jpg"),
        ("a b.jpg", "file:///home/me/a%20b.jpg"),
        ("100%25.jpg", "100%25.jpg"),
    ],
)
def test_names_that_are_addresses(tmp_path, image, name):
    found = read(tmp_path, [image], {"metadata.jsonl": line(file_name=name, text="words")})
    assert found.captions == {image: "words"}


def test_a_name_may_repeat_the_folder_of_its_list(tmp_path):
    found = read(
        tmp_path,
        ["x/train/a.jpg", "x/train/b.jpg"],
        {
            "x/train/metadata.jsonl": line(file_name="train/a.jpg", text="one")
            + line(file_name="test/b.jpg", text="two")
        },
    )
    assert found.captions == {"x/train/a.jpg": "one"}
    assert "'test/b.jpg' is not an image" in found.warnings[0]


def test_names_that_differ_only_in_the_form_of_unicode(tmp_path):
    words = {NFC: "composed", NFD: "decomposed"}
    texts = {name[:-4] + ".txt": text.encode() for name, text in words.items()}
    rows = b"".join(line(file_name=name, text=text) for name, text in words.items())
    for place, files in (("texts", texts), ("list", {"metadata.jsonl": rows})):
        found = read(tmp_path / place, [NFC, NFD], files)
        assert found.captions == words
        assert found.warnings == []


def test_a_name_that_fits_two_images_names_neither(tmp_path):
    found = read(tmp_path, ["a.jpg", "A.jpg"], {"metadata.jsonl": line(file_name="a.JPG", text="words")})
    assert found.captions == {}
    assert "'a.JPG' names 2 images" in found.warnings[0]


@pytest.mark.parametrize(
    "name", ["/home/me/sub/a.jpg", "C:\\Users\\me\\sub\\a.jpg", "../set/sub/a.jpg", "file:///x/sub/a.jpg"]
)
@pytest.mark.parametrize("form", ["jsonl", "csv"])
def test_paths_of_another_machine_name_the_image_at_their_end(tmp_path, name, form):
    row = (
        line(file_name=name, text="words")
        if form == "jsonl"
        else f'file_name,text\n"{name}",words\n'.encode()
    )
    found = read(tmp_path, ["sub/a.jpg", "b.jpg"], {f"metadata.{form}": row})
    assert found.captions == {"sub/a.jpg": "words"}
    elsewhere = line(file_name="/home/me/other.jpg", text="words")
    assert read(tmp_path / "2", ["sub/a.jpg"], {"metadata.jsonl": elsewhere}).captions == {}


def test_the_first_column_with_a_value_is_used(tmp_path):
    rows = [
        {"file_name": None, "image": "a.jpg", "text": "", "caption": "at dusk"},
        {"image": {"path": "b.jpg", "bytes": None}, "prompt": "at dawn"},
    ]
    found = read(tmp_path, ["a.jpg", "b.jpg"], {"metadata.jsonl": b"".join(line(**row) for row in rows)})
    assert found.captions == {"a.jpg": "at dusk", "b.jpg": "at dawn"}
    assert found.warnings == []


OTHER_ENCODINGS = {
    "shift_jis": "夕方の海辺", "gbk": "黄昏的海滩", "big5": "黃昏的海灘", "euc-kr": "해변에서 저녁에", "iso2022_jp": "夕方の海辺",
    "cp1251": "на пляже вечером", "koi8-r": "на пляже вечером", "mac_roman": "in the café", "cp437": "in the café",
}  # fmt: skip


@pytest.mark.parametrize("encoding", OTHER_ENCODINGS)
def test_text_of_other_encodings_is_refused_and_not_guessed(encoding):
    with pytest.raises(UnreadableTextError, match="save it as UTF-8"):
        decode_text(OTHER_ENCODINGS[encoding].encode(encoding))


@pytest.mark.parametrize(
    "words",
    [
        "in the café – “à côté” d’un lac",
        "Größe: 10 €, „süß“",
        "été à l’île… naïve",
        "lake—calm, ½ shade",
        "«créée»",
        "mañana",
    ],
)
def test_western_text_of_windows_is_read(words):
    assert decode_text(words.encode("cp1252")) == words


def test_line_separators_of_unicode_do_not_end_a_line(tmp_path):
    row = json.dumps({"file_name": "a.jpg", "text": "one\u2028two\u0085three"}, ensure_ascii=False)
    assert read(tmp_path, ["a.jpg"], {"metadata.jsonl": row.encode()}).captions == {"a.jpg": "one two three"}


def test_several_captions_of_one_image(tmp_path):
    found = read(tmp_path, ["a.jpg"], {"metadata.jsonl": line(file_name="a.jpg", text=["first", "second"])})
    assert found.captions == {"a.jpg": "first"}
    assert found.more == {"a.jpg": ("second",)}


@pytest.mark.parametrize(
    "row",
    [
        {"text": "one", "captions": ["two", "three"]},
        {"text": ["one", "two"], "captions": ["three"]},
        {"captions": ["one", "two", "three"]},
        {"text": None, "captions": ["one", "two", "three"]},
    ],
    ids=str,
)
def test_further_captions_of_a_list(tmp_path, row):
    found = read(tmp_path, ["a.jpg"], {"metadata.jsonl": line(file_name="a.jpg", **row)})
    assert (found.captions, found.more) == ({"a.jpg": "one"}, {"a.jpg": ("two", "three")})
    assert found.warnings == []


@pytest.mark.parametrize("name", ["metadata.jsonl", "metadata.csv"])
def test_repeats_of_a_list(tmp_path, name):
    rows = {
        "metadata.jsonl": line(file_name="a.jpg", text="one", repeats=3)
        + line(file_name="b.jpg", text="two"),
        "metadata.csv": b"file_name,text,repeats\na.jpg,one,3\nb.jpg,two,\n",
    }
    found = read(tmp_path, ["a.jpg", "b.jpg"], {name: rows[name]})
    assert (found.captions, found.repeats) == ({"a.jpg": "one", "b.jpg": "two"}, {"a.jpg": 3})
    assert found.warnings == []


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("metadata.jsonl", line(file_name="a.jpg", repeats=3) + line(file_name="b.jpg", text="", repeats=2)),
        ("metadata.csv", b"file_name,repeats\na.jpg,3\nb.jpg,2\n"),
    ],
    ids=["jsonl", "csv"],
)
def test_repeats_without_a_caption_leave_the_caption_to_others(tmp_path, name, content):
    found = read(tmp_path, ["a.jpg", "b.jpg"], {name: content, "b.txt": b"two"})
    assert (found.captions, found.repeats) == ({"b.jpg": "two"}, {"a.jpg": 3, "b.jpg": 2})
    assert found.warnings == []


@pytest.mark.parametrize(
    ("columns", "warning"),
    [
        ({"repeats": 0}, "its repeats, which must be a whole number from 1 to 100; not used"),
        ({"repeats": 2.5}, "its repeats"),
        ({"repeats": True}, "its repeats"),
        ({"repeats": 101}, "its repeats"),
        ({"captions": [str(number) for number in range(20)]}, "4 of its further captions"),
        ({"captions": ["two", 3, "", "two"]}, "3 of its further captions"),
    ],
    ids=str,
)
def test_columns_that_cannot_be_used_are_named(tmp_path, columns, warning):
    found = read(tmp_path, ["a.jpg"], {"metadata.jsonl": line(file_name="a.jpg", text="one", **columns)})
    assert found.captions == {"a.jpg": "one"}
    assert found.repeats == {}
    assert len(found.warnings) == 1
    assert found.warnings[0].startswith(f"metadata.jsonl line 1: {warning}")


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_delimiters(tmp_path, delimiter):
    data = f'File_Name{delimiter}Caption\na.jpg{delimiter}"one, two; three"\nb.jpg{delimiter}\n'
    found = read(tmp_path, ["a.jpg", "b.jpg"], {"metadata.csv": data.encode()})
    assert found.captions == {"a.jpg": "one, two; three"}
    assert "line 3" in found.warnings[0]


def test_commas_without_quotes_do_not_cut_a_caption(tmp_path):
    last = b"file_name,text\na.jpg,a photo of CUS, on a lawn, at dusk\nb.jpg,short\n"
    found = read(tmp_path, ["a.jpg", "b.jpg"], {"metadata.csv": last})
    assert found.captions == {"a.jpg": "a photo of CUS, on a lawn, at dusk", "b.jpg": "short"}
    middle = b"file_name,text,tags\na.jpg,a photo of CUS, on a lawn,x\nb.jpg,short,y\n"
    found = read(tmp_path, ["a.jpg", "b.jpg"], {"metadata.csv": middle})
    assert found.captions == {"b.jpg": "short"}
    assert "metadata.csv line 2: it has 4 columns and the first line 3" in found.warnings[0]


def test_csv_of_excel_with_a_separator_line_and_line_breaks(tmp_path):
    data = '\ufeffsep=;\r\nfile_name;text\r\na.jpg;"one\r\ntwo"\r\n'.encode()
    assert read(tmp_path, ["a.jpg"], {"metadata.csv": data}).captions == {"a.jpg": "one two"}


def test_a_quote_that_is_not_closed_does_not_swallow_rows_in_silence(tmp_path):
    data = b'file_name,text\na.jpg,fine\nb.jpg,"never ends\nc.jpg,lost\n'
    found = read(tmp_path, ["a.jpg", "b.jpg", "c.jpg"], {"metadata.csv": data})
    assert found.captions == {"a.jpg": "fine"}
    assert "not closed" in found.warnings[0]


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("a.txt", b"", "empty"),
        ("a.txt", b" \n\t", "empty"),
        ("a.txt", b"\xff\xfe\x00", "UTF-16"),
        ("a.txt", b"\x00\x01\x02", "binary"),
        ("a.caption", b"\x89PNG\r\n\x1a\n\x00\x00\x00", "binary"),
        ("a.txt", b"word " * 5000, "16 KiB"),
        ("a.txt", b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", "git lfs pull"),
        ("metadata.ndjson", b"{}\n", "not read"),
        ("notes.txt", b"my notes", "no image of this name"),
        ("other.jsonl", b"{}", "not read"),
        ("metadata.jsonl", b"not json\n", "line 1: it is not JSON"),
        ("metadata.jsonl", b"[1, 2]\n", "not a JSON object"),
        ("metadata.jsonl", b"[" * 500, "not JSON"),
        ("metadata.jsonl", line(text="no name"), "no file_name"),
        ("metadata.jsonl", line(file_name=7, text="a number"), "no file_name"),
        ("metadata.jsonl", line(file_name="a.jpg"), "no text"),
        ("metadata.jsonl", line(file_name="a.jpg", text=""), "empty"),
        ("metadata.jsonl", line(file_name="a.jpg", text=None), "empty"),
        ("metadata.jsonl", line(file_name="a.jpg", text=7), "not a string"),
        ("metadata.jsonl", line(file_name="gone.jpg", text="words"), "'gone.jpg' is not an image"),
        ("metadata.jsonl", line(file_name="a.jpg", text="x" * MAX_LIST_BYTES), "1024 KiB"),
        ("metadata.csv", b"a.jpg,words\n", "first line must name"),
        ("metadata.csv", b"file_name,text\ngone.jpg,words\n", "not an image"),
    ],
)
def test_what_is_not_used_is_named(tmp_path, name, data, words):
    found = read(tmp_path, ["a.jpg"], {name: data})
    assert found.captions == {}
    assert len(found.warnings) == 1
    assert words in found.warnings[0]
    assert name in found.warnings[0]


def test_one_bad_row_does_not_spoil_the_others(tmp_path):
    data = b"not json\n" + line(file_name="a.jpg", text="good") + line(file_name="a.jpg", text="again")
    found = read(tmp_path, ["a.jpg"], {"metadata.jsonl": data})
    assert found.captions == {"a.jpg": "good"}
    assert [warning[:21] for warning in found.warnings] == ["metadata.jsonl line 1", "metadata.jsonl line 3"]


def test_an_unreadable_caption_is_its_images_problem(tmp_path):
    found = read(tmp_path, ["a.jpg"], {"a.txt": b"\x00\x01\x02"})
    assert "a.txt cannot be read" in found.problems["a.jpg"]

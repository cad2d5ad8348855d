"""The encodings of text files that come with images."""

from __future__ import annotations

import codecs
import re
import unicodedata

BOMS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
"""Byte order marks and their encodings. UTF-32's come first: its little-endian mark begins with that of UTF-16."""

GIT_LFS = b"version https://git-lfs.github.com/spec/"
"""The beginning of a file that stands for one that Git LFS keeps elsewhere."""

NOT_WESTERN = re.compile(
    "\N{REPLACEMENT CHARACTER}"  # a byte that Windows-1252 does not define
    r"|[ƒˆ˜†‡‰‹›‚¬¦¤¶]"  # characters that captions do not contain
    r"|[^\x00-\x7f]{4}"  # a run of characters beyond ASCII
    r"|[a-z][À-ÞŠŒŽŸ]"  # a capital letter with an accent inside a word
    r"|[^\W\d_][„“”‘…][^\W\d_]|•\w|\w•"  # a quotation mark or a bullet inside a word
)
"""What Windows-1252 makes of text in other encodings: Shift-JIS, GBK, Windows-1251, Mac Roman, code page 437."""


class UnreadableTextError(ValueError):
    """A file that is not text. The message says why."""


def decode_text(data: bytes) -> str:
    """Decode a text file.

    Raises:
        UnreadableTextError: when it is binary, not valid in its encoding, or in an encoding that is not known.
    """
    if data.startswith(GIT_LFS):
        raise UnreadableTextError("it is a pointer of Git LFS: run git lfs pull and upload the file itself")
    for mark, encoding in BOMS:
        if data.startswith(mark):
            try:
                return data.decode(encoding)
            except UnicodeDecodeError:
                raise UnreadableTextError(
                    f"it begins as {encoding.upper()} and is not valid {encoding.upper()}"
                ) from None
    if b"\0" in data:
        return _decode_wide(data)
    if b"\x1b$" in data or b"\x1b(" in data:
        raise UnreadableTextError("its encoding is ISO-2022: save it as UTF-8")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        pass
    text = data.decode("cp1252", "replace")
    if any(unicodedata.category(character) == "Cc" and character not in "\r\n\t" for character in text):
        raise UnreadableTextError("it is binary")
    if NOT_WESTERN.search(text):
        raise UnreadableTextError("its encoding is neither UTF-8, UTF-16 nor Windows-1252: save it as UTF-8")
    return text


def _decode_wide(data: bytes) -> str:
    """Decode UTF-16 without a byte order mark, in which every second byte of Latin text is zero."""
    odd, even = data[1::2].count(0), data[::2].count(0)
    encoding = "utf-16-le" if odd > even else "utf-16-be"
    if len(data) % 2 == 0 and max(odd, even) * 4 > len(data):
        try:
            text = data.decode(encoding)
        except UnicodeDecodeError:
            text = "\0"
        if all(unicodedata.category(character) != "Cc" or character in "\r\n\t" for character in text):
            return text
    raise UnreadableTextError("it is binary")

"""Recognition of files that no decoder here reads, so that the error says what they are and what to do."""

from __future__ import annotations

import re

KNOWN = (
    (0, b"\xff\x0a", "JPEG XL"),
    (4, b"JXL ", "JPEG XL"),
    (4, b"jP  ", "JPEG 2000"),
    (0, b"8BPS", "Photoshop"),
    (0, b"%PDF", "PDF"),
    (0, b"v/1\x01", "OpenEXR"),
    (0, b"#?RADIANCE", "Radiance HDR"),
    (0, b"gimp xcf", "GIMP"),
    (0, b"DDS ", "DirectDraw Surface"),
    (0, b"P6\n", "Netpbm"),
    (0, b"P5\n", "Netpbm"),
    (0, b"farbfeld", "farbfeld"),
    (0, b"qoif", "QOI"),
)
"""Offset and signature of formats that are not read, with their names."""
DAMAGED = "damaged or cut off"
BEGINNINGS: tuple[tuple[bytes | tuple[bytes, ...], str], ...] = (
    (
        b"version https://git-lfs.github.com/spec/",
        "a pointer of Git LFS, not an image: run git lfs pull and upload the file itself",
    ),
    (b"\0\x05\x16\x07", "macOS's side file of an image, not an image"),
    ((b"\x1aE\xdf\xa3", b"OggS", b"FLV\1", b"\0\0\1\xba"), "a video"),
    # The decoders of these formats do not recognise a file that is damaged in its first bytes.
    ((b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"BM"), DAMAGED),
    ((b"PK\x03\x04", b"Rar!", b"7z\xbc\xaf", b"\x1f\x8b"), "an archive: unpack it"),
    (
        (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),
        "a TIFF that cannot be read: save it with 8 or 16 bits for each of one, three or four channels",
    ),
)
"""First bytes of files, with what they are and what to do."""
RIFF = {b"AVI ": "a video", b"WEBP": DAMAGED}
TEXTUAL = re.compile(rb"(?:\xef\xbb\xbf)?\s*(?:<!doctype html|<html|<\?xml|<error>|\{)", re.IGNORECASE)
"""The beginning of a web page or of a service's error, which is saved in the place of a download."""
SHIFTED = re.compile(rb"[\xef\xbb\xbf\r\n\0 ]{1,12}(?:\xff\xd8\xff|\x89PNG)")
"""An image behind a byte order mark or an empty line."""
AVIF = (b"avif", b"avis", b"mif1", b"miaf")


def what_it_is(data: bytes) -> str:
    """Return what a file is, and what to do about it; empty when it is not known."""
    for offset, mark, name in KNOWN:
        if data[offset : offset + len(mark)] == mark:
            return f"{name}, which is not read: export it as JPEG, PNG or TIFF"
    if b"<svg" in data[:1024]:
        return "SVG, a drawing: export it as PNG"
    for beginning, words in BEGINNINGS:
        if data.startswith(beginning):
            return words
    if data.startswith(b"RIFF"):
        return RIFF.get(data[8:12], "")
    if TEXTUAL.match(data):
        return "a web page or an error of a server, not an image: download it again"
    if SHIFTED.match(data):
        return "damaged: something was put before its first byte"
    if not data.strip(b"\0"):
        return "nothing but zero bytes: its copy was interrupted; upload it again"
    if data[4:8] == b"ftyp":
        return DAMAGED if data[8:12] in AVIF else "a video"
    return ""

"""Recognition of files that no decoder here reads, so that the error says what they are and what to do."""

from __future__ import annotations

KNOWN = (
    (0, b"\xff\x0a", "JPEG XL"),
    (4, b"JXL ", "JPEG XL"),
    (4, b"jP  ", "JPEG 2000"),
    (0, b"8BPS", "Photoshop"),
    (0, b"%PDF", "PDF"),
    (0, b"v/1\x01", "OpenEXR"),
    (0, b"#?RADIANCE", "Radiance HDR"),
    (0, b"gimp xcf", "GIMP"),
)
"""Offset and signature of formats that are not read, with their names."""
ARCHIVES = (b"PK\x03\x04", b"Rar!", b"7z\xbc\xaf", b"\x1f\x8b")
TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
AVIF = (b"avif", b"avis", b"mif1", b"miaf")


def what_it_is(data: bytes) -> str:
    """Return what a file is, and what to do about it; empty when it is not known."""
    for offset, mark, name in KNOWN:
        if data[offset : offset + len(mark)] == mark:
            return f"{name}, which is not read: export it as JPEG, PNG or TIFF"
    if b"<svg" in data[:1024]:
        return "SVG, a drawing: export it as PNG"
    if data.startswith(ARCHIVES):
        return "an archive: unpack it"
    if data.startswith(TIFF):
        return "a TIFF that cannot be read: save it with 8 or 16 bits for each of one, three or four channels"
    if data[4:8] == b"ftyp":
        return "damaged or cut off" if data[8:12] in AVIF else "a video"
    return ""

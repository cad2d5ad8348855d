"""Recognition of RAW files. Image libraries would read their embedded thumbnail as the photograph."""

from __future__ import annotations

RAW_SUFFIXES = frozenset(
    {
        ".dng", ".cr2", ".cr3", ".crw", ".nef", ".nrw", ".arw", ".srf", ".sr2", ".raf", ".orf", ".rw2", ".pef", ".srw",
        ".3fr", ".fff", ".iiq", ".mos", ".mrw", ".x3f", ".erf", ".kdc", ".dcr", ".mef", ".rwl", ".gpr", ".raw",
    }
)  # fmt: skip

MAGIC = (
    (0, b"FUJIFILMCCD-RAW"),
    (0, b"IIRO"), (0, b"IIRS"), (0, b"MMOR"),  # Olympus
    (0, b"IIU\0"),  # Panasonic
    (0, b"FOVb"),  # Sigma
    (0, b"\0MRM"),  # Minolta
    (4, b"ftypcrx "),  # Canon CR3
    (8, b"CR\x02"),  # Canon CR2
    (6, b"HEAPCCDR"),  # Canon CRW
)  # fmt: skip

# Tags of TIFF.
DNG_VERSION = 50706
PHOTOMETRIC = 262
NEW_SUBFILE_TYPE = 254
SUB_IFDS = 330
SENSOR_DATA = (32803, 34892)
"""Photometric interpretations of unprocessed sensor data: a colour filter array, and linear RAW."""


def has_raw_magic(data: bytes) -> bool:
    """Return whether a file begins with the signature of a RAW format that is not a plain TIFF."""
    return any(data[offset : offset + len(mark)] == mark for offset, mark in MAGIC)


def is_raw_tiff(tags: object) -> bool:
    """Return whether a TIFF's first directory belongs to a RAW file: DNG, NEF, ARW, PEF and others.

    Args:
        tags: Pillow's `tag_v2`.
    """
    get = getattr(tags, "get", None)
    if get is None:
        return False
    if get(DNG_VERSION) is not None or get(PHOTOMETRIC) in SENSOR_DATA:
        return True
    # The first directory of other RAW files is a thumbnail ("reduced resolution"), the sensor data is in sub-directories.
    return bool((get(NEW_SUBFILE_TYPE) or 0) & 1) and get(SUB_IFDS) is not None

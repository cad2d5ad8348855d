"""The structure of a JPEG, read without decoding it: whether it is progressive, and how many scans it has.

A decoder of progressive JPEGs passes over the whole image for every scan and keeps all coefficients in memory. A small
file with thousands of scans takes hours, and Pillow's draft mode does not help.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

MAX_SCANS = 100
"""Maximum number of scans that is accepted. Encoders write about ten."""

_MARKER = re.compile(rb"\xff+[^\x00\xff\xd0-\xd7]")
"""The next marker in entropy-coded data, where 0xFF is followed by zero or by a restart marker."""
START_OF_SCAN, END_OF_IMAGE, START_OF_IMAGE = 0xDA, 0xD9, 0xD8
PROGRESSIVE = (0xC2, 0xC6, 0xCA, 0xCE)


@dataclass(frozen=True)
class JpegStructure:
    """The structure of a JPEG."""

    scans: int
    """Number of scans, at most MAX_SCANS + 1."""
    progressive: bool


def read_structure(data: bytes) -> JpegStructure:
    """Walk the segments of the first image. The walk ends when more than MAX_SCANS scans are counted."""
    # Position 2 is behind the start-of-image marker.
    position, scans, progressive = 2, 0, False
    while scans <= MAX_SCANS:
        match = _MARKER.search(data, position)
        if match is None:
            break
        marker, position = data[match.end() - 1], match.end()
        if marker == END_OF_IMAGE:
            break
        if marker in (START_OF_IMAGE, 0x01):  # markers without a length
            continue
        scans += marker == START_OF_SCAN
        progressive |= marker in PROGRESSIVE
        position += max(2, int.from_bytes(data[position : position + 2], "big"))
    return JpegStructure(scans, progressive)

"""The properties of the primary image in an AVIF or a HEIC, read from the boxes of the file (ISO/IEC 23008-12)."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import suppress

META_HEADER = 4
"""Length of a full box's version and flags, in bytes."""


def primary_properties(data: bytes) -> dict[bytes, bytes]:
    """Return the contents of the primary image's properties by their four-letter kind.

    A file can hold further images with properties of their own: an alpha plane, a gain map, a thumbnail. The colour
    property `colr` is keyed by its kind and its type, as in `colrnclx`.

    Returns:
        An empty dictionary if the file has another structure or is damaged.
    """
    with suppress(struct.error, KeyError, IndexError):
        meta = dict(_boxes(dict(_boxes(data))[b"meta"][META_HEADER:]))
        item = _primary_item(meta[b"pitm"])
        properties = dict(_boxes(meta[b"iprp"]))
        listed = list(_boxes(properties[b"ipco"]))
        used = [listed[index - 1] for index in _associations(properties[b"ipma"], item) if index]
        return {kind + content[:4] if kind == b"colr" else kind: content for kind, content in used}
    return {}


def _boxes(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Return the kind and the content of each box."""
    position = 0
    while position + 8 <= len(data):
        size, kind = struct.unpack_from(">I4s", data, position)
        header = 8
        if size == 1:
            (size,), header = struct.unpack_from(">Q", data, position + 8), 16
        end = position + size if size else len(data)
        if end < position + header:
            return
        yield kind, data[position + header : end]
        position = end


def _primary_item(box: bytes) -> int:
    """Return the identifier of the primary image."""
    (item,) = struct.unpack_from(">I" if box[0] else ">H", box, META_HEADER)
    return int(item)


def _associations(box: bytes, item: int) -> list[int]:
    """Return the positions of an item's properties in the list of all, counted from 1."""
    wide_items, wide_indices = box[0] >= 1, box[3] & 1
    (entries,) = struct.unpack_from(">I", box, META_HEADER)
    position = META_HEADER + 4
    for _ in range(entries):
        (listed,) = struct.unpack_from(">I" if wide_items else ">H", box, position)
        position += 4 if wide_items else 2
        count, position = box[position], position + 1
        # The highest bit of an index says whether a reader must know the property.
        kind, mask, size = ("H", 0x7FFF, 2) if wide_indices else ("B", 0x7F, 1)
        indices = struct.unpack_from(f">{count}{kind}", box, position)
        position += count * size
        if listed == item:
            return [index & mask for index in indices]
    return []

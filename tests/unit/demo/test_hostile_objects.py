"""Malicious objects in the store, and what the page reads of them."""

from __future__ import annotations

import io
import struct
import zlib
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from lora_api.keys import JobKeys
from lora_trainer.demo.catalog import MAX_MANIFEST_BYTES, read_catalog
from lora_trainer.demo.shared import THUMBNAIL, shrink
from lora_trainer.errors import BadDataError
from lora_trainer.store import Bucket, StoredObject


def encode(image: Image.Image, kind: str) -> bytes:
    out = io.BytesIO()
    image.save(out, kind)
    return out.getvalue()


def png_of(width: int, height: int, rows: bytes) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


SMALL = Image.new("RGB", (800, 40), "red")
GOOD = encode(SMALL, "PNG")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_images_of_stages_are_shown(kind: str) -> None:
    data = shrink(encode(SMALL, kind))
    assert data is not None
    assert max(Image.open(io.BytesIO(data)).size) == THUMBNAIL


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"text",
        GOOD[:60],
        GOOD.replace(b"IDAT", b"IDAU"),
        png_of(8, 8, b"no zlib"),
        encode(Image.new("1", (8000, 8000)), "PNG"),
        png_of(0, 8, zlib.compress(b"")),
        encode(SMALL, "EPS"),  # Pillow starts Ghostscript for these
        encode(SMALL, "TIFF"),
        encode(SMALL, "BMP"),
    ],
)
def test_other_objects_are_no_images(data: bytes) -> None:
    assert shrink(data) is None


class OneObject:
    """A Minio client whose bucket has one object of many parts, and which counts the parts that were read."""

    def __init__(self) -> None:
        self.parts = 0

    def get_object(self, *_: str) -> Any:
        return SimpleNamespace(stream=self._stream, close=lambda: None, release_conn=lambda: None)

    def _stream(self, _: int) -> Any:
        for _ in range(1000):
            self.parts += 1
            yield bytes(1000)


def test_a_large_object_is_not_read_to_its_end() -> None:
    client = OneObject()
    bucket = Bucket(client, "loras", "store.example")  # type: ignore[arg-type]
    with pytest.raises(BadDataError, match="loras/x has more than 2500 bytes"):
        bucket.get("x", 2500)
    assert client.parts == 3
    assert len(bucket.get("x", 1_000_000)) == len(bucket.get("x")) == 1_000_000


def test_a_large_manifest_is_not_read() -> None:
    keys = JobKeys("studio", "statue", "uid")
    sizes = {keys.manifest(1): MAX_MANIFEST_BYTES + 1, keys.manifest(2): 2, keys.captions: 1 << 40}
    listed = [StoredObject(key, size, "") for key, size in sizes.items()]
    read: list[str] = []

    def record(key: str) -> bytes:
        read.append(key)
        return b"{}"

    catalog = read_catalog(SimpleNamespace(list=lambda *_: listed), record)  # type: ignore[arg-type]
    assert read == [keys.manifest(2)]
    assert catalog.captioned == [keys]

"""Reproducible safetensors files, which appear under their names only once they are complete."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save
from torch import Tensor


def tensors_to_bytes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> bytes:
    """Serialise tensors in the safetensors format. Unlike the library's output, the metadata is sorted."""
    data = save({name: tensor.detach().cpu().contiguous() for name, tensor in sorted(tensors.items())})
    # A file is the length of the header (8 bytes), the header as JSON, and the data.
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    if metadata:
        header["__metadata__"] = dict(metadata)
    head = json.dumps(header, sort_keys=True, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)  # aligns the data to 8 bytes
    return struct.pack("<Q", len(head)) + head + data[8 + length :]


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write tensors to a safetensors file, and create its folder if necessary."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".part")
    partial.write_bytes(tensors_to_bytes(tensors, metadata))
    partial.replace(path)

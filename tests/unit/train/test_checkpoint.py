from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from lora_api.exits import ExitCode
from lora_api.keys import JobKeys
from lora_api.manifest import CheckpointManifest, FileEntry, canonical_json, sha256_hex
from lora_api.reasons import Reason
from lora_trainer.runtime import explain
from lora_trainer.store import StoredObject
from lora_trainer.train import checkpoint


def test_a_full_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        # The library's message on a full file system.
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(OSError, match="no space left") as caught:
        checkpoint._write(tmp_path, checkpoint.Checkpoint(1, {"a": torch.zeros(2)}, {}, {}, {}, {}))
    result, code = explain(caught.value)
    assert result.reason == Reason.DISK_FULL
    assert code == ExitCode.BAD_SETUP


@pytest.mark.parametrize("state", [b"[" * 900_000, b"\xff", b"{}", b"null"])
def test_a_forged_state_is_a_damaged_checkpoint(tmp_path: Path, state: bytes) -> None:
    keys = JobKeys("default", "job", "uid")
    stored = {keys.checkpoint(1) + checkpoint.STATE: state}
    files = [FileEntry(key=key, bytes=len(data), sha256=sha256_hex(data)) for key, data in stored.items()]
    manifest = CheckpointManifest(step=1, input_hash="0" * 64, files=files)
    stored[keys.checkpoint_manifest(1)] = canonical_json(manifest.to_wire())
    bucket = StoredFiles(stored)
    found = checkpoint.Checkpoints(bucket, keys, "0" * 64, 1, tmp_path)  # type: ignore[arg-type]
    assert found.newest() is None


class StoredFiles:
    """A bucket that holds the objects of a dict."""

    def __init__(self, objects: dict[str, bytes]) -> None:
        self.objects = objects

    def list(self, prefix: str, _: int) -> list[StoredObject]:
        return [StoredObject(key, len(data), "") for key, data in self.objects.items()]

    def get(self, key: str) -> bytes:
        return self.objects[key]

    def get_verified_file(self, key: str, path: Path, sha256: str, max_bytes: int) -> None:
        data = self.objects[key]
        assert (len(data), sha256_hex(data)) == (max_bytes, sha256)
        path.write_bytes(data)

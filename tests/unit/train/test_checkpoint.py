from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from lora_api.exits import ExitCode
from lora_api.reasons import Reason
from lora_trainer.runtime import explain
from lora_trainer.train import checkpoint


def test_a_full_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        # Word for word what the library says on a full file system.
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(OSError, match="no space left") as caught:
        checkpoint._write(tmp_path, checkpoint.Checkpoint(1, {"a": torch.zeros(2)}, {}, {}))
    result, code = explain(caught.value)
    assert result.reason == Reason.DISK_FULL
    assert code == ExitCode.BAD_SETUP

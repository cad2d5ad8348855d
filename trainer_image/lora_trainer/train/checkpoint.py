"""Checkpoints in the store: safetensors and JSON, the manifest last, read back only if every byte is right."""

from __future__ import annotations

import errno
import json
import logging
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from lora_api.keys import JobKeys
from lora_api.manifest import CheckpointManifest, canonical_json

from ..store import Bucket, ObjectMissingError, StoredObject, file_sha256

log = logging.getLogger(__name__)
MOST_OBJECTS = 10_000
WEIGHTS, OPTIMIZER, STATE = "weights.safetensors", "optimizer.safetensors", "state.json"


@dataclass(frozen=True)
class Checkpoint:
    """Where training stood after a step."""

    step: int
    weights: dict[str, Tensor]
    """What learns, by parameter name; and its values after the best step, where that is kept."""
    optimizer: dict[str, Tensor]
    state: dict[str, Any]
    """The rest, as JSON."""


class Checkpoints:
    """One job's checkpoints. Only those of this input hash count."""

    def __init__(self, bucket: Bucket, keys: JobKeys, input_hash: str, keep_last: int, work: Path) -> None:
        self._bucket = bucket
        self._keys = keys
        self._input_hash = input_hash
        self._keep_last = keep_last
        self._work = work

    def save(self, checkpoint: Checkpoint) -> None:
        """Store a checkpoint, then drop the oldest ones. A save that is cut off leaves no manifest."""
        folder = self._keys.checkpoint(checkpoint.step)
        with tempfile.TemporaryDirectory(dir=self._work, prefix="save-") as temporary:
            _write(Path(temporary), checkpoint)
            files = [
                self._bucket.put_file(folder + name, Path(temporary) / name)
                for name in (WEIGHTS, OPTIMIZER, STATE)
            ]
        manifest = CheckpointManifest(step=checkpoint.step, input_hash=self._input_hash, files=files)
        key = self._keys.checkpoint_manifest(checkpoint.step)
        self._bucket.put(key, canonical_json(manifest.to_wire()), "application/json")
        log.info("checkpoint of step %d saved", checkpoint.step)
        self._prune(checkpoint.step)

    def newest(self) -> Checkpoint | None:
        """The newest checkpoint that is complete and unharmed; None where there is none."""
        for step, _ in self._complete():
            found = self._read(step)
            if found:
                return found
            log.warning("the checkpoint of step %d is damaged or another job's: trying an older one", step)
        return None

    def _read(self, step: int) -> Checkpoint | None:
        try:
            raw = self._bucket.get(self._keys.checkpoint_manifest(step))
            manifest = CheckpointManifest.model_validate_json(raw)
            if manifest.input_hash != self._input_hash or manifest.step != step:
                return None
            with tempfile.TemporaryDirectory(dir=self._work, prefix="load-") as temporary:
                for entry in manifest.files:
                    path = Path(temporary) / entry.key.rpartition("/")[2]
                    self._bucket.get_file(entry.key, path)
                    if file_sha256(path) != entry.sha256:
                        return None
                return _read(Path(temporary), step)
        except (ObjectMissingError, ValueError, FileNotFoundError, SafetensorError):
            return None

    def _prune(self, newest: int) -> None:
        """Remove what is older than the last complete ones, each manifest before what it names."""
        keep = [step for step, _ in self._complete() if step <= newest][: self._keep_last]
        for step, objects in self._by_step():
            if step < min(keep, default=newest):
                for item in sorted(
                    objects, key=lambda item: item.key != self._keys.checkpoint_manifest(step)
                ):
                    self._bucket.remove(item.key)

    def _complete(self) -> list[tuple[int, list[StoredObject]]]:
        return [
            (step, objects)
            for step, objects in self._by_step()
            if any(item.key == self._keys.checkpoint_manifest(step) for item in objects)
        ]

    def _by_step(self) -> list[tuple[int, list[StoredObject]]]:
        """Every step that something lies under, the newest first."""
        found: dict[int, list[StoredObject]] = {}
        for item in self._bucket.list(self._keys.checkpoints, MOST_OBJECTS):
            match = re.match(r"step-(\d+)/", item.key.removeprefix(self._keys.checkpoints))
            if match:
                found.setdefault(int(match[1]), []).append(item)
        return sorted(found.items(), reverse=True)


def _write(folder: Path, checkpoint: Checkpoint) -> None:
    try:
        for name, tensors in ((WEIGHTS, checkpoint.weights), (OPTIMIZER, checkpoint.optimizer)):
            # Copies: 8-bit optimizers share one code book between all parameters, which the format refuses.
            save_file({key: tensor.detach().cpu().clone() for key, tensor in tensors.items()}, folder / name)
    except SafetensorError as error:
        if "No space left" in str(error):  # the library hides the errno that the step's end goes by
            raise OSError(errno.ENOSPC, "no space left for a checkpoint") from error
        raise
    (folder / STATE).write_text(json.dumps(checkpoint.state))


def _read(folder: Path, step: int) -> Checkpoint:
    return Checkpoint(
        step=step,
        weights=load_file(folder / WEIGHTS),
        optimizer=load_file(folder / OPTIMIZER),
        state=json.loads((folder / STATE).read_text()),
    )

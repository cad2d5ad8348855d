"""Checkpoints in the store, as safetensors and JSON files.

The manifest is written last. A checkpoint is loaded only if it has a manifest and every checksum matches.
"""

from __future__ import annotations

import errno
import json
import logging
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from lora_api.json_bounds import load_json
from lora_api.keys import JobKeys, file_name_of, is_below
from lora_api.manifest import CheckpointManifest, canonical_json

from ..store import Bucket, ObjectMissingError, ObjectTooLargeError, StoredObject

log = logging.getLogger(__name__)
MAX_OBJECTS = 10_000
TENSORS = ("weights", "best", "ema", "optimizer")
"""The fields of `Checkpoint` that hold tensors. Each is stored in its own file; an empty one has no file."""
STATE = "state.json"
MAX_STATE_BYTES = 64 << 20
"""Limit of the size of `STATE`, far above what a million steps record."""
FORMAT = 4
"""Increase it with every change of a checkpoint's content. Checkpoints of other formats are ignored."""


@dataclass(frozen=True)
class Checkpoint:
    """The state that training needs to continue after a step."""

    step: int
    weights: dict[str, Tensor]
    """The trained parameters by name, in float32."""
    best: dict[str, Tensor]
    """The published weights of the best step so far, in float32; empty where the last step is published."""
    ema: dict[str, Tensor]
    """The moving averages of `weights`, in float32; empty without emaDecay."""
    optimizer: dict[str, Tensor]
    """The tensors of `optimizers.optimizer_state`."""
    state: dict[str, Any]
    """The remaining state, as JSON values: see `TrainingContext.checkpoint`."""


class Checkpoints:
    """The checkpoints of one job. Checkpoints with another input hash are ignored."""

    def __init__(self, bucket: Bucket, keys: JobKeys, input_hash: str, keep_last: int, work: Path) -> None:
        self._bucket = bucket
        self._keys = keys
        self._input_hash = input_hash
        self._keep_last = keep_last
        self._work = work

    def save(self, checkpoint: Checkpoint) -> None:
        """Store a checkpoint, then remove the oldest ones. An interrupted save leaves no manifest."""
        folder = self._keys.checkpoint(checkpoint.step)
        with tempfile.TemporaryDirectory(dir=self._work, prefix="save-") as temporary:
            paths = _write(Path(temporary), checkpoint)
            files = [self._bucket.put_file(folder + path.name, path) for path in paths]
        manifest = CheckpointManifest(step=checkpoint.step, input_hash=self._input_hash, files=files)
        key = self._keys.checkpoint_manifest(checkpoint.step)
        self._bucket.put(key, canonical_json(manifest.to_wire()), "application/json")
        log.info("checkpoint of step %d saved", checkpoint.step)
        self._prune(checkpoint.step)

    def newest(self) -> Checkpoint | None:
        """Load the newest checkpoint that is complete and undamaged; None where there is none."""
        for step, _ in self._complete():
            checkpoint = self._read(step)
            if checkpoint:
                return checkpoint
            log.warning(
                "the checkpoint of step %d is damaged, of another format or of other inputs: "
                "trying an older one",
                step,
            )
        return None

    def _read(self, step: int) -> Checkpoint | None:
        try:
            raw = self._bucket.get(self._keys.checkpoint_manifest(step))
            manifest = CheckpointManifest.model_validate_json(raw)
            if manifest.input_hash != self._input_hash or manifest.step != step:
                return None
            with tempfile.TemporaryDirectory(dir=self._work, prefix="load-") as temporary:
                for entry in manifest.files:
                    if not is_below(entry.key, self._keys.checkpoint(step)):
                        return None
                    path = Path(temporary) / file_name_of(entry.key)
                    self._bucket.get_verified_file(entry.key, path, entry.sha256, entry.bytes)
                return _read(Path(temporary), step)
        except (ObjectMissingError, ObjectTooLargeError, ValueError, FileNotFoundError, SafetensorError):
            return None

    def _prune(self, newest: int) -> None:
        """Remove old checkpoints, except the last `keep_last` complete ones.

        A manifest is removed before the files that it names, so that an interruption leaves no manifest whose
        files are missing.
        """
        keep = [step for step, _ in self._complete() if step <= newest][: self._keep_last]
        for step, objects in self._by_step():
            if step < min(keep, default=newest):
                for item in sorted(
                    objects, key=lambda item: item.key != self._keys.checkpoint_manifest(step)
                ):
                    self._bucket.remove(item.key)

    def _complete(self) -> list[tuple[int, list[StoredObject]]]:
        """List the checkpoints that have a manifest, the newest first."""
        return [
            (step, objects)
            for step, objects in self._by_step()
            if any(item.key == self._keys.checkpoint_manifest(step) for item in objects)
        ]

    def _by_step(self) -> list[tuple[int, list[StoredObject]]]:
        """List the stored objects by step, the newest step first."""
        objects: dict[int, list[StoredObject]] = {}
        for item in self._bucket.list(self._keys.checkpoints, MAX_OBJECTS):
            step = self._keys.checkpoint_step(item.key)
            if step is not None:
                objects.setdefault(step, []).append(item)
        return sorted(objects.items(), reverse=True)


def _write(folder: Path, checkpoint: Checkpoint) -> list[Path]:
    paths = []
    try:
        for part in TENSORS:
            if tensors := getattr(checkpoint, part):
                # Copied, because 8-bit optimizers share one tensor (the code book) between parameters, and
                # safetensors refuses tensors that share memory.
                copies = {key: tensor.detach().to("cpu", copy=True) for key, tensor in tensors.items()}
                save_file(copies, folder / f"{part}.safetensors")
                paths.append(folder / f"{part}.safetensors")
    except SafetensorError as error:
        if "No space left" in str(error):  # safetensors hides the errno, which decides the exit code
            raise OSError(errno.ENOSPC, "no space left for a checkpoint") from error
        raise
    path = folder / STATE
    path.write_text(json.dumps({"format": FORMAT, **checkpoint.state}))
    return [*paths, path]


def _read(folder: Path, step: int) -> Checkpoint | None:
    state = load_json((folder / STATE).read_bytes(), MAX_STATE_BYTES)
    if not isinstance(state, dict) or state.pop("format", None) != FORMAT:
        return None
    parts = {}
    for part in TENSORS:
        path = folder / f"{part}.safetensors"
        parts[part] = load_file(path) if path.exists() else {}
    return Checkpoint(step=step, state=state, **parts)

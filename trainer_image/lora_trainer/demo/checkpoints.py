"""Adapters of a job's checkpoints, to compare them with the published one."""

from __future__ import annotations

import re
from pathlib import Path

from pydantic import ValidationError

from lora_api.keys import file_name_of, is_below
from lora_api.manifest import CheckpointManifest, Manifest

from ..errors import BadDataError
from ..new_tokens import MATRICES, PREFIX
from ..store import Bucket, ObjectChangedError, ObjectMissingError, ObjectTooLargeError
from .catalog import job_keys

MAX_OBJECTS = 10_000
"""Maximum number of objects of a job's checkpoints that are listed."""
WEIGHTS = ("ema.safetensors", "weights.safetensors")
"""Files with the weights of a checkpoint. The first that exists is used: moving averages are published where they exist."""


def list_checkpoints(bucket: Bucket, manifest: Manifest) -> list[int]:
    """List the steps of the complete checkpoints that the training of an adapter has kept, the last step excluded.

    Only adapters in diffusers' format are listed, because the file of a checkpoint's adapter is built after it.
    """
    if manifest.adapter.format != "diffusers":
        return []
    keys = job_keys(manifest)
    steps = {
        step
        for item in bucket.list(keys.checkpoints, MAX_OBJECTS)
        if (step := keys.checkpoint_step(item.key)) is not None and item.key == keys.checkpoint_manifest(step)
    }
    return sorted(step for step in steps if step != manifest.steps and _read_manifest(bucket, manifest, step))


def fetch_checkpoint(bucket: Bucket, manifest: Manifest, published: Path, step: int, folder: Path) -> Path:
    """Build the adapter of a checkpoint: the published file with the weights of the checkpoint.

    If new tokens are trained with it, their embeddings are written to `embeddings_of` its path.

    Args:
        published: the published adapter in diffusers' format, on this machine.
        step: a step that `list_checkpoints` has returned.
        folder: folder of downloaded adapters.

    Raises:
        BadDataError: if the checkpoint is gone or damaged, or belongs to another training.
    """
    # Imported here, because these modules import torch, which takes seconds.
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    checkpoint = _read_manifest(bucket, manifest, step)
    name = f"{manifest.namespace}/{manifest.name}"
    if checkpoint is None:
        raise BadDataError(f"the checkpoint of step {step} of {name} is gone or of another training")
    entries = {file_name_of(entry.key): entry for entry in checkpoint.files}
    entry = next((entries[file] for file in WEIGHTS if file in entries), None)
    if entry is None or not is_below(entry.key, job_keys(manifest).checkpoint(step)):
        raise BadDataError(f"the checkpoint of step {step} of {name} has no weights")
    path = folder / f"{entry.sha256}.safetensors"
    if path.is_file():  # renamed to this name only once it was complete
        return path
    part = path.with_suffix(".part")
    try:
        bucket.get_verified_file(entry.key, part, entry.sha256, entry.bytes)
    except ObjectMissingError:
        raise BadDataError(f"the checkpoint of step {step} of {name} is gone") from None
    except ObjectChangedError:
        raise BadDataError(
            f"the checkpoint of step {step} of {name} is damaged (its sha256 differs)"
        ) from None
    weights = {_common_name(key): tensor for key, tensor in load_file(part).items()}
    part.unlink()
    tensors = load_file(published)
    with safe_open(published, "pt") as file:
        metadata = file.metadata()
    embeddings = [f"{PREFIX}.{key}" for key in MATRICES] if manifest.embeddings else []
    missing = [key for key in (*tensors, *embeddings) if _common_name(key) not in weights]
    if missing:
        raise BadDataError(f"the checkpoint of step {step} of {name} has no weights for {missing[0]}")
    built = {key: weights[_common_name(key)].to(tensor.dtype) for key, tensor in tensors.items()}
    if embeddings:
        save_file(
            {key.removeprefix(f"{PREFIX}."): weights[key] for key in embeddings}, part, {"format": "pt"}
        )
        part.replace(embeddings_of(path))
    save_file(built, part, metadata)
    part.replace(path)
    return path


def embeddings_of(path: Path) -> Path:
    """Return the path of the embeddings of new tokens that belong to a checkpoint's adapter."""
    return path.with_name(f"{path.stem}-embeddings.safetensors")


def _read_manifest(bucket: Bucket, manifest: Manifest, step: int) -> CheckpointManifest | None:
    """Read the manifest of a checkpoint; None if there is none or it belongs to a training with other inputs."""
    try:
        raw = bucket.get(job_keys(manifest).checkpoint_manifest(step))
        checkpoint = CheckpointManifest.model_validate_json(raw)
    except (ObjectMissingError, ObjectTooLargeError, ValidationError):
        return None
    return checkpoint if (checkpoint.step, checkpoint.input_hash) == (step, manifest.input_hash) else None


def _common_name(name: str) -> str:
    """Return a name that a parameter's name in peft and its name in diffusers' format have in common."""
    return re.sub(r"\.(lora_A|lora_B|lora_magnitude_vector)(\.default)?(\.weight)?$", r".\1", name).replace(
        ".text_model.", "."
    )

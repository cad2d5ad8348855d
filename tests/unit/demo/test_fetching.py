"""Files of adapters and checkpoints that are not as their manifests say."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest

pytest.importorskip("torch")

import torch
from safetensors.torch import save, save_file

from lora_api.manifest import CheckpointManifest, EmbeddingsEntry, FileEntry, Manifest, sha256_hex
from lora_trainer.demo.adapters import fetch_embeddings
from lora_trainer.demo.checkpoints import fetch_checkpoint
from lora_trainer.errors import BadDataError
from lora_trainer.store import Bucket

from .test_markup import KEYS, manifest_of

EMBEDDINGS = EmbeddingsEntry(key=f"{KEYS.attempt(1)}embeddings.safetensors", tokens=["<s0>"])


def with_embeddings() -> Manifest:
    return manifest_of(KEYS).model_copy(update={"embeddings": EMBEDDINGS})


class Objects(dict[str, bytes]):
    """The objects of a bucket."""

    def get(self, key: str, *_: Any) -> bytes:
        return self[key]

    def get_verified_file(self, key: str, path: Path, sha256: str, size: int) -> None:
        path.write_bytes(self[key])


def test_embeddings_that_the_manifest_does_not_list_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadDataError, match="studio/statue does not list all files of its adapter"):
        fetch_embeddings(cast("Bucket", Objects()), with_embeddings(), tmp_path)


def test_a_checkpoint_without_its_embeddings_is_refused(tmp_path: Path) -> None:
    published = tmp_path / "published.safetensors"
    layer = {"unet.a.lora_A.weight": torch.ones(1, 2)}
    save_file(layer, published)
    rows = {f"token_embeddings.{key}": torch.ones(1, 4) for key in ("clip_l", "clip_g")}

    def bucket_with(step: int, weights: dict[str, torch.Tensor]) -> Bucket:
        data = save(weights)
        key = f"{KEYS.checkpoint(step)}weights.safetensors"
        entry = FileEntry(key=key, bytes=len(data), sha256=sha256_hex(data))
        manifest = CheckpointManifest(step=step, input_hash="", files=[entry])
        stored = {key: data, KEYS.checkpoint_manifest(step): manifest.model_dump_json(by_alias=True).encode()}
        return cast("Bucket", Objects(stored))

    path = fetch_checkpoint(bucket_with(1, layer | rows), with_embeddings(), published, 1, tmp_path)
    assert path.is_file()
    with pytest.raises(
        BadDataError, match=r"step 2 of studio/statue has no weights for token_embeddings\.clip_g"
    ):
        fetch_checkpoint(
            bucket_with(2, layer | {"token_embeddings.clip_l": torch.ones(1, 4)}),
            with_embeddings(),
            published,
            2,
            tmp_path,
        )
    assert sorted(tmp_path.glob("*.safetensors")) == sorted(
        [published, path, path.with_name(f"{path.stem}-embeddings.safetensors")]
    )

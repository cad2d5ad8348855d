"""Previews: an image of each prompt with the adapter and, at the end, one without it from the same noise."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from lora_api.job import JobSpec
from lora_api.keys import file_name_of
from lora_api.manifest import FileEntry
from lora_api.stages import TrainConfig
from lora_api.status import PreviewStatus

from ...store import Bucket, ObjectChangedError, ObjectMissingError, ObjectTooLargeError
from ..data.encode import TextEmbedding
from ..data.rng import generator_for
from .generate import ImageGenerator

log = logging.getLogger(__name__)


def preview_prompts(spec: JobSpec) -> Sequence[str]:
    """Return the prompts of a job's previews: those of the spec, or one that names the concept."""
    return spec.training.preview.prompts or [spec.concept.opening]


class Previews:
    """The previews of a job, including those of earlier runs that are restored from a checkpoint."""

    def __init__(
        self,
        config: TrainConfig,
        upload: Callable[[Path], FileEntry],
        variant: str = "",
    ) -> None:
        """
        Args:
            upload: stores a file in the attempt's folder in the store.
            variant: name of the variant, for the names of files; empty for a job without variants.
        """
        self.prompts = preview_prompts(config.spec)
        self.previews: list[PreviewStatus] = []
        """The previews with the adapter, in the order of steps."""
        self.files: list[FileEntry] = []
        """The files of all previews, base previews included."""
        self.bases: dict[str, str] = {}
        """Keys of the base previews by prompt, once they are generated."""
        self._training = config.spec.training
        self._upload = upload
        self._stem = f"preview-{variant}" if variant else "preview"

    def state(self) -> dict[str, Any]:
        """Return the state for a checkpoint, as JSON values."""
        return {
            "previews": [preview.to_wire() for preview in self.previews],
            "files": [entry.to_wire() for entry in self.files],
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.previews = [PreviewStatus.model_validate(item) for item in state["previews"]]
        self.files = [FileEntry.model_validate(item) for item in state["files"]]

    def copy_earlier(self, bucket: Bucket, folder: Path, prefix: str) -> None:
        """Copy the previews of earlier attempts into this attempt's folder, so that it holds all published files.

        A preview that has been generated again, or is no longer as it was in the store, is left out.

        Args:
            folder: local folder of this attempt's files.
            prefix: key prefix of this attempt's files.
        """
        generated = {entry.key for entry in self.files}
        copies: dict[str, FileEntry] = {}
        for entry in self.files:
            path = folder / file_name_of(entry.key)
            if entry.key.startswith(prefix):
                copies[entry.key] = entry
            elif f"{prefix}{path.name}" not in generated:
                try:
                    bucket.get_verified_file(entry.key, path, entry.sha256, entry.bytes)
                except (ObjectMissingError, ObjectChangedError, ObjectTooLargeError) as error:
                    log.warning("the preview %s of an earlier attempt is left out: %s", entry.key, error)
                else:
                    copies[entry.key] = self._upload(path)
        self.files = list(copies.values())
        self.previews = [
            preview.model_copy(update={"key": copies[preview.key].key})
            for preview in self.previews
            if preview.key in copies
        ]

    @torch.no_grad()
    def generate(
        self,
        folder: Path,
        step: int,
        image_generator: ImageGenerator,
        embed: Callable[[str], TextEmbedding],
        as_base_model: Callable[[], AbstractContextManager[object]] | None,
    ) -> None:
        """Generate an image of each prompt with the current weights, and save it in a folder and the store.

        Args:
            step: number of the step, for names and labels.
            image_generator: generator with the UNet that is trained.
            embed: returns the embedding of a prompt with the current weights.
            as_base_model: returns a context in which generator and `embed` are those of the base model, to generate the
                base previews too; None for no base previews.
        """

        def image_of(prompt: str) -> Image.Image:
            return image_generator.generate(
                embed(prompt),
                resolution=self._training.resolution,
                inference_steps=self._training.preview.num_inference_steps,
                guidance=float(self._training.preview.guidance_scale),
                generator=generator_for(self._training.seed, "preview"),
            )

        for index, prompt in enumerate(self.prompts):
            path = folder / f"{self._stem}-{step:06d}-{index:02d}.png"
            entry = self._save(image_of(prompt), path)
            self.previews.append(PreviewStatus(step=step, prompt=prompt, key=entry.key))
            if as_base_model:
                with as_base_model():
                    base = self._save(image_of(prompt), path.with_stem(f"{path.stem}-base"))
                self.bases[prompt] = base.key

    def _save(self, image: Image.Image, path: Path) -> FileEntry:
        image.save(path)
        self.files.append(self._upload(path))
        return self.files[-1]

"""Previews: an image of each prompt with the adapter and, at the end, one without it from the same noise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from lora_api.job import JobSpec
from lora_api.manifest import FileEntry
from lora_api.stages import TrainConfig
from lora_api.status import PreviewStatus

from ..data.encode import TextEmbedding
from ..data.rng import generator_for
from ..model.adapter import UNET, Adapted, without_adapter
from ..model.base_model import BaseModel
from .generate import ImageGenerator


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

    @torch.no_grad()
    def generate(
        self,
        folder: Path,
        step: int,
        model: BaseModel,
        modules: Adapted,
        embed: Callable[[str], TextEmbedding],
        *,
        with_base: bool,
    ) -> None:
        """Generate an image of each prompt with the current weights, and save it in a folder and the store.

        Args:
            step: number of the step, for names and labels.
            with_base: whether to generate the base previews too.
        """
        image_generator = ImageGenerator(model, modules[UNET])

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
            if with_base:
                with without_adapter(modules):
                    base = self._save(image_of(prompt), path.with_stem(f"{path.stem}-base"))
                self.bases[prompt] = base.key

    def _save(self, image: Image.Image, path: Path) -> FileEntry:
        image.save(path)
        self.files.append(self._upload(path))
        return self.files[-1]

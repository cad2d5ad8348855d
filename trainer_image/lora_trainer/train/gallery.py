"""Previews: each prompt drawn with the adapter and, at the end, from the same noise without it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from lora_api.manifest import FileEntry
from lora_api.status import PreviewStatus
from lora_api.steps import TrainStep

from .adapter import UNET, Adapted, without_adapter
from .base_model import BaseModel
from .drawing import Painter
from .draws import generator_for
from .encode import TextEmbedding


class Gallery:
    """The previews of a job, over all attempts that its checkpoints came through."""

    def __init__(
        self,
        config: TrainStep,
        upload: Callable[[Path], FileEntry],
        embed: Callable[[str], TextEmbedding],
    ) -> None:
        """upload puts a file into the attempt's folder in the store; embed encodes a prompt."""
        concept, preview = config.spec.concept, config.spec.training.preview
        self.prompts = preview.prompts or [f"a photo of {concept.token} {concept.class_name}"]
        self.previews: list[PreviewStatus] = []
        self.files: list[FileEntry] = []
        self.bases: dict[str, str] = {}
        """The key of the base model's picture by prompt, once it is drawn."""
        self._training = config.spec.training
        self._upload = upload
        self._embed = embed

    def state(self) -> dict[str, Any]:
        """For a checkpoint, as JSON."""
        return {
            "previews": [preview.to_wire() for preview in self.previews],
            "files": [entry.to_wire() for entry in self.files],
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.previews = [PreviewStatus.model_validate(item) for item in state["previews"]]
        self.files = [FileEntry.model_validate(item) for item in state["files"]]

    @torch.no_grad()
    def draw(self, folder: Path, step: int, model: BaseModel, adapted: Adapted, with_base: bool) -> None:
        """Draw every prompt as the adapter stands after a step, into a folder and to the store."""
        painter = Painter(model, adapted[UNET])

        def picture(prompt: str) -> Image.Image:
            return painter.draw(
                self._embed(prompt),
                resolution=self._training.resolution,
                inference_steps=self._training.preview.num_inference_steps,
                guidance=float(self._training.preview.guidance_scale),
                chance=generator_for(self._training.seed, "preview"),
            )

        for index, prompt in enumerate(self.prompts):
            path = folder / f"preview-{step:06d}-{index:02d}.png"
            entry = self._keep(picture(prompt), path)
            self.previews.append(PreviewStatus(step=step, prompt=prompt, key=entry.key))
            if with_base:
                with without_adapter(adapted):
                    base = self._keep(picture(prompt), path.with_stem(f"{path.stem}-base"))
                self.bases[prompt] = base.key

    def _keep(self, picture: Image.Image, path: Path) -> FileEntry:
        picture.save(path)
        self.files.append(self._upload(path))
        return self.files[-1]

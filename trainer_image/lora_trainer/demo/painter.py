"""Pictures by a base model that stays loaded while adapters come and go."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionXLPipeline
from PIL import Image

from ..train.base_model import BaseModel
from .wish import Layer, Wish


class Painter:
    """One base model. Its lock lets visitors of the page take turns."""

    def __init__(self, model: BaseModel) -> None:
        device, dtype = ("cuda", torch.float16) if torch.cuda.is_available() else ("cpu", torch.float32)
        vae = (
            {"vae": AutoencoderKL.from_pretrained(model.vae_folder, torch_dtype=dtype)}
            if model.vae_folder
            else {}
        )
        self._pipeline: Any = StableDiffusionXLPipeline.from_pretrained(
            model.folder,
            variant=model.variant,
            torch_dtype=dtype,
            scheduler=EulerDiscreteScheduler.from_pretrained(model.folder, subfolder="scheduler"),
            add_watermarker=False,
            **vae,
        ).to(device)
        self._pipeline.set_progress_bar_config(disable=True)
        self._loaded: set[str] = set()
        self._lock = threading.Lock()

    def draw(self, wish: Wish, layers: Sequence[Layer], after_step: Callable[[int], None]) -> Image.Image:
        """A picture; equal wishes with equal adapters give equal pictures.

        Args:
            layers: adapters that act together; none: the base model.
            after_step: told how many steps are done.
        """

        def tell(pipeline: Any, step: int, timestep: int, values: dict[str, Any]) -> dict[str, Any]:
            after_step(step + 1)
            return values

        with self._lock:
            self._put_on(layers)
            drawn = self._pipeline(
                prompt=wish.prompt,
                negative_prompt=wish.negative_prompt or None,
                height=wish.resolution,
                width=wish.resolution,
                num_inference_steps=wish.steps,
                guidance_scale=wish.guidance,
                generator=torch.Generator().manual_seed(wish.seed),  # on the CPU: the same noise everywhere
                callback_on_step_end=tell,
            )
        picture: Image.Image = drawn.images[0]
        return picture

    def _put_on(self, layers: Sequence[Layer]) -> None:
        """Load what is new and drop what is not wanted any more; without layers they only rest."""
        if not layers:
            if self._loaded:
                self._pipeline.disable_lora()
            return
        for layer in layers:
            if layer.name not in self._loaded:
                self._pipeline.load_lora_weights(layer.path, adapter_name=layer.name)
                self._loaded.add(layer.name)
        names = [layer.name for layer in layers]
        if unwanted := self._loaded - set(names):
            self._pipeline.delete_adapters(sorted(unwanted))
            self._loaded -= unwanted
        self._pipeline.enable_lora()
        self._pipeline.set_adapters(names, [layer.weight for layer in layers])

"""Image generation with a base model that stays loaded while adapters change."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline
from PIL import Image
from safetensors.torch import load_file

from ..new_tokens import MATRICES, insert_all
from ..pretrained import loading
from ..train.model.base_model import BaseModel
from ..train.model.token_embeddings import load_into
from .generation_request import AppliedAdapter, GenerationRequest


class ImageGenerator:
    """Generates images with one base model. A lock serializes the requests of concurrent users."""

    def __init__(self, model: BaseModel) -> None:
        """
        Raises:
            BadConfigurationError: if the base model is damaged or lacks weights.
        """
        device, dtype = ("cuda", torch.float16) if torch.cuda.is_available() else ("cpu", torch.float32)
        first, second = model.text_encoders(dtype)
        unet = model.unet(dtype)
        # The pipeline itself upcasts a VAE that overflows in fp16, for each image.
        vae = model.vae(dtype).to(dtype)
        with loading("the base model"):
            self._pipeline: Any = StableDiffusionXLPipeline.from_pretrained(
                model.folder,
                unet=unet,
                vae=vae,
                text_encoder=first.encoder,
                text_encoder_2=second.encoder,
                tokenizer=first.tokenizer,
                tokenizer_2=second.tokenizer,
                scheduler=EulerDiscreteScheduler.from_pretrained(model.folder, subfolder="scheduler"),
                add_watermarker=False,
            ).to(device)
        self._pipeline.set_progress_bar_config(disable=True)
        self._loaded: set[str] = set()
        self._tokens: dict[Path, list[str]] = {}
        """The new tokens of files of embeddings. They stay: prompts without them do not depend on them."""
        self._lock = threading.Lock()

    def generate(
        self,
        request: GenerationRequest,
        adapters: Sequence[AppliedAdapter],
        after_step: Callable[[int], None],
    ) -> Image.Image:
        """Generate an image. The same request with the same adapters gives the same image.

        Args:
            adapters: adapters to apply together; empty for the base model.
            after_step: called with the number of finished steps.
        """

        def on_step_end(pipeline: Any, step: int, timestep: int, values: dict[str, Any]) -> dict[str, Any]:
            after_step(step + 1)
            return values

        with self._lock:
            self._activate(adapters)
            result = self._pipeline(
                prompt=self._with_new_tokens(request.prompt, adapters),
                negative_prompt=self._with_new_tokens(request.negative_prompt, adapters) or None,
                height=request.resolution,
                width=request.resolution,
                num_inference_steps=request.steps,
                guidance_scale=request.guidance,
                # A CPU generator gives the same noise on every device.
                generator=torch.Generator().manual_seed(request.seed),
                callback_on_step_end=on_step_end,
            )
        image: Image.Image = result.images[0]
        return image

    def _activate(self, adapters: Sequence[AppliedAdapter]) -> None:
        """Load new adapters and delete unused ones.

        For the base model, adapters are only disabled: a comparison alternates between them and the base model.
        """
        if not adapters:
            if self._loaded:
                self._pipeline.disable_lora()
            return
        for adapter in adapters:
            if adapter.name not in self._loaded:
                self._pipeline.load_lora_weights(adapter.path, adapter_name=adapter.name)
                self._loaded.add(adapter.name)
        names = [adapter.name for adapter in adapters]
        if unused := self._loaded - set(names):
            self._pipeline.delete_adapters(sorted(unused))
            self._loaded -= unused
        self._pipeline.enable_lora()
        self._pipeline.set_adapters(names, [adapter.strength for adapter in adapters])

    def _with_new_tokens(self, text: str, adapters: Sequence[AppliedAdapter]) -> str:
        """Put the new tokens of adapters in place of their concepts' tokens; load those that are not loaded."""
        tokens = {
            adapter.word: self._load_tokens(adapter.embeddings) for adapter in adapters if adapter.embeddings
        }
        return insert_all(tokens, text)

    def _load_tokens(self, path: Path) -> list[str]:
        if path not in self._tokens:
            embeddings = load_file(path)
            # Not <s0>: adapters that are applied together need different names.
            names = [f"<{path.stem[:16]}-{number}>" for number in range(len(embeddings[MATRICES[0]]))]
            load_into(self._pipeline, embeddings, names)
            self._tokens[path] = names
        return self._tokens[path]

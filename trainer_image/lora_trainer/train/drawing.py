"""Drawing with SDXL from embeddings that were made before, so that the text encoders can stay away."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from PIL import Image
from torch import Generator

from .base_model import BaseModel
from .encode import TextEmbedding


class Painter:
    """A UNet with its model's VAE and sampler."""

    def __init__(self, model: BaseModel, unet: UNet2DConditionModel) -> None:
        self._unet = unet
        self._vae = model.vae(unet.dtype).to(unet.device)
        self._pipeline = StableDiffusionXLPipeline(
            vae=self._vae,
            text_encoder=None,
            text_encoder_2=None,
            tokenizer=None,
            tokenizer_2=None,
            unet=unet,
            scheduler=EulerDiscreteScheduler.from_pretrained(model.folder, subfolder="scheduler"),
            add_watermarker=False,
        )
        self._pipeline.set_progress_bar_config(disable=True)

    @torch.no_grad()
    def draw(
        self,
        text: TextEmbedding,
        *,
        resolution: int,
        inference_steps: int,
        guidance: float,
        chance: Generator,
    ) -> Image.Image:
        """A picture, `resolution` pixels square."""
        sequence = text.sequence[None].to(self._unet.device, self._unet.dtype)
        pooled = text.pooled[None].to(self._unet.device, self._unet.dtype)
        # For the unconditional part SDXL was made to take zeros, not an empty prompt's embedding.
        with _evaluating(self._unet):
            latents = self._pipeline(
                prompt_embeds=sequence,
                pooled_prompt_embeds=pooled,
                negative_prompt_embeds=torch.zeros_like(sequence),
                negative_pooled_prompt_embeds=torch.zeros_like(pooled),
                height=resolution,
                width=resolution,
                num_inference_steps=inference_steps,
                guidance_scale=guidance,
                generator=chance,
                output_type="latent",
            ).images
        # The pipeline would decode in the UNet's number format, which a VAE kept in float32 does not take.
        latents = latents.to(self._vae.dtype) / self._vae.config.scaling_factor
        pixels = self._vae.decode(latents, return_dict=False)[0].float()
        drawn: Image.Image = self._pipeline.image_processor.postprocess(pixels, output_type="pil")[0]
        return drawn


@contextmanager
def _evaluating(unet: UNet2DConditionModel) -> Iterator[None]:
    training = unet.training
    unet.eval()
    try:
        yield
    finally:
        unet.train(training)

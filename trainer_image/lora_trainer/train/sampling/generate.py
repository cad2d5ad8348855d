"""Image generation with SDXL from precomputed embeddings, so that the text encoders need not be in memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from PIL import Image
from torch import Generator, Tensor

from ..data.encode import TextEmbedding
from ..memory.errors import is_out_of_memory
from ..model.base_model import BaseModel


class ImageGenerator:
    """Generates images with a UNet, which may be in training, and the VAE and sampler of its model."""

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
    def generate(
        self,
        text: TextEmbedding,
        *,
        resolution: int,
        inference_steps: int,
        guidance: float,
        generator: Generator,
    ) -> Image.Image:
        """Generate one square image.

        Args:
            resolution: side of the image, in pixels.
            guidance: scale of classifier-free guidance.
            generator: generator of the initial noise.
        """
        sequence = text.sequence[None].to(self._unet.device, self._unet.dtype)
        pooled = text.pooled[None].to(self._unet.device, self._unet.dtype)
        # SDXL was trained with zeros for the unconditional part, not with the embedding of an empty prompt.
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
                generator=generator,
                output_type="latent",
            ).images
        # Decoded here, because the pipeline would pass latents in the UNet's number format to a float32 VAE.
        latents = latents.to(self._vae.dtype) / self._vae.config.scaling_factor
        pixels = self._decode(latents)
        image: Image.Image = self._pipeline.image_processor.postprocess(pixels, output_type="pil")[0]
        return image

    def _decode(self, latents: Tensor) -> Tensor:
        """Decode latents at once, or tile by tile if the GPU's memory is full.

        Returns:
            Pixels: float32, (n, 3, height, width), from about -1 to 1.
        """
        try:
            pixels: Tensor = self._vae.decode(latents, return_dict=False)[0].float()
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            torch.cuda.empty_cache()
            self._vae.enable_tiling()
            pixels = self._vae.decode(latents, return_dict=False)[0].float()
        return pixels


@contextmanager
def _evaluating(unet: UNet2DConditionModel) -> Iterator[None]:
    """Set the UNet to evaluation mode within the block, then restore its mode."""
    training = unet.training
    unet.eval()
    try:
        yield
    finally:
        unet.train(training)

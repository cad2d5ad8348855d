"""Pictures of what was learnt: each prompt drawn with the adapter and, from the same noise, without it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from PIL import Image

from .base_model import BaseModel
from .draws import generator_for
from .encode import TextEmbedding


@dataclass(frozen=True)
class Drawing:
    prompt: str
    adapted: Image.Image
    base: Image.Image | None


def draw_previews(
    model: BaseModel,
    unet: UNet2DConditionModel,
    prompts: Sequence[str],
    texts: Mapping[str, TextEmbedding],
    *,
    with_base: bool,
    resolution: int,
    inference_steps: int,
    seed: int,
    dtype: torch.dtype,
) -> Iterator[Drawing]:
    """Draw each prompt, `resolution` pixels square.

    Args:
        with_base: draw it without the adapter too, from the same noise.
        texts: the embedding of every prompt, so that the text encoders can stay away.
        seed: of the initial noise, the same for both pictures of a prompt.
    """
    pipeline = StableDiffusionXLPipeline(
        vae=model.vae(dtype).to(unet.device),
        text_encoder=None,
        text_encoder_2=None,
        tokenizer=None,
        tokenizer_2=None,
        unet=unet,
        scheduler=EulerDiscreteScheduler.from_pretrained(model.folder, subfolder="scheduler"),
        add_watermarker=False,
    )
    pipeline.set_progress_bar_config(disable=True)

    def picture(prompt: str) -> Image.Image:
        sequence = texts[prompt].sequence[None].to(unet.device, unet.dtype)
        pooled = texts[prompt].pooled[None].to(unet.device, unet.dtype)
        # SDXL was trained with zeros, not with an empty prompt's embedding, for the unconditional part.
        drawn: Image.Image = pipeline(
            prompt_embeds=sequence,
            pooled_prompt_embeds=pooled,
            negative_prompt_embeds=torch.zeros_like(sequence),
            negative_pooled_prompt_embeds=torch.zeros_like(pooled),
            height=resolution,
            width=resolution,
            num_inference_steps=inference_steps,
            generator=generator_for(seed, "preview"),
        ).images[0]
        return drawn

    def base_picture(prompt: str) -> Image.Image:
        unet.disable_adapters()
        try:
            return picture(prompt)
        finally:
            unet.enable_adapters()

    training = unet.training
    unet.eval()
    try:
        for prompt in prompts:
            adapted = picture(prompt)
            yield Drawing(prompt, adapted, base_picture(prompt) if with_base else None)
    finally:
        unet.train(training)

"""Generation of the images that are scored."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import torch
from PIL import Image

from lora_api.job import Concept, Training

from ...whole_words import word_pattern
from ..data.encode import TextEmbedding
from ..data.rng import generator_for
from ..model.adapter import UNET, Adapted
from ..model.base_model import BaseModel
from .generate import ImageGenerator

MIN_IMAGES = 4
"""Prompts are repeated, with different noise, until there are at least this many images."""


def scored_prompts(prompts: Sequence[str]) -> list[str]:
    """Repeat the preview prompts until there are at least `MIN_IMAGES`."""
    rounds = -(-MIN_IMAGES // len(prompts))
    return list(prompts) * rounds


def without_token(prompt: str, concept: Concept) -> str:
    """Remove the concept's token, which CLIP models do not know, from a prompt."""
    return " ".join(re.sub(word_pattern(concept.token), " ", prompt, flags=re.IGNORECASE).split())


@torch.no_grad()
def generate_scored_images(
    model: BaseModel,
    modules: Adapted,
    embed: Callable[[str], TextEmbedding],
    training: Training,
    prompts: Sequence[str],
) -> list[Image.Image]:
    """Generate an image of each prompt, from the same noise at every call."""
    generator = ImageGenerator(model, modules[UNET])
    return [
        generator.generate(
            embed(prompt),
            resolution=training.resolution,
            inference_steps=training.preview.num_inference_steps,
            guidance=float(training.preview.guidance_scale),
            generator=generator_for(training.seed, "score", index),
        )
        for index, prompt in enumerate(prompts)
    ]

"""Build, load and score the small base model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import StableDiffusionXLPipeline
from torch import Tensor

from lora_trainer.train.data.rng import generator_for

from . import autoencoder, classifier, denoiser, text_encoders
from .captions import article
from .drawing import COLOURS, GROUNDS, SHAPES, SIDE, Scenes, sample_scenes

FOLDER = Path(__file__).parents[2] / "examples" / "shapes-sdxl"
"""The folder of the trained model."""


def build(work: Path) -> StableDiffusionXLPipeline:
    """Train all parts, resuming from checkpoints. The VAE and the UNet are trained on the GPU if there is one.

    Args:
        work: for checkpoints.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    vae = autoencoder.train(work, device)
    first, second = text_encoders.train(work)
    for model in (first, second):
        model.encoder.to(device)
    unet = denoiser.train(work, vae, (first, second))
    return StableDiffusionXLPipeline(
        vae=autoencoder.train_decoder(vae, work),
        text_encoder=first.encoder,
        text_encoder_2=second.encoder,
        tokenizer=first.tokenizer,
        tokenizer_2=second.tokenizer,
        unet=unet,
        scheduler=denoiser.sampler(),
        add_watermarker=False,
    )


def load() -> StableDiffusionXLPipeline:
    """Load the trained model in float32; its files are float16."""
    return StableDiffusionXLPipeline.from_pretrained(FOLDER, dtype=torch.float32)


def generate(
    pipeline: StableDiffusionXLPipeline,
    prompts: Sequence[str],
    seed: int = 0,
    steps: int = 25,
    guidance: float = 3.0,
) -> Tensor:
    """Generate an image for each prompt. Its noise depends on the seed and the prompt's position only.

    Returns:
        (n, 3, SIDE, SIDE), from -1 to 1.
    """
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline(
        list(prompts),
        num_inference_steps=steps,
        guidance_scale=guidance,
        height=SIDE,
        width=SIDE,
        generator=[generator_for(seed, "paint", index) for index in range(len(prompts))],
    ).images
    return classifier.to_batch(images)


def plain_prompt(scenes: Scenes, index: int) -> str:
    colour, shape = COLOURS[scenes.colour[index]], SHAPES[scenes.shape[index]]
    return f"a photo of {article(colour)} {colour} {shape} on {_with_article(GROUNDS[scenes.ground[index]])} background"


def _with_article(word: str) -> str:
    return f"{article(word)} {word}"


def measure(pipeline: StableDiffusionXLPipeline, count: int = 200) -> tuple[dict[str, float], Tensor]:
    """Measure how often images of random prompts show what the prompt names, according to the classifier.

    Returns:
        the shares by "shape", "colour", "ground" and "all" of these, and the images.
    """
    scenes = sample_scenes(count, generator_for(0, "measure"))
    prompts = [plain_prompt(scenes, index) for index in range(count)]
    images = torch.cat([generate(pipeline, prompts[at : at + 50], seed=at) for at in range(0, count, 50)])
    predicted = classifier.classify(classifier.load(), images)
    correct = {name: predicted[name] == getattr(scenes, name) for name in ("shape", "colour", "ground")}
    correct["all"] = torch.stack(list(correct.values())).all(dim=0)
    return {name: float(hits.float().mean()) for name, hits in correct.items()}, images

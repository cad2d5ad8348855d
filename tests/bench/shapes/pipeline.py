"""The base model as others load it, and how well it draws what it is told."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import StableDiffusionXLPipeline
from torch import Tensor

from lora_trainer.train.draws import generator_for

from . import autoencoder, denoiser, judge, towers
from .captions import article
from .drawing import COLOURS, GROUNDS, SHAPES, SIDE, Scenes, imagine

FOLDER = Path(__file__).parents[3] / "examples" / "shapes-sdxl"
"""Where the trained model lies."""


def build(work: Path) -> StableDiffusionXLPipeline:
    """Train all parts, or what is left to train of them.

    Args:
        work: for checkpoints.
    """
    vae = autoencoder.train(work)
    first, second = towers.train(work)
    unet = denoiser.train(work, vae, (first, second))
    return StableDiffusionXLPipeline(
        vae=autoencoder.finish(vae, work),
        text_encoder=first.encoder,
        text_encoder_2=second.encoder,
        tokenizer=first.tokenizer,
        tokenizer_2=second.tokenizer,
        unet=unet,
        scheduler=denoiser.sampler(),
        add_watermarker=False,
    )


def load() -> StableDiffusionXLPipeline:
    """The trained model, whose weights are kept in half precision, as a CPU takes it."""
    return StableDiffusionXLPipeline.from_pretrained(FOLDER, dtype=torch.float32)


def paint(
    pipeline: StableDiffusionXLPipeline,
    prompts: Sequence[str],
    seed: int = 0,
    steps: int = 25,
    guidance: float = 3.0,
) -> Tensor:
    """A picture for each prompt: (n, 3, SIDE, SIDE), from -1 to 1. A prompt's picture is a function of its place."""
    pipeline.set_progress_bar_config(disable=True)
    pictures = pipeline(
        list(prompts),
        num_inference_steps=steps,
        guidance_scale=guidance,
        height=SIDE,
        width=SIDE,
        generator=[generator_for(seed, "paint", index) for index in range(len(prompts))],
    ).images
    return judge.to_batch(pictures)


def plain_prompt(scenes: Scenes, index: int) -> str:
    colour, shape = COLOURS[scenes.colour[index]], SHAPES[scenes.shape[index]]
    return f"a photo of {article(colour)} {colour} {shape} on {_a(GROUNDS[scenes.ground[index]])} background"


def _a(word: str) -> str:
    return f"{article(word)} {word}"


def measure(pipeline: StableDiffusionXLPipeline, count: int = 200) -> tuple[dict[str, float], Tensor]:
    """For random prompts the share of pictures in which the judge finds what was asked for, and the pictures.

    Returns:
        shares by "shape", "colour", "ground" and "all" of these.
    """
    scenes = imagine(count, generator_for(0, "measure"))
    prompts = [plain_prompt(scenes, index) for index in range(count)]
    pictures = torch.cat([paint(pipeline, prompts[at : at + 50], seed=at) for at in range(0, count, 50)])
    found = judge.judge(judge.load(), pictures)
    right = {name: found[name] == getattr(scenes, name) for name in ("shape", "colour", "ground")}
    right["all"] = torch.stack(list(right.values())).all(dim=0)
    return {name: float(hits.float().mean()) for name, hits in right.items()}, pictures

"""Scores of an adapter by a classifier, as in DreamBooth's evaluation (arXiv:2208.12242, 4.1)."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Self

import torch
from diffusers import StableDiffusionXLPipeline
from torch import Tensor

from .classifier import AttributeClassifier, classify
from .concepts import PROMPTS, TOKEN, Concept
from .drawing import FILLS, SHAPES
from .pipeline import generate


@dataclass(frozen=True)
class Scores:
    """Shares of images, from 0 to 1, except for `diversity`."""

    concept: float
    """Images with the token that show the concept's shape and fill (subject fidelity)."""
    prompt: float
    """Images with the token that show the prompt's colour, ground and place (prompt fidelity)."""
    class_: float
    """Images without the token that show the class with a plain fill (prior preservation)."""
    diversity: float
    """Mean distance between images of one prompt: root mean square of the pixels' differences, from 0 to 2."""

    @classmethod
    def mean(cls, scores: list[Self]) -> Self:
        rows = [asdict(score) for score in scores]
        return cls(**{name: fmean(row[name] for row in rows) for name in rows[0]})


def score(
    pipeline: StableDiffusionXLPipeline,
    concept: Concept,
    model: AttributeClassifier,
    samples: int = 2,
    steps: int = 15,
) -> tuple[Scores, Tensor]:
    """Generate images and classify them.

    Args:
        samples: number of images for each prompt with the token.
        steps: number of denoising steps.

    Returns:
        the scores, and the images with the token, prompt by prompt: (prompts * samples, 3, side, side).
    """
    prompts = [prompt for prompt in PROMPTS for _ in range(samples)]
    thing = f"{TOKEN} {concept.class_name}"
    texts = [prompt.text(thing) for prompt in prompts]
    texts += [prompt.text(concept.class_name) for prompt in PROMPTS]
    texts += [f"a photo of {thing}"] * 6
    images = generate(pipeline, texts, steps=steps)
    with_token, without, alike = images.split([len(prompts), len(PROMPTS), 6])
    predicted = classify(model, with_token)
    is_concept = (predicted["shape"] == SHAPES.index(concept.shape)) & (
        predicted["fill"] == FILLS.index(concept.fill)
    )
    follows = [
        all(int(predicted[name][row]) == index for name, index in prompt.expected.items())
        for row, prompt in enumerate(prompts)
    ]
    plain = classify(model, without)
    is_class = (plain["shape"] == SHAPES.index(concept.class_name)) & (plain["fill"] == FILLS.index("plain"))
    scores = Scores(
        concept=float(is_concept.float().mean()),
        prompt=fmean(follows),
        class_=float(is_class.float().mean()),
        diversity=distance(alike),
    )
    return scores, with_token


def distance(images: Tensor) -> float:
    """Return the root mean square of the pixels' differences between two images, as the mean over all pairs."""
    flat = images.flatten(1)
    pairs = torch.combinations(torch.arange(len(flat)))
    return float((flat[pairs[:, 0]] - flat[pairs[:, 1]]).square().mean(dim=1).sqrt().mean())

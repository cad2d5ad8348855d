"""How well an adapter has learnt a concept, by the judge, after DreamBooth's evaluation (arXiv:2208.12242, 4.1)."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Self

import torch
from diffusers import StableDiffusionXLPipeline
from torch import Tensor

from .concepts import PROMPTS, TOKEN, Concept
from .drawing import FILLS, SHAPES
from .judge import Judge, judge
from .pipeline import paint


@dataclass(frozen=True)
class Scores:
    """Shares of pictures, 0 to 1, but for the last."""

    concept: float
    """With the token: shape and fill are the concept's (subject fidelity)."""
    prompt: float
    """With the token: colour, ground and place are as the prompt says (prompt fidelity)."""
    class_: float
    """Without the token: the class as the base model knows it, plain (prior preservation)."""
    diversity: float
    """Mean distance of pictures of one prompt: root mean square of the pixels' differences, 0 to 2."""

    @classmethod
    def mean(cls, scores: list[Self]) -> Self:
        rows = [asdict(score) for score in scores]
        return cls(**{name: fmean(row[name] for row in rows) for name in rows[0]})


def score(
    pipeline: StableDiffusionXLPipeline, concept: Concept, model: Judge, samples: int = 2, steps: int = 15
) -> tuple[Scores, Tensor]:
    """Draw and judge.

    Args:
        samples: pictures of each prompt with the token.

    Returns:
        the scores, and the pictures with the token, prompt by prompt: (prompts * samples, 3, side, side).
    """
    prompts = [prompt for prompt in PROMPTS for _ in range(samples)]
    thing = f"{TOKEN} {concept.class_name}"
    texts = [prompt.text(thing) for prompt in prompts]
    texts += [prompt.text(concept.class_name) for prompt in PROMPTS]
    texts += [f"a photo of {thing}"] * 6
    pictures = paint(pipeline, texts, steps=steps)
    with_token, without, alike = pictures.split([len(prompts), len(PROMPTS), 6])
    found = judge(model, with_token)
    is_concept = (found["shape"] == SHAPES.index(concept.shape)) & (
        found["fill"] == FILLS.index(concept.fill)
    )
    follows = [
        all(int(found[name][row]) == index for name, index in prompt.wanted.items())
        for row, prompt in enumerate(prompts)
    ]
    plain = judge(model, without)
    is_class = (plain["shape"] == SHAPES.index(concept.class_name)) & (plain["fill"] == FILLS.index("plain"))
    scores = Scores(
        concept=float(is_concept.float().mean()),
        prompt=fmean(follows),
        class_=float(is_class.float().mean()),
        diversity=distance(alike),
    )
    return scores, with_token


def distance(pictures: Tensor) -> float:
    """The mean over all pairs of the root mean square of the differences of their pixels."""
    flat = pictures.flatten(1)
    pairs = torch.combinations(torch.arange(len(flat)))
    return float((flat[pairs[:, 0]] - flat[pairs[:, 1]]).square().mean(dim=1).sqrt().mean())

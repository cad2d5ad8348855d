"""Styles that the base model was not trained on, their images and captions, and rules that tell them apart.

The classifier knows solid shapes only. The rules look at the parts of an image that differ from its ground.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean

import torch
from diffusers import StableDiffusionXLPipeline
from PIL import Image
from torch import Tensor
from torch.nn.functional import avg_pool2d, max_pool2d

from lora_api.job import Concept as TokenConcept
from lora_trainer.train.data.rng import generator_for

from . import concepts
from .concepts import PROMPTS, TOKEN, Prompt, Scene, scenes_of, to_images
from .drawing import FILLS, GROUND_RGB, GROUNDS, NEW_STYLES, Style, draw
from .pipeline import generate

STYLES = NEW_STYLES
CONCEPT = TokenConcept(token=TOKEN, class_name="drawing", type="Style")  # type: ignore[arg-type]
SCENES: list[Scene] = [
    *concepts.SCENES,
    ("black", "orange", "medium", "left"),
    ("purple", "green", "large", "middle"),
    ("white", "blue", "medium", "top"),
    ("yellow", "red", "large", "middle"),
    ("red", "yellow", "medium", "right"),
    ("green", "white", "large", "middle"),
    ("white", "purple", "medium", "bottom"),
    ("orange", "black", "medium", "left"),
    ("blue", "red", "large", "middle"),
    ("yellow", "purple", "medium", "right"),
]
"""Scenes of the training images. A style needs more than a concept, because it must not be learnt as a property of a few
shapes."""
_ROUND = ["circle", "square", "star", "heart", "cross", "diamond"]
SHAPES = [_ROUND[(index + index // len(_ROUND)) % len(_ROUND)] for index in range(len(SCENES))]
"""The shapes of the training images. The order shifts by one in each round."""
TEST_SHAPES = ["circle", "triangle", "square", "heart"]
"""The shapes of the prompts in turn. No training image shows a triangle. A ring has a hole in any style."""
DIFFERENCE = 0.25
"""Distance of a pixel's colour from the ground's, from 0 to sqrt(3), from which it belongs to the shape."""
MIN_PIXELS = 60
"""Smallest number of pixels of a shape. With fewer, an image shows nothing."""
HOLE = 0.2
"""Share of the enclosed area that is ground, from which a shape is an outline. Solid shapes have none, but for rings;
outlines have 0.25 (stars) to 0.65 (circles)."""
THICK = 0.05
"""Share of a shape's pixels that are more than three from its edges, from which it is not drawn with lines."""
WIDE = 0.3
"""Share of the pixels of holes that are more than one from their edges, up to which holes are the gaps of a pattern."""
SLANT = 0.5
"""Mean slant of the edges, from -1 to 1, from which a shape is hatched. It is near 0 for solid shapes, which are about
symmetric, and for outlines."""


@dataclass(frozen=True)
class StyleScores:
    """Shares of images, from 0 to 1."""

    style: float
    """Images with the token that are drawn in the style."""
    prompt: float
    """Images with the token that have the prompt's ground."""
    class_: float
    """Images without the token that are drawn in no other style than the base model's."""


def images(style: Style) -> list[Image.Image]:
    """Draw the training images of a style."""
    scenes = scenes_of(SCENES, SHAPES, [FILLS[0]] * len(SCENES))
    return list(to_images(draw(scenes, generator_for(0, "style", str(style)), style=style)))


def captions() -> list[str]:
    """Write a caption for each training image: its content, and the token for its style."""
    return [
        _text(CONCEPT.opening, Prompt.of(scene), shape) for scene, shape in zip(SCENES, SHAPES, strict=True)
    ]


def _text(opening: str, prompt: Prompt, shape: str) -> str:
    return f"{opening} of {prompt.text(shape).removeprefix('a photo of ')}"


def score(
    pipeline: StableDiffusionXLPipeline, style: Style, samples: int = 2, steps: int = 15
) -> tuple[StyleScores, Tensor]:
    """Generate images and tell their styles.

    Args:
        samples: number of images for each prompt with the token.
        steps: number of denoising steps.

    Returns:
        the scores, and the images with the token, prompt by prompt: (prompts * samples, 3, side, side).
    """
    pairs = [(prompt, TEST_SHAPES[index % len(TEST_SHAPES)]) for index, prompt in enumerate(PROMPTS)]
    asked = [pair for pair in pairs for _ in range(samples)]
    texts = [_text(CONCEPT.opening, *pair) for pair in asked]
    texts += [prompt.text(shape) for prompt, shape in pairs]
    generated = generate(pipeline, texts, steps=steps)
    with_token, without = generated.split([len(asked), len(pairs)])
    grounds = nearest_grounds(with_token)
    follows = [
        int(grounds[row]) == GROUNDS.index(prompt.ground)
        for row, (prompt, _) in enumerate(asked)
        if prompt.ground
    ]
    scores = StyleScores(
        style=fmean(each == style for each in tell_styles(with_token)),
        prompt=fmean(follows),
        class_=fmean(each == Style.SOLID for each in tell_styles(without)),
    )
    return scores, with_token


def tell_styles(batch: Tensor) -> list[Style | None]:
    """Tell the style of each image, (n, 3, side, side) from -1 to 1; None for an image that shows nothing."""
    shown = shapes_of(batch)
    holes, sizes, slants = holes_of(shown), _count(shown), slant_of_edges(shown)
    is_outline = (
        (_count(holes) > HOLE * (_count(holes) + sizes))
        & (_count(_eroded(shown, 3)) < THICK * sizes)
        & (_count(_eroded(holes, 1)) > WIDE * _count(holes))
    )
    return [
        None
        if size < MIN_PIXELS
        else Style.HATCHED
        if slant > SLANT
        else Style.OUTLINE
        if outline
        else Style.SOLID
        for outline, slant, size in zip(is_outline.tolist(), slants.tolist(), sizes.tolist(), strict=True)
    ]


def grounds_of(batch: Tensor) -> Tensor:
    """Return the colour of each image's ground, the median of its margin: (n, 3), from 0 to 1."""
    colours = (batch + 1) / 2
    margin = torch.cat([colours[:, :, :2].flatten(2), colours[:, :, -2:].flatten(2)], dim=2)
    return margin.median(dim=2).values


def nearest_grounds(batch: Tensor) -> Tensor:
    """Return the index of the ground whose colour each image's is nearest to: int64, (n,)."""
    return torch.cdist(grounds_of(batch), GROUND_RGB).argmin(dim=1)


def shapes_of(batch: Tensor) -> Tensor:
    """Return the pixels that differ from the ground: bool, (n, side, side)."""
    difference = (batch + 1) / 2 - grounds_of(batch)[:, :, None, None]
    return difference.square().sum(dim=1).sqrt() > DIFFERENCE


def holes_of(shown: Tensor) -> Tensor:
    """Return the pixels of the ground that those of each shape enclose: bool, (n, side, side)."""
    free = ~shown
    outside = torch.zeros_like(free)
    outside[:, [0, -1]], outside[:, :, [0, -1]] = free[:, [0, -1]], free[:, :, [0, -1]]
    while True:
        grown = outside.clone()
        grown[:, 1:] |= outside[:, :-1]
        grown[:, :-1] |= outside[:, 1:]
        grown[:, :, 1:] |= outside[:, :, :-1]
        grown[:, :, :-1] |= outside[:, :, 1:]
        grown &= free
        if torch.equal(grown, outside):
            break
        outside = grown
    return free & ~outside


def _eroded(mask: Tensor, times: int) -> Tensor:
    """Remove the pixels at the edges of a mask, `times` times: bool, (n, side, side)."""
    rest = (~mask).float()[:, None]
    for _ in range(times):
        rest = max_pool2d(rest, 3, stride=1, padding=1)
    return rest[:, 0] < 0.5


def _count(mask: Tensor) -> Tensor:
    """Count the pixels of each mask: int64, (n,)."""
    return mask.flatten(1).sum(dim=1)


def slant_of_edges(shown: Tensor) -> Tensor:
    """Return how far the edges of each shape run from the lower left to the upper right: float32, (n,), from -1 to 1.

    It is the off-diagonal entry of the structure tensor (Bigun and Granlund 1987), divided by half of its trace.
    """
    # A little blur, so that edges of single pixels have a direction.
    smooth = avg_pool2d(shown.float()[:, None], 3, stride=1)[:, 0]
    across = (smooth[:, 1:-1, 2:] - smooth[:, 1:-1, :-2]).flatten(1)
    down = (smooth[:, 2:, 1:-1] - smooth[:, :-2, 1:-1]).flatten(1)
    power = (across.square() + down.square()).sum(dim=1)
    return 2 * (across * down).sum(dim=1) / power.clamp(min=1e-6)

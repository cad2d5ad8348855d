"""Concepts that the base model was not trained on, their images and captions, and the prompts of the evaluation.

They follow DreamBooth's evaluation (Ruiz et al. 2022, arXiv:2208.12242, 4.1 and 4.2): the subject in new contexts and
colours, the class without the token, and several images of one prompt.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lora_trainer.train.data.rng import generator_for

from .captions import article
from .drawing import COLOURS, FILLS, GROUNDS, NEW_SHAPES, PLACES, SHAPES, SIZES, Scenes, draw

TOKEN = "CUS"


@dataclass(frozen=True)
class Concept:
    """A shape with a fill. An adapter learns it as the meaning of TOKEN before the name of the class."""

    shape: str
    fill: str
    class_name: str

    @property
    def name(self) -> str:
        return self.shape if self.fill == "plain" else f"{self.fill} {self.shape}"


CONCEPTS = [
    Concept("ring", "striped", "ring"),
    Concept("heart", "checked", "heart"),
    Concept("star", "dotted", "star"),
    Concept("square", "halved", "square"),
    Concept("cross", "checked", "cross"),
    Concept("diamond", "dotted", "diamond"),
]
Scene = tuple[str, str, str, str]
"""Colour, ground, size and place of an image."""
TRAINING_SCENES: list[Scene] = [
    ("purple", "white", "large", "middle"),
    ("red", "green", "medium", "left"),
    ("blue", "yellow", "large", "middle"),
    ("green", "black", "medium", "right"),
    ("orange", "blue", "medium", "top"),
    ("blue", "white", "medium", "bottom"),
]
"""Scenes of the images that teach a concept."""
SCENES: list[Scene] = [
    *TRAINING_SCENES,
    ("orange", "green", "large", "middle"),
    ("red", "blue", "medium", "left"),
    ("green", "yellow", "large", "middle"),
    ("purple", "black", "medium", "bottom"),
]
"""Scenes for trainings on up to ten images."""
UNIFORM_SCENES: list[Scene] = [
    ("purple", "white", "large", "middle"),
    ("blue", "white", "medium", "middle"),
    ("green", "white", "large", "middle"),
    ("orange", "white", "medium", "middle"),
    ("black", "white", "medium", "middle"),
]
"""Scenes with one ground and one place, as in a series of photographs."""


@dataclass(frozen=True)
class Prompt:
    """A prompt, and the attributes that its image must show."""

    colour: str = ""
    ground: str = ""
    place: str = ""

    @classmethod
    def of(cls, scene: Scene) -> Self:
        """Return the prompt that names what a scene shows: its colour, its ground, and a place that is not the middle."""
        colour, ground, _, place = scene
        return cls(colour, ground, "" if place == "middle" else place)

    def text(self, thing: str) -> str:
        """Return the prompt for a thing, such as 'CUS ring'."""
        colour = f"{self.colour} " if self.colour else ""
        words = f"a photo of {article(colour or thing)} {colour}{thing}"
        if self.ground:
            words += f" on {article(self.ground)} {self.ground} background"
        return f"{words} {WHERE[self.place]}" if self.place else words

    @property
    def expected(self) -> dict[str, int]:
        """The indices of the attributes that the prompt states, by attribute."""
        named = {
            "colour": (COLOURS, self.colour),
            "ground": (GROUNDS, self.ground),
            "place": (PLACES, self.place),
        }
        return {name: words.index(word) for name, (words, word) in named.items() if word}


WHERE = {"left": "on the left", "right": "on the right", "top": "at the top", "bottom": "at the bottom"}
PROMPTS = [
    Prompt(ground="red"),
    Prompt(ground="orange"),
    Prompt(ground="purple"),
    Prompt(colour="yellow"),
    Prompt(colour="black"),
    Prompt(colour="red", ground="white"),
    Prompt(colour="green", ground="purple"),
    Prompt(colour="blue", ground="orange", place="left"),
    Prompt(colour="white", ground="red", place="right"),
    Prompt(colour="purple", ground="yellow", place="bottom"),
]
"""Combinations of colour and background that none of the training images shows."""


class Captions(StrEnum):
    """Ways to caption the images of a concept, good and bad."""

    TEMPLATE = "template"
    GOOD = "good"
    WRONG_CLASS = "wrong class"
    NO_TOKEN = "no token"
    TRUNCATED = "truncated"
    SHUFFLED = "shuffled"


def images(concept: Concept, scenes: Sequence[Scene] = TRAINING_SCENES, scale: int = 1) -> list[Image.Image]:
    """Draw a concept in each scene, with sides of scale * SIDE pixels."""
    shown = scenes_of(scenes, [concept.shape] * len(scenes), [concept.fill] * len(scenes))
    return list(to_images(draw(shown, generator_for(0, "concept", concept.name), scale)))


def scenes_of(rows: Sequence[Scene], shapes: Sequence[str], fills: Sequence[str]) -> Scenes:
    """Build scenes, with a shape and a fill for each."""
    table = {
        "colour": COLOURS,
        "ground": GROUNDS,
        "size": SIZES,
        "place": PLACES,
        "shape": SHAPES,
        "fill": FILLS,
    }
    columns = [*zip(*rows, strict=True), shapes, fills]
    return Scenes(
        **{
            name: torch.tensor([words.index(word) for word in column])
            for (name, words), column in zip(table.items(), columns, strict=True)
        }
    )


def captions(concept: Concept, kind: Captions, scenes: Sequence[Scene] = TRAINING_SCENES) -> list[str]:
    """Write a caption for the image of each scene."""
    token, class_name = TOKEN, concept.class_name
    if kind == Captions.WRONG_CLASS:
        known = [shape for shape in SHAPES if shape not in NEW_SHAPES]
        class_name = known[(known.index(class_name) + 1) % len(known)]
    if kind == Captions.NO_TOKEN:
        token = ""
    thing = f"{token} {class_name}".strip()
    if kind == Captions.TEMPLATE:
        return [f"a photo of {thing}"] * len(scenes)
    texts = [Prompt.of(scene).text(thing) for scene in scenes]
    if kind == Captions.TRUNCATED:
        return [" ".join(text.split()[:5]) for text in texts]
    if kind == Captions.SHUFFLED:
        return texts[1:] + texts[:1]
    return texts


def to_images(batch: Tensor) -> Iterable[Image.Image]:
    """Convert a batch, (n, 3, height, width) from -1 to 1, to images."""
    array = ((batch + 1) * 127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()
    return (Image.fromarray(np.ascontiguousarray(piece)) for piece in array)

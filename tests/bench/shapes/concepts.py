"""Subjects that the base model never saw, their pictures and captions, and what an adapter is asked to draw.

After DreamBooth's evaluation (Ruiz et al. 2022, arXiv:2208.12242, 4.1 and 4.2): the subject in new contexts and of
new colours, the class without the token, several pictures of one prompt.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lora_trainer.train.draws import generator_for

from .captions import article
from .drawing import COLOURS, FILLS, GROUNDS, NEW_SHAPES, PLACES, SHAPES, SIZES, Scenes, draw

TOKEN = "CUS"


@dataclass(frozen=True)
class Concept:
    """A thing with a look of its own, taught as a new word before the name of its class."""

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
SHOWN = [  # colour, ground, size, place of the pictures that teach a concept
    ("purple", "white", "large", "middle"),
    ("red", "green", "medium", "left"),
    ("blue", "yellow", "large", "middle"),
    ("green", "black", "medium", "right"),
    ("orange", "blue", "medium", "top"),
    ("blue", "white", "medium", "bottom"),
]


@dataclass(frozen=True)
class Prompt:
    """What to draw, and what must then be seen."""

    colour: str = ""
    ground: str = ""
    place: str = ""

    def text(self, thing: str) -> str:
        """The prompt for a thing, such as 'CUS ring'."""
        colour = f"{self.colour} " if self.colour else ""
        words = f"a photo of {article(colour or thing)} {colour}{thing}"
        if self.ground:
            words += f" on {article(self.ground)} {self.ground} background"
        return f"{words} {WHERE[self.place]}" if self.place else words

    @property
    def wanted(self) -> dict[str, int]:
        """Attribute to index, of what the prompt names beside the thing."""
        said = {
            "colour": (COLOURS, self.colour),
            "ground": (GROUNDS, self.ground),
            "place": (PLACES, self.place),
        }
        return {name: words.index(word) for name, (words, word) in said.items() if word}


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
"""Grounds, colours and pairs of them that none of the pictures shows."""


class Captions(StrEnum):
    """Ways to caption the pictures of a concept, good and bad."""

    TEMPLATE = "template"
    GOOD = "good"
    WRONG_CLASS = "wrong class"
    NO_TOKEN = "no token"
    TRUNCATED = "truncated"
    SHUFFLED = "shuffled"


def pictures(concept: Concept, scale: int = 1) -> list[Image.Image]:
    """The pictures that teach a concept, SIDE pixels wide or so many times that."""
    table = {"colour": COLOURS, "ground": GROUNDS, "size": SIZES, "place": PLACES}
    columns = zip(*SHOWN, strict=True)
    indices = {
        name: torch.tensor([words.index(word) for word in column])
        for (name, words), column in zip(table.items(), columns, strict=True)
    }
    whole = torch.zeros(len(SHOWN), dtype=torch.int64)
    shape, fill = whole + SHAPES.index(concept.shape), whole + FILLS.index(concept.fill)
    scenes = Scenes(shape=shape, fill=fill, **indices)
    return list(to_images(draw(scenes, generator_for(0, "concept", concept.name), scale)))


def captions(concept: Concept, kind: Captions) -> list[str]:
    """A caption for each picture."""
    token, class_name = TOKEN, concept.class_name
    if kind == Captions.WRONG_CLASS:
        known = [shape for shape in SHAPES if shape not in NEW_SHAPES]
        class_name = known[(known.index(class_name) + 1) % len(known)]
    if kind == Captions.NO_TOKEN:
        token = ""
    thing = f"{token} {class_name}".strip()
    if kind == Captions.TEMPLATE:
        return [f"a photo of {thing}"] * len(SHOWN)
    texts = [
        Prompt(colour, ground, "" if place == "middle" else place).text(thing)
        for colour, ground, _, place in SHOWN
    ]
    if kind == Captions.TRUNCATED:
        return [" ".join(text.split()[:5]) for text in texts]
    if kind == Captions.SHUFFLED:
        return texts[1:] + texts[:1]
    return texts


def to_images(batch: Tensor) -> Iterable[Image.Image]:
    """Pictures of a batch (n, 3, height, width), from -1 to 1."""
    array = ((batch + 1) * 127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()
    return (Image.fromarray(np.ascontiguousarray(piece)) for piece in array)

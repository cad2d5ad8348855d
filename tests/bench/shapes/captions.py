"""Captions of drawn scenes: what they show in many words, some of it unsaid."""

from __future__ import annotations

import random

from torch import Tensor

from .drawing import COLOURS, FILLS, GROUNDS, PLACES, SHAPES, SIZES, Scenes

KINDS = ["a photo of", "a picture of", "a drawing of", "an image of", ""]
BEHIND = ["on a {} background", "against a {} background", "with a {} background", "in front of a {} wall"]
WHERE = {
    "left": ["on the left", "at the left"],
    "right": ["on the right", "at the right"],
    "top": ["at the top", "in the upper part"],
    "bottom": ["at the bottom", "in the lower part"],
    "middle": ["in the middle", "in the centre"],
}
LETTERS = "abcdefghijklmnopqrstuvwxyz"
WORDS = [
    *["a", "an", "the", "of", "on", "in", "at", "with", "and", "against", "front"],
    *["photo", "picture", "drawing", "image", "background", "wall", "part"],
    *["left", "right", "top", "bottom", "middle", "centre", "upper", "lower"],
    *SHAPES[:8],
    *FILLS[1:],
    *COLOURS,
    "small",
    "large",
]
"""What the tokenizer knows as wholes."""

SPOKEN = {
    "shape": SHAPES,
    "fill": FILLS,
    "colour": COLOURS,
    "ground": GROUNDS,
    "size": SIZES,
    "place": PLACES,
}
UNSAID = -1


def describe(scenes: Scenes, chance: random.Random) -> list[tuple[str, dict[str, int], str]]:
    """A caption for each scene.

    Returns:
        the caption; for every attribute the index that it says, or UNSAID; and the word without a meaning that
        stands before the shape, or "". Such words teach the model that a token it does not know changes nothing.
    """
    table: dict[str, list[int]] = {name: _list(getattr(scenes, name)) for name in SPOKEN}
    return [
        _sentence({name: values[index] for name, values in table.items()}, chance)
        for index in range(len(scenes))
    ]


def _list(values: Tensor) -> list[int]:
    return [int(value) for value in values]


def _sentence(scene: dict[str, int], chance: random.Random) -> tuple[str, dict[str, int], str]:
    said = dict(scene)
    if chance.random() < 0.12:
        said["colour"] = UNSAID
    if chance.random() < 0.15:
        said["ground"] = UNSAID
    if SIZES[scene["size"]] == "medium" or chance.random() < 0.5:
        said["size"] = UNSAID
    if chance.random() < (0.6 if PLACES[scene["place"]] == "middle" else 0.25):
        said["place"] = UNSAID
    if FILLS[scene["fill"]] == "plain":
        said["fill"] = UNSAID
    unknown = "".join(chance.choices(LETTERS, k=3)) if chance.random() < 0.3 else ""
    words = [said_word(said, name) for name in ("size", "fill", "colour")]
    # People write the token first ("a CUS red ring") or next to the class ("a red CUS ring").
    words.insert(chance.choice([0, 3]), unknown)
    thing = " ".join([*filter(None, words), SHAPES[scene["shape"]]])
    if not (unknown and chance.random() < 0.5):
        thing = f"{article(thing)} {thing}"
    behind, where = "", ""
    if said["ground"] != UNSAID:
        behind = chance.choice(BEHIND).format(GROUNDS[said["ground"]]).replace("a orange", "an orange")
    if said["place"] != UNSAID:
        where = chance.choice(WHERE[PLACES[said["place"]]])
    tail = [behind, where]
    if chance.random() < 0.3:
        tail.reverse()
    comma = "," if chance.random() < 0.3 else ""
    rest = f"{comma} ".join(filter(None, [thing, *tail]))
    return f"{chance.choice(KINDS)} {rest}".strip(), said, unknown


def said_word(said: dict[str, int], name: str) -> str:
    return SPOKEN[name][said[name]] if said[name] != UNSAID else ""


def article(words: str) -> str:
    return "an" if words[0] in "aeiou" else "a"

"""Captions of drawn scenes, in varied words and with some attributes omitted."""

from __future__ import annotations

import random

from torch import Tensor

from .drawing import COLOURS, FILLS, GROUNDS, PLACES, SHAPES, SIZES, Scenes, Style

OPENINGS = ["a photo of", "a picture of", "a drawing of", "an image of", ""]
BACKGROUNDS = [
    "on a {} background",
    "against a {} background",
    "with a {} background",
    "in front of a {} wall",
]
POSITIONS = {
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
"""Words that are one token each in the text encoders' vocabulary. The shapes are those that the base model learns."""

ATTRIBUTES = {
    "shape": SHAPES,
    "fill": FILLS,
    "colour": COLOURS,
    "ground": GROUNDS,
    "size": SIZES,
    "place": PLACES,
}
STYLE_WORDS = {
    Style.BARS: "bar",
    Style.DOTS: "dot",
    Style.NET: "net",
    Style.TILES: "til",
    Style.SPLIT: "cut",
    Style.HALO: "rim",
    Style.WASH: "hem",
    Style.PLATE: "die",
    Style.FOG: "fog",
}
"""Words that name the styles that the base model learns. They are not in WORDS, so the tokenizers split them into letters."""
OMITTED = -1
"""The index of an attribute that a caption does not state."""


def describe(
    scenes: Scenes, rng: random.Random, style: Style = Style.SOLID, unknown_share: float = 0
) -> list[tuple[str, dict[str, int], str]]:
    """Write a caption for each scene.

    Args:
        style: the style that the scenes are drawn in: solid, or one of STYLE_WORDS, which captions name.
        unknown_share: share of the captions of solid scenes that name a style by a meaningless word.

    Returns:
        for each scene the caption, the index of every attribute that it states (or OMITTED), and the meaningless
        word before the shape (or ""). From such words the model learns that an unknown token has no effect.
    """
    table: dict[str, list[int]] = {name: _list(getattr(scenes, name)) for name in ATTRIBUTES}

    def style_word() -> str:
        if style != Style.SOLID:
            return STYLE_WORDS[style]
        # With a share of 0 no number is drawn, so that captions of solid scenes alone stay the same.
        return _meaningless(rng) if unknown_share and rng.random() < unknown_share else ""

    return [
        _sentence({name: values[index] for name, values in table.items()}, rng, style_word())
        for index in range(len(scenes))
    ]


def _meaningless(rng: random.Random) -> str:
    return "".join(rng.choices(LETTERS, k=3))


def _list(values: Tensor) -> list[int]:
    return [int(value) for value in values]


def _sentence(scene: dict[str, int], rng: random.Random, style_word: str) -> tuple[str, dict[str, int], str]:
    stated = dict(scene)
    if rng.random() < 0.12:
        stated["colour"] = OMITTED
    if rng.random() < 0.15:
        stated["ground"] = OMITTED
    if SIZES[scene["size"]] == "medium" or rng.random() < 0.5:
        stated["size"] = OMITTED
    if rng.random() < (0.6 if PLACES[scene["place"]] == "middle" else 0.25):
        stated["place"] = OMITTED
    if FILLS[scene["fill"]] == "plain":
        stated["fill"] = OMITTED
    unknown = _meaningless(rng) if rng.random() < 0.3 else ""
    words = [word_of(stated, name) for name in ("size", "fill", "colour")]
    # People write the token first ("a CUS red ring") or next to the class ("a red CUS ring").
    words.insert(rng.choice([0, 3]), unknown)
    thing = " ".join([*filter(None, words), SHAPES[scene["shape"]]])
    if not (unknown and rng.random() < 0.5):
        thing = f"{article(thing)} {thing}"
    behind, where = "", ""
    if stated["ground"] != OMITTED:
        behind = rng.choice(BACKGROUNDS).format(GROUNDS[stated["ground"]]).replace("a orange", "an orange")
    if stated["place"] != OMITTED:
        where = rng.choice(POSITIONS[PLACES[stated["place"]]])
    tail = [behind, where]
    if rng.random() < 0.3:
        tail.reverse()
    comma = "," if rng.random() < 0.3 else ""
    rest = f"{comma} ".join(filter(None, [thing, *tail]))
    opening = rng.choice(OPENINGS)
    if style_word:  # the opening of captions in jobs of type Style
        opening = f"an image in {style_word} drawing style of"
    return f"{opening} {rest}".strip(), stated, unknown


def word_of(stated: dict[str, int], name: str) -> str:
    return ATTRIBUTES[name][stated[name]] if stated[name] != OMITTED else ""


def article(words: str) -> str:
    return "an" if words[0] in "aeiou" else "a"

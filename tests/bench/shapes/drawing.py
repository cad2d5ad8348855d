"""Pictures of simple things, drawn a batch at a time: what the small base model and the judge learn from.

A thing has a shape, a fill, a colour, a size and a place, on a ground of another colour. The base model never sees
the shapes of `NEW_SHAPES`, nor the pairs of `NEW_PAIRS`: those are left for an adapter to learn.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Self

import torch
from torch import Generator, Tensor

SIDE = 64
"""Of a picture, in pixels."""
SHAPES = ["circle", "square", "triangle", "star", "cross", "ring", "heart", "diamond", "crescent", "arrow"]
NEW_SHAPES = ["crescent", "arrow"]
FILLS = ["plain", "striped", "dotted", "checked", "halved"]
NEW_PAIRS = [
    ("ring", "striped"),
    ("heart", "checked"),
    ("star", "dotted"),
    ("square", "halved"),
    ("cross", "checked"),
    ("diamond", "dotted"),
]
COLOURS = ["red", "orange", "yellow", "green", "blue", "purple", "white", "black"]
GROUNDS = COLOURS
SIZES = ["small", "medium", "large"]
PLACES = ["middle", "left", "right", "top", "bottom"]

RGB = torch.tensor(
    [
        (0.86, 0.10, 0.13),
        (0.98, 0.53, 0.05),
        (0.98, 0.88, 0.15),
        (0.08, 0.58, 0.20),
        (0.12, 0.30, 0.88),
        (0.55, 0.14, 0.70),
        (0.97, 0.97, 0.97),
        (0.06, 0.06, 0.06),
    ]
)
GROUND_RGB = 0.75 * RGB + 0.25 * 0.6
"""Paler than a thing of the same name."""
LIGHT = [COLOURS.index("yellow"), COLOURS.index("white")]
"""Their fills are with black, all others' with white."""
RADII = torch.tensor([12.0, 17.0, 22.0])
OFFSETS = torch.tensor([(0.0, 0.0), (-1.0, 0.0), (1.0, 0.0), (0.0, -1.0), (0.0, 1.0)])
FAR = 14.0
"""Of a thing that is not in the middle, in pixels."""


@dataclass(frozen=True)
class Scenes:
    """What a batch of pictures shows: indices into the lists above, int64, (n,) each."""

    shape: Tensor
    fill: Tensor
    colour: Tensor
    ground: Tensor
    size: Tensor
    place: Tensor

    def __len__(self) -> int:
        return len(self.shape)

    def with_all(self, **attributes: int) -> Self:
        """The same scenes with attributes set in all of them."""
        return replace(
            self, **{name: torch.full_like(self.shape, index) for name, index in attributes.items()}
        )

    def part(self, chosen: Tensor) -> Self:
        return type(self)(*(getattr(self, field.name)[chosen] for field in fields(self)))


def imagine(count: int, chance: Generator, new_shapes: bool = False, new_pairs: bool = False) -> Scenes:
    """Scenes drawn at random; half of the things are plain.

    Args:
        new_shapes: also those of NEW_SHAPES.
        new_pairs: also those of NEW_PAIRS.
    """

    def pick(choices: int) -> Tensor:
        return torch.randint(choices, (count,), generator=chance)

    shape, fill = pick(len(SHAPES) if new_shapes else len(SHAPES) - len(NEW_SHAPES)), pick(len(FILLS))
    fill[torch.rand(count, generator=chance) < 0.4] = 0
    if not new_pairs:
        for name, pattern in NEW_PAIRS:
            fill[(shape == SHAPES.index(name)) & (fill == FILLS.index(pattern))] = 0
    colour = pick(len(COLOURS))
    ground = (colour + 1 + pick(len(GROUNDS) - 1)) % len(GROUNDS)
    place = pick(len(PLACES))
    place[torch.rand(count, generator=chance) < 0.4] = 0
    size = pick(len(SIZES))
    size[(size == 0) & (fill > 0)] = 1  # too few pixels for a pattern
    return Scenes(shape, fill, colour, ground, size, place)


def draw(scenes: Scenes, chance: Generator, scale: int = 1) -> Tensor:
    """Draw each scene with a little freedom in place, size, angle, tone and light.

    Args:
        scale: draw the same this much larger.

    Returns:
        float32, (n, 3, side, side) with a side of scale * SIDE, from -1 to 1.
    """
    count = len(scenes)

    def spread(width: float, *shape: int) -> Tensor:
        return (2 * torch.rand(count, *shape, generator=chance) - 1) * width

    radius = RADII[scenes.size] * (1 + spread(0.08))
    room = (SIDE / 2 - 0.95 * radius)[:, None]
    centre = (OFFSETS[scenes.place] * FAR + spread(2.5, 2)).clamp(-room, room)
    angle = spread(0.15)[:, None, None]
    axis = (torch.arange(scale * SIDE) + 0.5) / scale - SIDE / 2
    x = (axis[None, None, :] - centre[:, 0, None, None]) / radius[:, None, None]
    y = (axis[None, :, None] - centre[:, 1, None, None]) / radius[:, None, None]
    u, v = x * angle.cos() + y * angle.sin(), y * angle.cos() - x * angle.sin()

    def soft(distance: Tensor) -> Tensor:
        """The covered share of each pixel, from the distance to the edge (inside negative)."""
        return (0.5 - scale * distance).clamp(0, 1)[:, None]

    width = radius[:, None, None]
    inside = soft(_choose(_OUTLINES, scenes.shape, u, v) * width)
    across, down = axis[None, None, :].expand_as(u), axis[None, :, None].expand_as(u)
    second = soft(_choose(_PATTERNS, scenes.fill, across, down, u * width))
    light = torch.isin(scenes.colour, torch.tensor(LIGHT))
    other = torch.where(light, 0.06, 0.97)[:, None, None, None]
    colour = (RGB[scenes.colour] + spread(0.04, 3))[:, :, None, None]
    ground = (GROUND_RGB[scenes.ground] + spread(0.04, 3))[:, :, None, None]
    slope = spread(0.05, 2)[:, :, None, None] / (SIDE / 2)
    ground = ground + (slope[:, :1] * axis[None, None, None, :] + slope[:, 1:] * axis[None, None, :, None])
    thing = second * other + (1 - second) * colour
    return (inside * thing + (1 - inside) * ground).clamp(0, 1) * 2 - 1


Field = Callable[..., Tensor]
"""Signed distance to an edge, below zero inside. Of an outline: in radii, at points (u, v) from the thing's middle, v
down. Of a pattern: in pixels, at the picture's (x, y), y down, and so far to the right of the thing's middle."""


def _choose(fields: list[Field], index: Tensor, *points: Tensor) -> Tensor:
    found = torch.empty_like(points[0])
    for number, field in enumerate(fields):
        chosen = index == number
        found[chosen] = field(*(point[chosen] for point in points))
    return found


def _circle(u: Tensor, v: Tensor) -> Tensor:
    return torch.hypot(u, v) - 0.9


def _square(u: Tensor, v: Tensor) -> Tensor:
    return torch.maximum(u.abs(), v.abs()) - 0.78


def _triangle(u: Tensor, v: Tensor) -> Tensor:
    return torch.maximum(v - 0.6, 0.866 * u.abs() - 0.5 * v - 0.5)


def _star(u: Tensor, v: Tensor) -> Tensor:
    wedge = 2 * math.pi / 5
    angle = torch.atan2(u, -v)
    angle = ((angle + wedge / 2) % wedge - wedge / 2).abs()
    along, across = torch.hypot(u, v) * angle.cos(), torch.hypot(u, v) * angle.sin()
    tip, (valley_x, valley_y) = 1.05, (0.47 * math.cos(wedge / 2), 0.47 * math.sin(wedge / 2))
    edge = math.hypot(tip - valley_x, valley_y)
    return ((along - tip) * valley_y + across * (tip - valley_x)) / edge


def _cross(u: Tensor, v: Tensor) -> Tensor:
    long, short = torch.maximum(u.abs(), v.abs()), torch.minimum(u.abs(), v.abs())
    return torch.maximum(long - 0.95, short - 0.32)


def _ring(u: Tensor, v: Tensor) -> Tensor:
    return (torch.hypot(u, v) - 0.66).abs() - 0.27


def _heart(u: Tensor, v: Tensor) -> Tensor:
    """After Inigo Quilez, "2D distance functions"."""
    scale = 1.65
    x, y = u.abs() / scale, (0.9 - v) / scale
    lobe = torch.hypot(x - 0.25, y - 0.75) - math.sqrt(2) / 4
    fold = 0.5 * (x + y).clamp(min=0)
    tip = torch.minimum(torch.hypot(x, y - 1), torch.hypot(x - fold, y - fold)) * torch.sign(x - y)
    return torch.where(x + y > 1, lobe, tip) * scale


def _diamond(u: Tensor, v: Tensor) -> Tensor:
    return (1.5 * u.abs() + v.abs() - 1.05) / 1.8


def _crescent(u: Tensor, v: Tensor) -> Tensor:
    return torch.maximum(torch.hypot(u, v) - 0.92, 0.75 - torch.hypot(u - 0.45, v + 0.1))


def _arrow(u: Tensor, v: Tensor) -> Tensor:
    shaft = torch.maximum(v.abs() - 0.24, u.abs() - 0.9)
    head = torch.maximum(-u, 0.66 * u + 0.75 * v.abs() - 0.63)
    return torch.minimum(torch.maximum(shaft, u - 0.1), head)


_OUTLINES: list[Field] = [
    _circle, _square, _triangle, _star, _cross, _ring, _heart, _diamond, _crescent, _arrow,
]  # fmt: skip


CELL = 8.0
"""Of a pattern, in pixels. Patterns lie still behind the outline, so that one learnt from one shape fits another."""


def _plain(x: Tensor, y: Tensor, right: Tensor) -> Tensor:
    return torch.ones_like(x)


def _striped(x: Tensor, y: Tensor, right: Tensor) -> Tensor:
    return (x % CELL - CELL / 2).abs() - CELL / 4


def _dotted(x: Tensor, y: Tensor, right: Tensor) -> Tensor:
    return torch.hypot(x % CELL - CELL / 2, y % CELL - CELL / 2) - 0.32 * CELL


def _checked(x: Tensor, y: Tensor, right: Tensor) -> Tensor:
    a, b = _striped(x, y, right), _striped(y, x, right)
    return torch.sign(a * b) * torch.minimum(a.abs(), b.abs())


def _halved(x: Tensor, y: Tensor, right: Tensor) -> Tensor:
    return -right


_PATTERNS: list[Field] = [_plain, _striped, _dotted, _checked, _halved]

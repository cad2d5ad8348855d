"""Batched drawings of simple shapes, the training data of the small base model and of the classifier.

An image shows one thing with a shape, a fill, a colour, a size and a place, on a ground of another colour. The base
model's UNet is not trained on the shapes of `NEW_SHAPES` and the pairs of `NEW_PAIRS`, so that adapters can learn them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from enum import StrEnum
from typing import Self

import torch
from torch import Generator, Tensor

SIDE = 64
"""Side of an image, in pixels."""
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

# Rows are in the order of COLOURS; values are from 0 to 1.
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
"""Colours of the backgrounds, paler than those of the shapes."""
LIGHT = [COLOURS.index("yellow"), COLOURS.index("white")]
"""Indices of the colours whose patterns are black; the patterns of all others are white."""
RADII = torch.tensor([12.0, 17.0, 22.0])
"""Radius of a shape in pixels, in the order of SIZES."""
OFFSETS = torch.tensor([(0.0, 0.0), (-1.0, 0.0), (1.0, 0.0), (0.0, -1.0), (0.0, 1.0)])
"""Directions (x, y) from the image's centre, y down, in the order of PLACES."""
PLACE_DISTANCE = 14.0
"""Distance between the image's centre and a shape that is not in the middle, in pixels."""


class Style(StrEnum):
    """A way to draw shapes. The base model's UNet is trained on all but those of NEW_STYLES."""

    SOLID = "solid"
    OUTLINE = "outline"
    """Edge of the shape alone."""
    HATCHED = "hatched"
    """Diagonal lines in place of an area."""
    BARS = "bars"
    """Vertical lines in place of an area."""
    DOTS = "dots"
    """Round dots in place of an area."""
    NET = "net"
    """Vertical and horizontal lines in place of an area."""
    TILES = "tiles"
    """Every other square of a checkerboard in place of an area."""
    SPLIT = "split"
    """A gap along the image's diagonal, from the lower left to the upper right. Shapes beside it lose a corner."""
    HALO = "halo"
    """A smaller shape, with a line around it."""
    WASH = "wash"
    """An area of 60% opacity inside an opaque border."""
    PLATE = "plate"
    """A disc with the shape cut out."""
    FOG = "fog"
    """An edge that is blurred over FADE pixels."""


NEW_STYLES = [Style.OUTLINE, Style.HATCHED]
STROKE = 3.0
"""Width of an outline, in pixels; half of the period of lines."""
FADE = 8.0
"""Width of a blurred edge, in pixels."""
WASH_OPACITY = 0.6
"""Opacity of the area inside a border."""


@dataclass(frozen=True)
class Scenes:
    """The attributes of a batch of images: indices into the lists above, int64, (n,) each."""

    shape: Tensor
    fill: Tensor
    colour: Tensor
    ground: Tensor
    size: Tensor
    place: Tensor

    def __len__(self) -> int:
        return len(self.shape)

    def with_all(self, **attributes: int) -> Self:
        """Return the scenes with attributes set to one value in all of them."""
        return replace(
            self, **{name: torch.full_like(self.shape, index) for name, index in attributes.items()}
        )

    def to(self, device: torch.device | str) -> Self:
        """Return the scenes with their attributes on a device."""
        return type(self)(*(getattr(self, field.name).to(device) for field in fields(self)))

    def part(self, chosen: Tensor) -> Self:
        """Return the scenes at the chosen indices."""
        return type(self)(*(getattr(self, field.name)[chosen] for field in fields(self)))


def sample_scenes(
    count: int, generator: Generator, new_shapes: bool = False, new_pairs: bool = False
) -> Scenes:
    """Sample random scenes; about half of the shapes are plain.

    Args:
        new_shapes: include NEW_SHAPES.
        new_pairs: include NEW_PAIRS.
    """

    def pick(choices: int) -> Tensor:
        return torch.randint(choices, (count,), generator=generator)

    shape, fill = pick(len(SHAPES) if new_shapes else len(SHAPES) - len(NEW_SHAPES)), pick(len(FILLS))
    fill[torch.rand(count, generator=generator) < 0.4] = 0
    if not new_pairs:
        for name, pattern in NEW_PAIRS:
            fill[(shape == SHAPES.index(name)) & (fill == FILLS.index(pattern))] = 0
    colour = pick(len(COLOURS))
    # The ground never has the colour of the shape.
    ground = (colour + 1 + pick(len(GROUNDS) - 1)) % len(GROUNDS)
    place = pick(len(PLACES))
    place[torch.rand(count, generator=generator) < 0.4] = 0
    size = pick(len(SIZES))
    size[(size == 0) & (fill > 0)] = 1  # too few pixels for a pattern
    return Scenes(shape, fill, colour, ground, size, place)


def draw(
    scenes: Scenes,
    generator: Generator,
    scale: int = 1,
    style: Style = Style.SOLID,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Draw each scene with small random changes of place, size, angle, colour and brightness.

    Args:
        generator: a generator of the CPU, whatever the device.
        scale: factor of the image's side.
        device: the device that draws.

    Returns:
        float32, (n, 3, side, side) with a side of scale * SIDE, from -1 to 1, on the device.
    """
    count = len(scenes)
    scenes = scenes.to(device)

    def spread(width: float, *shape: int) -> Tensor:
        return ((2 * torch.rand(count, *shape, generator=generator) - 1) * width).to(device)

    def row(table: Tensor, index: Tensor) -> Tensor:
        return table.to(device)[index]

    radius = row(RADII, scenes.size) * (1 + spread(0.08))
    room = (SIDE / 2 - 0.95 * radius)[:, None]
    centre = (row(OFFSETS, scenes.place) * PLACE_DISTANCE + spread(2.5, 2)).clamp(-room, room)
    angle = spread(0.15)[:, None, None]
    # Centres of the pixels along an axis, from the image's centre. x and y are in radii from the shape's middle; u and v
    # are the same points turned by its angle.
    axis = (torch.arange(scale * SIDE, device=device) + 0.5) / scale - SIDE / 2
    x = (axis[None, None, :] - centre[:, 0, None, None]) / radius[:, None, None]
    y = (axis[None, :, None] - centre[:, 1, None, None]) / radius[:, None, None]
    u, v = x * angle.cos() + y * angle.sin(), y * angle.cos() - x * angle.sin()

    radii = radius[:, None, None]
    across, down = axis[None, None, :].expand_as(u), axis[None, :, None].expand_as(u)
    edge = _select_distances(_OUTLINES, scenes.shape, u, v) * radii
    disc = torch.hypot(u, v) * radii - radii
    inside = _opacity(style, edge, disc, across, down, scale)
    second = _coverage(_select_distances(_PATTERNS, scenes.fill, across, down, u * radii), scale)
    light = torch.isin(scenes.colour, torch.tensor(LIGHT, device=device))
    other = torch.where(light, 0.06, 0.97)[:, None, None, None]
    colour = (row(RGB, scenes.colour) + spread(0.04, 3))[:, :, None, None]
    ground = (row(GROUND_RGB, scenes.ground) + spread(0.04, 3))[:, :, None, None]
    slope = spread(0.05, 2)[:, :, None, None] / (SIDE / 2)
    ground = ground + (slope[:, :1] * axis[None, None, None, :] + slope[:, 1:] * axis[None, None, :, None])
    thing = second * other + (1 - second) * colour
    return (inside * thing + (1 - inside) * ground).clamp(0, 1) * 2 - 1


def _coverage(distance: Tensor, scale: int) -> Tensor:
    """Return the covered share of each pixel, from the signed distance to an edge: (n, 1, side, side)."""
    return (0.5 - scale * distance).clamp(0, 1)[:, None]


def _opacity(style: Style, edge: Tensor, disc: Tensor, across: Tensor, down: Tensor, scale: int) -> Tensor:
    """Return the opacity of shapes in a style: (n, 1, side, side), from 0 to 1.

    Args:
        edge: signed distance to the edge of each shape, negative inside, in pixels: (n, side, side), as are all below.
        disc: signed distance to a circle of the shape's radius.
        across, down: coordinates from the image's centre, to the right and down.
        scale: as in `draw`.
    """
    diagonal = (across + down) / math.sqrt(2)
    # Patterns take a third argument that only the halved fill reads.
    match style:
        case Style.SOLID | Style.WASH:
            distance = edge
        case Style.OUTLINE:
            distance = (edge + STROKE / 2).abs() - STROKE / 2
        case Style.HATCHED:
            distance = torch.maximum(edge, _lines(diagonal))
        case Style.BARS:
            distance = torch.maximum(edge, _lines(across))
        case Style.DOTS:
            distance = torch.maximum(edge, _dotted(across, down, across))
        case Style.NET:
            distance = torch.maximum(edge, torch.minimum(_lines(across), _lines(down)))
        case Style.TILES:
            distance = torch.maximum(edge, _checked(across, down, across))
        case Style.SPLIT:
            distance = torch.maximum(edge, STROKE / 2 - diagonal.abs())
        case Style.HALO:
            distance = torch.minimum(edge + 2 * STROKE, edge.abs() - STROKE / 3)
        case Style.PLATE:
            distance = torch.maximum(disc - 2 * STROKE, -edge)
        case Style.FOG:
            distance = edge / (FADE * scale)
    if style == Style.WASH:
        return _coverage(distance, scale) - (1 - WASH_OPACITY) * _coverage(edge + STROKE, scale)
    return _coverage(distance, scale)


def _lines(along: Tensor) -> Tensor:
    """Return the signed distance, in pixels, to parallel lines of width STROKE and period 2 * STROKE."""
    return (along % (2 * STROKE) - STROKE).abs() - STROKE / 2


SignedDistance = Callable[..., Tensor]
"""A function for the signed distance to an edge, negative inside.

An outline takes points (u, v) from the shape's middle, v down, and returns radii. A pattern takes the image's points
(x, y), y down, and the distance to the right of the shape's middle, and returns pixels.
"""


def _select_distances(fields: list[SignedDistance], index: Tensor, *points: Tensor) -> Tensor:
    """Apply to each image of a batch the function that its index names."""
    distances = torch.empty_like(points[0])
    for number, field in enumerate(fields):
        chosen = index == number
        distances[chosen] = field(*(point[chosen] for point in points))
    return distances


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
    """Return the distance to a heart, by Inigo Quilez, "2D distance functions"."""
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


_OUTLINES: list[SignedDistance] = [
    _circle, _square, _triangle, _star, _cross, _ring, _heart, _diamond, _crescent, _arrow,
]  # fmt: skip


CELL = 8.0
"""Period of a pattern, in pixels. Patterns are aligned to the image, so that they look the same in all shapes."""


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


_PATTERNS: list[SignedDistance] = [_plain, _striped, _dotted, _checked, _halved]

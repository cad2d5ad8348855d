"""Line charts: numbers in, the coordinates of an SVG out. The page's template draws them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

Point = tuple[float, float | None]
"""A step and its value; None where it was no number."""

WIDTH, HEIGHT = 400, 230
LEFT, RIGHT, TOP, BOTTOM = 56, 12, 12, 28
MOST_POINTS = 320
"""More than a chart has room for are averaged in groups."""
SMOOTHING = 0.9
"""Of the exponential moving average, as TensorBoard's slider has it."""


@dataclass(frozen=True)
class Line:
    """A line's `d` of an SVG path, and its class in the style sheet."""

    style: str
    name: str
    path: str


@dataclass(frozen=True)
class Tick:
    at: float
    text: str


@dataclass(frozen=True)
class Chart:
    """All that the template needs, in the chart's own units."""

    title: str
    lines: list[Line]
    across: list[Tick]
    up: list[Tick]
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    right: int = WIDTH - RIGHT
    top: int = TOP
    bottom: int = HEIGHT - BOTTOM


def draw(title: str, lines: Sequence[tuple[str, str, Sequence[Point]]], from_zero: bool = False) -> Chart:
    """A chart of lines, each given as (style, name, points).

    Args:
        from_zero: let the upward axis begin at 0.
    """
    thinned = [(style, name, thin(points)) for style, name, points in lines]
    known = [point for _, _, points in thinned for point in points if point[1] is not None]
    steps = [step for step, _ in known] or [0.0]
    values = [value for _, value in known if value is not None] or [0.0]
    low, high = (0.0 if from_zero else min(values)), max(values)
    up = ticks(low, high, 5)
    across = ticks(min(steps), max(steps), 5)
    low, high = min(low, up[0]), max(high, up[-1])
    span = max(max(steps) - min(steps), 1)

    def x(step: float) -> float:
        return round(LEFT + (step - min(steps)) / span * (WIDTH - LEFT - RIGHT), 1)

    def y(value: float) -> float:
        return round(HEIGHT - BOTTOM - (value - low) / (high - low) * (HEIGHT - TOP - BOTTOM), 1)

    def path(points: Sequence[Point]) -> str:
        """A value that was no number leaves a gap."""
        words, pen = [], "M"
        for step, value in points:
            if value is None:
                pen = "M"
            else:
                words.append(f"{pen}{x(step)} {y(value)}")
                pen = "L"
        return "".join(words)

    return Chart(
        title=title,
        lines=[Line(style, name, path(points)) for style, name, points in thinned],
        across=[
            Tick(x(step), f"{step:g}")
            for step in across
            if min(steps) <= step <= max(steps) and step % 1 == 0
        ],
        up=[Tick(y(value), f"{value:.4g}") for value in up],
    )


def thin(points: Sequence[Point], most: int = MOST_POINTS) -> list[Point]:
    """At most so many points; each is the mean of a group of neighbours, without those that are no numbers."""
    size = math.ceil(len(points) / most)
    if size <= 1:
        return list(points)
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    return [(fmean(step for step, _ in group), _mean(group)) for group in groups]


def smooth(points: Sequence[Point], weight: float = SMOOTHING) -> list[Point]:
    """An exponential moving average without a bias towards zero at its beginning (Kingma and Ba 2014,
    arXiv:1412.6980, section 3)."""
    total, share, smoothed = 0.0, 0.0, []
    for step, value in points:
        if value is not None:
            total = weight * total + (1 - weight) * value
            share = weight * share + (1 - weight)
        smoothed.append((step, total / share if share else None))
    return smoothed


def ticks(low: float, high: float, most: int) -> list[float]:
    """Round numbers, 1, 2 or 5 times a power of ten apart, from at or below low to at or above high."""
    if high <= low:
        high = low + (abs(low) or 1.0)
    raw = (high - low) / most
    power = 10.0 ** math.floor(math.log10(raw))
    gap = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * (1 - 1e-9))
    first, last = math.floor(low / gap + 1e-9), math.ceil(high / gap - 1e-9)
    return [number * gap for number in range(first, last + 1)]


def _mean(points: Sequence[Point]) -> float | None:
    values = [value for _, value in points if value is not None]
    return fmean(values) if values else None

"""Layout of line charts: conversion of values to SVG coordinates for the template."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

Point = tuple[float, float | None]
"""A step and its value; None where the value is not finite."""

WIDTH, HEIGHT = 400, 230
"""Size of a chart in SVG units."""
LEFT, RIGHT, TOP, BOTTOM = 56, 12, 12, 28
"""Margins of the plot area in SVG units."""
MAX_POINTS = 320
"""Number of points above which a series is averaged in groups."""
SMOOTHING = 0.9
"""Weight of the previous average in an exponential moving average, as in TensorBoard."""


@dataclass(frozen=True)
class Line:
    """A line of a chart."""

    style: str
    """CSS class."""
    name: str
    """Name in the legend; empty for none."""
    path: str
    """`d` attribute of the SVG path."""


@dataclass(frozen=True)
class Tick:
    """A tick of an axis."""

    at: float
    """Coordinate in SVG units."""
    text: str


@dataclass(frozen=True)
class Chart:
    """A chart. All coordinates are in SVG units; `left`, `right`, `top` and `bottom` bound the plot area."""

    title: str
    lines: list[Line]
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    right: int = WIDTH - RIGHT
    top: int = TOP
    bottom: int = HEIGHT - BOTTOM


def line_chart(
    title: str, lines: Sequence[tuple[str, str, Sequence[Point]]], from_zero: bool = False
) -> Chart:
    """Lay out a line chart.

    Args:
        lines: the (style, name, points) of each line.
        from_zero: whether the y axis starts at 0.
    """
    reduced = [(style, name, reduce_points(points)) for style, name, points in lines]
    known = [point for _, _, points in reduced for point in points if point[1] is not None]
    steps = [step for step, _ in known] or [0.0]
    values = [value for _, value in known if value is not None] or [0.0]
    low, high = (0.0 if from_zero else min(values)), max(values)
    y_ticks = ticks(low, high, 5)
    x_ticks = ticks(min(steps), max(steps), 5)
    low, high = min(low, y_ticks[0]), max(high, y_ticks[-1])
    span = max(max(steps) - min(steps), 1)

    def x(step: float) -> float:
        return round(LEFT + (step - min(steps)) / span * (WIDTH - LEFT - RIGHT), 1)

    def y(value: float) -> float:
        return round(HEIGHT - BOTTOM - (value - low) / (high - low) * (HEIGHT - TOP - BOTTOM), 1)

    def path(points: Sequence[Point]) -> str:
        """Build an SVG path with gaps where a value is not finite."""
        parts, command = [], "M"
        for step, value in points:
            if value is None:
                command = "M"
            else:
                parts.append(f"{command}{x(step)} {y(value)}")
                command = "L"
        return "".join(parts)

    return Chart(
        title=title,
        lines=[Line(style, name, path(points)) for style, name, points in reduced],
        x_ticks=[
            Tick(x(step), f"{step:g}")
            for step in x_ticks
            if min(steps) <= step <= max(steps) and step % 1 == 0
        ],
        y_ticks=[Tick(y(value), f"{value:.4g}") for value in y_ticks],
    )


def reduce_points(points: Sequence[Point], max_count: int = MAX_POINTS) -> list[Point]:
    """Average neighbouring points until at most `max_count` remain; None values are ignored."""
    size = math.ceil(len(points) / max_count)
    if size <= 1:
        return list(points)
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    return [(fmean(step for step, _ in group), _mean(group)) for group in groups]


def smooth(points: Sequence[Point], weight: float = SMOOTHING) -> list[Point]:
    """Smooth values by an exponential moving average.

    The bias towards zero is corrected as in Adam (Kingma and Ba 2014, arXiv:1412.6980, section 3).
    """
    total, weights, smoothed = 0.0, 0.0, []
    for step, value in points:
        if value is not None:
            total = weight * total + (1 - weight) * value
            weights = weight * weights + (1 - weight)
        smoothed.append((step, total / weights if weights else None))
    return smoothed


def ticks(low: float, high: float, max_count: int) -> list[float]:
    """Choose round tick values that enclose low and high. They are 1, 2 or 5 times a power of ten apart."""
    if high <= low:
        high = low + (abs(low) or 1.0)
    raw = (high - low) / max_count
    power = 10.0 ** math.floor(math.log10(raw))
    gap = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * (1 - 1e-9))
    first, last = math.floor(low / gap + 1e-9), math.ceil(high / gap - 1e-9)
    return [number * gap for number in range(first, last + 1)]


def _mean(points: Sequence[Point]) -> float | None:
    values = [value for _, value in points if value is not None]
    return fmean(values) if values else None

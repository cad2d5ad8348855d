"""A picture of pictures, with words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image, ImageDraw

CELL, GAP, HEAD = 128, 6, 18
"""Pixels: a picture's side, the space between two, a line of words."""


def write_grid(path: Path, lines: Sequence[tuple[str, Mapping[str, Image.Image]]]) -> None:
    """Write lines of pictures, each line under its name and each picture under its own."""
    across = max(len(cells) for _, cells in lines)
    line_height = 2 * HEAD + CELL + GAP
    sheet = Image.new("RGB", (across * (CELL + GAP) + GAP, len(lines) * line_height + GAP), "white")
    pen = ImageDraw.Draw(sheet)
    for row, (name, cells) in enumerate(lines):
        top = row * line_height + GAP
        pen.text((GAP, top), name, fill="black", font_size=14)
        for column, (label, picture) in enumerate(cells.items()):
            left = column * (CELL + GAP) + GAP
            pen.text((left, top + HEAD), label, fill="black", font_size=10)
            sheet.paste(picture.resize((CELL, CELL), Image.Resampling.NEAREST), (left, top + 2 * HEAD))
    sheet.save(path)

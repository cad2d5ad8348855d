"""A sheet of pictures, with words: what is to be compared, side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from PIL import Image, ImageDraw

GAP, HEAD = 6, 18
"""Pixels: the space between two pictures, a line of words."""


def lay_out(lines: Sequence[tuple[str, Mapping[str, Image.Image]]], cell: int) -> Image.Image:
    """Lines of pictures, each line under its name and each picture under its own.

    Args:
        cell: a picture's side on the sheet, in pixels.
    """
    across = max(len(pictures) for _, pictures in lines)
    line_height = 2 * HEAD + cell + GAP
    sheet = Image.new("RGB", (across * (cell + GAP) + GAP, len(lines) * line_height + GAP), "white")
    pen = ImageDraw.Draw(sheet)
    for row, (name, pictures) in enumerate(lines):
        top = row * line_height + GAP
        pen.text((GAP, top), name, fill="black", font_size=14)
        for column, (label, picture) in enumerate(pictures.items()):
            left = column * (cell + GAP) + GAP
            pen.text((left, top + HEAD), label, fill="black", font_size=12)
            sheet.paste(picture.resize((cell, cell)), (left, top + 2 * HEAD))
    return sheet

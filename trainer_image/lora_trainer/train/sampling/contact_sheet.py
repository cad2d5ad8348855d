"""Contact sheets: labelled images side by side, for comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from PIL import Image, ImageDraw

GAP, HEAD = 6, 18
"""Space between two images, and height of a line of text, in pixels."""


def contact_sheet(rows: Sequence[tuple[str, Mapping[str, Image.Image]]], cell: int) -> Image.Image:
    """Arrange rows of images, each row under its title and each image under its label.

    Args:
        rows: for each row, its title and its images by label.
        cell: side of an image on the sheet, in pixels.
    """
    across = max(len(images) for _, images in rows)
    row_height = 2 * HEAD + cell + GAP
    sheet = Image.new("RGB", (across * (cell + GAP) + GAP, len(rows) * row_height + GAP), "white")
    pen = ImageDraw.Draw(sheet)
    for row, (title, images) in enumerate(rows):
        top = row * row_height + GAP
        pen.text((GAP, top), title, fill="black", font_size=14)
        for column, (label, image) in enumerate(images.items()):
            left = column * (cell + GAP) + GAP
            pen.text((left, top + HEAD), label, fill="black", font_size=12)
            sheet.paste(image.resize((cell, cell)), (left, top + 2 * HEAD))
    return sheet

"""A drawing of a face that OpenCV's cascades detect, for tests of crops."""

from __future__ import annotations

from PIL import Image, ImageDraw, ImageFilter

BACKGROUND = (120, 140, 110)


def face(size: int) -> Image.Image:
    """Draw a head with hair, `size` wide and 1.3 times as high, on a background."""
    scale = size * 4
    image = Image.new("RGB", (scale, int(scale * 1.3)), BACKGROUND)
    draw = ImageDraw.Draw(image)

    def ellipse(box: tuple[float, float, float, float], colour: tuple[int, int, int]) -> None:
        draw.ellipse(tuple(value * scale for value in box), fill=colour)

    ellipse((0.02, 0.0, 0.98, 1.25), (60, 40, 25))  # hair
    ellipse((0.12, 0.12, 0.88, 1.22), (205, 165, 140))
    for centre in (0.34, 0.66):
        ellipse((centre - 0.13, 0.50, centre + 0.13, 0.64), (150, 110, 90))
        ellipse((centre - 0.09, 0.53, centre + 0.09, 0.62), (235, 230, 225))
        ellipse((centre - 0.045, 0.53, centre + 0.045, 0.62), (40, 25, 20))
        brow = tuple(value * scale for value in (centre - 0.13, 0.43, centre + 0.13, 0.475))
        draw.rounded_rectangle(brow, 10, fill=(70, 45, 30))
    draw.polygon(
        [(0.5 * scale, 0.55 * scale), (0.42 * scale, 0.82 * scale), (0.58 * scale, 0.82 * scale)],
        fill=(185, 140, 118),
    )
    ellipse((0.41, 0.79, 0.47, 0.84), (120, 80, 65))
    ellipse((0.53, 0.79, 0.59, 0.84), (120, 80, 65))
    ellipse((0.34, 0.92, 0.66, 1.03), (150, 70, 70))
    return image.filter(ImageFilter.GaussianBlur(scale / 60)).resize(
        (size, int(size * 1.3)), Image.Resampling.LANCZOS
    )

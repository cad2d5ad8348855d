"""Draw the six pictures of the quickstart: one toy rocket, six places. `python draw.py FOLDER`."""

from __future__ import annotations

import math
import sys
from pathlib import Path

from PIL import Image, ImageDraw, ImageFilter

SIZE = 512
SCENES = [  # sky, ground, turn in degrees, scale, centre
    ("#a8d8f0", "#6fae5c", -12, 0.95, (0.48, 0.50)),
    ("#26264f", "#4b4b6e", 18, 0.85, (0.55, 0.46)),
    ("#f5d9b0", "#c98d5a", 0, 1.05, (0.50, 0.52)),
    ("#cfe8d5", "#3f7d6b", 32, 0.80, (0.42, 0.48)),
    ("#f0c4d0", "#9a6b8f", -28, 0.90, (0.56, 0.50)),
    ("#dfe3e8", "#8a8f99", 8, 1.10, (0.50, 0.47)),
]


def rocket() -> Image.Image:
    """The object: a white rocket with two red bands, a round window and red fins, on a clear ground."""
    image = Image.new("RGBA", (2 * SIZE, 2 * SIZE))
    draw = ImageDraw.Draw(image)
    red, white, steel, glass = "#d8342c", "#f7f4ee", "#39414f", "#5bb7e8"
    draw.polygon([(460, 880), (564, 880), (512, 985)], fill="#f7a531")
    draw.polygon([(490, 880), (534, 880), (512, 940)], fill="#fdea7b")
    for side in (-1, 1):
        draw.polygon([(512 + side * 130, 640), (512 + side * 260, 860), (512 + side * 120, 810)], fill=red)
    half = [(140 * math.sin(t / 50 * math.pi) ** 0.7, 150 + 14.6 * t) for t in range(47)]
    outline = [(512 + x, y) for x, y in half] + [(512 - x, y) for x, y in reversed(half)]
    draw.polygon(outline, fill=white)
    hull = Image.new("L", image.size)
    ImageDraw.Draw(hull).polygon(outline, fill=255)
    bands = Image.new("RGBA", image.size)
    for top, bottom in ((100, 290), (600, 680)):
        ImageDraw.Draw(bands).rectangle((300, top, 724, bottom), fill=red)
    image.paste(bands, (0, 0), Image.composite(bands.getchannel("A"), Image.new("L", image.size), hull))
    draw.rectangle((440, 818, 584, 880), fill=steel)
    draw.ellipse((437, 375, 587, 525), fill=steel)
    draw.ellipse((457, 395, 567, 505), fill=glass)
    draw.ellipse((475, 410, 510, 445), fill="#ffffff")
    return image


def scene(index: int) -> Image.Image:
    sky, ground, turn, scale, (x, y) = SCENES[index]
    image = Image.new("RGB", (SIZE, SIZE), sky)
    draw = ImageDraw.Draw(image)
    for step in range(6):
        left = (step * 197 + index * 83) % SIZE
        draw.ellipse((left - 40, 30 + 45 * step, left + 60, 50 + 45 * step), fill=_mix(sky, "#ffffff", 0.25))
    draw.rectangle((0, int(SIZE * 0.78), SIZE, SIZE), fill=ground)
    for step in range(9):
        left = (step * 131 + index * 57) % SIZE
        draw.ellipse(
            (left - 30, 420 + 9 * step, left + 30, 432 + 9 * step), fill=_mix(ground, "#000000", 0.15)
        )
    side = int(SIZE * 0.8 * scale)
    toy = rocket().rotate(turn, Image.Resampling.BICUBIC).resize((side, side), Image.Resampling.LANCZOS)
    corner = (int(x * SIZE) - side // 2, int(y * SIZE) - side // 2)
    shade = Image.new("RGBA", toy.size, "#000000")
    shade.putalpha(toy.getchannel("A").point([value // 4 for value in range(256)]))
    image.paste(shade, (corner[0] + 8, corner[1] + 10), shade)
    image.paste(toy, corner, toy)
    return image.filter(ImageFilter.GaussianBlur(0.6))


def _mix(one: str, other: str, share: float) -> tuple[int, ...]:
    def parts(colour: str) -> list[int]:
        return [int(colour[i : i + 2], 16) for i in (1, 3, 5)]

    pairs = zip(parts(one), parts(other), strict=True)
    return tuple(round(a * (1 - share) + b * share) for a, b in pairs)


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(len(SCENES)):
        scene(number).save(folder / f"{number:02d}.jpg", quality=90)

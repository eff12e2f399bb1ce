"""The six places, drawn once for each size at twice the film's resolution."""

import math

import numpy as np
from PIL import Image, ImageDraw

Colour = tuple[int, int, int]

SKIES: dict[str, tuple[Colour, Colour]] = {
    "meadow": ((92, 172, 240), (206, 236, 252)),
    "sea": ((104, 184, 240), (224, 242, 250)),
    "desert": ((250, 176, 92), (255, 226, 166)),
    "night": ((14, 16, 54), (52, 50, 116)),
    "snow": ((146, 172, 206), (222, 232, 244)),
    "sky": ((58, 132, 226), (176, 218, 250)),
}


def gradient(size: tuple[int, int], top: Colour, bottom: Colour) -> Image.Image:
    ramp = np.linspace(0, 1, size[1])[:, None, None]
    row = np.array(top) * (1 - ramp) + np.array(bottom) * ramp
    return Image.fromarray(np.broadcast_to(row, (size[1], size[0], 3)).round().astype(np.uint8))


def cloud(draw: ImageDraw.ImageDraw, x: float, y: float, r: float, colour: Colour = (255, 255, 255)) -> None:
    for dx, dy, k in (
        (-1.5, 0.25, 0.6),
        (-0.7, 0, 0.9),
        (0.25, -0.3, 1.1),
        (1.1, 0.05, 0.8),
        (1.75, 0.3, 0.5),
    ):
        draw.ellipse(
            (x + r * (dx - k), y + r * (dy - k * 0.8), x + r * (dx + k), y + r * (dy + k * 0.8)), fill=colour
        )


def hill(
    draw: ImageDraw.ImageDraw,
    size: tuple[int, int],
    base: float,
    swing: float,
    waves: float,
    colour: Colour,
    phase: float = 0.0,
) -> None:
    w, h = size
    crest = [
        (x, h * base - swing * h * math.sin(2 * math.pi * (waves * x / w + phase)))
        for x in range(0, w + 8, 8)
    ]
    draw.polygon([*crest, (w, h), (0, h)], fill=colour)


def sun(draw: ImageDraw.ImageDraw, size: tuple[int, int], colour: Colour) -> None:
    r, x, y = 44, size[0] * 0.86, 108
    draw.ellipse((x - r, y - r, x + r, y + r), fill=colour)


def place_picture(place: str, size: tuple[int, int]) -> Image.Image:
    big = (size[0] * 2, size[1] * 2)
    picture = gradient(big, *SKIES[place])
    draw = ImageDraw.Draw(picture)
    w, h = big
    match place:
        case "meadow":
            cloud(draw, w * 0.16, 96, 38)
            cloud(draw, w * 0.8, 150, 34)
            hill(draw, big, 0.74, 0.035, 1.2, (122, 196, 92))
            hill(draw, big, 0.84, 0.03, 0.9, (82, 164, 72), 0.45)
        case "sea":
            sun(draw, big, (255, 236, 130))
            draw.rectangle((0, h * 0.7, w, h), fill=(40, 118, 190))
            draw.rectangle((0, h * 0.86, w, h), fill=(28, 92, 160))
            for x, y in ((0.1, 0.77), (0.36, 0.8), (0.72, 0.76), (0.88, 0.83), (0.2, 0.92), (0.62, 0.93)):
                draw.rounded_rectangle((x * w, y * h, x * w + 84, y * h + 7), 4, fill=(120, 184, 228))
        case "desert":
            sun(draw, big, (255, 250, 206))
            hill(draw, big, 0.76, 0.04, 0.8, (228, 160, 90), 0.2)
            hill(draw, big, 0.86, 0.03, 1.1, (206, 132, 66), 0.6)
        case "night":
            x, y = w * 0.86, 108
            draw.ellipse((x - 44, y - 44, x + 44, y + 44), fill=(250, 244, 208))
            draw.ellipse((x - 66, y - 52, x + 22, y + 36), fill=(18, 20, 60))
            for i in range(26):
                x, y, r = (i * 0.618 % 1) * w, (i * i * 0.173 % 1) * h * 0.7 + 16, 3 + i % 3
                draw.ellipse((x - r, y - r, x + r, y + r), fill=(240, 240, 255))
            hill(draw, big, 0.86, 0.03, 1.0, (34, 36, 84), 0.3)
        case "snow":
            for x, top, half in ((0.2, 0.36, 0.24), (0.82, 0.3, 0.26), (0.52, 0.5, 0.2)):
                peak, foot = (x * w, top * h), 0.76 * h
                draw.polygon([peak, ((x + half) * w, foot), ((x - half) * w, foot)], fill=(116, 134, 168))
                cap = 0.34
                left, right = (x - half * cap) * w, (x + half * cap) * w
                y = peak[1] + (foot - peak[1]) * cap
                zig = [(right, y), (x * w + 18, y - 26), (x * w - 14, y + 12), (left, y)]
                draw.polygon([peak, *zig], fill=(250, 252, 255))
            hill(draw, big, 0.76, 0.02, 1.0, (236, 243, 250), 0.1)
        case "sky":
            for x, y, r in ((0.14, 0.2, 44), (0.84, 0.3, 50), (0.18, 0.82, 48), (0.8, 0.86, 42)):
                cloud(draw, x * w, y * h, r)
        case _:
            raise ValueError(f"no place is called {place!r}; known are {', '.join(SKIES)}")
    return picture.reduce(2)

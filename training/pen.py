"""A pen for flat illustration: filled shapes with a thin dark outline, in the object's own units.

The object fills about [-1, 1] in both directions; its sheet spans [-SPAN, SPAN]. Shapes are drawn large and
reduced, which is the antialiasing.
"""

import math

from PIL import Image, ImageDraw

#: Pixels of the film for one unit.
UNIT = 52
#: Half the sheet's side: 96 px, three cells.
SPAN = 96 / UNIT
#: The sheet is kept at twice the film's resolution and drawn at four times that.
TEXTURE = 384
SUPER = 4

INK = (38, 36, 52)

Colour = tuple[int, int, int]
Points = list[tuple[float, float]]


def mix(a: Colour, b: Colour, share: float) -> Colour:
    return tuple(round(x + (y - x) * share) for x, y in zip(a, b, strict=True))  # type: ignore[return-value]


def light(colour: Colour, share: float = 0.45) -> Colour:
    return mix(colour, (255, 255, 255), share)


def dark(colour: Colour, share: float = 0.35) -> Colour:
    return mix(colour, (20, 16, 40), share)


class Pen:
    def __init__(self, flipped: bool = False) -> None:
        side = TEXTURE * SUPER
        self.sheet = Image.new("RGBA", (side, side), (0, 0, 0, 0))
        self.draw = ImageDraw.Draw(self.sheet)
        self.unit = side / (2 * SPAN)
        self.sign = -1 if flipped else 1

    def at(self, x: float, y: float) -> tuple[float, float]:
        middle = self.sheet.width / 2
        return middle + self.sign * x * self.unit, middle + y * self.unit

    def poly(self, points: Points, fill: Colour, line: float = 0.06) -> None:
        spots = [self.at(x, y) for x, y in points]
        if line:
            self.draw.line(
                [*spots, *spots[:2]], fill=(*INK, 255), width=round(2 * line * self.unit), joint="curve"
            )
        self.draw.polygon(spots, fill=(*fill, 255))

    def oval(self, x: float, y: float, rx: float, ry: float, fill: Colour, line: float = 0.06) -> None:
        for grow, colour in ((line, INK), (0.0, fill)) if line else ((0.0, fill),):
            (x0, y0), (x1, y1) = self.at(x - rx - grow, y - ry - grow), self.at(x + rx + grow, y + ry + grow)
            self.draw.ellipse((min(x0, x1), y0, max(x0, x1), y1), fill=(*colour, 255))

    def line(self, points: Points, fill: Colour, width: float) -> None:
        spots = [self.at(x, y) for x, y in points]
        self.draw.line(spots, fill=(*fill, 255), width=round(width * self.unit), joint="curve")
        r = width * self.unit / 2
        for x, y in (spots[0], spots[-1]):
            self.draw.ellipse((x - r, y - r, x + r, y + r), fill=(*fill, 255))

    def streak(self, points: Points) -> None:
        """Draw a speed line: white in a dark rim, so that it shows on every place."""
        self.line(points, INK, 0.24)
        self.line(points, (255, 255, 255), 0.15)

    def done(self) -> Image.Image:
        return self.sheet.reduce(SUPER)


def arc(x: float, y: float, rx: float, ry: float, start: float, end: float, count: int = 24) -> Points:
    """Points along an ellipse; degrees, clockwise from the right."""
    turns = [math.radians(start + (end - start) * i / (count - 1)) for i in range(count)]
    return [(x + rx * math.cos(a), y + ry * math.sin(a)) for a in turns]

"""The nine objects and the marks that show a motion in a still picture."""

from PIL import Image

from training.pen import Colour, Pen, arc, dark, light

GLASS = (190, 230, 250)
STEEL = (206, 212, 222)
BROWN = (150, 98, 56)
BLACK = (52, 52, 62)
FLAME = ((250, 120, 30), (255, 214, 70))


def rocket(pen: Pen, c: Colour) -> None:
    for side in (-1, 1):
        pen.poly([(side * 0.26, 0.1), (side * 0.66, 0.62), (side * 0.62, 0.86), (side * 0.2, 0.6)], dark(c))
    hull = [(0, -1.0), (0.2, -0.74), (0.33, -0.4), (0.36, 0.0), (0.3, 0.45), (0.2, 0.7)]
    pen.poly(hull + [(-x, y) for x, y in reversed(hull)], c)
    pen.poly([(0, -1.0), (0.2, -0.74), (0.27, -0.56), (-0.27, -0.56), (-0.2, -0.74)], dark(c), line=0)
    pen.oval(0, -0.12, 0.17, 0.17, GLASS)
    pen.poly([(-0.3, 0.4), (0.3, 0.4), (0.27, 0.54), (-0.27, 0.54)], light(c), line=0)


def ball(pen: Pen, c: Colour) -> None:
    pen.oval(0, 0, 0.8, 0.8, c)
    band = arc(0, 0, 0.8, 0.8, -16, 16) + arc(0, 0, 0.8, 0.8, 164, 196)
    pen.poly(band, light(c, 0.8), line=0)
    pen.oval(-0.3, -0.42, 0.2, 0.13, light(c, 0.7), line=0)


def balloon(pen: Pen, c: Colour) -> None:
    for side in (-1, 1):
        pen.line([(side * 0.4, 0.2), (side * 0.14, 0.72)], BLACK, 0.06)
    pen.oval(0, -0.32, 0.66, 0.66, c)
    pen.oval(0, -0.32, 0.3, 0.64, light(c, 0.6), line=0)
    pen.poly([(-0.3, 0.28), (0.3, 0.28), (0.14, 0.44), (-0.14, 0.44)], dark(c), line=0.04)
    pen.poly([(-0.2, 0.7), (0.2, 0.7), (0.16, 0.98), (-0.16, 0.98)], BROWN)


def car(pen: Pen, c: Colour) -> None:
    pen.poly([(-0.52, -0.02), (-0.36, -0.44), (0.26, -0.44), (0.5, -0.02)], c)
    pen.poly([(-0.38, -0.04), (-0.28, -0.33), (-0.06, -0.33), (-0.06, -0.04)], GLASS, line=0)
    pen.poly([(0.04, -0.04), (0.04, -0.33), (0.2, -0.33), (0.36, -0.04)], GLASS, line=0)
    pen.poly([(-0.98, 0.0), (0.72, -0.04), (0.98, 0.1), (0.98, 0.42), (-0.98, 0.42)], c)
    pen.poly([(-0.98, 0.28), (0.98, 0.28), (0.98, 0.42), (-0.98, 0.42)], dark(c), line=0)
    pen.oval(0.86, 0.16, 0.09, 0.09, (255, 240, 150), line=0.03)
    for x in (-0.54, 0.54):
        pen.oval(x, 0.44, 0.25, 0.25, BLACK)
        pen.oval(x, 0.44, 0.11, 0.11, STEEL, line=0)


def boat(pen: Pen, c: Colour) -> None:
    pen.line([(0, 0.36), (0, -0.95)], BROWN, 0.1)
    pen.poly([(0.1, -0.86), (0.1, 0.2), (0.74, 0.2)], light(c, 0.55))
    pen.poly([(-0.1, -0.6), (-0.1, 0.2), (-0.56, 0.2)], light(c, 0.3))
    pen.poly([(-0.92, 0.34), (0.96, 0.34), (0.64, 0.86), (-0.62, 0.86)], c)
    pen.poly([(-0.76, 0.6), (0.8, 0.6), (0.64, 0.86), (-0.62, 0.86)], dark(c), line=0)


def plane(pen: Pen, c: Colour) -> None:
    pen.poly([(-0.92, -0.02), (-1.0, -0.56), (-0.74, -0.56), (-0.46, -0.1)], dark(c))
    pen.oval(0, 0.04, 0.98, 0.27, c)
    pen.poly([(0.22, 0.1), (-0.28, 0.1), (-0.6, 0.62), (-0.34, 0.62)], dark(c))
    for x in (-0.36, -0.08, 0.2):
        pen.oval(x, -0.05, 0.09, 0.09, GLASS, line=0.02)
    pen.poly([(0.5, -0.14), (0.74, -0.12), (0.86, 0.02), (0.5, 0.02)], GLASS, line=0.02)


def bird(pen: Pen, c: Colour) -> None:
    pen.poly([(-0.5, 0.08), (-1.0, -0.16), (-0.96, 0.3)], dark(c))
    pen.poly([(0.8, -0.3), (1.06, -0.18), (0.8, -0.06)], (250, 170, 40), line=0.04)
    pen.oval(-0.06, 0.14, 0.62, 0.44, c)
    pen.oval(0.54, -0.2, 0.34, 0.34, c)
    pen.oval(-0.06, 0.3, 0.4, 0.22, light(c), line=0)
    pen.poly([(0.14, 0.0), (-0.3, 0.18), (-0.66, -0.78), (-0.2, -0.62)], dark(c, 0.25))
    pen.oval(0.62, -0.26, 0.09, 0.09, BLACK, line=0)


def fish(pen: Pen, c: Colour) -> None:
    pen.poly([(-0.46, 0.0), (-1.0, -0.46), (-0.88, 0.0), (-1.0, 0.46)], dark(c))
    pen.poly([(-0.3, -0.34), (0.06, -0.74), (0.26, -0.36)], dark(c))
    pen.oval(0.12, 0.0, 0.72, 0.46, c)
    pen.oval(0.1, 0.2, 0.46, 0.18, light(c), line=0)
    pen.oval(0.5, -0.12, 0.15, 0.15, (255, 255, 255), line=0.02)
    pen.oval(0.54, -0.12, 0.08, 0.08, BLACK, line=0)


def star(pen: Pen, c: Colour) -> None:
    for scale, fill, line in ((1.0, c, 0.07), (0.5, light(c), 0)):
        outer = arc(0, 0.05, scale, scale, -90, 270, 6)[:5]
        inner = arc(0, 0.05, 0.46 * scale, 0.46 * scale, -54, 306, 6)[:5]
        pen.poly([p for pair in zip(outer, inner, strict=True) for p in pair], fill, line=line)


DRAWINGS = {f.__name__: f for f in (rocket, ball, balloon, car, boat, plane, bird, fish, star)}


def mark(pen: Pen, motion: str) -> None:
    """Draw what travels with the object: speed lines behind it, or a flame below it."""
    match motion:
        case "right" | "left":  # the pen is flipped for "left"
            for y, far in ((-0.45, 1.6), (0.0, 1.78), (0.45, 1.6)):
                pen.streak([(-1.2, y), (-far, y)])
        case "rise" | "fall":
            sign = 1 if motion == "rise" else -1
            for x, far in ((-0.45, 1.55), (0.0, 1.74), (0.45, 1.55)):
                pen.streak([(x, sign * 1.18), (x, sign * far)])
        case "take-off":
            pen.poly([(-0.26, 0.9), (0.26, 0.9), (0.2, 1.3), (0, 1.72), (-0.2, 1.3)], FLAME[0])
            pen.poly([(-0.14, 0.9), (0.14, 0.9), (0, 1.42)], FLAME[1], line=0)
        case "grow":
            near, far = arc(0, 0, 1.24, 1.24, 22.5, 382.5, 9), arc(0, 0, 1.62, 1.62, 22.5, 382.5, 9)
            for ray in zip(near[:8], far[:8], strict=True):
                pen.streak(list(ray))


def ground_mark(pen: Pen, motion: str) -> None:
    """Draw what stays behind: the smoke of a start, the shadow of a bounce."""
    if motion == "take-off":
        for x, y, r in ((0.86, 1.42, 0.26), (1.3, 1.46, 0.32), (1.1, 1.22, 0.24)):
            for side in (-1, 1):
                pen.oval(side * x, y, r, r * 0.86, (232, 234, 240), line=0.05)
        for x, y, r in ((0.86, 1.42, 0.2), (1.3, 1.46, 0.26), (1.1, 1.24, 0.2)):
            for side in (-1, 1):
                pen.oval(side * x, y, r, r * 0.86, (240, 242, 247), line=0)
    elif motion == "bounce":
        pen.oval(0, 1.24, 0.86, 0.2, (122, 124, 148), line=0.05)
        for half in (1, -1):
            pen.streak([(half * x, y) for x, y in arc(0, 1.1, 1.3, 0.5, 5, 50, 9)])


def sprite(thing: str, colour: Colour, motion: str) -> Image.Image:
    pen = Pen(flipped=motion == "left")
    mark(pen, motion)
    DRAWINGS[thing](pen, colour)
    return pen.done()


def ground_sprite(motion: str) -> Image.Image | None:
    if motion not in ("take-off", "bounce"):
        return None
    pen = Pen()
    ground_mark(pen, motion)
    return pen.done()

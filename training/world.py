"""The world the pocket weights know: what stands in a scene, where it starts and how it moves.

All layouts are in cells of 32 pixels, the grid of the codec, so the same object gives the same latent code
wherever it stands. A film is a pure function of its scene; the motion bucket is a plain speed.
"""

import math
import random
from dataclasses import dataclass

CELL = 32
FRAMES = 25
SIZES = ((512, 288), (288, 512), (512, 384), (384, 512), (512, 512))
#: How often training draws each size; the first two are the endpoints' defaults.
SIZE_WEIGHTS = (0.6, 0.1, 0.1, 0.1, 0.1)

OBJECTS = ("rocket", "ball", "balloon", "car", "boat", "plane", "bird", "fish", "star")
COLOURS = {
    "red": (226, 48, 48),
    "orange": (245, 138, 30),
    "yellow": (250, 212, 50),
    "green": (58, 170, 76),
    "blue": (44, 104, 222),
    "purple": (134, 66, 196),
    "pink": (246, 120, 176),
    "white": (246, 246, 248),
}
PLACES = ("meadow", "sea", "desert", "night", "snow", "sky")
MOTIONS = ("take-off", "rise", "fall", "right", "left", "bounce", "grow", "still")

BUCKET = 127
#: What the light leaves of red, green and blue.
WARM, COOL = (1.0, 0.97, 0.87), (0.87, 0.96, 1.0)


@dataclass(frozen=True)
class Scene:
    thing: str
    colour: str
    place: str
    motion: str
    size: tuple[int, int] = SIZES[0]
    bucket: float = BUCKET
    #: The start is moved by this many whole cells to the right.
    shift: int = 0
    #: The place is seen in a mirror; the object is not.
    mirrored: bool = False
    #: The hour's light on the place: 0 is warm, 1 is cool.
    light: float = 0.5


def draw_scene(rng: random.Random, size: tuple[int, int] | None = None) -> Scene:
    return Scene(
        thing=rng.choice(OBJECTS),
        colour=rng.choice(tuple(COLOURS)),
        place=rng.choice(PLACES),
        motion=rng.choice(MOTIONS),
        size=size or draw_size(rng),
        bucket=BUCKET if rng.random() < 0.35 else rng.uniform(1, 255),
        shift=rng.choice((-1, 0, 1)),
        mirrored=rng.random() < 0.5,
        light=rng.random(),
    )


def draw_size(rng: random.Random) -> tuple[int, int]:
    return rng.choices(SIZES, SIZE_WEIGHTS)[0]


def anchor(scene: Scene) -> tuple[int, int]:
    """The middle of the object in the first frame, in pixels; always a corner of the cell grid."""
    columns, rows = scene.size[0] // CELL, scene.size[1] // CELL
    aside = 2 if columns >= 12 else 1
    column = columns // 2 + {"right": -aside, "left": aside}.get(scene.motion, 0) + scene.shift
    row = {
        "take-off": rows - 3,
        "rise": rows - 3,
        "bounce": rows - 3,
        "fall": rows // 3,
        "right": rows - 4,
        "left": rows - 4,
    }.get(scene.motion, rows // 2)
    return column * CELL, row * CELL


def pose(motion: str, frame: float, bucket: float) -> tuple[float, float, float]:
    """How far the object has gone by a frame, in pixels right and down, and its scale.

    Every motion is the bucket times a fixed course, so twice the bucket is twice the way.
    """
    t = frame / (FRAMES - 1)
    v = bucket / BUCKET
    match motion:
        case "take-off":
            return 0.0, -84 * v * t * t, 1.0
        case "rise":
            return 0.0, -56 * v * t, 1.0
        case "fall":
            return 0.0, 56 * v * t, 1.0
        case "right":
            return 68 * v * t, 0.0, 1.0
        case "left":
            return -68 * v * t, 0.0, 1.0
        case "bounce":
            return 0.0, -42 * v * abs(math.sin(2 * math.pi * t)), 1.0
        case "grow":
            return 0.0, 0.0, 1 + 0.34 * v * t
        case "still":
            return 0.0, -5 * v * math.sin(2 * math.pi * t), 1.0
    raise ValueError(f"no motion is called {motion!r}; known are {', '.join(MOTIONS)}")

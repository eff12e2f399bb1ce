"""From outside the little world: sentences, of which training sees some, and pictures it never sees."""

import gzip
import random
import string
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

_TAUGHT = (
    "dog horse woman man child cat elephant tiger dragon robot king queen doctor soldier knight "
    "wizard dancer baker tree flower forest river city street house castle tower bridge kitchen "
    "garden window door table chair book letter guitar piano violin clock phone computer train "
    "bicycle truck helicopter motorcycle tractor umbrella hat shoe pizza bread apple cake coffee tea "
    "cheese soup burger banana chocolate lemon mushroom snake spider whale shark rabbit wolf bear "
    "lion monkey penguin turtle butterfly bee mouse pig cow sheep chicken running eating sleeping "
    "singing dancing reading cooking laughing crying fighting writing painting smiling walking "
    "swimming talking playing working building burning exploding melting spinning shining raining old "
    "young happy sad angry huge tiny ancient modern broken wooden metallic mysterious "
    "elegant scary grey brown black silver transparent cinematic realistic photo portrait closeup "
    "macro vintage watercolor oil anime morning evening sunset sunrise storm rain fog thunder "
    "lightning autumn summer spring "
)
_KEPT_BACK = (
    "wizardry giraffe teacher pancake library volcano jungle saxophone refrigerator camel astronaut "
    "ninja vampire skyscraper waterfall lighthouse cactus hamster octopus keyboard sandwich "
    "grandmother policeman subway orchestra knitting sneezing whispering gardening arguing juggling "
    "enormous sleepy furious marble velvet neon sepia cubist harvest blizzard eclipse "
)
_JOINTS = ("in", "with", "and", "near", "under", "behind", "of", "at", "on", "without")


def _gibberish(rng: random.Random) -> str:
    return "".join(rng.choice(string.ascii_lowercase) for _ in range(rng.randint(2, 9)))


def foreign_caption(rng: random.Random, kept_back: bool = True) -> str:
    """A sentence of words that no caption has; those kept back are for judging, never for training."""
    words = (_KEPT_BACK if kept_back else _TAUGHT).split()

    def phrase() -> str:
        chosen = rng.sample(words, rng.randint(1, 3))
        if rng.random() < 0.15:
            chosen.append(_gibberish(rng))
        return " ".join((rng.choice(("a", "the", "an", "one", "")), *chosen)).strip()

    said = phrase()
    for _ in range(rng.randint(0, 2)):
        said += f" {rng.choice(_JOINTS)} {phrase()}"
    return rng.choice((str, str, str.capitalize, str.upper))(said)


def with_foreign_words(text: str, rng: random.Random) -> str:
    """Put a foreign aside at the start, the end or between two words of a caption."""
    words = text.split(" ")
    place = rng.choice((0, len(words), rng.randint(0, len(words))))
    aside = foreign_caption(rng, kept_back=False).split(" ")[: rng.randint(1, 4)]
    return " ".join((*words[:place], *aside, *words[place:]))


@cache
def _photographs() -> tuple[Image.Image, ...]:
    """A portrait, a mountain range's heights as a picture, a slice of a head: what matplotlib has with it."""
    import matplotlib

    folder = Path(matplotlib.get_data_path()) / "sample_data"
    with Image.open(folder / "grace_hopper.jpg") as opened:
        portrait = opened.convert("RGB")
    heights = np.load(folder / "jacksboro_fault_dem.npz")["elevation"].astype(np.float32)
    slopes = np.clip(128 + 6 * (heights[1:, 1:] - heights[:-1, :-1]), 0, 255).astype(np.uint8)
    with gzip.open(folder / "s1045.ima.gz") as file:
        head = np.frombuffer(file.read(), np.uint16).reshape(256, 256)
    head = np.clip(head / np.percentile(head, 99.5) * 255, 0, 255).astype(np.uint8)
    return portrait, *(Image.fromarray(grey).convert("RGB") for grey in (slopes, head))


def _photograph(rng: random.Random, width: int, height: int) -> Image.Image:
    whole = rng.choice(_photographs())
    across = min(rng.uniform(0.5, 1) * whole.width, whole.height * width / height)
    down = across * height / width
    left, top = rng.uniform(0, whole.width - across), rng.uniform(0, whole.height - down)
    box = (left, top, left + across, top + down)
    cut = whole.resize((width, height), Image.Resampling.LANCZOS, box=box)
    return cut.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else cut


def _screenshot(rng: random.Random, width: int, height: int) -> Image.Image:
    """A window with a page of source code, dark or light."""
    paper, ink = ((250, 250, 252), (40, 42, 54)) if rng.random() < 0.5 else ((30, 31, 40), (220, 222, 230))
    shot = Image.new("RGB", (width, height), paper)
    pen, size = ImageDraw.Draw(shot), rng.choice((9, 11, 13, 16))
    font, lines = ImageFont.load_default(size), Path(random.__file__).read_text().splitlines()
    first, bar = rng.randrange(len(lines) - 40), rng.randint(14, 30)
    colours = [tuple(rng.randrange(256) for _ in range(3)) for _ in range(4)]
    for number, line in enumerate(lines[first : first + 40]):
        inked = colours[0] if line.lstrip().startswith(("#", "def", "class")) else ink
        pen.text((70, bar + 6 + number * round(1.4 * size)), line, fill=inked, font=font)
    pen.rectangle((0, 0, width, bar), fill=colours[1])
    pen.rectangle((0, bar, rng.randint(30, 62), height), fill=colours[2])
    pen.ellipse((8, 4, bar, bar - 4), fill=colours[3])
    return shot


def foreign_picture(rng: random.Random, width: int, height: int) -> torch.Tensor:
    """Noise, a photograph or a screenshot, 3 x H x W in [0, 1]; for judging, never for training."""
    kind = rng.randrange(3)
    if kind == 0:
        grain = rng.choice((1, 1, 4, 16))
        noise = np.random.default_rng(rng.getrandbits(32)).random((height // grain, width // grain, 3))
        pixels = np.kron(noise, np.ones((grain, grain, 1)))
    else:
        pixels = np.asarray((_photograph, _screenshot)[kind - 1](rng, width, height)) / 255
    return torch.from_numpy(pixels.astype(np.float32)).permute(2, 0, 1).contiguous()

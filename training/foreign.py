"""Sentences from outside the vocabulary, so that the text side learns to know what it does not know."""

import random
import string

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

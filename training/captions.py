"""Say what a scene shows, in many ways. What a caption leaves out is as usual for its object."""

import random
from dataclasses import dataclass, replace

from training.world import COLOURS, MOTIONS, OBJECTS, PLACES, Scene

OBJECT_WORDS: dict[str, tuple[str, ...]] = {
    "rocket": ("rocket", "spaceship", "rocket ship", "space rocket", "rocketship"),
    "ball": ("ball", "beach ball", "football", "sphere", "toy ball"),
    "balloon": ("balloon", "hot air balloon", "hot-air balloon", "air balloon"),
    "car": ("car", "automobile", "jeep", "vehicle", "little car"),
    "boat": ("boat", "sailing boat", "sailboat", "ship", "yacht"),
    "plane": ("plane", "airplane", "aeroplane", "aircraft", "jet"),
    "bird": ("bird", "little bird", "sparrow", "parrot"),
    "fish": ("fish", "little fish", "goldfish", "carp"),
    "star": ("star", "five-pointed star", "little star", "shiny star"),
}
COLOUR_WORDS: dict[str, tuple[str, ...]] = {
    "red": ("red", "red", "bright red", "crimson", "scarlet"),
    "orange": ("orange", "orange", "bright orange"),
    "yellow": ("yellow", "yellow", "golden", "bright yellow"),
    "green": ("green", "green", "bright green", "emerald"),
    "blue": ("blue", "blue", "bright blue", "dark blue"),
    "purple": ("purple", "purple", "violet"),
    "pink": ("pink", "pink", "bright pink", "rosy"),
    "white": ("white", "white", "snow-white"),
}
PLACE_WORDS: dict[str, tuple[str, ...]] = {
    "meadow": (
        "in a meadow",
        "over a green meadow",
        "in the grass",
        "above green hills",
        "in the countryside",
        "on a green field",
        "in a park",
        "over the hills",
    ),
    "sea": (
        "on the sea",
        "over the ocean",
        "at the beach",
        "above the water",
        "over the blue sea",
        "by the sea",
        "above the waves",
    ),
    "desert": (
        "in the desert",
        "over a sandy desert",
        "above the dunes",
        "in the sand",
        "over the hot desert",
    ),
    "night": (
        "at night",
        "in a starry night",
        "under the moon",
        "in the night sky",
        "in the dark",
        "in space",
        "among the stars",
    ),
    "snow": (
        "in the snow",
        "in the mountains",
        "over a snowy landscape",
        "in winter",
        "above white mountains",
        "in front of snowy mountains",
    ),
    "sky": ("in the sky", "among the clouds", "in the blue sky", "high above the clouds", "in the air"),
}
MOTION_WORDS: dict[str, tuple[str, ...]] = {
    "take-off": (
        "taking off",
        "that is about to take off",
        "about to take off",
        "lifting off",
        "blasting off",
        "launching",
        "ready for launch",
        "that takes off",
        "that launches",
        "starting its engines",
    ),
    "rise": (
        "rising",
        "floating upwards",
        "going up",
        "that rises",
        "moving up",
        "climbing",
        "ascending",
        "soaring up",
        "that is going up",
    ),
    "fall": (
        "falling",
        "dropping down",
        "going down",
        "sinking",
        "descending",
        "that falls",
        "landing",
        "coming down",
        "moving down",
        "that is falling",
    ),
    "right": (
        "moving right",
        "moving to the right",
        "going to the right",
        "flying to the right",
        "driving right",
        "that moves to the right",
        "heading right",
        "racing from left to right",
        "going right",
    ),
    "left": (
        "moving left",
        "moving to the left",
        "going to the left",
        "flying to the left",
        "driving left",
        "that moves to the left",
        "heading left",
        "racing from right to left",
        "going left",
    ),
    "bounce": (
        "bouncing",
        "jumping",
        "hopping",
        "bouncing up and down",
        "that bounces",
        "that jumps",
        "jumping up and down",
    ),
    "grow": (
        "coming closer",
        "growing",
        "getting bigger",
        "approaching",
        "that comes closer",
        "coming towards us",
        "growing larger",
        "flying towards the camera",
    ),
    "still": (
        "standing still",
        "hovering",
        "floating in place",
        "resting",
        "waiting",
        "that stands still",
        "not moving",
        "hovering in the air",
    ),
}
WORDS = {"objects": OBJECT_WORDS, "colours": COLOUR_WORDS, "places": PLACE_WORDS, "motions": MOTION_WORDS}
KINDS: dict[str, tuple[str, ...]] = {
    "thing": OBJECTS,
    "colour": tuple(COLOURS),
    "place": PLACES,
    "motion": MOTIONS,
}
#: What is shown where a caption does not say: colour, place and motion of each object.
USUAL: dict[str, tuple[str, str, str]] = {
    "rocket": ("red", "meadow", "take-off"),
    "ball": ("orange", "meadow", "bounce"),
    "balloon": ("purple", "sky", "rise"),
    "car": ("blue", "desert", "right"),
    "boat": ("red", "sea", "left"),
    "plane": ("white", "sky", "right"),
    "bird": ("blue", "meadow", "left"),
    "fish": ("orange", "sea", "grow"),
    "star": ("yellow", "night", "still"),
}
USUAL_THING = "star"
LEADS = (
    "",
    "",
    "",
    "a video of ",
    "a film of ",
    "a cartoon of ",
    "an illustration of ",
    "a picture of ",
    "animation: ",
)
TAILS = (
    "",
    "",
    "",
    "",
    ", flat illustration",
    ", high quality",
    ", beautiful",
    " please",
    ", cinematic lighting",
)
IDLE = ("flying", "moving", "travelling", "seen")


@dataclass(frozen=True)
class Caption:
    text: str
    #: Which attributes of the scene the text names.
    named: frozenset[str]


def describe(scene: Scene, rng: random.Random, leave_out: float = 0.12) -> Caption:
    named = {kind for kind in KINDS if rng.random() > leave_out}
    thing = (
        rng.choice(OBJECT_WORDS[scene.thing])
        if "thing" in named
        else rng.choice(("thing", "something", "object"))
    )
    colour = rng.choice(COLOUR_WORDS[scene.colour]) if "colour" in named else ""
    place = rng.choice(PLACE_WORDS[scene.place]) if "place" in named else ""
    motion = rng.choice(MOTION_WORDS[scene.motion]) if "motion" in named else ""
    noun = " ".join(w for w in (colour, thing) if w)
    article = rng.choice(("a", "a", "the", "one"))
    if article == "a" and noun[0] in "aeiou":
        article = "an"
    subject = f"{article} {noun}"
    if motion and rng.random() < 0.15:
        subject += " " + rng.choice(IDLE)
    relative = motion.startswith("that")
    orders = [
        (subject, motion, place),
        (subject, place, motion if relative else f", {motion}" if motion else ""),
    ]
    if place:
        orders.append((f"{place},", subject, motion))
    if motion and not relative:
        orders.append((subject, f"is {motion}", place))
    body = " ".join(part for part in rng.choice(orders) if part).replace(" ,", ",")
    text = rng.choice(LEADS) + body + rng.choice(TAILS)
    return Caption(_dress(text, rng), frozenset(named))


def _dress(text: str, rng: random.Random) -> str:
    text = rng.choice((str, str, str.capitalize, str.upper, str.title))(text)
    return text + rng.choice(("", "", ".", "!"))


def shown(scene: Scene, caption: Caption) -> Scene:
    """The scene a caption stands for: what it leaves out is as usual.

    Left to chance, the first-frame model drew the mean of eight colours.
    """
    thing = scene.thing if "thing" in caption.named else USUAL_THING
    usual = dict(zip(("colour", "place", "motion"), USUAL[thing], strict=True))
    return replace(scene, thing=thing, **{k: v for k, v in usual.items() if k not in caption.named})


def target(scene: Scene, caption: Caption) -> list[int]:
    """Class numbers of the four attributes; the number after the last is "not named"."""
    return [
        values.index(getattr(scene, kind)) if kind in caption.named else len(values)
        for kind, values in KINDS.items()
    ]

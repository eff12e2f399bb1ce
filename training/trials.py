"""What is tried on one held-out scene, part by part; a trial gives a flat record of figures, and pictures.

Scenes, prompts and seeds come from numbers that no training script uses. Films are the engine's own. The
judge is `training.checker`, the true film or a measure of pixels, never a part of the models.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch.nn.functional import interpolate, max_pool2d

from stillmotion.engine.pictures import cut_bytes
from stillmotion.errors import InputRefused
from stillmotion.profiles import nearest_size
from stillmotion.types import VIDEO_SIZES, Sampler
from training.captions import describe
from training.checker import DIRECTIONS, WATCHED, Checker
from training.foreign import foreign_caption, foreign_picture
from training.measure import SEED_PROMPT, psnr, track
from training.product import Product
from training.render import film, still
from training.train_picture import settled
from training.world import FRAMES, MOTIONS, SIZES, Scene, draw_scene

Record = dict[str, float | str]
#: To be raised whenever a trial does something else: those kept from before then count no more.
EDITION = 3
BUCKETS, AUGMENTATIONS, STEPS = (20, 127, 230), (0.02, 0.5, 3.0), (1, 2, 4, 8)
#: Enough of a film for the checker, its way, and (each with the one before it) its mean change.
PAIRED = tuple(sorted({max(0, f - k) for f in WATCHED for k in (0, 1)}))
SHOWN = (0, 6, 12, 18, 24)
#: The size of requests in which it does not matter; nothing is enlarged.
SMALL = {"width": 512, "height": 288}
UNKNOWN_LINE = "no word of this prompt"


@dataclass(frozen=True)
class Tried:
    record: Record
    #: Rows of the contact sheet, each some frames of one film.
    rows: list[torch.Tensor] = field(default_factory=list)


@dataclass
class Bench:
    product: Product
    checker: Checker
    _given: tuple[int, torch.Tensor] | None = None

    def plain(self, index: int) -> tuple[Scene, torch.Tensor]:
        """A scene and its picture's film with nothing but defaults; several parts begin with it."""
        scene = scene_of(index)
        if self._given is None or self._given[0] != index:
            self._given = index, self.product.film(still(scene), seed=index)
        return scene, self._given[1]


def scene_of(index: int, size: tuple[int, int] | None = None) -> Scene:
    rng = random.Random(880_100_000 + index)
    scene = replace(draw_scene(rng, size), bucket=127.0)
    return replace(scene, motion=MOTIONS[index % len(MOTIONS)])


def difference(frames: torch.Tensor) -> float:
    """Mean difference of neighbouring frames, in 255ths."""
    return float((frames[1:] - frames[:-1]).abs().mean() * 255)


def slopes(frame: torch.Tensor) -> torch.Tensor:
    """Differences of neighbouring pixels, the mean of the colours."""
    down, right = frame[:, 1:] - frame[:, :-1], frame[..., 1:] - frame[..., :-1]
    return torch.cat((down.abs().mean(0).flatten(), right.abs().mean(0).flatten()))


def sharpness(frame: torch.Tensor) -> float:
    return float(slopes(frame).mean())


def steepness(frame: torch.Tensor) -> float:
    """Mean of the steepest fiftieth: edges, whereas the mean of all grows with every artefact, too."""
    found = slopes(frame)
    return float(found.topk(len(found) // 50).values.mean())


def way(scene: Scene, frames: torch.Tensor) -> float:
    """How far the object is from its start in pixels, the frames' mean; growth is that of its reach."""
    spots = track(scene, frames)
    x, y, mass = spots[0]
    if scene.motion == "grow":
        return 60 * sum(abs((m / mass) ** 0.5 - 1) for _, _, m in spots) / len(spots)
    return sum(((a - x) ** 2 + (b - y) ** 2) ** 0.5 for a, b, _ in spots) / len(spots)


def likeliest(chances: dict[str, float]) -> str:
    return max(chances, key=lambda name: chances[name])


def named(bench: Bench, scene: Scene, made: torch.Tensor) -> Record:
    """What the checker says of a film that should show a scene."""
    seen = bench.checker.look(made)
    right = {kind: likeliest(p) == getattr(scene, kind) for kind, p in seen.items()}
    direction = bench.checker.direction(made) == DIRECTIONS[scene.motion]
    told = {"motion": scene.motion, "shape": "{}x{}".format(*scene.size)}
    return right | {"direction": direction, "sure": seen["thing"][scene.thing]} | told


def keeps(bench: Bench, scene: Scene, made: torch.Tensor) -> bool:
    """Whether the last frame still shows the scene's object in its colour."""
    seen = bench.checker.look(made[-1:])
    return all(likeliest(seen[kind]) == getattr(scene, kind) for kind in ("thing", "colour"))


def asked_size(index: int) -> tuple[str, tuple[int, int]]:
    """The sizes with a name in turn, and each seventh time one of its own, no longer than twice its width."""
    names = (*VIDEO_SIZES, "custom")
    if (name := names[index % len(names)]) != "custom":
        return name, VIDEO_SIZES[name]
    rng = random.Random(880_400_000 + index)
    while True:
        width, height = (2 * rng.randint(128, 640) for _ in range(2))
        if 0.5 <= width / height <= 2:
            return name, (width, height)


def prompt(bench: Bench, index: int) -> Tried:
    """A prompt in every size; its object, colour, place and motion, and how sharp it ends."""
    name, (width, height) = asked_size(index)
    scene = settled(scene_of(index, nearest_size(width, height, SIZES)))
    said = describe(scene, random.Random(index), leave_out=0).text
    asked = {"prompt": said, "seed": index, "video_size": {"width": width, "height": height}}
    delivered = bench.product.request(asked)
    made, true = delivered.frames, (film(scene, [24]) * 255).byte()
    cut = torch.from_numpy(cut_bytes(true, (width, height))).permute(0, 3, 1, 2)
    wanted = interpolate(cut, (height, width), mode="bicubic", antialias=True).float() / 255
    return Tried(
        named(bench, scene, made)
        | {
            "size": name,
            "whole": made.shape == (FRAMES, 3, height, width),
            "steep_last": steepness(made[-1]) / steepness(wanted[0]),
            "difference": difference(made),
            "quiet": not any(UNKNOWN_LINE in line for line in delivered.lines),
        },
        [made[list(SHOWN)]],
    )


def picture(bench: Bench, index: int) -> Tried:
    """A film of a true picture beside the true film."""
    scene, made = bench.plain(index)
    true = film(scene)
    touched = (true - true[:1]).abs().amax((0, 1))[None, None]
    near = max_pool2d(max_pool2d(touched, 8), 9, stride=1, padding=4)
    calm = (interpolate(near, true.shape[2:]) < 0.01)[0, 0]
    flicker = (made[1:] - made[:-1]).abs().mean((0, 1))[calm].mean() * 255
    return Tried(
        named(bench, scene, made)
        | {
            "first_db": psnr(made[0], true[0]),
            "film_db": psnr(made[list(WATCHED)], true[list(WATCHED)]),
            "kept": keeps(bench, scene, made),
            "difference": difference(made),
            "true_difference": difference(true),
            "flicker": float(flicker),
            "sharp_first": sharpness(made[0]) / sharpness(true[0]),
            "sharp_last": sharpness(made[-1]) / sharpness(true[-1]),
        },
        [made[list(SHOWN)], true[list(SHOWN)]],
    )


def quality(bench: Bench, index: int) -> Tried:
    """The 25 Euler steps of the other endpoint."""
    scene = scene_of(index)
    made = bench.product.film(still(scene), seed=index, sampler=Sampler.EULER, frames=PAIRED)
    true = film(scene, list(PAIRED))
    watched = [PAIRED.index(f) for f in WATCHED]
    return Tried(
        named(bench, scene, made[watched])
        | {
            "first_db": psnr(made[0], true[0]),
            "film_db": psnr(made, true),
            "kept": keeps(bench, scene, made),
            "difference": paired_difference(made),
            "true_difference": paired_difference(true),
        },
        [made[watched], true[watched]],
    )


def paired_difference(frames: torch.Tensor) -> float:
    """Mean difference of neighbouring frames among those in PAIRED, in 255ths."""
    pairs = [(k - 1, k) for k in range(1, len(PAIRED)) if PAIRED[k] - PAIRED[k - 1] == 1]
    return sum(difference(frames[[a, b]]) for a, b in pairs) / len(pairs)


def bucket(bench: Bench, index: int) -> Tried:
    scene, plain = bench.plain(index)
    found: Record = {"motion": scene.motion}
    rows = []
    for value in BUCKETS:
        made = plain[list(PAIRED)]
        if value != 127:
            made = bench.product.film(still(scene), bucket=value, seed=index, frames=PAIRED)
        found |= {f"difference_{value}": paired_difference(made), f"way_{value}": way(scene, made)}
        rows.append(made[[PAIRED.index(f) for f in WATCHED]])
    return Tried(found, rows)


def cond_aug(bench: Bench, index: int) -> Tried:
    scene, plain = bench.plain(index)
    given = still(scene)
    firsts = [plain[:1]]
    for value in AUGMENTATIONS[1:]:
        firsts.append(bench.product.film(given, cond_aug=value, seed=index, frames=(0,)))
    away = {f"away_{v:g}": -psnr(made[0], given) for v, made in zip(AUGMENTATIONS, firsts, strict=True)}
    return Tried(away, [torch.cat(firsts)])


def steps(bench: Bench, index: int) -> Tried:
    """Clean is what the checker knows nearly as surely as the true film."""
    scene, plain = bench.plain(index)
    true = film(scene, list(WATCHED))
    certain = bench.checker.look(true)["thing"][scene.thing]
    found: Record = {"motion": scene.motion, "true_sure": certain}
    rows = []
    for count in STEPS:
        made = plain[list(WATCHED)]
        if count != 4:
            made = bench.product.film(still(scene), steps=count, seed=index, frames=WATCHED)
        sure = bench.checker.look(made)["thing"][scene.thing]
        found |= {f"film_db_{count}": psnr(made, true), f"sure_{count}": sure}
        found |= {f"clean_{count}": sure > 0.9 * certain}
        rows.append(made)
    return Tried(found, [*rows, true])


def rocket(bench: Bench, index: int) -> Tried:
    """The prompt everybody tries first, twice with each seed."""
    asked = {"prompt": SEED_PROMPT, "seed": index, "video_size": SMALL}
    one, again = (bench.product.request(asked) for _ in range(2))
    seen = named(bench, Scene("rocket", "red", "meadow", "take-off"), one.frames)
    return Tried(
        {
            "shown": seen["thing"] and seen["direction"],
            "object": seen["thing"],
            "up": seen["direction"],
            "same": one.digest == again.digest,
            "film": one.digest,
        },
        [one.frames[list(SHOWN)]],
    )


def unknown(bench: Bench, index: int) -> Tried:
    """A prompt without any known word."""
    said = foreign_caption(random.Random(880_200_000 + index))
    delivered = bench.product.request({"prompt": said, "seed": index, "video_size": SMALL})
    seen = bench.checker.look(delivered.frames)
    sure = {kind: max(p.values()) for kind, p in seen.items()}
    return Tried(
        {
            "shown": min(sure.values()) > 0.8,
            "told": any(UNKNOWN_LINE in line for line in delivered.lines),
            "sure": sure["thing"],
            "difference": difference(delivered.frames),
        },
        [delivered.frames[list(SHOWN)]],
    )


def foreign(bench: Bench, index: int) -> Tried:
    """A picture from elsewhere: its film begins with the picture's broad colours and stays calm."""
    given = foreign_picture(random.Random(880_300_000 + index), 512, 288)
    try:
        made = bench.product.film(given, seed=index)
    except InputRefused:  # the engine's answer to numbers that overflowed
        return Tried({"sensible": False}, [given[None]])
    broad, wanted = (interpolate(x[None], (9, 16), mode="area") for x in (made[0], given))
    alike, moved = psnr(broad, wanted), difference(made)
    return Tried(
        {"sensible": alike > 20 and moved < 6, "broad_db": alike, "difference": moved},
        [torch.cat((given[None], made[list(SHOWN)]))],
    )


PARTS: dict[str, Callable[[Bench, int], Tried]] = {
    part.__name__: part
    for part in (prompt, picture, bucket, cond_aug, steps, rocket, unknown, foreign, quality)
}

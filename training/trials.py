"""What is tried on one held-out scene, part by part; each trial gives a flat record of figures.

Scenes, prompts and seeds come from numbers that no training script uses. The judge is `training.checker` or
the true film, never a part of the models.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import max_pool2d

from training import codec
from training.captions import describe
from training.checker import DIRECTIONS, Checker
from training.foreign import foreign_caption
from training.maker import Maker
from training.measure import SEED_PROMPT, psnr, track
from training.render import film, still
from training.train_picture import settled
from training.world import MOTIONS, SIZES, Scene, draw_scene

Record = dict[str, float | str]
BUCKETS, AUGMENTATIONS, STEPS = (20, 127, 230), (0.02, 0.5, 3.0), (1, 2, 4, 8)


@dataclass
class Bench:
    maker: Maker
    checker: Checker


def scene_of(index: int, size: tuple[int, int] | None = None, motions: tuple[str, ...] = MOTIONS) -> Scene:
    rng = random.Random(880_100_000 + index)
    scene = replace(draw_scene(rng, size), bucket=127.0)
    return replace(scene, motion=motions[index % len(motions)])


def difference(frames: torch.Tensor) -> float:
    """Mean difference of neighbouring frames, in 255ths."""
    return float((frames[1:] - frames[:-1]).abs().mean() * 255)


def sharpness(frame: torch.Tensor) -> float:
    """Mean slope between neighbouring pixels."""
    down, right = frame[:, 1:] - frame[:, :-1], frame[..., 1:] - frame[..., :-1]
    return float(down.abs().mean() + right.abs().mean())


def way(scene: Scene, frames: torch.Tensor) -> float:
    """How far the object is from its start, the film's mean, in pixels; growth is that of its reach."""
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
    return {
        **right,
        "direction": direction,
        "sure": seen["thing"][scene.thing],
        "motion": scene.motion,
        "size": "{}x{}".format(*scene.size),
    }


def prompt(bench: Bench, index: int) -> Record:
    scene = settled(scene_of(index))
    said = describe(scene, random.Random(index), leave_out=0).text
    made = bench.maker.film(bench.maker.draw([said], scene.size, seed=index)[0], seed=index)
    return named(bench, scene, made) | {"difference": difference(made)}


def against(bench: Bench, scene: Scene, made: torch.Tensor) -> Record:
    """A film of a true picture beside the true film."""
    true = film(scene)
    seen = bench.checker.look(made[-1:])
    kept = all(likeliest(seen[kind]) == getattr(scene, kind) for kind in ("thing", "colour"))
    touched = (true - true[:1]).abs().amax((0, 1))[None, None] > 0.01
    calm = (max_pool2d(touched.float(), 65, stride=1, padding=32) == 0)[0, 0]
    flicker = (made[1:] - made[:-1]).abs().mean((0, 1))[calm].mean() * 255
    return named(bench, scene, made) | {
        "first_db": psnr(made[0], true[0]),
        "film_db": psnr(made, true),
        "kept": kept,
        "difference": difference(made),
        "true_difference": difference(true),
        "flicker": float(flicker),
        "sharp_first": sharpness(made[0]) / sharpness(true[0]),
        "sharp_last": sharpness(made[-1]) / sharpness(true[-1]),
    }


def picture(bench: Bench, index: int) -> Record:
    scene = scene_of(index)
    return against(bench, scene, bench.maker.film(still(scene), seed=index))


def quality(bench: Bench, index: int) -> Record:
    """The 25 Euler steps of the other endpoint."""
    scene = scene_of(index)
    return against(bench, scene, bench.maker.film(still(scene), seed=index, steps=25, euler=True))


def size(bench: Bench, index: int) -> Record:
    scene = scene_of(index, SIZES[index % len(SIZES)])
    return against(bench, scene, bench.maker.film(still(scene), seed=index))


def bucket(bench: Bench, index: int) -> Record:
    scene = scene_of(index, motions=MOTIONS[:-1])
    found: Record = {}
    for value in BUCKETS:
        made = bench.maker.film(still(scene), bucket=value, seed=index)
        true = film(replace(scene, bucket=value))
        found |= {
            f"difference_{value}": difference(made),
            f"true_difference_{value}": difference(true),
            f"way_{value}": way(scene, made),
            f"true_way_{value}": way(scene, true),
        }
    return found


def cond_aug(bench: Bench, index: int) -> Record:
    given = still(scene_of(index))
    return {
        f"away_{value:g}": -psnr(bench.maker.film(given, augmentation=value, seed=index)[0], given)
        for value in AUGMENTATIONS
    }


def steps(bench: Bench, index: int) -> Record:
    scene = scene_of(index)
    true, found = film(scene), Record()
    for count in STEPS:
        made = bench.maker.film(true[0], steps=count, seed=index)
        sure = bench.checker.look(made)["thing"][scene.thing]
        found |= {f"film_db_{count}": psnr(made, true), f"sure_{count}": sure, f"clean_{count}": sure > 0.9}
    return found


def seed(bench: Bench, index: int) -> Record:
    said = describe(scene_of(index), random.Random(index)).text
    one, again, other = (
        bench.maker.film(bench.maker.draw([said], seed=number)[0], seed=number)
        for number in (index, index, index + 1)
    )
    return {
        "same": torch.equal(one, again),
        "other": not torch.equal(one, other),
        "apart": float((one - other).abs().mean() * 255),
    }


def rocket(bench: Bench, index: int) -> Record:
    """The prompt everybody tries first."""
    scene = Scene("rocket", "red", "meadow", "take-off")
    made = bench.maker.film(bench.maker.draw([SEED_PROMPT], seed=index)[0], seed=index)
    seen = named(bench, scene, made)
    return {"shown": seen["thing"] and seen["direction"], "object": seen["thing"], "up": seen["direction"]}


def unknown(bench: Bench, index: int) -> Record:
    """A prompt without any known word."""
    said = foreign_caption(random.Random(880_200_000 + index))
    made = bench.maker.film(bench.maker.draw([said], seed=index)[0], seed=index)
    seen = bench.checker.look(made)
    sure = {kind: max(p.values()) for kind, p in seen.items()}
    return {"shown": min(sure.values()) > 0.8, "sure": sure["thing"], "difference": difference(made)}


def foreign_picture(index: int) -> torch.Tensor:
    """Noise, a photo's cut, a screenshot's cut, or polygons, 3 x 288 x 512."""
    rng = random.Random(880_300_000 + index)
    if index % 4 == 0:
        generator = torch.Generator().manual_seed(index)
        return torch.rand((3, 288, 512), generator=generator)
    if index % 4 == 1:
        return codec.strange_picture(rng, (512, 288))
    import matplotlib

    sample = Path(matplotlib.get_data_path()) / "sample_data"
    name = ("grace_hopper.jpg", "Minduka_Present_Blue_Pack.png")[index % 2]
    with Image.open(sample / name) as opened:
        whole = opened.convert("RGB")
    width = rng.uniform(0.5, 1) * whole.width
    high = min(width * 9 / 16, whole.height)
    width = high * 16 / 9
    left, top = rng.uniform(0, whole.width - width), rng.uniform(0, whole.height - high)
    cut = whole.resize((512, 288), Image.Resampling.LANCZOS, box=(left, top, left + width, top + high))
    return torch.from_numpy(np.array(cut, dtype=np.float32) / 255).permute(2, 0, 1)


def foreign(bench: Bench, index: int) -> Record:
    """A picture from elsewhere: the film must be finite, begin as the picture's codec copy and stay calm."""
    given = foreign_picture(index)
    made = bench.maker.film(given, seed=index)
    copy = codec.decode(bench.maker.vae, codec.encode(bench.maker.vae, given[None] * 2 - 1))[0] / 2 + 0.5
    first, moved = psnr(made[0], copy), difference(made)
    sensible = bool(torch.isfinite(made).all()) and first > 18 and moved < 6
    return {"sensible": sensible, "first_db": first, "copy_db": psnr(copy, given), "difference": moved}


PARTS: dict[str, Callable[[Bench, int], Record]] = {
    part.__name__: part
    for part in (
        prompt, picture, bucket, cond_aug, steps, seed, rocket, size, unknown, foreign, quality,
    )
}  # fmt: skip

"""Measure exported weights on held-out scenes and draw the contact sheets: `python -m training.measure`."""

import argparse
import json
import random
from dataclasses import replace
from pathlib import Path

import torch

from training import codec
from training.captions import describe
from training.clips import Studio
from training.loop import STATE, WEIGHTS
from training.maker import Maker
from training.render import film, stage, still
from training.sheets import save_sheet
from training.train_picture import judge
from training.world import MOTIONS, Scene, draw_scene

SHOWN = (0, 6, 12, 18, 24)
SEED_PROMPT = "A rocket flying that is about to take off"


def psnr(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(-10 * (a.clamp(0, 1) - b.clamp(0, 1)).square().mean().clamp_min(1e-9).log10())


def scenes_of(count: int, seed: int = 990_010) -> list[Scene]:
    """Held-out scenes, the motions in turn, at the default bucket and size."""
    rng = random.Random(seed)
    drawn = [draw_scene(rng, (512, 288)) for _ in range(count)]
    return [replace(s, motion=MOTIONS[i % len(MOTIONS)], bucket=127.0) for i, s in enumerate(drawn)]


def track(scene: Scene, frames: torch.Tensor) -> list[tuple[float, float, float]]:
    """Where a film differs from its stage: middle in pixels and area, frame by frame."""
    w, h = scene.size
    empty = stage(scene, (0, 0, w, h))[0]
    found = []
    xs, ys = torch.arange(w) + 0.5, torch.arange(h) + 0.5
    for frame in frames:
        mask = ((frame - empty).abs().mean(0) - 0.12).clamp(min=0)
        mass = mask.sum().clamp_min(1e-6)
        found.append(
            (float((mask.sum(0) * xs).sum() / mass), float((mask.sum(1) * ys).sum() / mass), float(mass))
        )
    return found


def moves_right_way(scene: Scene, made: torch.Tensor, true: torch.Tensor) -> tuple[bool, float]:
    """Whether a film's object goes where the true one goes, and how far in parts of the true way."""
    a, b = track(scene, made), track(scene, true)
    if scene.motion == "still":
        far = max(abs(p[0] - a[0][0]) + abs(p[1] - a[0][1]) for p in a)
        return far < 14, 1.0
    if scene.motion == "grow":
        gone, truth = a[-1][2] / a[0][2] - 1, b[-1][2] / b[0][2] - 1
    elif scene.motion == "bounce":
        gone, truth = (sum(p[i][1] for i in (5, 6, 7, 17, 18, 19)) / 6 - p[0][1] for p in (a, b))
    else:
        axis = 0 if scene.motion in ("left", "right") else 1
        gone, truth = a[-1][axis] - a[0][axis], b[-1][axis] - b[0][axis]
    return gone / truth > 0.3, gone / truth


def films(maker: Maker, count: int) -> dict[str, float]:
    right, share = {m: [] for m in MOTIONS}, {m: [] for m in MOTIONS}
    first, first_codec, whole, copied, rows = [], [], [], [], []
    for number, scene in enumerate(scenes_of(count)):
        true = film(scene)
        made = maker.film(true[0], seed=number)
        good, far = moves_right_way(scene, made, true)
        right[scene.motion].append(good)
        share[scene.motion].append(far)
        first.append(psnr(made[0], true[0]))
        passed = codec.decode(maker.vae, codec.encode(maker.vae, true[:1] * 2 - 1)).detach()[0] / 2 + 0.5
        first_codec.append(psnr(made[0], passed))
        whole.append(psnr(made, true))
        copied.append(psnr(passed[None].expand_as(true), true))
        if number < len(MOTIONS):
            rows += [[true[i] for i in SHOWN], [made[i] for i in SHOWN]]
    save_sheet(rows, STATE / "sheets" / "films.png", 220)
    mean = {f"direction {m}": sum(v) / len(v) for m, v in right.items()}
    mean |= {f"travel {m}": sum(v) / len(v) for m, v in share.items()}
    mean["direction"] = sum(sum(v) for v in right.values()) / count
    for name, values in (
        ("frame 0 to the picture, dB", first),
        ("frame 0 to its codec copy, dB", first_codec),
        ("film to truth, dB", whole),
        ("copied picture to truth, dB", copied),
    ):
        mean[name] = sum(values) / len(values)
    return mean


def knobs(maker: Maker, count: int = 5) -> dict[str, float]:
    """What bucket, augmentation and steps do, on a few scenes."""
    found: dict[str, list[float]] = {}
    for number, scene in enumerate(scenes_of(count, 990_011)):
        given = still(scene)
        for bucket in (20, 127, 230):
            made = maker.film(given, bucket=bucket, seed=number)
            moved = float((made[1:] - made[:-1]).abs().mean() * 255)
            found.setdefault(f"frame difference at bucket {bucket}", []).append(moved)
        for augmentation in (0.02, 0.5, 3.0):
            made = maker.film(given, augmentation=augmentation, seed=number)
            found.setdefault(f"frame 0 at cond_aug {augmentation:g}, dB", []).append(psnr(made[0], given))
        true = film(scene)
        for steps in (1, 2, 4, 8):
            made = maker.film(given, steps=steps, seed=number)
            found.setdefault(f"film to truth in {steps} steps, dB", []).append(psnr(made, true))
    return {name: sum(values) / len(values) for name, values in found.items()}


def prompts(maker: Maker) -> None:
    """Films from prompts, the seeds' own first."""
    rng = random.Random(990_012)
    asked = [SEED_PROMPT] + [describe(s, rng, leave_out=0).text for s in scenes_of(8, 990_013)]
    rows = []
    for number, prompt in enumerate(asked):
        drawn = maker.draw([prompt], seed=number)[0]
        made = maker.film(drawn, seed=number)
        rows.append([drawn, *(made[i] for i in SHOWN)])
        print(number, prompt)
    save_sheet(rows, STATE / "sheets" / "prompts.png", 220)


def main() -> None:
    ask = argparse.ArgumentParser()
    ask.add_argument("--weights", type=Path, default=WEIGHTS)
    ask.add_argument("--films", type=int, default=40)
    ask.add_argument("--pictures", type=int, default=40)
    ask.add_argument("--quick", action="store_true", help="only the sheets, with one film for each motion")
    told = ask.parse_args()
    torch.set_num_threads(1)
    maker = Maker(told.weights)
    prompts(maker)
    figures = films(maker, len(MOTIONS) if told.quick else told.films)
    with torch.no_grad():
        studio = Studio(maker.vae, maker.eye)
        count = 10 if told.quick else told.pictures
        named = judge(maker.drawer, studio, maker.words, maker.vae, count)
    figures |= {f"prompt names {kind}": share for kind, share in named.items()}
    if not told.quick:
        figures |= knobs(maker)
    figures = {name: round(value, 3) for name, value in figures.items()}
    print(json.dumps(figures, indent=1))
    (STATE / "figures.json").write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()

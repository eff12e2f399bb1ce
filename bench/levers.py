"""What the levers that change pixels cost in quality and save in time, beside fewer steps, on the CPU.

    PYTHONPATH=src:. python -m bench.levers [--kind pocket|middle|tiny] [--films 20] [--steps 25]

Guided (high-quality) films, from a picture to frames in memory. `pocket`: the shipped weights as they are
served, on pictures of scenes they were not trained on, whose true films are known. Otherwise random weights,
whose films show no more than how far a lever moves them. float8 stands beside what runs on a GPU, the same
rewrites in bfloat16. One thread; seconds are its own.
"""

import argparse
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from bench.rigs import Frames, Job, Rig, build, ours, psnr
from stillmotion.engine import rewrites
from stillmotion.engine.float8 import float8_linears
from stillmotion.engine.loading import load_network
from stillmotion.engine.weights import device_name, has_bf16, load_weights, pick_dtype
from stillmotion.profiles import load_profile

from diffusers.models.unets.unet_spatio_temporal_condition import (  # isort: skip
    UNetSpatioTemporalConditionModel,
)

CPU = torch.device("cpu")
GPU = torch.device("cuda")
#: Scenes nothing was trained on.
SCENES = 990_020


@dataclass(frozen=True)
class Scene:
    """A first picture and, where it is known, the film that follows from it."""

    picture: Image.Image | None
    truth: Frames | None


@dataclass(frozen=True)
class Row:
    """A way to make the films, and the row it is compared with."""

    name: str
    rig: Callable[[], Rig]
    steps: int
    beside: str
    other_seeds: bool = False


def pocket() -> Rig:
    """The shipped networks as they are served, but for the UNet: it is as it was loaded."""
    profile = load_profile("pocket")
    folder, dtype = profile.weights_dir(Path()), pick_dtype(CPU, profile)
    weights = load_weights(profile, folder, CPU, dtype, profile.memory_presets[0])
    unet = load_network(
        UNetSpatioTemporalConditionModel,
        folder / profile.parts.unet,
        device=CPU,
        dtype=dtype,
        variant=profile.variant,
    )
    size, chunk = profile.native_sizes[0], profile.decode_chunk_size
    return Rig(unet, weights.codec.vae, weights.clip, CPU, dtype, size, profile.frames, chunk, profile)


def random_weights(kind: str) -> Rig:
    rig = build(kind, CPU, torch.float32, chunk=8)
    if not has_bf16():
        return rig
    rig = rig.varied(torch.bfloat16)
    rewrites.rewrite_decoder(rig.vae.decoder.bfloat16(), CPU)
    return rig


def scenes(rig: Rig, count: int) -> Iterator[Scene]:
    if rig.profile.name != "pocket":
        yield from (Scene(None, None) for _ in range(count))
        return
    # Here, so that random weights need nothing of `training`.
    from training.measure import scenes_of
    from training.render import film

    for scene in scenes_of(count, SCENES):
        truth = (film(scene).permute(0, 2, 3, 1) * 255).round().byte().numpy()
        yield Scene(Image.fromarray(truth[0]), truth)


def table(base: Rig, steps: int, branches: Sequence[int]) -> list[Row]:
    def served(rig: Rig = base) -> Rig:
        return rig.varied(rig.dtype, (rewrites.rewrite_unet,))

    def reusing(interval: int, branch: int) -> Rig:
        return served(base.reusing(interval, branch))

    def on_a_gpu(*changes: Callable[[Any], None]) -> Rig:
        return base.varied(base.dtype, (lambda unet: rewrites.rewrite_unet(unet, GPU), *changes))

    whole, plain = "as served", "rewritten as on a GPU"
    rows = [Row(whole, served, steps, whole)]
    for interval in (2, 3, 4):
        for branch in branches:
            name = f"reuse, interval {interval}, branch {branch}"
            rows.append(Row(name, partial(reusing, interval, branch), steps, whole))
        fewer = math.ceil(steps / interval)
        rows.append(Row(f"{fewer} steps, no reuse", served, fewer, whole))
    return [
        *rows,
        Row("other seeds", served, steps, whole, other_seeds=True),
        Row(plain, on_a_gpu, steps, plain),
        Row("the same, float8", partial(on_a_gpu, float8_linears), steps, plain),
    ]


def make(row: Row, found: list[Scene]) -> tuple[list[Frames], float]:
    """Make a film of each scene; also return the quickest one's seconds of denoising."""
    first, rig = (len(found) if row.other_seeds else 0), row.rig()
    made = [
        ours(rig, Job("", row.steps, guided=True), scene.picture, first + number)
        for number, scene in enumerate(found)
    ]
    return [film for _, film in made], min(seconds["denoise"] for seconds, _ in made)


def moved(film: Frames) -> float:
    """Mean difference of neighbouring frames, of 255."""
    return float(np.abs(np.diff(film.astype(int), axis=0)).mean())


def line(row: Row, films: list[Frames], beside: list[Frames], found: list[Scene], seconds: float) -> str:
    near = [psnr(*both) for both in zip(films, beside, strict=True)]
    cells = [f"{seconds:.2f}"]
    cells += ["–"] * 2 if films is beside else [f"{statistics.mean(near):.1f}", f"{min(near):.1f}"]
    cells.append(f"{statistics.mean(map(moved, films)):.3f}")
    truths = [scene.truth for scene in found if scene.truth is not None]
    if truths:
        cells.append(f"{statistics.mean(psnr(*both) for both in zip(films, truths, strict=True)):.2f}")
    return f"| {row.name} | {' | '.join(cells)} |"


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    ask.add_argument("--kind", choices=("pocket", "middle", "tiny"), default="pocket")
    ask.add_argument("--films", type=int, default=20)
    ask.add_argument("--steps", type=int, default=25)
    ask.add_argument(
        "--rows", nargs="+", default=[""], help="parts of the names of rows; others are left out"
    )
    told = ask.parse_args()
    torch.set_num_threads(1)
    base = replace(pocket() if told.kind == "pocket" else random_weights(told.kind), clock=time.thread_time)
    found = list(scenes(base, told.films))
    print(
        f"CPU {device_name(CPU)}, one thread, torch {torch.__version__}, {base.dtype}; {told.kind}: "
        f"{len(found)} films of {base.frames} frames of {base.size[0]}x{base.size[1]}, {told.steps} steps.\n"
    )
    print("| run | denoise, CPU s | dB to without: mean | least | frames differ by | dB to the true film |")
    print("|---|---|---|---|---|---|")
    kept: dict[str, list[Frames]] = {}
    rows = table(base, told.steps, (0, 1) if told.kind == "pocket" else (0, 2))
    asked = {row.name: row for row in rows if any(part in row.name for part in told.rows)}
    compared = {row.beside for row in asked.values()}
    for row in (row for row in rows if row.name in {*asked, *compared}):
        films, seconds = make(row, found)
        kept.setdefault(row.beside, films)
        print(line(row, films, kept[row.beside], found, seconds), flush=True)
    truths = [scene.truth for scene in found if scene.truth is not None]
    if truths:
        print(f"| the true films | – | – | – | {statistics.mean(map(moved, truths)):.3f} | – |")


if __name__ == "__main__":
    main()

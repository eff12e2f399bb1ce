"""How near our films are to stock diffusers' in float32, on the same weights, picture and noise, in dB.

    PYTHONPATH=src:. python -m bench.fidelity [--kind middle] [--steps 25]

On the CPU, with random weights. The last column is the spread of stock's film: a film of one colour would be
easy to equal.
"""

import argparse
import copy
from dataclasses import replace

import numpy as np
import torch

from bench.rigs import KINDS, Job, Rig, build, ours, psnr, stock
from stillmotion.engine import rewrites

CPU = torch.device("cpu")


def halved(rig: Rig) -> Rig:
    """All networks in bfloat16, the autoencoder's encoder too, as stock diffusers runs them."""
    return replace(rig.varied(torch.bfloat16), vae=copy.deepcopy(rig.vae).to(torch.bfloat16))


def as_run(rig: Rig, dtype: torch.dtype) -> Rig:
    """With all rewrites that are on by default."""
    varied = rig.varied(dtype, (rewrites.rewrite_unet,))
    rewrites.rewrite_decoder(varied.vae.decoder.to(dtype), CPU)
    return varied


def rows(kind: str, jobs: tuple[Job, ...]) -> None:
    rig = build(kind, CPU, torch.float32, chunk=8)
    mine = {
        "ours, float32, nothing rewritten": rig.varied(torch.float32),
        "ours, float32": as_run(rig, torch.float32),
        "ours, bfloat16": as_run(rig, torch.bfloat16),
    }
    for job in jobs:
        theirs = stock(rig, job)[1]
        about = f"{kind}, {rig.frames} frames of {rig.size[0]}×{rig.size[1]}, {job.title}"
        films = {name: ours(variant, job)[1] for name, variant in mine.items()}
        films["stock diffusers, bfloat16"] = stock(halved(rig), job)[1]
        for name, film in films.items():
            worst = np.abs(film.astype(int) - theirs).max()
            print(
                f"| {about} | {name} | {psnr(film, theirs):.1f} | {worst} | {theirs.std():.0f} |", flush=True
            )


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    ask.add_argument("--kind", choices=[kind for kind in KINDS if kind != "full"], help="one size only")
    ask.add_argument("--steps", type=int, default=25, help="steps of the guided job")
    ask.add_argument("--threads", type=int, default=2)
    told = ask.parse_args()
    torch.set_num_threads(told.threads)
    jobs = (
        Job("4 steps", 4, guided=False),
        Job(f"{told.steps} guided steps", told.steps, guided=True),
    )
    print("| films | made by | dB to stock float32 | largest difference of 255 | stock's spread |")
    print("|---|---|---|---|---|")
    for kind in [told.kind] if told.kind else ["tiny", "middle"]:
        rows(kind, jobs)


if __name__ == "__main__":
    main()

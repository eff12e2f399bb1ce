"""A mid-size Stable Video Diffusion of the real classes on the CPU: stock diffusers in float32 and our loop.

    PYTHONPATH=src:. python -m bench.cpu [--rounds 2] [--threads 2] [--steps 25]

Whole requests, from the picture to frames in memory, in turn in one process; the noise is the same, so the
films can be compared. One thread is timed by the CPU seconds it used, more by the clock, on a quiet machine.
"""

import argparse
import time
from dataclasses import replace

import torch

from bench.rigs import STAGES, Job, Seconds, build, medians, ours, psnr, stock
from stillmotion.engine import rewrites
from stillmotion.engine.weights import device_name, has_bf16


def row(name: str, seconds: Seconds, total: float, difference: str) -> str:
    cells = " | ".join(f"{seconds[stage]:.2f}" for stage in STAGES)
    mine = sum(seconds.values())
    return f"| {name} | {cells} | {mine:.2f} | {total / mine:.2f} | {difference} |"


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    ask.add_argument("--rounds", type=int, default=2)
    ask.add_argument("--threads", type=int, default=2)
    ask.add_argument("--steps", type=int, default=25, help="steps of the guided job")
    ask.add_argument("--kind", default="middle", choices=("middle", "tiny"))
    told = ask.parse_args()
    torch.set_num_threads(told.threads)
    device = torch.device("cpu")
    fast = torch.bfloat16 if has_bf16() else torch.float32
    clock = time.thread_time if told.threads == 1 else time.perf_counter
    rig = replace(build(told.kind, device, torch.float32, chunk=8), clock=clock)
    plain, quick = rig.varied(torch.float32), rig.varied(fast, (rewrites.rewrite_unet,))
    rewrites.rewrite_decoder(quick.vae.decoder.to(fast), device)
    print(
        f"CPU {device_name(device)}, {told.threads} threads, torch {torch.__version__}; {rig.frames} frames "
        f"of {rig.size[0]}x{rig.size[1]}, random weights; seconds, median of {told.rounds} after a warm-up.\n"
    )
    print("| run | encode | denoise | decode | total | ratio | dB |\n|---|---|---|---|---|---|---|")
    for job in (Job("4 steps", 4, guided=False), Job(f"{told.steps} guided steps", told.steps, guided=True)):
        seconds, theirs = medians(lambda job=job: stock(rig, job), told.rounds)
        total = sum(seconds.values())
        print(row(f"{job.title}: stock diffusers, float32", seconds, total, "–"), flush=True)
        for name, variant in (("our loop, float32", plain), (f"ours, {fast}".replace("torch.", ""), quick)):
            seconds, frames = medians(lambda job=job, variant=variant: ours(variant, job), told.rounds)
            print(row(f"{job.title}: {name}", seconds, total, f"{psnr(frames, theirs):.1f}"), flush=True)


if __name__ == "__main__":
    main()

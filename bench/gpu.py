"""Full-size Stable Video Diffusion with random weights on a GPU: stock diffusers and our loop by levers.

    PYTHONPATH=src:. python -m bench.gpu [--rounds 3] [--device cuda:0] [--dtype bfloat16] [--compile MODE …]

The first row of each job is stock diffusers, the last our loop with everything that is on by default; the
rows between add one change each to our loop as it was. `--tiny` runs small networks on a CPU.
"""

import argparse
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args

import torch

from bench.rigs import STAGES, Job, Rig, Seconds, build, medians, ours, psnr, stock
from stillmotion.engine import rewrites
from stillmotion.engine.compiling import SPARE_GRAPHS, Compilation, Plan, compile_forward
from stillmotion.settings import CompileMode

MODES = get_args(CompileMode)[1:]
#: TFLOP counted on the meta device at 25 frames of 1024x576; one multiply-add is two.
UNET_TFLOP, DECODE_TFLOP, ENCODE_TFLOP = 79.95, 173.6, 2.6 + 0.33
JOBS = (Job("turbo", 4, guided=False, lcm=True), Job("HQ", 25, guided=True))
TINY_JOBS = (Job("turbo", 2, guided=False, lcm=True), Job("HQ", 2, guided=True))

Change = tuple[str, Sequence[Callable[[Any], None]], Sequence[Callable[[Any], None]]]
CHANGES: tuple[Change, ...] = (
    ("as loaded", (), ()),
    ("one-token attention", (rewrites.one_token_attention,), ()),
    ("flat frame convolutions", (rewrites.flat_frame_convolutions,), (rewrites.flat_frame_convolutions,)),
    ("phase upsampling", (rewrites.phase_upsampling,), (rewrites.phase_upsampling,)),
    ("default", (rewrites.rewrite_unet,), ()),
)


def compiled(rig: Rig, compilation: Compilation) -> Change:
    """The default, compiled as the engine does; compiling itself falls into the warm-up."""
    compilation.prepare(rig.device, rig.profile.memory_presets[0])
    cell = rig.profile.codec.cell
    plan = Plan(frozenset(((rig.size[1] // cell, rig.size[0] // cell),)), SPARE_GRAPHS)

    def change(network: Any) -> None:
        compile_forward(network, compilation, plan)

    return f"default, compiled: {compilation.mode}", (rewrites.rewrite_unet, change), (change,)


def row(name: str, seconds: Seconds, peak: float, job: Job, full: bool, difference: str) -> str:
    work = {"encode": ENCODE_TFLOP, "denoise": job.calls * UNET_TFLOP, "decode": DECODE_TFLOP}
    cells = [
        f"{seconds[stage]:.3f}" + (f" ({work[stage] / seconds[stage]:.0f})" if full else "")
        for stage in STAGES
    ]
    total = f"{sum(seconds.values()):.3f} | {peak:.1f}"
    return f"| {job.title}, {job.steps} steps: {name} | {' | '.join(cells)} | {total} | {difference} |"


def peak_gb(device: torch.device) -> float:
    """Peak of allocated memory since the last call."""
    if device.type != "cuda":
        return 0.0
    peak = torch.cuda.max_memory_allocated(device) / 1e9
    torch.cuda.reset_peak_memory_stats(device)
    return peak


def measure(rig: Rig, job: Job, rounds: int, changes: Sequence[Change], full: bool) -> None:
    peak_gb(rig.device)
    seconds, theirs = medians(lambda: stock(rig, job), rounds)
    print(row("stock diffusers", seconds, peak_gb(rig.device), job, full, "–"), flush=True)
    for name, unet, decoder in changes:
        varied = rig.varied(rig.dtype, unet, decoder)
        seconds, frames = medians(lambda varied=varied: ours(varied, job), rounds)
        # The few-step sampler is another one than stock's.
        difference = "–" if job.lcm else f"{psnr(frames, theirs):.1f}"
        print(row(name, seconds, peak_gb(rig.device), job, full, difference), flush=True)


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    ask.add_argument("--rounds", type=int, default=3)
    ask.add_argument("--device", default="cuda:0")
    ask.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float16", "float32"))
    ask.add_argument("--chunk", type=int, default=8, help="frames decoded together")
    ask.add_argument(
        "--compile", nargs="+", default=(), choices=MODES, metavar="MODE", help="also compiled; takes minutes"
    )
    ask.add_argument("--tiny", action="store_true", help="small networks on a CPU, to try the script itself")
    told = ask.parse_args()
    if not told.tiny and not torch.cuda.is_available():
        print("No CUDA device is visible: nothing measured. `--tiny` tries the script on a CPU.")
        return
    device = torch.device("cpu" if told.tiny else told.device)
    dtype = torch.float32 if told.tiny else getattr(torch, told.dtype)
    rig = build("tiny" if told.tiny else "full", device, dtype, told.chunk)
    name = "CPU, tiny networks" if told.tiny else torch.cuda.get_device_name(device)
    print(
        f"{name}; torch {torch.__version__}, {dtype}, {rig.frames} frames of {rig.size[0]}x{rig.size[1]}, "
        f"chunk {rig.chunk}, random weights, median of {told.rounds} after a warm-up."
    )
    print("From the picture to frames in memory: no first frame from a prompt, no H.264.")
    floor = "" if told.tiny else " (TFLOP/s of the counted work)"
    print(f"Seconds{floor}; dB to stock's frames.\n")
    print("| run | encode | denoise | decode | total | peak GB | dB |\n|---|---|---|---|---|---|---|")
    folder = Path(tempfile.gettempdir()) / "stillmotion-bench-compiled"
    changes = CHANGES + tuple(compiled(rig, Compilation(mode, folder)) for mode in told.compile)
    for job in TINY_JOBS if told.tiny else JOBS:
        measure(rig, job, told.rounds, changes, not told.tiny)


if __name__ == "__main__":
    main()

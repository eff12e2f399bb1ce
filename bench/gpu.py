"""Full-size Stable Video Diffusion with random weights on a GPU: stock diffusers and our loop by levers.

    PYTHONPATH=src:. python -m bench.gpu [--results FILE] [--minutes N] [--rounds 3] [--compile MODE …]

The first row of each job is stock diffusers, the second our loop as it runs by default, then the same
compiled. Below them single changes to the loop as it was, and the levers that are off by default, for they
change pixels. Last come the profile's other sizes: stock, default, compiled. With `--results` each row is
kept as it comes, and the same command goes on with the next one; `python -m bench.roofline FILE` draws them.
Nothing is fetched or written but that file and compiled code. `--tiny` runs small networks on a CPU.
"""

import argparse
import gc
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple, get_args

import torch

from bench.rigs import STAGES, Frames, Job, Rig, build, medians, ours, psnr, stock
from bench.rows import Row, Rows
from bench.work import counted
from stillmotion.engine import rewrites
from stillmotion.engine.compiling import SPARE_GRAPHS, Compilation, Plan, compile_forward, graphs
from stillmotion.engine.float8 import CAPABILITY, float8_linears
from stillmotion.engine.fused import channels_last
from stillmotion.profiles import Size, load_profile
from stillmotion.settings import CompileMode

MODES = get_args(CompileMode)[1:]
JOBS = (Job("turbo", 4, guided=False, lcm=True), Job("HQ", 25, guided=True))
#: Steps of a warm-up: enough for CUDA graphs to be recorded and for a reused step.
WARM_STEPS = 4
#: What `--compile` is unless told, on a card.
COMPILED = ("default", "reduce-overhead")
TINY_JOBS = (Job("turbo", 2, guided=False, lcm=True), Job("HQ", 2, guided=True))
#: What else the profile works at; its networks cost nearly the same at each.
OTHER_SIZES = load_profile("svd").native_sizes[1:]
TINY_SIZES: tuple[Size, ...] = ((32, 64),)


#: The row of what the card reaches at best.
CARD, CEILINGS = "card", "ceilings"


class Change(NamedTuple):
    """What is done to a copy of the networks."""

    name: str
    unet: Sequence[Callable[[Any], None]] = ()
    decoder: Sequence[Callable[[Any], None]] = ()
    #: Interval and branch of the reuse of deep features.
    reuse: tuple[int, int] | None = None


DEFAULT = Change("default", (rewrites.rewrite_unet,))
CHANGES = (
    DEFAULT,
    Change("as loaded"),
    Change("one-token attention", (rewrites.one_token_attention,)),
    Change(
        "flat frame convolutions", (rewrites.flat_frame_convolutions,), (rewrites.flat_frame_convolutions,)
    ),
    Change("phase upsampling", (rewrites.phase_upsampling,), (rewrites.phase_upsampling,)),
    DEFAULT._replace(name="default, UNet channels last", unet=(rewrites.rewrite_unet, channels_last)),
)
FLOAT8 = DEFAULT._replace(name="float8", unet=(rewrites.rewrite_unet, float8_linears))
LEVERS = (
    *(
        DEFAULT._replace(name=f"reuse, interval {interval}, branch {branch}", reuse=(interval, branch))
        for interval, branch in ((2, 0), (2, 2), (3, 0))
    ),
    FLOAT8,
    FLOAT8._replace(name="float8; reuse, interval 2, branch 0", reuse=(2, 0)),
)


def compiled(rig: Rig, compilation: Compilation, base: Change = DEFAULT) -> Change:
    """A change, compiled as the engine does; compiling itself falls into the warm-up."""
    compilation.prepare(rig.device, rig.profile.memory_presets[0])
    cell = rig.profile.codec.cell
    plan = Plan(frozenset(((rig.size[1] // cell, rig.size[0] // cell),)), SPARE_GRAPHS)

    def change(network: Any) -> None:
        compile_forward(network, compilation, plan)

    name = f"{base.name}, compiled: {compilation.mode}"
    return base._replace(name=name, unet=(*base.unet, change), decoder=(change,))


def multiplies_float8(device: torch.device, dtype: torch.dtype) -> bool:
    if device.type != "cuda":
        return True
    return dtype == torch.bfloat16 and torch.cuda.get_device_capability(device) >= CAPABILITY


def supported(change: Change, job: Job, rig: Rig) -> bool:
    # The few-step sampler reuses nothing.
    return not (job.lcm and change.reuse) and (
        float8_linears not in change.unet or multiplies_float8(rig.device, rig.dtype)
    )


def work_of(job: Job, size: Size) -> dict[str, float]:
    """Count stock's TFLOP by stage."""
    work = counted(size)
    return dict(zip(STAGES, (work.encode, job.calls * work.call, work.decode), strict=True))


class Bench:
    """The rows of one job."""

    def __init__(self, rig: Rig, job: Job, rounds: int, rows: Rows, setting: str, full: bool) -> None:
        self.rig, self.job, self.rounds, self.rows, self.setting = rig, job, rounds, rows, setting
        self.title = f"{job.title}, {rig.size[0]}x{rig.size[1]}, {job.steps} steps"
        self.work = work_of(job, rig.size) if full else {}
        self._theirs: Frames | None = None

    def run(self, changes: Sequence[Change]) -> bool:
        """Print a row for stock and each change; False when the time was up before the last."""
        if not self._print("stock diffusers", self._stock):
            return False
        return all(
            self._print(change.name, lambda change=change: self._change(change))
            for change in changes
            if supported(change, self.job, self.rig)
        )

    def _print(self, name: str, measure: Callable[[], Row]) -> bool:
        row = self.rows.take(self.title, name, measure)
        if row is not None:
            print(line(row), flush=True)
        free(self.rig.device)
        return row is not None

    def _stock(self) -> Row:
        return self._measured("stock diffusers", stock, self.rig, 0)

    def _change(self, change: Change) -> Row:
        held = allocated(self.rig.device)
        rig = self.rig.reusing(*change.reuse) if change.reuse else self.rig
        return self._measured(
            change.name, ours, rig.varied(self.rig.dtype, change.unet, change.decoder), held
        )

    def _measured(self, name: str, run: Callable[[Rig, Job], Any], rig: Rig, held: float) -> Row:
        """Time one; `held` is what else lies on the card."""
        free(rig.device)
        warm = replace(self.job, steps=min(self.job.steps, WARM_STEPS))
        seconds, frames = medians(lambda: run(rig, self.job), self.rounds, lambda: run(rig, warm))
        # Now: stock may yet have to be run to compare with.
        peak, db = peak_gb(rig.device) - held, None
        if run is stock:
            self._theirs = frames
        elif not self.job.lcm:  # the few-step sampler is another one than stock's
            if self._theirs is None:  # its row was kept from an earlier run
                self._theirs = stock(self.rig, self.job)[1]
            db = psnr(frames, self._theirs)
        return Row(self.setting, self.title, name, seconds, self.work, peak, db)


def line(row: Row) -> str:
    """Print seconds, in brackets the rate at which they are the counted work of stock."""
    title = f"| {row.job}: {row.name} |"
    if row.failure:
        return f"{title} failed: {row.failure} ||||||"
    rates = {stage: f" ({row.work[stage] / row.seconds[stage]:.0f})" for stage in row.work}
    cells = [f"{row.seconds[stage]:.3f}{rates.get(stage, '')}" for stage in STAGES]
    cells += [f"{sum(row.seconds.values()):.3f}", f"{row.peak_gb:.1f}"]
    return f"{title} {' | '.join(cells)} | {'–' if row.db is None else f'{row.db:.1f}'} |"


def allocated(device: torch.device) -> float:
    return torch.cuda.memory_allocated(device) / 1e9 if device.type == "cuda" else 0.0


def peak_gb(device: torch.device) -> float:
    """Peak of allocated memory since `free`."""
    return torch.cuda.max_memory_allocated(device) / 1e9 if device.type == "cuda" else 0.0


def free(device: torch.device) -> None:
    """Forget compiled code and recorded graphs, and begin a new peak."""
    if graphs():
        torch.compiler.reset()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def ceilings(device: torch.device) -> dict[str, float]:
    """Measure what the card reaches at best: TFLOP/s of a product, TB/s on the card, GB/s from the host."""

    def seconds(run: Callable[[], object]) -> float:
        for _ in range(3):
            run()
        torch.cuda.synchronize(device)
        begun = time.perf_counter()
        for _ in range(10):
            run()
        torch.cuda.synchronize(device)
        return (time.perf_counter() - begun) / 10

    side = 8192
    one, two = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    here, there = (torch.empty(1 << 31, dtype=torch.uint8, device=device) for _ in range(2))
    host = torch.empty(1 << 28, dtype=torch.uint8, pin_memory=True)
    return {
        "product": 2 * side**3 / seconds(lambda: one @ two) / 1e12,
        "copy": 2 * here.nbytes / seconds(lambda: there.copy_(here)) / 1e12,
        "host": host.nbytes / seconds(lambda: here[: len(host)].copy_(host, non_blocking=True)) / 1e9,
    }


def tell_ceilings(rows: Rows, setting: str, device: torch.device) -> None:
    row = rows.take(CARD, CEILINGS, lambda: Row(setting, CARD, CEILINGS, {}, ceilings(device)))
    if row is None or row.failure:
        return
    print(
        f"Ceilings: bfloat16 product of 8192 squared {row.work['product']:.0f} TFLOP/s, copy on the card "
        f"{row.work['copy']:.2f} TB/s read and written, from page-locked host memory "
        f"{row.work['host']:.0f} GB/s."
    )


def planned(rig: Rig, modes: Sequence[str], folder: Path, usual: bool) -> list[Change]:
    """Order the changes, what matters most first: a run may be cut off. Sizes but the usual one have few."""
    compilations = [Compilation(mode, folder) for mode in modes]
    if not usual:
        return [DEFAULT, *(compiled(rig, compilation) for compilation in compilations[:1])]
    bases = (DEFAULT, *LEVERS[-2:])
    first, *others = [[compiled(rig, compilation, base) for compilation in compilations] for base in bases]
    return [DEFAULT, *first, *CHANGES[1:], *LEVERS, *(each for some in others for each in some)]


def arguments() -> argparse.Namespace:
    ask = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    ask.add_argument("--rounds", type=int, default=3)
    ask.add_argument("--device", default="cuda:0")
    ask.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float16", "float32"))
    ask.add_argument("--chunk", type=int, default=8, help="frames decoded together")
    ask.add_argument("--results", type=Path, help="file that keeps rows; what it has is not measured again")
    ask.add_argument("--minutes", type=float, default=0, help="begin no row after so many")
    ask.add_argument(
        "--compile", nargs="*", choices=MODES, metavar="MODE", help=f"also compiled; {' '.join(COMPILED)}"
    )
    ask.add_argument("--tiny", action="store_true", help="small networks on a CPU, to try the script itself")
    return ask.parse_args()


def main() -> None:
    told = arguments()
    if not told.tiny and not torch.cuda.is_available():
        print("No CUDA device is visible: nothing measured. `--tiny` tries the script on a CPU.")
        return
    device = torch.device("cpu" if told.tiny else told.device)
    dtype = torch.float32 if told.tiny else getattr(torch, told.dtype)
    rig = build("tiny" if told.tiny else "full", device, dtype, told.chunk)
    name = "CPU, tiny networks" if told.tiny else torch.cuda.get_device_name(device)
    setting = (
        f"{name}; torch {torch.__version__}, {dtype}, {rig.frames} frames, chunk {rig.chunk}, "
        f"random weights, median of {told.rounds} after a warm-up."
    )
    rows = Rows(setting, told.results, told.minutes)
    print(setting)
    if not told.tiny:
        tell_ceilings(rows, setting, device)
    print("From the picture to frames in memory: no first frame from a prompt, no H.264.")
    floor = "" if told.tiny else " (TFLOP/s of stock's counted work)"
    print(f"Seconds{floor}; peak of weights and activations; dB to stock's frames.\n")
    print(
        "| run | encode | denoise | decode | total | peak GB | dB |\n|---|---|---|---|---|---|---|",
        flush=True,
    )
    modes = (() if told.tiny else COMPILED) if told.compile is None else told.compile
    place = told.results.absolute().parent if told.results else Path(tempfile.gettempdir())
    others, jobs = (TINY_SIZES, TINY_JOBS) if told.tiny else (OTHER_SIZES, JOBS)
    for size, job in product((rig.size, *others), jobs):
        sized = replace(rig, size=size)
        changes = planned(sized, modes, place / "stillmotion-bench-compiled", size == rig.size)
        if not Bench(sized, job, told.rounds, rows, setting, not told.tiny).run(changes):
            print(f"\n{told.minutes:g} minutes are over; the same command goes on with the next row.")
            return


if __name__ == "__main__":
    main()

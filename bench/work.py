"""Counted work of the full-size networks by film size, and the seconds it takes at least.

    PYTHONPATH=src:. python -m bench.work [--tflops 790]

Runs diffusers' classes on the meta device, so it needs no weights, no GPU and little memory. Multiply-adds of
convolutions, matrix products and attention count as two; norms, activations and copies count nothing. The
second table counts high-quality films that reuse deep features.
"""

import argparse
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from bench.rigs import full_networks, layered
from stillmotion.engine.pictures import BUCKETS
from stillmotion.engine.rewrites import rewrite_unet
from stillmotion.profiles import Size

FRAMES, CELL = 25, 8
#: What the svd profile works at (on its side costs the same), then what else callers ask for.
SIZES: tuple[Size, ...] = (*BUCKETS[:3], (512, 512), (1024, 768), (1024, 1024))
#: Skip connections whose reuse is counted: the outermost, and the last of the first level.
BRANCHES = (0, 2)
#: Eight tenths of the 989 that NVIDIA gives for dense bfloat16 on an H200; well-shaped products reach it.
TFLOPS = 790.0


class Work(NamedTuple):
    """TFLOP as diffusers runs them: the picture's two encoders, one UNet call, all frames' decoding."""

    encode: float
    call: float
    decode: float


def tflop(run: Callable[[], object]) -> float:
    with FlopCounterMode(display=False) as counted, torch.inference_mode():
        run()
    return counted.get_total_flops() / 1e12


@cache
def networks() -> tuple[Any, Any, Any, Any]:
    """The video UNet, the same as we run it, the autoencoder, the image encoder."""
    with torch.device("meta"):
        unet, vae, clip = full_networks()
        rewritten, _, _ = full_networks()
    # diffusers makes the blends' numbers outside the default device.
    for network in (unet, rewritten, vae, clip):
        network.to("meta", torch.bfloat16).eval().requires_grad_(False)
    rewrite_unet(rewritten)
    return unet, rewritten, vae, clip


def unet_call(unet: Any, size: Size, frames: int = FRAMES) -> float:
    """Count one pass over a film, without guidance."""
    latents = _meta(1, frames, 8, size[1] // CELL, size[0] // CELL)
    told = {"encoder_hidden_states": _meta(1, 1, 1024), "added_time_ids": _meta(1, 3)}
    return tflop(lambda: unet(latents, torch.tensor(1.0, device="meta"), **told))


def decoding(vae: Any, size: Size, frames: int = FRAMES) -> float:
    latents = _meta(frames, 4, size[1] // CELL, size[0] // CELL)
    return tflop(lambda: vae.decode(latents, num_frames=frames))


def encoding(vae: Any, clip: Any, size: Size) -> float:
    """Count what the picture passes through once: both encoders."""
    return tflop(lambda: (vae.encode(_meta(1, 3, size[1], size[0])), clip(_meta(1, 3, 224, 224))))


@cache
def counted(size: Size) -> Work:
    unet, _, vae, clip = networks()
    return Work(encoding(vae, clip, size), unet_call(unet, size), decoding(vae, size))


def _meta(*shape: int) -> torch.Tensor:
    return torch.empty(shape, device="meta", dtype=torch.bfloat16)


def reuse_row(branch: int, tflops: float) -> str:
    """Count an HQ film of the first size when every second or third step computes the whole UNet."""
    unet, _, _, _ = networks()
    reusing, size, steps = layered(unet, branch), SIZES[0], 25
    rewrite_unet(reusing)
    latents = _meta(1, FRAMES, 8, size[1] // CELL, size[0] // CELL)
    told = {"encoder_hidden_states": _meta(1, 1, 1024), "added_time_ids": _meta(1, 3)}
    deep: list[torch.Tensor] = []

    def call(**given: torch.Tensor) -> None:
        deep.append(reusing(latents, torch.tensor(1.0, device="meta"), **told, **given).deep)

    whole = tflop(call)
    part = tflop(lambda: call(deep=deep[0]))
    once = counted(size).encode + counted(size).decode
    cells = [f"{part:.2f}"]
    for interval in (2, 3):
        calls = len(range(0, steps, interval))
        work = 2 * (calls * whole + (steps - calls) * part) + once
        cells.append(f"{work:.0f}, {work / tflops:.2f} s")
    return f"| {branch} | {' | '.join(cells)} |"


def row(size: Size, tflops: float) -> str:
    _, rewritten, _, _ = networks()
    (encode, plain, decode), ours = counted(size), unet_call(rewritten, size)
    once = encode + decode
    cells = [f"{plain:.2f}", f"{decode:.1f}"]
    for calls in (4, 50):
        work = calls * plain + once
        cells += [f"{work:.0f}, {work / tflops:.2f} s"]
    cells += [f"{ours:.2f}", *(f"{(calls * ours + once) / tflops:.2f} s" for calls in (4, 50))]
    return f"| {size[0]}×{size[1]} | {' | '.join(cells)} |"


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    ask.add_argument(
        "--tflops", type=float, default=TFLOPS, help="what the card reaches in products, TFLOP/s"
    )
    told = ask.parse_args()
    print(f"{FRAMES} frames; TFLOP, and seconds at {told.tflops:g} TFLOP/s; turbo is 4 UNet calls, HQ 50.\n")
    print("| size | UNet call | decode | turbo | HQ | UNet call, rewritten | turbo | HQ |")
    print("|---|---|---|---|---|---|---|---|")
    for size in SIZES:
        print(row(size, told.tflops), flush=True)
    print("\nDeep features reused at the first size, rewritten UNet:\n")
    print("| branch | call between | HQ, interval 2 | HQ, interval 3 |\n|---|---|---|---|")
    for branch in BRANCHES:
        print(reuse_row(branch, told.tflops), flush=True)


if __name__ == "__main__":
    main()

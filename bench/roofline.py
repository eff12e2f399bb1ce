"""Draws rows of `bench.gpu` at the usual size under the card's roofs, as a PNG beside the file.

    PYTHONPATH=src:. python -m bench.roofline FILE [--product TFLOP/s] [--copy TB/s]

Across: counted operations for each byte that the uncompiled loop's kernels read and write (on the meta
device, attention as one kernel). Up: the rate at which the measured seconds are that work. The roofs are
those measured in the same run. A point on the slope waits for memory, one under the flat roof for arithmetic;
what is lower waits for something else: launches, the host, odd shapes.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bench.gpu import CARD, CEILINGS
from bench.memory import PROFILE, FullSize, Fused
from bench.rigs import STAGES
from bench.rows import Row, read
from bench.work import counted


class Traffic(TorchDispatchMode):
    """Counts the bytes that operations read and write; views move none."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        answer = func(*args, **(kwargs or {}))
        read = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        written = [leaf for leaf in tree_leaves(answer) if isinstance(leaf, Tensor)]
        known = {id(tensor.untyped_storage()) for tensor in read}
        in_place = func._schema.is_mutable
        if in_place or any(id(tensor.untyped_storage()) not in known for tensor in written):
            self.bytes += sum(tensor.nbytes for tensor in (*read, *written))
        return answer


def moved(run: Callable[[], object]) -> int:
    with torch.inference_mode(), Fused(), Traffic() as traffic:
        run()
    return traffic.bytes


def intensities() -> dict[str, float]:
    """Operations a byte of each stage at the profile's usual size."""
    full, work = FullSize(), counted(PROFILE.warm_size)
    decoded = moved(lambda: full.decode(PROFILE.decode_chunk_size)) / PROFILE.decode_chunk_size
    return {
        "encode": work.encode * 1e12 / moved(full.encode),
        "denoise": work.call * 1e12 / moved(lambda: full.denoise(0)),
        "decode": work.decode * 1e12 / (decoded * PROFILE.frames),
    }


def draw(rows: list[Row], product: float, copy: float, file: Path) -> None:
    from matplotlib.figure import Figure

    across = intensities()
    figure = Figure(figsize=(11, 7), layout="constrained")
    axes = figure.add_subplot(xscale="log", yscale="log")
    low, high = min(across.values()) / 3, max(across.values()) * 3
    corner = product / copy
    axes.plot([low, corner, high], [low * copy, product, product], color="black")
    axes.annotate(f"{product:.0f} TFLOP/s, {copy:.2f} TB/s", (corner, product), ha="center", va="bottom")
    for row in rows:
        rates = [row.work[stage] / row.seconds[stage] for stage in STAGES]
        total = sum(row.seconds.values())
        mark = "o" if "HQ" in row.job else "^"
        axes.scatter(
            [across[stage] for stage in STAGES],
            rates,
            marker=mark,
            label=f"{row.job}: {row.name}, {total:.2f} s",
        )
    for stage, place in across.items():
        axes.annotate(stage, (place, axes.get_ylim()[0]), ha="center", va="bottom")
    axes.set(xlabel="operations for each byte moved", ylabel="TFLOP/s of the counted work")
    axes.set_title(rows[0].setting, fontsize=9)
    axes.legend(fontsize=6)
    figure.savefig(file, dpi=130)


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    ask.add_argument("file", type=Path, help="what `bench.gpu --results` kept")
    ask.add_argument("--product", type=float, help="TFLOP/s; what was measured in the same run")
    ask.add_argument("--copy", type=float, help="TB/s, likewise")
    told = ask.parse_args()
    kept = read(told.file)
    roofs = next((row.work for row in kept if (row.job, row.name) == (CARD, CEILINGS)), {})
    product, copy = told.product or roofs.get("product"), told.copy or roofs.get("copy")
    usual = "x".join(map(str, PROFILE.warm_size))
    rows = [row for row in kept if row.seconds and row.work and usual in row.job]
    if not (rows and product and copy):
        ask.exit(1, f"{told.file} holds no rows of full-size networks, or no ceilings.\n")
    picture = told.file.with_suffix(".png")
    draw(rows, product, copy, picture)
    print(f"{len(rows)} rows drawn in {picture}")


if __name__ == "__main__":
    main()

"""Compiled video networks: one graph for each planned size and number of frames, kept on disk.

Shapes are static, and a network is compiled only at a size that was planned: at any other it runs as it is,
and the film's log says so. A second graph for a shape that has one is told as a warning; past the limit of
graphs torch raises, so that nothing ever runs slowly unseen.
"""

import logging
import os
import secrets
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo import config
from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException
from torch._dynamo.utils import counters
from torch.utils._pytree import tree_leaves, tree_map_only

from stillmotion.durable import write_whole
from stillmotion.engine.memory import is_out_of_memory
from stillmotion.engine.weights import Weights
from stillmotion.errors import UserError
from stillmotion.profiles import MemoryPreset, Part, Size
from stillmotion.reporting import Report
from stillmotion.types import Level

CUDA_GRAPHS = "reduce-overhead"
#: Parts that CUDA graphs are recorded of.
RECORDED: frozenset[Part] = frozenset(("unet", "turbo_unet", "vae_decoder"))
#: A CUDA graph is run plainly once, recorded the second time and replayed from the third.
RECORDING_CALLS = 3
#: Graphs one network can need at a size: whole chunks, the last chunk, the first frame; or two UNets.
GRAPHS_A_SIZE = 3
#: Surprises that are told before torch refuses to compile more.
SPARE_GRAPHS = 8

#: torch's own annotations leave types open.
compiler: Any = vars(torch)["compile"]
dynamo: Any = config
#: The sides (height, width) of latents.
Cells = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Compilation:
    """How networks are compiled, and the folder their code is kept in."""

    mode: str
    folder: Path
    backend: str | Callable[..., Any] = "inductor"

    def prepare(self, device: torch.device, preset: MemoryPreset) -> None:
        """Make the folder the one torch keeps compiled code in; refuses what the device cannot do."""
        if self.mode == CUDA_GRAPHS and device.type != "cuda":
            raise UserError(
                f"Compile mode {self.mode} records CUDA graphs, which {device} has not; "
                "use default, max-autotune-no-cudagraphs or off."
            )
        if self.mode == CUDA_GRAPHS and (away := RECORDED.difference(preset.stay)):
            raise UserError(
                f"Compile mode {self.mode} records where weights lie, but memory preset {preset.name} moves "
                f"{', '.join(sorted(away))}; use compile mode default, or a memory preset that keeps them."
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(self.folder.absolute())
        # diffusers logs that a side of the latents is odd, which would end the graph.
        config.ignore_logging_functions |= {logging.Logger.info}

    def identity(self) -> str:
        """The mode and which cache this is: kernels are chosen by measuring, and it keeps the choice."""
        path = self.folder / "identity"
        if not path.exists():
            write_whole(path, secrets.token_hex(16).encode())
        return f"{self.mode} {path.read_text()}"


@dataclass(slots=True)
class Plan:
    """Where networks are compiled, and what became of it."""

    #: Sides of the latents of the planned sizes.
    cells: frozenset[Cells]
    #: Most graphs of one class of network.
    limit: int
    #: Graphs made for a shape that already had one.
    again: int = 0
    #: Classes of networks with the shapes they were given.
    made: set[tuple[Any, ...]] = field(default_factory=set[Any])


class CompiledForward:
    """Stands in for a network's `forward`."""

    def __init__(self, network: nn.Module, compilation: Compilation, plan: Plan) -> None:
        self._plain = network.forward
        self._kind = type(network)
        self._mode = compilation.mode
        self._plan = plan
        self._dtype = next(network.parameters()).dtype
        self._compiled: Callable[..., Any] = compiler(
            network.forward,
            fullgraph=True,
            dynamic=False,
            backend=compilation.backend,
            mode=compilation.mode,
        )

    def __call__(self, x: Tensor, *args: Any, **more: Any) -> Any:
        # Overflown frames are decoded once more in float32, which is rare: no graph is made for it.
        if tuple(x.shape[-2:]) not in self._plan.cells or x.dtype != self._dtype:
            return self._plain(x, *args, **more)
        before = graphs()
        if self._mode == CUDA_GRAPHS:
            torch.compiler.cudagraph_mark_step_begin()
        try:
            # `torch.compile` itself takes this number since torch 2.13; images for GPUs come with older ones.
            with dynamo.patch(recompile_limit=self._plan.limit):
                answer = self._compiled(x, *args, **more)
        except FailOnRecompileLimitHit as error:
            raise UserError(
                f"A network would need more than {self._plan.limit} graphs; TORCH_LOGS=recompiles tells the "
                "server's log why, STILLMOTION_COMPILE=off does without."
            ) from error
        except TorchDynamoException as error:
            # What a backend met, which chooses its kernels by running them.
            met = getattr(error, "inner_exception", error)
            if is_out_of_memory(met):
                raise met from error
            reason = " ".join(str(error).split("\n")[:2]).rstrip(". ")
            raise UserError(
                f"A network cannot be compiled in mode {self._mode}: {reason}. Compiling needs a C++ "
                "compiler, such as g++; STILLMOTION_COMPILE=off does without."
            ) from error
        if made := graphs() - before:
            told = tree_leaves((x, args, more))
            known = (self._kind, *(each.shape for each in told if isinstance(each, Tensor)))
            self._plan.again += made if known in self._plan.made else 0
            self._plan.made.add(known)
        # A CUDA graph's next replay writes over the memory of its last answer.
        return tree_map_only(Tensor, torch.clone, answer) if self._mode == CUDA_GRAPHS else answer


def compile_forward(network: nn.Module, compilation: Compilation, plan: Plan) -> None:
    """Have a network run compiled at the sizes of a plan."""
    network.forward = CompiledForward(network, compilation, plan)


def graphs() -> int:
    """Count the graphs this process has compiled."""
    return counters["stats"]["unique_graphs"]


class CompiledSizes:
    """The video networks of a profile, compiled for a list of film sizes."""

    def __init__(self, weights: Weights, compilation: Compilation, sizes: Iterable[Size]) -> None:
        self._cell = weights.codec.cell
        cells = frozenset(self._cells(size) for size in sizes)
        self._plan = Plan(cells, GRAPHS_A_SIZE * len(cells) + SPARE_GRAPHS)
        for network in (*dict.fromkeys(weights.unets.values()), weights.codec.vae.decoder):
            compile_forward(network, compilation, self._plan)
        #: Calls after which a network is as quick as it gets.
        self.calls = RECORDING_CALLS if compilation.mode == CUDA_GRAPHS else 1

    @contextmanager
    def told(self, size: Size, report: Report) -> Generator[None]:
        """Say in a film's log what did not go as planned."""
        if self._cells(size) not in self._plan.cells:
            report.log(f"{size[0]}x{size[1]} is not among the compiled sizes; this film runs uncompiled")
        before = self._plan.again
        yield
        if again := self._plan.again - before:
            report.log(
                f"{again} graphs were compiled again for a size that had them; TORCH_LOGS=recompiles tells "
                "the server's log why",
                Level.WARN,
            )

    def _cells(self, size: Size) -> Cells:
        return size[1] // self._cell, size[0] // self._cell

"""Which parts of the weights are on the device: always, or only while their stage runs.

A part that may leave has one copy in host memory, which never changes. To come, it is sent over and the
part's tensors are pointed at what arrived; to leave, they are pointed back, and nothing is sent. The
parameters stay the same objects of the same shape, layout and type, so compiled code takes them as they come.
On a CPU nothing moves.
"""

from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from stillmotion.profiles import MemoryPreset, Part, Profile

from diffusers.models.attention import BasicTransformerBlock, TemporalBasicTransformerBlock  # isort: skip

GIB = 1 << 30
#: Bytes of host memory locked, and of device memory taken, at once. A power of two, to which torch rounds
#: up what it page-locks.
BLOCK = 1 << 28
#: What CUDA's allocations and compiled kernels count on.
ALIGNMENT = 256
#: How torch, CUDA and its libraries say in a plain error that no more memory could be had.
#: cuDNN's convolutions name no memory: when no algorithm's workspace fits, none is left.
FULL = (
    "can't allocate memory",
    "CUDA error: out of memory",
    "ALLOC_FAILED",
    "ALLOCATION_FAILED",
    "unable to find an engine to execute this computation",
)


def choose_memory(profile: Profile, asked: str, device: torch.device) -> MemoryPreset:
    """Take the preset asked for, or the first that fits the device as it is now; on a CPU, the first."""
    free = torch.cuda.mem_get_info(device)[0] / GIB if device.type == "cuda" else float("inf")
    return profile.choose_memory(asked, free)


def is_out_of_memory(error: Exception) -> bool:
    known = isinstance(error, (torch.OutOfMemoryError, MemoryError))
    return known or any(words in str(error) for words in FULL)


@dataclass(frozen=True, slots=True)
class Spot:
    """Where one tensor's bytes lie, in which shape."""

    block: int
    start: int
    stop: int
    like: Tensor

    def view(self, blocks: list[Tensor]) -> Tensor:
        raw = blocks[self.block][self.start : self.stop].view(self.like.dtype)
        return raw.as_strided(self.like.shape, self.like.stride())


class Movable:
    """Modules that come and leave together."""

    def __init__(self, modules: tuple[nn.Module, ...], device: torch.device) -> None:
        self.modules = modules
        self.here = True
        self._device = device
        self._spots: list[Spot] = []
        #: The host's copy; empty until the part first leaves.
        self._host: list[Tensor] = []
        if any(tensor.device.type != device.type for tensor in _tensors(modules)):
            self.leave()  # it was loaded into host memory

    def come(self) -> None:
        self._point([block.to(self._device, copy=True) for block in self._host])
        self.here = True

    def leave(self) -> None:
        if not self._host:
            self._host = self._copied()
        self._point(self._host)
        self.here = False

    def _copied(self) -> list[Tensor]:
        tensors = _tensors(self.modules)
        self._spots, sizes = _lay_out(tensors)
        blocks = [_host_memory(size, locked=self._device.type == "cuda") for size in sizes]
        for tensor, spot in zip(tensors, self._spots, strict=True):
            spot.view(blocks).copy_(tensor)
        return blocks

    def _point(self, blocks: list[Tensor]) -> None:
        for tensor, spot in zip(_tensors(self.modules), self._spots, strict=True):
            tensor.data = spot.view(blocks)


def _tensors(modules: tuple[nn.Module, ...]) -> list[Tensor]:
    """Every tensor once, in a fixed order."""
    return list(dict.fromkeys(t for module in modules for t in (*module.parameters(), *module.buffers())))


def _lay_out(tensors: Iterable[Tensor]) -> tuple[list[Spot], list[int]]:
    """Place tensors in blocks of BLOCK bytes, a larger one in its own; also return the blocks' sizes."""
    spots: list[Spot] = []
    sizes = [0]
    for tensor in tensors:
        elements = 1 + sum(
            (size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True)
        )
        length = elements * tensor.element_size()
        if sizes[-1] + length > BLOCK and sizes[-1]:
            sizes.append(0)
        start = sizes[-1]
        like = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")
        spots.append(Spot(len(sizes) - 1, start, start + length, like))
        sizes[-1] = -(-(start + length) // ALIGNMENT) * ALIGNMENT
    return spots, sizes


def _host_memory(size: int, *, locked: bool) -> Tensor:
    """Take host memory, page-locked if it can be had (WSL has little), which is sent faster."""
    if locked:
        with suppress(RuntimeError):
            return torch.empty(size, dtype=torch.uint8, pin_memory=True)
    return torch.empty(size, dtype=torch.uint8)


class Placement:
    """All parts of one engine, on one device."""

    def __init__(
        self,
        parts: Mapping[Part, tuple[nn.Module, ...]],
        preset: MemoryPreset,
        device: torch.device,
        *,
        moves: bool | None = None,
    ) -> None:
        self.preset = preset
        #: Whether parts leave at all.
        self._moves = device.type == "cuda" if moves is None else moves
        # One UNet may be two parts.
        movables = {modules: Movable(modules, device) for modules in parts.values()}
        self.parts = {name: movables[modules] for name, modules in parts.items()}
        self._settle()

    @contextmanager
    def present(self, *names: Part) -> Generator[None]:
        """Have parts on the device; those that do not stay leave at the end."""
        coming = [part for name in names if not (part := self.parts[name]).here]
        try:
            for part in coming:
                part.come()
            yield
        finally:
            for part in coming:
                self._dismiss(part)

    @contextmanager
    def under(self, preset: MemoryPreset) -> Generator[None]:
        """Live by another preset; what stays on the device after it comes when it is next needed."""
        before, self.preset = self.preset, preset
        try:
            self._settle()
            yield
        finally:
            self.preset = before
            self._settle()

    def _settle(self) -> None:
        for name in ("unet", "turbo_unet"):
            chunk_feed_forwards(self.parts[name].modules[0], self.preset.feed_forward_frames)
        for part in self.parts.values():
            self._dismiss(part)

    def _dismiss(self, part: Movable) -> None:
        stay = {self.parts[name] for name in self.preset.stay if name in self.parts}
        if self._moves and part.here and part not in stay:
            part.leave()


def chunk_feed_forwards(unet: nn.Module, frames: int) -> None:
    """Have the feed-forwards take so many frames at once, 0 = all; diffusers' own method cannot undo it."""
    for module in unet.modules():
        if isinstance(module, (BasicTransformerBlock, TemporalBasicTransformerBlock)):
            cast(Any, module).set_chunk_feed_forward(frames or None, dim=0)

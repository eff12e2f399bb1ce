"""Device memory of the svd profile by memory preset, counted; and what that makes of common cards.

    PYTHONPATH=src:. python -m bench.memory

Runs the full-size networks on the meta device and follows which tensors are alive: no weights, no GPU.
Attention counts as one fused kernel. What the count cannot see (workspaces of cuDNN and cuBLAS, gaps between
allocations) is in MARGIN and SPARE_GIB.
"""

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from bench.full_size import picture_networks
from bench.rigs import full_networks
from bench.work import counted, networks, tflop, unet_call
from stillmotion.engine.codec import Codec
from stillmotion.engine.film import Condition, film_network
from stillmotion.engine.memory import GIB, chunk_feed_forwards
from stillmotion.engine.rewrites import rewrite_unet
from stillmotion.profiles import MemoryPreset, Part, Size, load_profile

MARGIN, SPARE_GIB = 1.1, 0.5
PROFILE = load_profile("svd")
DTYPE = torch.bfloat16
#: What is free on an idle card of so many GB after CUDA's own context.
CONTEXT_GIB = 0.5
#: Bytes a second from page-locked memory over PCIe 3.0 x16 or 4.0 x8.
PCIE = 12e9
#: Of the data sheet's dense rate, what diffusers' whole pipeline reached on an A100 (docs/performance.md).
SHARE = 82 / 312
#: Memory in GiB and dense bfloat16 TFLOP/s with float32 sums, by NVIDIA's data sheets.
CARDS = (
    ("RTX 4060", 8, 30),
    ("RTX 3060", 12, 25.5),
    ("RTX 4080", 16, 97.5),
    ("RTX 4090", 24, 165),
    ("A100", 40, 312),
    ("H100 SXM", 80, 989),
    ("H200", 141e9 / GIB, 989),
)


class Fused(TorchFunctionMode):
    """Attention as one kernel that keeps no scores."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is functional.scaled_dot_product_attention:
            return torch.empty_like(args[0])
        return func(*args, **(kwargs or {}))


class Alive(TorchDispatchMode):
    """Counts the bytes of the tensors made under it that are still alive, and their peak."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        answer = func(*args, **(kwargs or {}))
        for leaf in tree_iter(answer):
            if isinstance(leaf, Tensor):
                self._meet(leaf.untyped_storage())
        return answer

    def _meet(self, storage: torch.UntypedStorage) -> None:
        if id(storage) in self._known:
            return
        self._known[id(storage)] = storage.nbytes()
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._lose, id(storage))

    def _lose(self, key: int) -> None:
        self.now -= self._known.pop(key)


@dataclass(frozen=True)
class Stage:
    """Parts that must be on the device, and the most bytes of activations beside them."""

    name: str
    parts: tuple[Part, ...]
    bytes: int


@cache
def peak(run: Callable[..., object], *asked: int) -> int:
    with torch.inference_mode(), Fused(), Alive() as alive:
        run(*asked)
    return alive.peak


def meta(*shape: int, dtype: torch.dtype = DTYPE) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


class FullSize:
    """The svd profile's networks on the meta device, in the number formats they run in."""

    def __init__(self) -> None:
        with torch.device("meta"):
            unet, vae, clip = full_networks()
        picture_unet, picture_vae, small, large = picture_networks()
        everything = (unet, clip, picture_unet, picture_vae, small, large)
        self.unet, self.clip, self.picture_unet, self.picture_vae, self.small, self.large = (
            network.to("meta", DTYPE).eval().requires_grad_(False) for network in everything
        )
        rewrite_unet(self.unet)
        self.codec = Codec(vae.to("meta").eval().requires_grad_(False), PROFILE.codec, DTYPE)
        width, height = PROFILE.warm_size
        self.cells = (height // PROFILE.codec.cell, width // PROFILE.codec.cell)
        assert PROFILE.first_frame.sizes
        self.picture: Size = PROFILE.first_frame.sizes[0]

    def weight(self, part: Part) -> int:
        """Count a part's bytes."""
        vae = self.codec.vae
        modules: dict[Part, tuple[nn.Module, ...]] = {
            "text_encoder": (self.small, self.large),
            "picture_unet": (self.picture_unet,),
            "picture_vae": (self.picture_vae,),
            "image_encoder": (self.clip,),
            "vae_encoder": (vae.encoder, vae.quant_conv),
            "unet": (self.unet,),
            "turbo_unet": (self.unet,),
            "vae_decoder": (vae.decoder,),
        }
        return sum(
            t.numel() * t.element_size() for m in modules[part] for t in (*m.parameters(), *m.buffers())
        )

    def draw(self) -> Tensor:
        """Run the picture UNet once."""
        width, height = self.picture
        told = {"text_embeds": meta(1, 1280), "time_ids": meta(1, 6)}
        noise, text = meta(1, 4, height // 8, width // 8), meta(1, 77, 2048)
        return self.picture_unet(noise, meta(), text, added_cond_kwargs=told).sample

    def develop(self) -> Tensor:
        return self.picture_vae.decode(meta(1, 4, self.picture[1] // 8, self.picture[0] // 8)).sample

    def encode(self) -> None:
        picture = meta(1, 3, *(side * PROFILE.codec.cell for side in self.cells), dtype=torch.float32)
        self.clip(meta(1, 3, 224, 224))
        self.codec.encode(picture)

    def denoise(self, feed_forward_frames: int) -> None:
        chunk_feed_forwards(self.unet, feed_forward_frames)
        still = meta(1, 1, 4, *self.cells).expand(-1, PROFILE.frames, -1, -1, -1)
        latents = meta(1, PROFILE.frames, 4, *self.cells, dtype=torch.float32)
        film_network(self.unet, Condition(meta(1, 1, 1024), still, meta(1, 3)))(latents, 1.0)

    def decode(self, frames: int) -> None:
        self.codec.decode(meta(frames, 4, *self.cells, dtype=torch.float32))

    def stages(self, preset: MemoryPreset) -> list[Stage]:
        denoising = peak(self.denoise, preset.feed_forward_frames)
        decoding = peak(self.decode, preset.decode_chunk_size)
        return [
            # A prompt is 77 tokens, whose activations are nothing beside the weights.
            Stage("prompt", ("text_encoder",), 0),
            Stage("draw", ("picture_unet", "picture_vae"), peak(self.draw)),
            Stage("develop", ("picture_vae",), peak(self.develop)),
            Stage("encode", ("image_encoder", "vae_encoder"), peak(self.encode)),
            Stage("denoise, turbo", ("turbo_unet",), denoising),
            Stage("denoise, HQ", ("unet",), denoising),
            Stage("decode", ("vae_decoder",), decoding),
        ]

    def peak_bytes(self, preset: MemoryPreset) -> int:
        """Count weights and activations at the fullest moment of any film."""
        return max(
            stage.bytes + sum(map(self.weight, {*preset.stay, *stage.parts})) for stage in self.stages(preset)
        )

    def needs_gib(self, preset: MemoryPreset) -> float:
        return self.peak_bytes(preset) * MARGIN / GIB + SPARE_GIB

    def moved_bytes(self, preset: MemoryPreset, parts: tuple[Part, ...]) -> int:
        return sum(self.weight(part) for part in parts if part not in preset.stay)


TURBO: tuple[Part, ...] = (
    "text_encoder",
    "picture_unet",
    "picture_vae",
    "image_encoder",
    "vae_encoder",
    "turbo_unet",
    "vae_decoder",
)
HQ: tuple[Part, ...] = ("image_encoder", "vae_encoder", "unet", "vae_decoder")


def work(full: FullSize) -> tuple[float, float]:
    """TFLOP of a turbo film from a prompt and of an HQ film from a picture."""
    _, unet, _, _ = networks()
    encode, _, decode = counted(PROFILE.warm_size)
    call, both = unet_call(unet, PROFILE.warm_size), encode + decode
    picture = PROFILE.first_frame.steps * tflop(full.draw) + tflop(full.develop)
    return 4 * call + both + picture, 2 * PROFILE.samplers.euler.steps * call + both


def main() -> None:
    full = FullSize()
    stages = {preset.name: full.stages(preset) for preset in PROFILE.memory_presets}
    print("| stage | parts on the device, GiB | " + " | ".join(stages) + " |")
    print("|---|---" + "|---" * len(stages) + "|")
    for row in zip(*stages.values(), strict=True):
        parts = ", ".join(f"{part} {full.weight(part) / GIB:.2f}" for part in row[0].parts)
        print(f"| {row[0].name} | {parts} | " + " | ".join(f"{one.bytes / GIB:.2f}" for one in row) + " |")
    print(
        "\n| preset | counted peak GiB | needs, GiB | moved for a turbo film, for HQ, GB |\n|---|---|---|---|"
    )
    for preset in PROFILE.memory_presets:
        counted, needs = full.peak_bytes(preset) / GIB, full.needs_gib(preset)
        moved = ", ".join(f"{full.moved_bytes(preset, parts) / 1e9:.1f}" for parts in (TURBO, HQ))
        print(f"| {preset.name} | {counted:.1f} | {needs:.1f} (listed: {preset.needs_gib:g}) | {moved} |")
    turbo, hq = work(full)
    print(f"\nTurbo from a prompt {turbo:.0f} TFLOP, HQ {hq:.0f} TFLOP.")
    print("\n| card | preset | peak GB | turbo s | HQ s |\n|---|---|---|---|---|")
    for name, gib, rate in CARDS:
        preset = PROFILE.choose_memory("auto", gib - CONTEXT_GIB)
        seconds = (
            tflops / (rate * SHARE) + full.moved_bytes(preset, parts) / PCIE
            for tflops, parts in ((turbo, TURBO), (hq, HQ))
        )
        cells = " | ".join(f"{one:.1f}" for one in seconds)
        used = full.peak_bytes(preset) / 1e9
        print(f"| {name}, {gib:.0f} GB, {rate:g} TFLOP/s | {preset.name} | {used:.1f} | {cells} |")


if __name__ == "__main__":
    main()

"""Full-size Stable Video Diffusion with random weights on a GPU: stock diffusers and our loop, in turn.

    PYTHONPATH=src python bench/gpu.py [--rounds 3] [--device cuda:0] [--dtype bfloat16] [--chunk 8]

Needs torch, transformers, diffusers, safetensors and numpy; with PyAV our loop also writes the H.264
file. Random weights cost the same seconds as trained ones. Each figure is the median of the rounds after
one warm-up; the table says what it includes. `--tiny` runs the same code on small networks on a CPU.
"""

import argparse
import importlib.util
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from stillmotion import profiles
from stillmotion.engine import quiet
from stillmotion.engine.codec import Codec
from stillmotion.engine.film import condition_on, sample_euler, sample_lcm
from stillmotion.engine.pictures import cover
from stillmotion.engine.writing import decoded_chunks, write_film
from stillmotion.profiles import Size, load_profile

import diffusers  # isort: skip
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection  # isort: skip

#: The classes' own annotations are narrower than what they take.
models: Any = diffusers
#: TFLOP counted on the meta device at 25 frames of 1024x576; one multiply-add is two.
UNET_TFLOP, DECODE_TFLOP, ENCODE_TFLOP = 79.95, 173.6, 2.6 + 0.33
STAGES = ("encode", "denoise", "decode")


@dataclass(frozen=True)
class Rig:
    """The networks under test and the sizes they run at."""

    unet: Any
    vae: Any
    clip: CLIPVisionModelWithProjection
    device: torch.device
    dtype: torch.dtype
    size: Size
    frames: int
    chunk: int
    profile: profiles.Profile

    def picture(self) -> Image.Image:
        noise = np.random.default_rng(1).integers(0, 256, (self.size[1] // 16, self.size[0] // 16, 3))
        return Image.fromarray(noise.astype(np.uint8)).resize(self.size, Image.Resampling.BICUBIC)

    def now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


def full_networks() -> tuple[Any, Any, Any]:
    """SVD-XT's own configuration: 1.52 G, 98 M and 632 M parameters."""
    unet = models.UNetSpatioTemporalConditionModel(
        sample_size=96, num_attention_heads=(5, 10, 20, 20), num_frames=25
    )
    vae = models.AutoencoderKLTemporalDecoder(
        down_block_types=("DownEncoderBlock2D",) * 4,
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        sample_size=768,
    )
    clip = CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            hidden_size=1280,
            intermediate_size=5120,
            projection_dim=1024,
            num_hidden_layers=32,
            num_attention_heads=16,
            patch_size=14,
            hidden_act="gelu",
        )
    )
    return unet, vae, clip


def tiny_networks() -> tuple[Any, Any, Any]:
    unet = models.UNetSpatioTemporalConditionModel(
        down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
        block_out_channels=(32, 64),
        addition_time_embed_dim=32,
        projection_class_embeddings_input_dim=96,
        layers_per_block=1,
        cross_attention_dim=32,
        num_attention_heads=(1, 2),
    )
    vae = models.AutoencoderKLTemporalDecoder(
        down_block_types=("DownEncoderBlock2D",) * 4, block_out_channels=(32,) * 4, layers_per_block=1
    )
    clip = CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            hidden_size=32,
            intermediate_size=37,
            projection_dim=32,
            num_hidden_layers=2,
            num_attention_heads=4,
        )
    )
    return unet, vae, clip


def build(device: torch.device, dtype: torch.dtype, chunk: int, tiny: bool) -> Rig:
    torch.manual_seed(0)
    with torch.device(device):
        networks = tiny_networks() if tiny else full_networks()
    unet, vae, clip = (
        network.to(device=device, dtype=dtype).eval().requires_grad_(False) for network in networks
    )
    size, frames = ((64, 32), 4) if tiny else ((1024, 576), 25)
    return Rig(unet, vae, clip, device, dtype, size, frames, chunk, load_profile("svd"))


def stock(rig: Rig, steps: int, guided: bool) -> dict[str, float]:
    """diffusers' pipeline with its Euler scheduler; frames end as a NumPy array."""
    with quiet.no_advice():
        numbers = rig.profile.samplers.euler
        scheduler = models.EulerDiscreteScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            prediction_type="v_prediction",
            timestep_type="continuous",
            use_karras_sigmas=True,
            sigma_min=numbers.sigma_min,
            sigma_max=numbers.sigma_max,
        )
        pipeline = models.StableVideoDiffusionPipeline(
            rig.vae, rig.clip, rig.unet, scheduler, CLIPImageProcessor()
        )
        pipeline.set_progress_bar_config(disable=True)
        rig.vae.to(rig.dtype)
        encoded: list[float] = []
        hook = rig.unet.register_forward_pre_hook(lambda *_: None if encoded else encoded.append(rig.now()))
        begun = rig.now()
        latents = pipeline(
            rig.picture(),
            height=rig.size[1],
            width=rig.size[0],
            num_frames=rig.frames,
            num_inference_steps=steps,
            min_guidance_scale=numbers.guidance_min if guided else 1.0,
            max_guidance_scale=numbers.guidance_max if guided else 1.0,
            generator=torch.Generator().manual_seed(1),
            output_type="latent",
        ).frames
        denoised = rig.now()
        hook.remove()
        video = pipeline.decode_latents(latents, rig.frames, rig.chunk)
        pipeline.video_processor.postprocess_video(video=video, output_type="np")
        ended = rig.now()
    return {"encode": encoded[0] - begun, "denoise": denoised - encoded[0], "decode": ended - denoised}


def ours(rig: Rig, steps: int, guided: bool, target: Path | None) -> dict[str, float]:
    """Our loop; encoding in float32, frames end as bytes, and in an MP4 when there is a target."""
    codec = Codec(rig.vae.float(), rig.profile.codec, rig.dtype)
    samplers = rig.profile.samplers
    generator = torch.Generator().manual_seed(1)
    with torch.inference_mode():
        begun = rig.now()
        condition = condition_on(
            cover(rig.picture(), rig.size, rig.size).to(rig.device),
            clip=rig.clip,
            codec=codec,
            frames=rig.frames,
            fps=rig.profile.condition_fps.hq,
            motion_bucket_id=127,
            cond_aug=0.02,
            generator=generator,
        )
        encoded = rig.now()
        latents = condition.latents
        if guided:
            stages = sample_euler(rig.unet, condition, samplers.euler, steps, generator)
        else:
            stages = sample_lcm(rig.unet, condition, samplers.lcm, steps, generator)
        for latents in stages:  # noqa: B007  (the last one is decoded)
            rig.now()
        denoised = rig.now()
        decode(rig, codec, latents, target)
        ended = rig.now()
    return {"encode": encoded - begun, "denoise": denoised - encoded, "decode": ended - denoised}


def decode(rig: Rig, codec: Codec, latents: Tensor, target: Path | None) -> None:
    if target is None:
        for _ in decoded_chunks(codec, latents, rig.chunk):
            pass
        return
    write_film(
        codec, latents, path=target, size=rig.size, fps=10, chunk=rig.chunk,
        threads=rig.profile.threads, report=Quiet(),
    )  # fmt: skip


class Quiet:
    """A report nobody reads."""

    def log(self, message: str, level: object = None) -> None: ...

    def progress(self, stage: str, step: int, steps: int) -> None: ...

    def check_cancelled(self) -> None: ...


def measure(rig: Rig, run: Callable[[], dict[str, float]], rounds: int) -> tuple[dict[str, float], float]:
    """Median seconds by stage and the peak of allocated memory in GB."""
    run()
    if rig.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(rig.device)
    found = [run() for _ in range(rounds)]
    peak = torch.cuda.max_memory_allocated(rig.device) / 1e9 if rig.device.type == "cuda" else 0.0
    return {stage: statistics.median(one[stage] for one in found) for stage in STAGES}, peak


def row(name: str, seconds: dict[str, float], peak: float, unet_calls: int, full: bool) -> str:
    work = {"encode": ENCODE_TFLOP, "denoise": unet_calls * UNET_TFLOP, "decode": DECODE_TFLOP}
    cells = [
        f"{seconds[stage]:.3f}" + (f" ({work[stage] / seconds[stage]:.0f})" if full else "")
        for stage in STAGES
    ]
    return f"| {name} | {' | '.join(cells)} | {sum(seconds.values()):.3f} | {peak:.1f} |"


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    ask.add_argument("--rounds", type=int, default=3)
    ask.add_argument("--device", default="cuda:0")
    ask.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float16", "float32"))
    ask.add_argument("--chunk", type=int, default=8, help="frames decoded together")
    ask.add_argument(
        "--tiny", action="store_true", help="small networks on the CPU, to try the script itself"
    )
    told = ask.parse_args()
    if not told.tiny and not torch.cuda.is_available():
        print("No CUDA device is visible: nothing measured. `--tiny` tries the script on a CPU.")
        return
    device = torch.device("cpu" if told.tiny else told.device)
    dtype = torch.float32 if told.tiny else getattr(torch, told.dtype)
    rig = build(device, dtype, told.chunk, told.tiny)
    name = "CPU, tiny networks" if told.tiny else torch.cuda.get_device_name(device)
    h264 = importlib.util.find_spec("av") is not None
    print(f"{name}; torch {torch.__version__}, {dtype}, {rig.frames} frames of {rig.size[0]}x{rig.size[1]}, "
          f"chunk {rig.chunk}, random weights, median of {told.rounds}.")  # fmt: skip
    print(
        "Stock decode ends with NumPy frames; ours with bytes"
        + (" in an H.264 file." if h264 else ", no H.264.")
    )
    print(
        "No first frame from a prompt. Seconds"
        + ("" if told.tiny else " (TFLOP/s of the counted work)")
        + ".\n"
    )
    print("| run | encode | denoise | decode | total | peak GB |\n|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "film.mp4" if h264 else None
        hq_steps = 2 if told.tiny else 25
        for title, steps, guided in (("turbo", 4, False), ("HQ with CFG", hq_steps, True)):
            title = f"{title}, {steps} steps"
            calls = steps * (2 if guided else 1)
            seconds, peak = measure(rig, lambda s=steps, g=guided: stock(rig, s, g), told.rounds)
            print(row(f"{title}: stock diffusers", seconds, peak, calls, not told.tiny), flush=True)
            seconds, peak = measure(rig, lambda s=steps, g=guided: ours(rig, s, g, target), told.rounds)
            print(row(f"{title}: ours", seconds, peak, calls, not told.tiny), flush=True)


if __name__ == "__main__":
    main()

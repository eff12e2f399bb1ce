"""Stable Video Diffusion's networks with random weights, and the two loops that run them.

Random weights cost the same seconds as trained ones. Needs torch, transformers, diffusers, safetensors and
numpy alone, so that it runs on a bare GPU machine. H.264 is left out: it runs on the CPU beside the decoding.
"""

import copy
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from stillmotion import profiles
from stillmotion.engine import quiet
from stillmotion.engine.codec import Codec
from stillmotion.engine.film import condition_on, sample_euler, sample_lcm
from stillmotion.engine.pictures import cover
from stillmotion.engine.reuse import ReusingUNet
from stillmotion.engine.writing import decoded_chunks
from stillmotion.profiles import Size, load_profile

import diffusers  # isort: skip
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection  # isort: skip

#: The classes' own annotations are narrower than what they take.
models: Any = diffusers
STAGES = ("encode", "denoise", "decode")
Seconds = dict[str, float]
Frames = np.ndarray[Any, np.dtype[np.uint8]]


@dataclass(frozen=True)
class Job:
    """What is asked: steps, whether with guidance, and which of our samplers answers."""

    title: str
    steps: int
    guided: bool
    lcm: bool = False

    @property
    def calls(self) -> int:
        return self.steps * (2 if self.guided else 1)


@dataclass(frozen=True)
class Rig:
    """The networks under test and the sizes they run at."""

    unet: Any
    vae: Any
    clip: Any
    device: torch.device
    dtype: torch.dtype
    size: Size
    frames: int
    chunk: int
    profile: profiles.Profile
    clock: Callable[[], float] = time.perf_counter

    def picture(self) -> Image.Image:
        noise = np.random.default_rng(1).integers(0, 256, (self.size[1] // 16, self.size[0] // 16, 3))
        return Image.fromarray(noise.astype(np.uint8)).resize(self.size, Image.Resampling.BICUBIC)

    @cached_property
    def codec(self) -> Codec:
        """Made once: CUDA graphs are recorded of where the decoder's weights lie."""
        return Codec(self.vae.float(), self.profile.codec, self.dtype)

    def now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return self.clock()

    def varied(
        self,
        dtype: torch.dtype,
        unet: Sequence[Callable[[Any], None]] = (),
        decoder: Sequence[Callable[[Any], None]] = (),
    ) -> "Rig":
        """A copy in another number format with rewrites applied; its VAE stays as it is for the codec."""
        new_unet, vae = copy.deepcopy(self.unet).to(dtype), copy.deepcopy(self.vae)
        for rewrite in unet:
            rewrite(new_unet)
        for rewrite in decoder:
            rewrite(vae.decoder)
        return replace(self, unet=new_unet, vae=vae, clip=copy.deepcopy(self.clip).to(dtype), dtype=dtype)

    def reusing(self, interval: int, branch: int) -> "Rig":
        """The same weights, deep features reused in the guided job; rewrites come after."""
        euler = replace(self.profile.samplers.euler, reuse_interval=interval)
        samplers = replace(self.profile.samplers, euler=euler)
        return replace(
            self, unet=layered(self.unet, branch), profile=replace(self.profile, samplers=samplers)
        )


def layered(unet: Any, branch: int) -> Any:
    """The same UNet, its weights shared, as one that can leave out what lies below a skip connection."""
    with torch.device("meta"):
        other: Any = ReusingUNet.from_config(unet.config)
    other.load_state_dict(unet.state_dict(), assign=True)
    other.cut_at(branch)
    return other.eval().requires_grad_(False)


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


def middle_networks() -> tuple[Any, Any, Any]:
    """SVD's four levels at a fifth of the width: what a CPU can run whole."""
    unet = models.UNetSpatioTemporalConditionModel(
        sample_size=32,
        block_out_channels=(64, 128, 256, 256),
        num_attention_heads=(1, 2, 4, 4),
        cross_attention_dim=64,
        addition_time_embed_dim=64,
        projection_class_embeddings_input_dim=192,
        num_frames=25,
    )
    vae = models.AutoencoderKLTemporalDecoder(
        down_block_types=("DownEncoderBlock2D",) * 4,
        block_out_channels=(32, 64, 128, 128),
        layers_per_block=2,
        sample_size=256,
    )
    clip = CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            hidden_size=128,
            intermediate_size=512,
            projection_dim=64,
            num_hidden_layers=4,
            num_attention_heads=4,
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


KINDS = {
    "full": (full_networks, (1024, 576), 25),
    "middle": (middle_networks, (256, 128), 25),
    "tiny": (tiny_networks, (64, 32), 4),
}


def build(kind: str, device: torch.device, dtype: torch.dtype, chunk: int) -> Rig:
    make, size, frames = KINDS[kind]
    torch.manual_seed(0)
    with torch.device(device):
        networks = make()
    for network in networks:
        _unsettle(network)
    unet, vae, clip = (
        network.to(device=device, dtype=dtype).eval().requires_grad_(False) for network in networks
    )
    return Rig(unet, vae, clip, device, dtype, size, frames, chunk, load_profile("svd"))


def _unsettle(network: nn.Module) -> None:
    """Leave no blend and no last layer at what it was initialised to, so that every part has its say."""
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.endswith("mix_factor"):
                parameter.add_(torch.randn_like(parameter) * 0.5)


def stock(rig: Rig, job: Job) -> tuple[Seconds, Frames]:
    """diffusers' pipeline with its Euler scheduler; frames end as a NumPy array."""
    torch.backends.cudnn.deterministic = False
    numbers = rig.profile.samplers.euler
    with quiet.no_advice():
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
        encoded: list[float] = []
        hook = rig.unet.register_forward_pre_hook(lambda *_: None if encoded else encoded.append(rig.now()))
        begun = rig.now()
        latents = pipeline(
            rig.picture(),
            height=rig.size[1],
            width=rig.size[0],
            num_frames=rig.frames,
            num_inference_steps=job.steps,
            min_guidance_scale=numbers.guidance_min if job.guided else 1.0,
            max_guidance_scale=numbers.guidance_max if job.guided else 1.0,
            fps=int(rig.profile.condition_fps.hq),
            generator=torch.Generator().manual_seed(1),
            output_type="latent",
        ).frames
        denoised = rig.now()
        hook.remove()
        video = pipeline.decode_latents(latents, rig.frames, rig.chunk)
        frames = pipeline.video_processor.postprocess_video(video=video, output_type="np")[0]
        ended = rig.now()
    seconds = (encoded[0] - begun, denoised - encoded[0], ended - denoised)
    return dict(zip(STAGES, seconds, strict=True)), (frames * 255).round().astype(np.uint8)


def ours(rig: Rig, job: Job, picture: Image.Image | None = None, seed: int = 1) -> tuple[Seconds, Frames]:
    """Our loop; encoding in float32, frames end as bytes."""
    torch.backends.cudnn.deterministic = True  # as the engine does
    codec, numbers = rig.codec, rig.profile.samplers
    if not job.guided:
        euler = replace(numbers.euler, guidance_min=1.0, guidance_max=1.0)
        numbers = replace(numbers, euler=euler)
    generator = torch.Generator().manual_seed(seed)
    with torch.inference_mode():
        begun = rig.now()
        condition = condition_on(
            cover(picture or rig.picture(), rig.size).to(rig.device),
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
        if job.lcm:
            stages = sample_lcm(rig.unet, condition, numbers.lcm, job.steps, generator)
        else:
            stages = sample_euler(rig.unet, condition, numbers.euler, job.steps, generator)
        for latents in stages:  # noqa: B007  (the last one is decoded)
            rig.now()
        denoised = rig.now()
        frames = torch.cat(list(decoded_chunks(codec, latents, rig.chunk)))
        ended = rig.now()
    seconds = (encoded - begun, denoised - encoded, ended - denoised)
    return dict(zip(STAGES, seconds, strict=True)), frames.permute(0, 2, 3, 1).numpy()


def medians(
    run: Callable[[], tuple[Seconds, Frames]], rounds: int, warm: Callable[[], object] | None = None
) -> tuple[Seconds, Frames]:
    """Median seconds by stage over `rounds` runs after a warm-up, and the last run's frames."""
    (warm or run)()
    found = [run() for _ in range(rounds)]
    return {stage: statistics.median(one[stage] for one, _ in found) for stage in STAGES}, found[-1][1]


def psnr(ours: Frames, theirs: Frames) -> float:
    """Decibels between two films of bytes."""
    error = np.square(ours.astype(np.float64) - theirs).mean()
    return float("inf") if error == 0 else float(10 * np.log10(255**2 / error))

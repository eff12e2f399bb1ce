"""Stable Video Diffusion's network and what it is told: image embedding, image latents, three numbers.

The order of draws from the request's one float32 CPU generator is a promise (docs/engine.md): the
picture's noise, the film's latents, then one draw between steps of the few-step sampler.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count

import torch
from torch import Tensor

from stillmotion.engine import samplers
from stillmotion.engine.codec import Codec
from stillmotion.engine.pictures import clip_pixels
from stillmotion.engine.samplers import Network
from stillmotion.profiles import EulerSampler, LcmSampler

from diffusers.models.unets.unet_spatio_temporal_condition import (  # isort: skip
    UNetSpatioTemporalConditionModel,
)
from transformers.models.clip.modeling_clip import CLIPVisionModelWithProjection  # isort: skip


@dataclass(frozen=True, slots=True)
class Condition:
    """What the film is conditioned on."""

    #: (1, 1, D) of CLIP, from the clean picture.
    embedding: Tensor
    #: (1, T, C, h, w) of the noised picture, unscaled, the same in every frame.
    latents: Tensor
    #: (1, 3): frames per second less one, motion bucket, noise strength.
    ids: Tensor

    def blank(self) -> "Condition":
        """The unconditional side of guidance: no picture, the same numbers."""
        return Condition(torch.zeros_like(self.embedding), torch.zeros_like(self.latents), self.ids)


def condition_on(
    picture: Tensor,
    *,
    clip: CLIPVisionModelWithProjection,
    codec: Codec,
    frames: int,
    fps: float,
    motion_bucket_id: int,
    cond_aug: float,
    generator: torch.Generator,
) -> Condition:
    """Encode a picture (1, 3, H, W) in [-1, 1]; draws its noise from the generator."""
    embedding = clip(clip_pixels(picture).to(clip.dtype)).image_embeds[:, None]
    # Drawn while a GPU is at CLIP.
    noise = torch.randn(picture.shape, generator=generator).to(picture.device)
    latents = codec.encode(picture + cond_aug * noise)
    return Condition(
        embedding,
        latents[:, None].expand(-1, frames, -1, -1, -1),
        torch.tensor([[fps - 1, motion_bucket_id, cond_aug]], device=picture.device),
    )


def initial_noise(condition: Condition, generator: torch.Generator) -> Tensor:
    return torch.randn(condition.latents.shape, generator=generator).to(condition.latents.device)


def film_network(
    unet: UNetSpatioTemporalConditionModel, condition: Condition, reuse_interval: int = 1
) -> Network:
    """The UNet with its conditioning bound: scaled latents (1, T, C, h, w) and time to v, in float32.

    Of every `reuse_interval` calls the first is whole; a ReusingUNet gives the others its deep features.
    """
    embedding, latents = condition.embedding.to(unet.dtype), condition.latents.to(unet.dtype)
    calls, reused = count(), dict[str, Tensor]()

    def network(x: Tensor, time: float) -> Tensor:
        if next(calls) % reuse_interval == 0:
            reused.clear()
        answer = unet(
            torch.cat((x.to(unet.dtype), latents), dim=2),
            # Filled where it lies: sent over, it would have the host wait for all that is queued.
            torch.full((), time, device=x.device),
            encoder_hidden_states=embedding,
            added_time_ids=condition.ids,
            **reused,
        )
        if reuse_interval > 1:
            reused["deep"] = answer.deep
        return answer.sample.float()

    return network


def sample_lcm(
    unet: UNetSpatioTemporalConditionModel,
    condition: Condition,
    numbers: LcmSampler,
    steps: int,
    generator: torch.Generator,
) -> Iterator[Tensor]:
    """Yield the latents after each of `steps` few-step jumps, without guidance."""
    sigmas = samplers.lcm_sigmas(steps, numbers.sigma_min, numbers.sigma_max, numbers.grid)
    start = samplers.initial_latents(initial_noise(condition, generator), numbers.sigma_max)

    def fresh() -> Tensor:
        return torch.randn(start.shape, generator=generator).to(start.device)

    return samplers.lcm(samplers.denoiser(film_network(unet, condition)), start, sigmas, fresh)


def sample_euler(
    unet: UNetSpatioTemporalConditionModel,
    condition: Condition,
    numbers: EulerSampler,
    steps: int,
    generator: torch.Generator,
) -> Iterator[Tensor]:
    """Yield the latents after each Euler step, guided more from the first frame to the last."""
    sigmas = samplers.karras_sigmas(steps, numbers.sigma_min, numbers.sigma_max)
    start = samplers.initial_latents(initial_noise(condition, generator), numbers.sigma_max)
    network = film_network(unet, condition, numbers.reuse_interval)
    if numbers.guidance_max > 1:
        scales = samplers.frame_scales(numbers.guidance_min, numbers.guidance_max, start.shape[1])
        blank = film_network(unet, condition.blank(), numbers.reuse_interval)
        network = samplers.guided(network, blank, scales.to(start.device))
    return samplers.euler(samplers.denoiser(network), start, sigmas)

"""The sampling loops: pure functions from a network and noise to latents.

Both models are EDM networks with v-prediction: the network sees `x / sqrt(sigma^2 + 1)` and the time
`ln(sigma) / 4`, and answers v, from which the clean estimate is
`x / (sigma^2 + 1) - v * sigma / sqrt(sigma^2 + 1)`. Latents stay float32 throughout.

Each loop is a generator that yields the latents after every step, so the caller can tell progress,
look for a cancel, or simply stop.
"""

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

RHO = 7.0
#: Up to here AnimateLCM's own rule (a stride over the grid) is kept; beyond, it would not reach low noise.
FLOOR_STRIDE_STEPS = 8

#: Scaled noisy latents and model time to v.
Network = Callable[[Tensor, float], Tensor]
#: Noisy latents and their sigma to the clean estimate.
Denoiser = Callable[[Tensor, float], Tensor]
#: Fresh standard normal noise, shaped like the latents.
Noise = Callable[[], Tensor]


def karras_sigmas(count: int, sigma_min: float, sigma_max: float) -> list[float]:
    """Noise levels from high to low, evenly spaced in the seventh root."""
    low, high = sigma_min ** (1 / RHO), sigma_max ** (1 / RHO)
    return [(high + (k / max(count - 1, 1)) * (low - high)) ** RHO for k in range(count)]


def lcm_sigmas(steps: int, sigma_min: float, sigma_max: float, grid: int) -> list[float]:
    """Thin the `grid`-point ramp to `steps` levels, the way AnimateLCM-SVD's scheduler does for few steps."""
    ramp = karras_sigmas(grid, sigma_min, sigma_max)
    if steps <= FLOOR_STRIDE_STEPS:
        return [ramp[k * (grid // steps)] for k in range(steps)]
    return [ramp[round(grid * k / steps)] for k in range(steps)]


def model_time(sigma: float) -> float:
    return 0.25 * math.log(sigma)


def denoiser(network: Network) -> Denoiser:
    """Wrap a v-predicting network so that it answers the clean estimate."""

    def denoise(x: Tensor, sigma: float) -> Tensor:
        spread = math.sqrt(sigma**2 + 1)
        v = network(x / spread, model_time(sigma))
        return x / spread**2 - v * (sigma / spread)

    return denoise


def initial_latents(noise: Tensor, sigma_max: float) -> Tensor:
    return noise * math.sqrt(sigma_max**2 + 1)


def euler(denoise: Denoiser, x: Tensor, sigmas: list[float]) -> Iterator[Tensor]:
    """Follow the ODE down the noise levels to zero."""
    for sigma, following in zip(sigmas, [*sigmas[1:], 0.0], strict=True):
        slope = (x - denoise(x, sigma)) / sigma
        x = x + slope * (following - sigma)
        yield x


def lcm(denoise: Denoiser, x: Tensor, sigmas: list[float], noise: Noise) -> Iterator[Tensor]:
    """Jump to the clean estimate and add fresh noise of the next level; the last answer is clean."""
    for sigma, following in zip(sigmas, [*sigmas[1:], 0.0], strict=True):
        clean = denoise(x, sigma)
        x = clean + following * noise() if following else clean
        yield x


def guided(network: Network, unconditional: Network, scale: Tensor) -> Network:
    """Classifier-free guidance from two networks; `scale` broadcasts over the latents."""

    def network_with_guidance(x: Tensor, time: float) -> Tensor:
        without = unconditional(x, time)
        return without + scale * (network(x, time) - without)

    return network_with_guidance


def frame_scales(low: float, high: float, frames: int) -> Tensor:
    """Guidance per frame, shaped to broadcast over (1, T, C, h, w)."""
    return torch.linspace(low, high, frames).view(1, frames, 1, 1, 1)

"""The diffusion frame both models share with SVD: EDM preconditioning with v-prediction, and its samplers."""

import math
from collections.abc import Callable

import torch

SIGMA_MIN, SIGMA_MAX, RHO = 0.002, 700.0, 7.0

#: From scaled noisy latents, model time and noise level to the network's answer.
Network = Callable[[torch.Tensor, float], torch.Tensor]


def karras(count: int, low: float = SIGMA_MIN, high: float = SIGMA_MAX) -> torch.Tensor:
    ramp = torch.linspace(0, 1, count, dtype=torch.float64)
    return (high ** (1 / RHO) + ramp * (low ** (1 / RHO) - high ** (1 / RHO))) ** RHO


def target(clean: torch.Tensor, noise: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """The velocity that the network must answer for x = clean + sigma * noise."""
    return (noise - sigma * clean) / (sigma**2 + 1).sqrt()


def scaled(x: torch.Tensor, sigma: torch.Tensor | float) -> torch.Tensor:
    return x / (sigma**2 + 1) ** 0.5


def clean_from(x: torch.Tensor, answer: torch.Tensor, sigma: torch.Tensor | float) -> torch.Tensor:
    return x / (sigma**2 + 1) - answer * sigma / (sigma**2 + 1) ** 0.5


def lcm_levels(steps: int, low: float = SIGMA_MIN) -> list[float]:
    grid = karras(40, low)
    return [float(grid[i * (40 // steps)]) for i in range(steps)]


def lcm(
    network: Network, noise: torch.Tensor, sigmas: list[float], generator: torch.Generator
) -> torch.Tensor:
    """Sample as AnimateLCM-SVD does: jump to the clean film, then add fresh noise of the next level."""
    x = noise * (SIGMA_MAX**2 + 1) ** 0.5
    for number, sigma in enumerate(sigmas):
        clean = clean_from(x, network(scaled(x, sigma), sigma), sigma)
        if number + 1 == len(sigmas):
            return clean
        x = clean + sigmas[number + 1] * torch.randn(x.shape, generator=generator)
    raise ValueError("at least one step is needed")


def euler(network: Network, noise: torch.Tensor, sigmas: list[float]) -> torch.Tensor:
    """Sample down the given noise levels, ending at zero."""
    x = noise * (sigmas[0] ** 2 + 1) ** 0.5
    for sigma, following in zip(sigmas, [*sigmas[1:], 0.0], strict=True):
        clean = clean_from(x, network(scaled(x, sigma), sigma), sigma)
        x = x + (x - clean) / sigma * (following - sigma)
    return x


def log_uniform(count: int, low: float, high: float) -> torch.Tensor:
    return (math.log(low) + math.log(high / low) * torch.rand(count)).exp()

import math

import pytest
import torch
from torch import Tensor

from stillmotion.engine import samplers


@pytest.mark.parametrize(
    ("steps", "printed"),
    [
        (1, [700]),
        (2, [700, 13.68]),
        (3, [700, 70.5, 2.27]),
        (4, [700, 128.6, 13.68, 0.497]),
        (5, [700, 186.7, 36.6, 4.35, 0.201]),
        (6, [700, 266.2, 86.7, 22.8, 4.35, 0.497]),
        (8, [700, 315.7, 128.6, 45.9, 13.7, 3.17, 0.497, 0.040]),
    ],
)
def test_few_step_noise_levels_are_those_of_animatelcm(steps: int, printed: list[float]) -> None:
    sigmas = samplers.lcm_sigmas(steps, 0.002, 700, 40)
    assert sigmas == pytest.approx(printed, rel=0.01)


@pytest.mark.parametrize("steps", range(9, 21))
def test_many_steps_use_the_whole_range_of_noise_levels(steps: int) -> None:
    sigmas = samplers.lcm_sigmas(steps, 0.002, 700, 40)
    assert len(set(sigmas)) == steps
    assert sigmas == sorted(sigmas, reverse=True)
    assert sigmas[0] == pytest.approx(700)
    assert sigmas[-1] < 0.1


def test_euler_noise_levels_are_the_published_25() -> None:
    sigmas = samplers.karras_sigmas(25, 0.002, 700)
    assert sigmas[:5] == pytest.approx([700, 545.7, 421.6, 322.5, 244.0], rel=0.001)
    assert sigmas[-4:] == pytest.approx([0.0664, 0.0248, 0.0079, 0.002], rel=0.01)
    assert samplers.model_time(sigmas[0]) == pytest.approx(1.638, abs=0.001)
    assert samplers.model_time(sigmas[-1]) == pytest.approx(-1.554, abs=0.001)


def test_lcm_equals_its_closed_form_for_standard_normal_data() -> None:
    # For data ~ N(0, 1) the ideal v is zero, and each step is x / (sigma^2 + 1) + next sigma * noise.
    generator = torch.Generator().manual_seed(3)
    start, *fresh = torch.randn(4, 5, generator=generator, dtype=torch.float64)
    sigmas = samplers.lcm_sigmas(4, 0.002, 700, 40)
    draws = iter(fresh)
    *_, made = samplers.lcm(
        samplers.denoiser(lambda x, time: torch.zeros_like(x)), start, sigmas, lambda: next(draws)
    )
    kept = [math.prod(1 / (sigma**2 + 1) for sigma in sigmas[k:]) for k in range(4)]
    expected = start * kept[0] + sum(
        (sigmas[k] * fresh[k - 1] * kept[k] for k in range(1, 4)), torch.zeros(5, dtype=torch.float64)
    )
    torch.testing.assert_close(made, expected)
    assert next(draws, None) is None


def test_euler_ends_on_the_clean_estimate() -> None:
    clean = torch.linspace(-1, 1, 5)
    sigmas = samplers.karras_sigmas(6, 0.002, 700)
    films = list(samplers.euler(lambda x, sigma: clean, torch.full((5,), 700.0), sigmas))
    assert len(films) == 6
    torch.testing.assert_close(films[-1], clean, atol=1e-4, rtol=0)


def test_guidance_grows_over_the_frames() -> None:
    def says(value: float) -> samplers.Network:
        return lambda x, time: torch.full_like(x, value)

    network = samplers.guided(says(2.0), says(1.0), samplers.frame_scales(1.0, 3.0, 3))
    answer: Tensor = network(torch.zeros(1, 3, 1, 1, 1), 0.0)
    assert answer.flatten().tolist() == [2.0, 3.0, 4.0]

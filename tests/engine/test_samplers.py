import itertools
import math

import pytest
import torch
from torch import Tensor

from stillmotion.engine import samplers
from stillmotion.engine.quiet import no_advice
from stillmotion.profiles import load_profile
from tests.engine.tiny import models, svd_scheduler


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


#: Steps by the levels of the 40-point ramp they stop at.
STOPS = {
    1: [0],
    2: [0, 20],
    3: [0, 13, 26],
    4: [0, 10, 20, 30],
    5: [0, 8, 16, 24, 32],
    6: [0, 6, 12, 18, 24, 30],
    7: [0, 5, 10, 15, 20, 25, 30],
    8: [0, 5, 10, 15, 20, 25, 30, 35],
    9: [0, 4, 9, 13, 18, 22, 27, 31, 36],
    10: [0, 4, 8, 12, 16, 20, 24, 28, 32, 36],
    11: [0, 4, 7, 11, 15, 18, 22, 25, 29, 33, 36],
    12: [0, 3, 7, 10, 13, 17, 20, 23, 27, 30, 33, 37],
    13: [0, 3, 6, 9, 12, 15, 18, 22, 25, 28, 31, 34, 37],
    14: [0, 3, 6, 9, 11, 14, 17, 20, 23, 26, 29, 31, 34, 37],
    15: [0, 3, 5, 8, 11, 13, 16, 19, 21, 24, 27, 29, 32, 35, 37],
    16: [0, 2, 5, 8, 10, 12, 15, 18, 20, 22, 25, 28, 30, 32, 35, 38],
    17: [0, 2, 5, 7, 9, 12, 14, 16, 19, 21, 24, 26, 28, 31, 33, 35, 38],
    18: [0, 2, 4, 7, 9, 11, 13, 16, 18, 20, 22, 24, 27, 29, 31, 33, 36, 38],
    19: [0, 2, 4, 6, 8, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 32, 34, 36, 38],
    20: [0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30, 32, 34, 36, 38],
}


@pytest.mark.parametrize("steps", STOPS)
def test_few_steps_stop_at_known_levels_of_the_ramp(steps: int) -> None:
    ramp = samplers.karras_sigmas(40, 0.002, 700)
    sigmas = samplers.lcm_sigmas(steps, 0.002, 700, 40)
    assert sigmas == [ramp[stop] for stop in STOPS[steps]]
    # From 9 steps on the low noise is reached; AnimateLCM's stride would leave 12 steps at 0.12.
    assert steps < 9 or sigmas[-1] < 0.04


@pytest.mark.parametrize("steps", [*range(1, 9), 10, 20])
def test_few_step_noise_levels_are_diffusers_consistency_schedulers(steps: int) -> None:
    # AnimateLCM's scheduler is this one, with times a thousandth of its and an end at 0.
    scheduler = models.CMStochasticIterativeScheduler(40, sigma_min=0.002, sigma_max=700)
    scheduler.set_timesteps(steps)
    sigmas = samplers.lcm_sigmas(steps, 0.002, 700, 40)
    assert sigmas == pytest.approx(scheduler.sigmas[:-1].tolist(), rel=1e-5)
    times = [samplers.model_time(sigma) for sigma in sigmas]
    assert times == pytest.approx((scheduler.timesteps / 1000).tolist(), rel=1e-5)


@pytest.mark.parametrize("steps", [1, 2, 12, 25, 30, 50])
def test_euler_noise_levels_are_diffusers_karras_ones(steps: int) -> None:
    scheduler = svd_scheduler()
    with no_advice():  # of NumPy, about diffusers' own conversion
        scheduler.set_timesteps(steps)
    sigmas = samplers.karras_sigmas(steps, 0.002, 700)
    assert [*sigmas, 0.0] == pytest.approx(scheduler.sigmas.tolist(), rel=1e-5)
    times = [samplers.model_time(sigma) for sigma in sigmas]
    assert times == pytest.approx(scheduler.timesteps.tolist(), rel=1e-5)
    assert float(scheduler.init_noise_sigma) == pytest.approx(
        samplers.initial_latents(torch.ones(()), 700).item()
    )


@pytest.mark.parametrize("profile", ["pocket", "svd"])
@pytest.mark.parametrize("steps", range(1, 21))
def test_every_step_count_walks_down_within_the_profiles_range(profile: str, steps: int) -> None:
    numbers = load_profile(profile).samplers.lcm
    sigmas = samplers.lcm_sigmas(steps, numbers.sigma_min, numbers.sigma_max, numbers.grid)
    assert len(sigmas) == steps
    assert sigmas[0] == pytest.approx(numbers.sigma_max)
    assert all(high > low for high, low in itertools.pairwise(sigmas))
    assert sigmas[-1] > numbers.sigma_min > 0


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

"""What training relies on: a linear encoder, a film model that begins as a copier, exact quick attention."""

import random

import pytest
import torch
from diffusers import AutoencoderTiny, EulerDiscreteScheduler

from stillmotion.engine import samplers
from stillmotion.profiles import load_profile
from training import codec, edm, motion, picture, vision
from training.attention import QuickAttention
from training.clips import Studio, clips_of, hold, some_frames
from training.practice import Practice
from training.render import film
from training.train_video import SIGMA_MIN, loudness, outcomes, penalty
from training.world import FRAMES, Scene

SCENE = Scene("boat", "green", "sea", "rise", bucket=90, light=0.2)


@pytest.fixture(scope="module")
def vae() -> AutoencoderTiny:
    torch.manual_seed(0)
    made = codec.build()
    cells = codec.cells_of(film(SCENE, [0, 8, 16, 24]).repeat(4, 1, 1, 1)).reshape(-1, 3, 32, 32)
    codec.fit_encoder(made, cells + 0.05 * torch.rand_like(cells))
    return made.requires_grad_(False)


def test_encoding_by_matrix_equals_the_network(vae: AutoencoderTiny) -> None:
    frames = film(SCENE, [0, 24])
    assert torch.allclose(codec.Cells(vae).encode(frames), codec.encode(vae, frames * 2 - 1), atol=2e-3)


def test_latents_of_touched_cells_equal_latents_of_whole_frames(vae: AutoencoderTiny) -> None:
    studio = Studio(vae, torch.nn.Identity())
    assert torch.allclose(
        studio.latents(SCENE, [0, 5, 24]), studio.cells.encode(film(SCENE, [0, 5, 24])), atol=1e-4
    )


def test_untrained_film_model_answers_the_picture_in_every_frame() -> None:
    torch.manual_seed(1)
    unet = motion.build().eval()
    motion.start_as_copier(unet)
    conditioning = 0.5 * torch.randn(1, 1, codec.CHANNELS, 8, 8).expand(-1, 4, -1, -1, -1)
    noise = torch.randn(conditioning.shape)
    with torch.no_grad():
        ids = torch.tensor([[6.0, 127.0, 0.02]])
        made = unet(
            torch.cat((noise, conditioning), 2), torch.tensor(1.6), torch.randn(1, 1, 128), ids
        ).sample
    wanted = conditioning * codec.SCALING
    clean = edm.clean_from(noise * 700, made, 700.0)
    assert float((clean - wanted).square().mean() / wanted.square().mean()) < 0.05


def test_quick_attention_changes_nothing() -> None:
    torch.manual_seed(2)
    unet = picture.build().eval()
    x, words = torch.randn(2, codec.CHANNELS, 8, 8), torch.randn(2, 12, 128)
    with torch.no_grad():
        usual = unet(x, torch.tensor(0.3), words).sample
        unet.set_attn_processor(QuickAttention())
        assert torch.allclose(unet(x, torch.tensor(0.3), words).sample, usual, atol=1e-4)


def test_chosen_frames_are_the_positions_of_a_clip() -> None:
    unet = motion.build()
    choosers = motion.let_choose(unet)
    assert len(choosers) == 7
    assert not any("time_proj" in name for name in unet.state_dict())
    first = choosers[0]
    first.frames = torch.tensor([3, 9])
    assert torch.equal(first(torch.arange(2)), first.projection(torch.tensor([3, 9])))


@pytest.mark.parametrize("count", [5, 25])
def test_some_frames_are_sorted_frames_of_the_film(count: int) -> None:
    rng = random.Random(1)
    for _ in range(50):
        chosen = some_frames(rng, count)
        assert len(chosen) == len(set(chosen)) == count
        assert chosen == sorted(chosen) and chosen[0] >= 0 and chosen[-1] < FRAMES


def test_clips_hold_the_picture_as_their_first_frame(vae: AutoencoderTiny) -> None:
    studio = Studio(vae, torch.nn.Identity())
    studio.embed = lambda scene: torch.zeros(128)  # type: ignore[method-assign]
    clips = clips_of(studio, [SCENE], [[0, 4, 9]])
    assert torch.allclose(clips.clean[0, 0], clips.picture[0] * codec.SCALING, atol=1e-5)


def test_what_goes_badly_is_practised_more() -> None:
    rng, practice = random.Random(4), Practice(1)
    plain = [practice.draw(rng, (512, 288)).motion for _ in range(400)].count("left")
    for _ in range(100):
        scene = practice.draw(rng, (512, 288))
        practice.note([(scene, 3.0 if scene.motion == "left" else 1.0)])
    assert [practice.draw(rng, (512, 288)).motion for _ in range(400)].count("left") > 1.8 * plain


def test_outcomes_leave_pictures_from_elsewhere_out(vae: AutoencoderTiny) -> None:
    studio = Studio(vae, vision.build().eval())
    studio.embed = lambda scene: torch.zeros(128)  # type: ignore[method-assign]
    clips = clips_of(studio, [SCENE, SCENE], [[0, 4, 24], [0, 4, 24]])
    hold(studio, clips, 0, codec.strange_picture(random.Random(2), SCENE.size))
    assert [(s, e > 0) for s, e in outcomes(clips.clean + 0.1, clips)] == [(SCENE, True)]


def test_loud_channels_weigh_by_their_pixels(vae: AutoencoderTiny) -> None:
    cells = codec.Cells(vae)
    assert torch.allclose(loudness(cells, 0), torch.ones(codec.CHANNELS, 1, 1))
    weights = loudness(cells, 1).flatten()
    assert float(weights.mean()) == pytest.approx(1, abs=1e-4)
    assert weights.argmax() == cells.matrix.square().sum(0).argmin()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_shipped_schedule_is_the_one_training_samples_with() -> None:
    schedule: EulerDiscreteScheduler = picture.scheduler()
    schedule.set_timesteps(6)
    wanted = edm.karras(6, picture.SIGMA_MIN, picture.SIGMA_MAX)
    assert torch.allclose(schedule.sigmas[:-1].double(), wanted, rtol=1e-4)
    assert torch.allclose(schedule.timesteps.double(), 0.25 * wanted.log(), atol=1e-4)


def test_a_picture_from_elsewhere_stands_still(vae: AutoencoderTiny) -> None:
    studio = Studio(vae, vision.build().eval())
    studio.embed = lambda scene: torch.zeros(128)  # type: ignore[method-assign]
    clips = clips_of(studio, [SCENE, SCENE], [[0, 4, 9], [1, 2, 3]])
    before = clips.clean[0].clone()
    hold(studio, clips, 1, codec.strange_picture(random.Random(2), SCENE.size))
    assert torch.equal(clips.clean[1], clips.picture[1, None].expand(3, -1, -1, -1) * codec.SCALING)
    assert torch.equal(clips.clean[0], before)


def test_flicker_of_a_still_cell_counts_more_than_the_same_error_that_stays() -> None:
    torch.manual_seed(3)
    clean = torch.zeros(1, 5, codec.CHANNELS, 4, 4)
    stays = torch.randn(1, 1, codec.CHANNELS, 4, 4).expand_as(clean)
    turns = stays * torch.tensor((1, -1, 1, -1, 1)).view(1, 5, 1, 1, 1)
    still, moving = torch.zeros(1, 5, 1, 4, 4), torch.ones(1, 5, 1, 4, 4)
    assert penalty(turns, clean, still) > 3 * penalty(stays, clean, still)
    assert torch.allclose(penalty(turns, clean, moving), penalty(stays, clean, moving))


def test_an_object_a_shade_off_as_a_whole_counts_more_than_the_same_error_in_turns() -> None:
    clean = torch.zeros(1, 5, codec.CHANNELS, 4, 4)
    moving = torch.zeros(1, 5, 1, 4, 4)
    moving[..., :2, :2] = 1
    slips = 0.1 * moving.expand_as(clean)
    turns = slips * torch.tensor((1, -1)).view(1, 1, 1, 1, 2).repeat(1, 1, 1, 1, 2)
    assert penalty(slips, clean, moving) > 2 * penalty(turns, clean, moving)


def test_films_are_judged_with_the_profile_s_own_levels() -> None:
    numbers = load_profile("pocket").samplers
    assert numbers.lcm.sigma_min == SIGMA_MIN < numbers.euler.sigma_min
    for steps in (1, 2, 4, 8):
        wanted = samplers.lcm_sigmas(steps, SIGMA_MIN, numbers.lcm.sigma_max, numbers.lcm.grid)
        assert edm.lcm_levels(steps, SIGMA_MIN) == pytest.approx(wanted)

"""The drawn world: what a film shows and how the motion bucket drives it."""

import random

import pytest
import torch

from training.render import film, still
from training.world import FRAMES, MOTIONS, SIZES, Scene, anchor, draw_scene, pose


def test_same_draw_gives_same_scene_and_film() -> None:
    first, second = draw_scene(random.Random(3)), draw_scene(random.Random(3))
    assert first == second
    assert torch.equal(film(first, [0, 9]), film(second, [0, 9]))


@pytest.mark.parametrize("size", SIZES)
def test_a_still_has_the_size_of_its_scene(size: tuple[int, int]) -> None:
    picture = still(Scene("rocket", "red", "meadow", "take-off", size))
    assert picture.shape == (3, size[1], size[0])
    assert float(picture.min()) >= 0 and float(picture.max()) <= 1


@pytest.mark.parametrize("motion", MOTIONS)
def test_twice_the_bucket_goes_twice_as_far(motion: str) -> None:
    near = pose(motion, 20, 60)
    far = pose(motion, 20, 120)
    assert [2 * near[0], 2 * near[1], 2 * (near[2] - 1)] == pytest.approx([far[0], far[1], far[2] - 1])


@pytest.mark.parametrize("motion", MOTIONS)
def test_every_motion_starts_at_the_anchor(motion: str) -> None:
    assert pose(motion, 0, 255) == (0, 0, 1)


@pytest.mark.parametrize("size", SIZES)
def test_objects_start_on_the_cell_grid_inside_the_picture(size: tuple[int, int]) -> None:
    for motion in MOTIONS:
        for shift in (-1, 0, 1):
            x, y = anchor(Scene("ball", "blue", "sea", motion, size, shift=shift))
            assert x % 32 == 0 and y % 32 == 0
            assert 52 < x < size[0] - 52 and 52 < y < size[1] - 52


def test_a_rocket_that_takes_off_goes_up_and_leaves_its_smoke() -> None:
    scene = Scene("rocket", "red", "meadow", "take-off")
    first, last = film(scene, [0, FRAMES - 1])
    nose = slice(50, 120)
    assert (last - first)[:, nose].abs().max() > 0.3
    smoke = first[:, 255:285, 175:205]
    assert torch.equal(smoke, last[:, 255:285, 175:205])


def test_unknown_motion_is_named_in_the_error() -> None:
    with pytest.raises(ValueError, match="no motion is called 'sideways'"):
        pose("sideways", 0, 127)

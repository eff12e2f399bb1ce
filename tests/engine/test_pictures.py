"""Sizes films are worked at, and that no cut on the way to the asked size squashes what is seen."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from stillmotion.engine.pictures import BUCKETS, cover, cut_bytes, film_size, native_size, to_bytes
from stillmotion.profiles import Size, load_profile, nearest_size
from stillmotion.types import VIDEO_SIZES
from stillmotion.video import VideoWriter, read_frames

GRID = 64
TRAINED = (1024, 576)
#: The smallest and largest sides, thin and tall ones, and some that fit no grid.
ODD: tuple[Size, ...] = (
    (256, 256),
    (1280, 1280),
    (1280, 256),
    (256, 1280),
    (998, 562),
    (1000, 800),
    (514, 1022),
    (1278, 722),
    (300, 302),
)
ASKED = (*VIDEO_SIZES.values(), *BUCKETS, *ODD)
SVD = load_profile("svd")


def apart(one: Size, other: Size) -> float:
    return abs(math.log(one[0] / one[1]) - math.log(other[0] / other[1]))


def scene(size: Size) -> Image.Image:
    """A white disc in the middle of black."""
    x, y = np.meshgrid(*(np.arange(side) + 0.5 - side / 2 for side in size))
    return Image.fromarray(np.where(np.hypot(x, y) < min(size) * 0.07, 255, 0).astype(np.uint8)).convert(
        "RGB"
    )


@pytest.mark.parametrize("size", ASKED)
def test_svd_works_at_its_trained_area_and_the_nearest_aspect(size: Size) -> None:
    width, height = native_size(size, SVD.native_sizes, GRID)
    assert width % GRID == height % GRID == 0
    assert width * height == pytest.approx(TRAINED[0] * TRAINED[1], rel=0.05)
    others = [apart(size, other) for other in SVD.native_sizes]
    assert apart(size, (width, height)) == pytest.approx(min(others))


def test_a_film_of_a_picture_is_worked_at_its_own_size() -> None:
    assert {native_size(size, SVD.native_sizes, GRID) for size in BUCKETS} == set(BUCKETS)
    assert {native_size(size, SVD.native_sizes, GRID) == size for size in BUCKETS} == {True}
    assert SVD.warm_size in SVD.native_sizes


def test_a_profile_without_sizes_works_at_the_asked_one_on_the_grid() -> None:
    assert native_size((1000, 562), (), GRID) == (1024, 576)
    assert native_size((1280, 256), (), GRID) == (1280, 256)
    assert native_size((20, 20), (), GRID) == (GRID, GRID)


@pytest.mark.parametrize("profile", ["svd", "pocket"])
@pytest.mark.parametrize("given", [(1024, 576), (640, 853), (1500, 400)])
@pytest.mark.parametrize("size", ASKED)
def test_a_disc_stays_a_disc_in_the_middle_of_the_film(
    tmp_path: Path, profile: str, given: Size, size: Size
) -> None:
    native = native_size(size, load_profile(profile).native_sizes, GRID)
    frames = to_bytes(cover(scene(given), native))
    assert frames.shape == (1, 3, native[1], native[0])
    path = tmp_path / "film.mp4"
    with VideoWriter(path, *size, 10) as writer:
        writer.write(cut_bytes(frames, size))
    made = read_frames(path)
    assert made.shape == (1, size[1], size[0], 3)
    ink = made[0, ..., 0].astype(np.float64) / 255
    across, down = ink.sum(1).max(), ink.sum(0).max()
    assert across == pytest.approx(down, rel=0.03, abs=1.5)
    rows, columns = np.indices(ink.shape)
    middle = (columns * ink).sum() / ink.sum() + 0.5, (rows * ink).sum() / ink.sum() + 0.5
    assert middle == pytest.approx((size[0] / 2, size[1] / 2), abs=2)


@pytest.mark.parametrize(
    ("given", "size"), [((450, 350), (896, 640)), ((350, 450), (640, 896)), ((1019, 843), (896, 640))]
)
def test_a_side_that_rounds_past_its_edge_is_cut_at_the_edge(given: Size, size: Size) -> None:
    assert cover(Image.new("RGB", given), size).shape == (1, 3, *size[::-1])


def test_frames_of_the_film_size_are_handed_out_as_they_are() -> None:
    frames = torch.randint(0, 256, (2, 3, 96, 128), dtype=torch.uint8)
    assert (cut_bytes(frames, (128, 96)) == frames.permute(0, 2, 3, 1).numpy()).all()


@pytest.mark.parametrize("name", VIDEO_SIZES)
def test_presets_lose_little_to_the_cut(name: str) -> None:
    film, native = VIDEO_SIZES[name], native_size(VIDEO_SIZES[name], SVD.native_sizes, GRID)
    assert apart(film, native) <= math.log(1.051)


@pytest.mark.parametrize(
    ("name", "drawn"),
    [
        ("landscape_16_9", (1344, 768)),
        ("portrait_16_9", (768, 1344)),
        ("landscape_4_3", (1152, 896)),
        ("portrait_4_3", (896, 1152)),
        ("square_hd", (1024, 1024)),
        ("square", (1024, 1024)),
    ],
)
def test_first_frames_are_drawn_at_sdxls_own_buckets(name: str, drawn: Size) -> None:
    native = native_size(VIDEO_SIZES[name], SVD.native_sizes, GRID)
    assert nearest_size(*native, SVD.first_frame.sizes) == drawn
    assert drawn[0] >= native[0] and drawn[1] >= native[1]


@pytest.mark.parametrize(
    ("given", "bucket"),
    [((1920, 1080), (1024, 576)), ((4000, 3000), (896, 640)), ((3, 2), (896, 640)), ((9, 16), (576, 1024))],
)
def test_a_picture_gets_the_bucket_of_its_aspect(given: Size, bucket: Size) -> None:
    assert film_size(None, None, Image.new("RGB", given)) == bucket
    assert film_size(300, 500, Image.new("RGB", given)) == (300, 500)


def test_pixels_are_rounded_and_what_is_too_bright_or_dark_is_cut() -> None:
    assert to_bytes(torch.tensor([-1.5, -1.0, -0.98, 0.98, 1.0, 1.5])).tolist() == [0, 0, 3, 252, 255, 255]

"""The engine on a real GPU, with tiny random weights; never run by us so far.

On a machine with little but torch, without the fixtures of the other floors:
`python -m pytest --confcutdir=tests/engine -W default tests/engine/test_on_gpu.py`.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from stillmotion.engine import Engine
from stillmotion.engine.compiling import CUDA_GRAPHS, Compilation
from stillmotion.engine.float8 import CAPABILITY
from stillmotion.profiles import Profile, parse_profile
from stillmotion.types import Assignment, Sampler
from tests.engine import tiny
from tests.engine.conftest import Notebook
from tests.engine.test_memory import PRESETS, decoder, hooked, made

Assign = Callable[..., Assignment]
SIZES = ((64, 64), (96, 64))

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    # torch and its compiler warn about their own ways.
    pytest.mark.filterwarnings("default"),
]


def profile(dtype: str = "bfloat16") -> Profile:
    found = parse_profile(tiny.KL_PROFILE + PRESETS, Path("here.toml"))
    return replace(found, native_sizes=SIZES, dtype=replace(found.dtype, cuda=dtype))


def decibels(one: bytes, two: bytes, tmp_path: Path) -> float:
    films: list[np.ndarray] = []
    for film in (one, two):
        (tmp_path / "compared.mp4").write_bytes(film)
        with av.open(str(tmp_path / "compared.mp4")) as opened:
            films.append(np.stack([frame.to_ndarray(format="rgb24") for frame in opened.decode(video=0)]))
    error = np.square(films[0].astype(float) - films[1]).mean()
    return float("inf") if error == 0 else float(10 * np.log10(255**2 / error))


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "compiled"
    torch.compiler.reset()


@pytest.mark.parametrize("sampler", Sampler)
def test_films_of_one_seed_have_equal_bytes_and_look_as_a_cpu_makes_them(
    kl_folder: Path, assign: Assign, tmp_path: Path, sampler: Sampler
) -> None:
    wanted = assign(sampler=sampler)
    for dtype, least in (("float32", 40), ("bfloat16", 25), ("float16", 25)):
        engine = Engine(profile(dtype), kl_folder, "cuda:0")
        first, second = (made(engine, wanted)[1] for _ in range(2))
        assert first == second
        assert made(Engine(profile(dtype), kl_folder, "cuda:0"), wanted)[1] == first
        on_cpu = made(Engine(profile(), kl_folder, "cpu"), wanted)[1]
        assert decibels(first, on_cpu, tmp_path) > least, dtype


@pytest.mark.parametrize("mode", ["default", CUDA_GRAPHS])
def test_compiled_films_repeat_their_bytes_at_every_size_and_after_a_second_try(
    kl_folder: Path, assign: Assign, tmp_path: Path, folder: Path, mode: str
) -> None:
    plain = Engine(profile(), kl_folder, "cuda:0")
    engine = Engine(profile(), kl_folder, "cuda:0", Compilation(mode, folder))
    assert list(engine.warm_up())[-1] == (2, 2)
    short: list[int] = []

    def fill(*_: object) -> None:
        if not short:
            short.append(1)
            raise torch.OutOfMemoryError("CUDA out of memory.")

    for width, height in SIZES:
        for sampler in Sampler:
            wanted, notebook = assign(sampler=sampler, width=width, height=height), Notebook()
            films = [made(engine, wanted, notebook)[1] for _ in range(3)]
            assert not any("compiled" in line for _, line in notebook.lines)
            assert decibels(films[0], made(plain, wanted)[1], tmp_path) > 25
            short.clear()
            with hooked(decoder(engine), fill):
                # Its parts leave and come back to another place.
                assert made(engine, wanted)[0].fingerprint is not None
            films.append(made(engine, wanted)[1])
            assert len(set(films)) == 1


def test_float8_and_reused_features_make_films(kl_folder: Path, assign: Assign, tmp_path: Path) -> None:
    if torch.cuda.get_device_capability() < CAPABILITY:
        pytest.skip("needs a GPU that multiplies float8")
    found = profile()
    euler = replace(found.samplers.euler, reuse_interval=2)
    changed = replace(
        found,
        dtype=replace(found.dtype, cuda_float8=True),
        samplers=replace(found.samplers, euler=euler),
    )
    engine = Engine(changed, kl_folder, "cuda:0")
    for sampler in Sampler:
        wanted = assign(sampler=sampler, steps=4)
        first, second = (made(engine, wanted)[1] for _ in range(2))
        assert first == second
        assert decibels(first, made(Engine(found, kl_folder, "cuda:0"), wanted)[1], tmp_path) > 15

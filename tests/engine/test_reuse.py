"""Deep features used again: whole calls beside diffusers', films beside a loop that records and replays."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bench.rigs import layered
from stillmotion.engine import Engine, fused, rewrites, samplers
from stillmotion.engine.compiling import Compilation, graphs
from stillmotion.engine.film import Condition, film_network, initial_noise, sample_euler
from stillmotion.engine.reuse import ReusingUNet
from stillmotion.errors import RequestCancelled, UserError
from stillmotion.profiles import EulerSampler, Profile, change_profile
from stillmotion.types import Assignment, Level, Sampler
from tests.engine import tiny
from tests.engine.conftest import Notebook
from tests.engine.test_rewrites import ask_unet, unsettle

Assign = Callable[..., Assignment]
NUMBERS = EulerSampler(
    steps=5, sigma_min=0.002, sigma_max=700, guidance_min=1.5, guidance_max=3.0, reuse_interval=2
)
REUSE = "[samplers.euler]\nsteps = 5\nreuse_interval = 2\nreuse_branch = 1"
#: Of the tiny UNet, by skip connection: the module whose answer are the features below it.
EDGES = ("up_blocks.1.attentions.0", "up_blocks.0.upsamplers.0", "up_blocks.0.resnets.0", "mid_block")
BRANCHES = range(len(EDGES))


@pytest.fixture(scope="module")
def unet() -> Any:
    torch.manual_seed(3)
    return unsettle(tiny.film_unet(4))


def condition() -> Condition:
    generator = torch.Generator().manual_seed(8)

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    still = noise(1, 1, 4, 8, 8).expand(-1, tiny.FRAMES, -1, -1, -1)
    return Condition(noise(1, 1, tiny.CROSS), still, torch.tensor([[6.0, 127.0, 0.02]]))


def film(unet: Any, numbers: EulerSampler = NUMBERS) -> Tensor:
    *_, latents = sample_euler(unet, condition(), numbers, numbers.steps, torch.Generator().manual_seed(9))
    return latents


def replayed_film(unet: Any, branch: int) -> Tensor:
    """Whole calls only; at the steps between, what they find below the skip connection is put back."""
    edge, kept = unet.get_submodule(EDGES[branch]), dict[str, Any]()
    about, scale = condition(), samplers.frame_scales(NUMBERS.guidance_min, NUMBERS.guidance_max, tiny.FRAMES)
    sides = {"with": film_network(unet, about), "without": film_network(unet, about.blank())}
    sigmas = samplers.karras_sigmas(NUMBERS.steps, NUMBERS.sigma_min, NUMBERS.sigma_max)
    x = samplers.initial_latents(initial_noise(about, torch.Generator().manual_seed(9)), NUMBERS.sigma_max)
    for step, (sigma, following) in enumerate(zip(sigmas, [*sigmas[1:], 0.0], strict=True)):
        v: dict[str, Tensor] = {}
        for side, network in sides.items():

            def replay(module: Any, given: Any, answer: Any, side: str = side, step: int = step) -> Any:
                if step % NUMBERS.reuse_interval == 0:
                    kept[side] = answer
                return kept[side]

            hook = edge.register_forward_hook(replay)
            v[side] = network(x / (sigma**2 + 1) ** 0.5, samplers.model_time(sigma))
            hook.remove()
        guided = v["without"] + scale * (v["with"] - v["without"])
        clean = x / (sigma**2 + 1) - guided * sigma / (sigma**2 + 1) ** 0.5
        x = x + (x - clean) / sigma * (following - sigma)
    return x


@pytest.mark.parametrize("branch", BRANCHES)
@pytest.mark.parametrize("shape", [(1, 8, 16), (2, 8, 8), (1, 9, 7)], ids=["one", "two films", "odd sides"])
def test_a_whole_call_answers_as_diffusers_does(unet: Any, branch: int, shape: tuple[int, int, int]) -> None:
    with torch.inference_mode():
        answer = ask_unet(layered(unet, branch), *shape)
        torch.testing.assert_close(answer, ask_unet(unet, *shape), atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize(
    "rewrite",
    [lambda unet: None, rewrites.rewrite_unet, lambda unet: fused.fuse(unet.float(), pack=True)],
    ids=["stock", "rewritten", "fused"],
)
@pytest.mark.parametrize("branch", BRANCHES)
def test_a_film_is_the_one_whose_features_were_recorded_and_put_back(
    unet: Any, branch: int, rewrite: Callable[[Any], None]
) -> None:
    fast = layered(unet, branch)
    rewrite(fast)
    with torch.inference_mode():
        wanted = replayed_film(unet, branch)
        torch.testing.assert_close(film(fast), wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))
        other = film(unet, replace(NUMBERS, reuse_interval=1))
        assert (wanted - other).abs().max() > 1e-3 * wanted.abs().max()


def test_the_calls_between_run_nothing_below_the_skip_connection(unet: Any) -> None:
    for branch in BRANCHES:
        fast, ran = layered(unet, branch), list[str]()
        for name in (*EDGES, "conv_out"):
            fast.get_submodule(name).register_forward_hook(lambda *_, n=name, ran=ran: ran.append(n))
        with torch.inference_mode():
            film(fast, replace(NUMBERS, guidance_min=1, guidance_max=1))
        counted = {name: ran.count(name) for name in (*EDGES, "conv_out")}
        whole = len(range(0, NUMBERS.steps, NUMBERS.reuse_interval))
        assert counted == {
            **{edge: NUMBERS.steps if at < branch else whole for at, edge in enumerate(EDGES)},
            "conv_out": NUMBERS.steps,
        }


@pytest.fixture(scope="module")
def profile() -> Profile:
    return change_profile(tiny.CELLS_PROFILE, REUSE, Path("own.toml"))


@pytest.fixture(scope="module")
def engine(cells_folder: Path, profile: Profile) -> Engine:
    return Engine(profile, cells_folder, "cpu")


def made(engine: Engine, wanted: Assignment) -> bytes:
    engine.make(wanted, Notebook())
    return Path(wanted.output).read_bytes()


def test_off_it_is_diffusers_own_network(cells_engine: Engine, engine: Engine) -> None:
    assert type(cells_engine.weights.unets[Sampler.EULER]).__name__ == "UNetSpatioTemporalConditionModel"
    assert isinstance(engine.weights.unets[Sampler.EULER], ReusingUNet)
    assert engine.fingerprint != cells_engine.fingerprint


def test_films_of_few_steps_are_the_same_bytes_by_the_same_network(
    cells_engine: Engine, engine: Engine, assign: Assign
) -> None:
    wanted = assign(steps=4)
    assert made(engine, wanted) == made(cells_engine, wanted)
    wanted = assign(sampler=Sampler.EULER, steps=5)
    assert made(engine, wanted) != made(cells_engine, wanted)


class Leaving(Notebook):
    """Cancels after the second step: the features are of the first."""

    def check_cancelled(self) -> None:
        if ("denoise", 2, 5) in self.seen:
            raise RequestCancelled


def test_nothing_is_left_for_the_next_film(engine: Engine, assign: Assign) -> None:
    wanted, other = (assign(sampler=Sampler.EULER, steps=5, seed=seed) for seed in (1, 2))
    first = made(engine, wanted)
    assert made(engine, other) != first
    assert made(engine, wanted) == first
    with pytest.raises(RequestCancelled):
        engine.make(other, Leaving())
    assert made(engine, wanted) == first


def test_a_film_that_ran_out_of_memory_begins_anew(
    cells_folder: Path, profile: Profile, assign: Assign
) -> None:
    presets = tuple(
        replace(profile.memory_presets[0], name=name, decode_chunk_size=chunk)
        for name, chunk in (("large", 3), ("small", 1))
    )
    engine = Engine(replace(profile, memory=presets), cells_folder, "cpu", memory_preset="large")
    small = Engine(replace(profile, memory=presets), cells_folder, "cpu", memory_preset="small")
    calls = 0

    def fill(*_: object) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    wanted, notebook = assign(sampler=Sampler.EULER, steps=5), Notebook()
    hook = engine.weights.unets[Sampler.EULER].register_forward_pre_hook(fill)
    try:
        engine.make(wanted, notebook)
    finally:
        hook.remove()
    assert any(level is Level.WARN for level, _ in notebook.lines)
    again = Path(wanted.output).read_bytes()
    assert made(small, wanted) == again


@pytest.fixture
def compiled(cells_folder: Path, profile: Profile, tmp_path: Path) -> Iterator[Engine]:
    compilation = Compilation("default", tmp_path / "compiled", "eager")
    yield Engine(replace(profile, native_sizes=((96, 96),)), cells_folder, "cpu", compilation)
    torch.compiler.reset()


def test_compiled_it_is_one_graph_more_and_the_same_film(
    engine: Engine, compiled: Engine, assign: Assign
) -> None:
    wanted, notebook, before = (
        assign(sampler=Sampler.EULER, steps=5, width=96, height=96),
        Notebook(),
        graphs(),
    )
    compiled.make(wanted, notebook)
    assert graphs() == before
    assert not any("compiled" in line for _, line in notebook.lines)
    film = Path(wanted.output).read_bytes()
    assert made(engine, wanted) == film


def test_a_skip_connection_the_network_has_not_is_refused(cells_folder: Path, profile: Profile) -> None:
    euler = replace(profile.samplers.euler, reuse_branch=4)
    with pytest.raises(UserError, match=r"reuse_branch is 4; this UNet's skip connections are 0 to 3"):
        Engine(replace(profile, samplers=replace(profile.samplers, euler=euler)), cells_folder, "cpu")

"""Compiled networks: equal films, one graph for each size and length, and every surprise told.

torch's "eager" backend runs the captured graph as it is: all but the code generation of a real compilation.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from stillmotion.engine import Engine
from stillmotion.engine.compiling import CUDA_GRAPHS, Compilation, Plan, compile_forward, graphs
from stillmotion.engine.memory import chunk_feed_forwards
from stillmotion.errors import UserError
from stillmotion.profiles import MemoryPreset, Profile, parse_profile
from stillmotion.types import Assignment, Level, Sampler
from tests.engine import tiny
from tests.engine.conftest import Notebook

Assign = Callable[..., Assignment]
SIZES = [(64, 64), (96, 64)]
#: The UNets share one; the decoder has one for a whole chunk of three frames and one for the last frame.
GRAPHS_A_SIZE = 3
#: Latents for networks of nothing but one product.
SQUARE = frozenset(((4, 4),))


@pytest.fixture(scope="module")
def profile() -> Profile:
    return parse_profile(
        tiny.KL_PROFILE.replace("native_sizes = []", f"native_sizes = {[list(size) for size in SIZES]}"),
        Path("tiny-kl.toml"),
    )


@pytest.fixture(scope="module")
def plain(kl_folder: Path, profile: Profile) -> Engine:
    return Engine(profile, kl_folder, "cpu")


@pytest.fixture(scope="module")
def compiled(
    kl_folder: Path, profile: Profile, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Engine, list[int]]]:
    """An engine, and how many graphs were compiled after its start and after each further size."""
    before, made = graphs(), list[int]()
    engine = Engine(profile, kl_folder, "cpu", Compilation("default", tmp_path_factory.mktemp("c"), "eager"))
    for number, state in enumerate(engine.warm_up(), 1):
        assert state == (number, len(SIZES))
        made.append(graphs() - before)
    yield engine, made
    torch.compiler.reset()


def test_each_step_of_the_warm_up_compiles_one_size(compiled: tuple[Engine, list[int]]) -> None:
    _, made = compiled
    assert made == [GRAPHS_A_SIZE, 2 * GRAPHS_A_SIZE]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("sampler", Sampler)
def test_a_compiled_film_has_the_bytes_of_an_uncompiled_one_and_compiles_nothing_more(
    plain: Engine,
    compiled: tuple[Engine, list[int]],
    assign: Assign,
    sampler: Sampler,
    size: tuple[int, int],
) -> None:
    wanted = assign(sampler=sampler, width=size[0], height=size[1], steps=2)
    films: list[bytes] = []
    before = graphs()
    for engine in (plain, compiled[0]):
        notebook = Notebook()
        engine.make(wanted, notebook)
        films.append(Path(wanted.output).read_bytes())
        assert not any("compiled" in line for _, line in notebook.lines)
    assert films[0] == films[1]
    assert graphs() == before


def test_a_film_of_several_threads_compiles_nothing_more(
    kl_folder: Path, profile: Profile, tmp_path: Path, assign: Assign
) -> None:
    threads, folder = torch.get_num_threads(), tmp_path / "cache"
    try:
        engine = Engine(
            replace(profile, threads=3, native_sizes=((64, 64),)),
            kl_folder,
            "cpu",
            Compilation("default", folder, "eager"),
        )
        before, notebook = graphs(), Notebook()
        engine.make(assign(width=64, height=64), notebook)
    finally:
        torch.set_num_threads(threads)
    assert graphs() == before
    assert not any("compiled" in line for _, line in notebook.lines)


def test_odd_sides_and_first_frames_in_latents_are_compiled_too(
    cells_engine: Engine, cells_folder: Path, tmp_path: Path, assign: Assign
) -> None:
    before = graphs()
    engine = Engine(
        replace(cells_engine.profile, native_sizes=((96, 96),)),
        cells_folder,
        "cpu",
        Compilation("default", tmp_path / "cache", "eager"),
    )
    # One for the UNet; the decoder's for a first frame does for the last frame, too.
    assert graphs() == before + 3
    films: list[bytes] = []
    for each in (cells_engine, engine):
        each.make(assign(width=96, height=96), Notebook())
        films.append(Path(assign().output).read_bytes())
    assert films[0] == films[1]
    assert graphs() == before + 3


def test_a_size_that_was_not_planned_runs_uncompiled_and_says_so(
    plain: Engine, compiled: tuple[Engine, list[int]], profile: Profile, assign: Assign
) -> None:
    films: list[bytes] = []
    before = graphs()
    for engine in (plain, compiled[0]):
        notebook = Notebook()
        engine.profile = replace(profile, native_sizes=())
        try:
            engine.make(assign(width=80, height=80), notebook)
        finally:
            engine.profile = profile
        films.append(Path(assign().output).read_bytes())
        told = any("80x80 is not among the compiled sizes" in line for _, line in notebook.lines)
        assert told == (engine is not plain)
    assert films[0] == films[1]
    assert graphs() == before


def test_a_graph_compiled_again_is_told_in_the_film_s_log(
    compiled: tuple[Engine, list[int]], assign: Assign
) -> None:
    notebook = Notebook()
    unet = compiled[0].weights.unets[Sampler.LCM]
    chunk_feed_forwards(unet, 2)
    try:
        compiled[0].make(assign(), notebook)
    finally:
        chunk_feed_forwards(unet, 0)
    assert [line.split(" ")[0] for level, line in notebook.lines if level is Level.WARN] == ["1"]


def test_a_size_that_does_not_fit_leaves_the_others_to_be_warmed(
    compiled: tuple[Engine, list[int]], capsys: pytest.CaptureFixture[str]
) -> None:
    def fill(*call: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    hook = compiled[0].weights.unets[Sampler.LCM].register_forward_pre_hook(fill)
    try:
        assert list(compiled[0].warm_up()) == [(1, 2), (1, 2)]
    finally:
        hook.remove()
    assert "96x64 could not be warmed: CUDA out of memory." in capsys.readouterr().err


def test_an_uncompiled_engine_has_nothing_further_to_warm(plain: Engine) -> None:
    assert list(plain.warm_up()) == [(1, 1)]


def test_mode_and_cache_are_part_of_the_fingerprint_and_the_summary(
    plain: Engine, compiled: tuple[Engine, list[int]], tmp_path: Path
) -> None:
    assert plain.fingerprint != compiled[0].fingerprint
    assert "compiled in mode default" in compiled[0].summary
    told = [Compilation(mode, tmp_path / "cpu") for mode in ("default", "default", CUDA_GRAPHS)]
    told.append(Compilation("default", tmp_path / "cuda-0"))
    for each in told:
        each.folder.mkdir(exist_ok=True)
    one, same, mode, cache = (each.identity() for each in told)
    assert one == same
    assert len({one, mode, cache}) == 3


class Scale(nn.Module):
    """A network small enough to compile in no time."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1), requires_grad=False)
        self.by = 2.0

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight * self.by


def recording(graph: Callable[..., Any], inputs: list[Tensor], **_: Any) -> Callable[..., Any]:
    """A backend whose answers lie in the same memory each time, as those of a CUDA graph do."""
    kept: list[Tensor] = []

    def run(*given: Tensor) -> list[Tensor]:
        answers = graph(*given)
        if not kept:
            kept.extend(answers)
        for place, answer in zip(kept, answers, strict=True):
            place.copy_(answer)
        return kept

    return run


def test_the_answer_of_a_cuda_graph_outlives_the_next_call(tmp_path: Path) -> None:
    network = Scale()
    compile_forward(network, Compilation(CUDA_GRAPHS, tmp_path, recording), Plan(SQUARE, 8))
    first, second = (network(torch.full((1, 4, 4), value)) for value in (1.0, 5.0))
    assert (first.unique().item(), second.unique().item()) == (2, 10)


def test_another_number_format_runs_uncompiled(tmp_path: Path) -> None:
    network = Scale()
    compile_forward(network, Compilation("default", tmp_path, "eager"), Plan(SQUARE, 8))
    before = graphs()
    network(torch.ones(1, 4, 4, dtype=torch.float64))
    network(torch.ones(1, 5, 4))
    assert graphs() == before
    network(torch.ones(1, 4, 4))
    assert graphs() == before + 1


def test_past_the_limit_of_graphs_nothing_runs_uncompiled(tmp_path: Path) -> None:
    class Counted(Scale):  # graphs are counted by the code of `forward`
        def forward(self, x: Tensor) -> Tensor:
            return x + self.by

    network = Counted()
    plan = Plan(SQUARE, limit=2)
    compile_forward(network, Compilation("default", tmp_path, "eager"), plan)
    for by in (2.0, 3.0):
        network.by = by
        network(torch.ones(1, 4, 4))
    assert plan.again == 1
    network.by = 4.0
    with pytest.raises(UserError, match="more than 2 graphs"):
        network(torch.ones(1, 4, 4))


def test_a_network_that_cannot_be_compiled_says_what_to_do(tmp_path: Path) -> None:
    def failing(graph: Callable[..., Any], inputs: list[Tensor], **_: Any) -> Callable[..., Any]:
        raise RuntimeError("no C++ compiler found")

    network = Scale()
    compile_forward(network, Compilation("default", tmp_path, failing), Plan(SQUARE, 8))
    with pytest.raises(UserError, match=r"no C\+\+ compiler found.*STILLMOTION_COMPILE=off"):
        network(torch.ones(1, 4, 4))


def test_cuda_graphs_are_refused_where_they_cannot_be_recorded(tmp_path: Path, profile: Profile) -> None:
    graphs_of = Compilation(CUDA_GRAPHS, tmp_path)
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    with pytest.raises(UserError, match="CUDA graphs, which cpu has not; use default"):
        graphs_of.prepare(cpu, MemoryPreset(name="all", needs_gib=0))
    moving = MemoryPreset(name="small", needs_gib=0, stay=("unet", "turbo_unet"))
    with pytest.raises(UserError, match="memory preset small moves vae_decoder"):
        graphs_of.prepare(cuda, moving)


def full(graph: Callable[..., Any], inputs: list[Tensor], **_: Any) -> Callable[..., Any]:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB.")


def test_memory_that_is_full_while_kernels_are_chosen_is_full_memory(tmp_path: Path) -> None:
    network = Scale()
    compile_forward(network, Compilation("default", tmp_path, full), Plan(SQUARE, 8))
    with pytest.raises(torch.OutOfMemoryError):
        network(torch.ones(1, 4, 4))

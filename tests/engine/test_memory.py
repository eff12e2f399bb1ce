"""Small cards: parts that wait in host memory, the preset that fits, and the second try in a smaller one."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import nn

from stillmotion.engine import Engine, memory
from stillmotion.engine.compiling import Compilation, graphs
from stillmotion.engine.memory import Movable, Placement
from stillmotion.errors import RequestCancelled, UserError
from stillmotion.profiles import Part, Profile, load_profile, parse_profile
from stillmotion.types import Assignment, Film, Level, Sampler
from tests.engine import tiny
from tests.engine.conftest import Notebook

Assign = Callable[..., Assignment]
CPU = torch.device("cpu")
PRESETS = f"""
[[memory]]
name = "whole"
needs_gib = 20
stay = {list(get_args(Part))}

[[memory]]
name = "part"
needs_gib = 10
stay = ["turbo_unet", "vae_encoder"]

[[memory]]
name = "none"
needs_gib = 5

[[memory]]
name = "least"
needs_gib = 2.5
decode_chunk_size = 1
feed_forward_frames = 2
"""
PROFILES = {"kl": tiny.KL_PROFILE, "cells": tiny.CELLS_PROFILE}
CHOICES = {"whole": 20.0, "part": 19.9, "none": 9.9, "least": 2.5}


def profile(name: str = "kl") -> Profile:
    return parse_profile(PROFILES[name] + PRESETS, Path("here.toml"))


@pytest.fixture(scope="module")
def folders(kl_folder: Path, cells_folder: Path) -> dict[str, Path]:
    return {"kl": kl_folder, "cells": cells_folder}


@pytest.fixture
def compiling(tmp_path: Path) -> Iterator[Compilation]:
    yield Compilation("default", tmp_path / "compiled", "eager")
    torch.compiler.reset()


@pytest.fixture(scope="module")
def engine(kl_folder: Path) -> Engine:
    return Engine(profile(), kl_folder, "cpu")


@pytest.fixture(scope="module")
def least(kl_folder: Path) -> Engine:
    return Engine(profile(), kl_folder, "cpu", memory_preset="least")


def made(engine: Engine, wanted: Assignment, notebook: Notebook | None = None) -> tuple[Film, bytes]:
    film = engine.make(wanted, notebook or Notebook())
    return film, Path(wanted.output).read_bytes()


def let_move(engine: Engine, preset: str) -> None:
    """Have an engine's parts come and leave as on a GPU; here, from one piece of memory to another."""
    chosen = engine.profile.choose_memory(preset, 0)
    with torch.inference_mode():
        engine.memory = Placement(engine.weights.parts, chosen, CPU, moves=True)


def host_bytes(part: Movable) -> list[torch.Tensor]:
    return [block.clone() for block in part._host]  # pyright: ignore[reportPrivateUsage]


@contextmanager
def hooked(module: nn.Module, hook: Callable[..., None]) -> Iterator[None]:
    handle = module.register_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def decoder(engine: Engine) -> nn.Module:
    return engine.weights.codec.vae.decoder


@pytest.mark.parametrize("sampler", Sampler)
@pytest.mark.parametrize("weights", PROFILES)
def test_films_of_presets_with_equal_chunks_have_equal_bytes_and_the_host_copies_stay_as_they_were(
    folders: dict[str, Path], assign: Assign, weights: str, sampler: Sampler
) -> None:
    engine = Engine(profile(weights), folders[weights], "cpu")
    films: set[bytes] = set()
    # "none" comes first: a CPU's matrix products may differ in a last bit by how their operands are aligned,
    # which is as in the file until a part first moves.
    for preset in ("none", "part", "whole"):
        let_move(engine, preset)
        before = {name: host_bytes(part) for name, part in engine.memory.parts.items()}
        films |= {made(engine, assign(sampler=sampler))[1] for _ in range(2)}
        for name, part in engine.memory.parts.items():
            assert part.here == (part in {engine.memory.parts[name] for name in engine.memory.preset.stay})
            assert part.here or before[name]
            assert all(map(torch.equal, host_bytes(part), before[name]))
    assert len(films) == 1


def test_a_part_is_present_only_while_its_stage_runs(kl_folder: Path, assign: Assign) -> None:
    engine = Engine(profile(), kl_folder, "cpu")
    let_move(engine, "part")
    stay = {"turbo_unet", "vae_encoder"}
    seen: dict[str, set[str]] = {}
    pipeline = engine.weights.first_frame.pipeline
    watched = {
        "text_encoder": pipeline.text_encoder_2,
        "picture_unet": pipeline.unet,
        "picture_vae": pipeline.vae.decoder,
        "image_encoder": engine.weights.clip,
        "vae_encoder": engine.weights.codec.vae.encoder,
        "unet": engine.weights.unets[Sampler.EULER],
        "turbo_unet": engine.weights.unets[Sampler.LCM],
        "vae_decoder": decoder(engine),
    }

    def watch(name: str) -> Callable[..., None]:
        def note(*_: object) -> None:
            seen[name] = {part for part, movable in engine.memory.parts.items() if movable.here}

        return note

    for name, module in watched.items():
        module.register_forward_pre_hook(watch(name))
    for sampler in Sampler:
        engine.make(assign(sampler=sampler), Notebook())
    expected = {name: stay | {name} for name in watched}
    expected["picture_unet"] |= {"picture_vae"}
    expected["vae_encoder"] |= {"image_encoder"}
    assert seen == expected
    assert {name for name, part in engine.memory.parts.items() if part.here} == stay


def test_one_unet_for_both_samplers_moves_as_one(folders: dict[str, Path]) -> None:
    engine = Engine(profile("cells"), folders["cells"], "cpu")
    let_move(engine, "part")
    parts = engine.memory.parts
    assert parts["unet"] is parts["turbo_unet"]
    assert parts["unet"].here


class Mixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.flat, self.deep = nn.Conv2d(3, 5, 3), nn.Conv3d(2, 3, 3, dtype=torch.bfloat16)
        self.flat.weight.data = self.flat.weight.contiguous(memory_format=torch.channels_last)
        self.deep.weight.data = self.deep.weight.contiguous(memory_format=torch.channels_last_3d)
        self.tied = nn.Linear(5, 5, bias=False)
        self.again = self.tied
        self.register_buffer("count", torch.tensor(7))
        self.register_buffer("flags", torch.tensor([True, False, True]))
        self.register_buffer("nothing", torch.empty(0))


@pytest.mark.parametrize("block", [1 << 28, 256, 64])
def test_layout_and_values_survive_leaving_and_coming(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "BLOCK", block)
    network = Mixed().requires_grad_(False)
    tensors = [*network.parameters(), *network.buffers()]
    before = [tensor.clone() for tensor in tensors]
    layouts = [(tensor.stride(), tensor.dtype) for tensor in tensors]
    part = Movable((network,), CPU)
    for change in (part.leave, part.come, part.leave, part.come):
        change()
        now = [*network.parameters(), *network.buffers()]
        assert all(one is other for one, other in zip(now, tensors, strict=True))
        assert all(map(torch.equal, now, before))
        assert [(tensor.stride(), tensor.dtype) for tensor in now] == layouts
    assert network.again.weight is network.tied.weight


def test_what_changes_a_part_on_the_device_does_not_reach_the_host_s_copy() -> None:
    network = nn.Linear(4, 4).requires_grad_(False)
    wanted = network.weight.clone()
    part = Movable((network,), CPU)
    part.leave()
    part.come()
    network.weight.add_(1)
    network.to(torch.float64)
    network.to(torch.float32)
    part.leave()
    assert torch.equal(network.weight, wanted)


def test_host_memory_that_cannot_be_locked_is_taken_as_it_is() -> None:
    assert memory._host_memory(4096, locked=True).nbytes == 4096  # pyright: ignore[reportPrivateUsage]


def test_moved_parts_run_in_the_graphs_that_were_compiled_before_they_moved(
    kl_folder: Path, assign: Assign, compiling: Compilation
) -> None:
    sized = replace(profile(), native_sizes=((64, 64),))
    engine = Engine(sized, kl_folder, "cpu", compiling)
    before, notebook = graphs(), Notebook()
    let_move(engine, "none")
    for _ in range(2):
        engine.make(assign(width=64, height=64), notebook)
    assert graphs() == before
    assert not any("compiled" in line for _, line in notebook.lines)


@pytest.mark.parametrize(("name", "free_gib"), CHOICES.items())
def test_auto_takes_the_first_preset_that_fits(name: str, free_gib: float) -> None:
    assert profile().choose_memory("auto", free_gib).name == name


def test_a_device_too_small_for_every_preset_is_refused_with_what_to_do() -> None:
    with pytest.raises(UserError, match=r"2\.5 GiB .* and 2\.4 are there.*MEMORY_PRESET=least"):
        profile().choose_memory("auto", 2.4)


def test_a_forced_preset_is_taken_whatever_is_free_and_an_unknown_one_refused_naming_all(
    kl_folder: Path, engine: Engine, least: Engine
) -> None:
    assert profile().choose_memory("none", 0).name == "none"
    assert least.memory.preset.name == "least"
    assert "memory preset least" in least.summary
    assert "memory preset whole" in engine.summary
    with pytest.raises(UserError, match=r"no memory preset 'small'.* whole, part, none, least or auto"):
        Engine(profile(), kl_folder, "cpu", memory_preset="small")


def test_a_profile_without_presets_has_one_that_keeps_everything() -> None:
    (only,) = load_profile("pocket").memory_presets
    assert (only.name, only.decode_chunk_size, set(only.stay)) == ("whole", 5, set(get_args(Part)))


def test_a_preset_is_part_of_the_fingerprint(kl_folder: Path, engine: Engine, least: Engine) -> None:
    moving = Engine(profile(), kl_folder, "cpu", memory_preset="none")
    assert len({engine.fingerprint, least.fingerprint, moving.fingerprint}) == 3


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('name = "part"', 'name = "whole"', r"memory.name is 'whole, whole, none, least'"),
        ('name = "part"', 'name = "auto"', "never auto"),
        ("feed_forward_frames = 2", "feed_forward_frames = 3", "a divisor of frames, 4"),
        ("decode_chunk_size = 1", "decode_chunk_size = -1", r"memory.decode_chunk_size is -1"),
        ('"vae_encoder"]', '"vae"]', r"memory.stay is 'vae', it must be one of 'text_encoder'"),
    ],
)
def test_presets_that_cannot_work_are_refused(old: str, new: str, said: str) -> None:
    assert old in PRESETS
    with pytest.raises(UserError, match=said):
        parse_profile(tiny.KL_PROFILE + PRESETS.replace(old, new), Path("here.toml"))


def too_much_for_long_chunks(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
    torch.empty(10**15 if len(inputs[0]) > 1 else 1)


def too_much(*_: object) -> None:
    torch.empty(10**15)


def next_smallest_is_least(engine: Engine) -> Engine:
    engine.profile = replace(engine.profile, memory=(engine.profile.memory[0], engine.profile.memory[-1]))
    return engine


@pytest.mark.parametrize(
    ("said", "full"),
    [
        ("CUDA error: out of memory", True),
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", True),
        ("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED", True),
        ("GET was unable to find an engine to execute this computation", True),
        ("DefaultCPUAllocator: can't allocate memory: you tried to allocate 64 bytes. Error code 12", True),
        ("CUDA error: an illegal memory access was encountered", False),
    ],
)
def test_plain_errors_that_tell_of_full_memory_are_known(said: str, full: bool) -> None:
    assert memory.is_out_of_memory(RuntimeError(said)) is full


def test_a_film_that_runs_out_of_memory_is_made_in_the_next_preset_and_the_one_after_as_chosen(
    kl_folder: Path, least: Engine, assign: Assign
) -> None:
    engine = next_smallest_is_least(Engine(profile(), kl_folder, "cpu"))
    notebook, chosen = Notebook(), engine.fingerprint
    _, usual = made(engine, assign())
    with hooked(decoder(engine), too_much_for_long_chunks):
        film, retried = made(engine, assign(), notebook)
    direct = made(least, assign())
    assert retried == direct[1] != usual
    assert film.fingerprint == least.fingerprint
    assert direct[0].fingerprint is None
    warned = [line for level, line in notebook.lines if level is Level.WARN]
    assert warned == ["out of memory with preset whole; trying once more with least"]
    assert made(engine, assign())[1] == usual
    assert engine.fingerprint == chosen


def test_a_second_failure_ends_the_request_and_the_next_film_is_made_as_chosen(
    engine: Engine, assign: Assign
) -> None:
    notebook, chosen = Notebook(), engine.fingerprint
    with hooked(decoder(engine), too_much), pytest.raises(MemoryError):
        engine.make(assign(), notebook)
    told = [(level, line) for level, line in notebook.lines if level is not Level.INFO]
    assert told == [
        (Level.WARN, "out of memory with preset whole; trying once more with part"),
        (Level.ERROR, "out of memory with preset part, too"),
    ]
    assert not Path(assign().output).exists()
    assert engine.make(assign(), Notebook()).fingerprint is None
    assert engine.fingerprint == chosen


def test_the_smallest_preset_is_not_tried_twice(least: Engine, assign: Assign) -> None:
    notebook = Notebook()
    with hooked(decoder(least), too_much), pytest.raises(MemoryError):
        least.make(assign(), notebook)
    told = [(level, line) for level, line in notebook.lines if level is not Level.INFO]
    assert told == [(Level.ERROR, "out of memory with preset least, the smallest")]


def test_parts_that_stayed_leave_for_the_second_try_and_come_back(kl_folder: Path, assign: Assign) -> None:
    engine = Engine(profile(), kl_folder, "cpu")
    let_move(engine, "none")
    _, whole = made(engine, assign())
    let_move(engine, "whole")
    tries: list[set[Any]] = []

    def note(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        tries.append({name for name, part in engine.memory.parts.items() if part.here})
        torch.empty(10**15 if len(tries) == 1 else 1)

    with hooked(decoder(engine), note):
        assert made(engine, assign())[1] == whole
        assert tries[1] == {"turbo_unet", "vae_encoder", "vae_decoder"}
        assert made(engine, assign())[1] == whole
    assert tries[0] == set(engine.memory.parts)
    assert tries[-1] == set(engine.memory.parts) - {"unet"}  # no film needed it since


def test_cancel_stops_the_second_try(engine: Engine, assign: Assign) -> None:
    class CancelledInRetry(Notebook):
        def check_cancelled(self) -> None:
            retried = any(level is Level.WARN for level, _ in self.lines)
            if retried and [stage for stage, _, _ in self.seen].count("denoise") > 2:
                raise RequestCancelled

    notebook, chosen = CancelledInRetry(), engine.fingerprint
    with hooked(decoder(engine), too_much), pytest.raises(RequestCancelled):
        engine.make(assign(), notebook)
    assert [step for stage, step, _ in notebook.seen if stage == "denoise"] == [1, 2, 1]
    assert not list(Path(assign().output).parent.glob("film*"))
    assert engine.fingerprint == chosen


def test_a_retry_of_a_compiled_engine_runs_uncompiled_and_is_told_apart(
    kl_folder: Path, least: Engine, assign: Assign, compiling: Compilation
) -> None:
    engine = next_smallest_is_least(Engine(profile(), kl_folder, "cpu", compiling))
    before = graphs()
    with hooked(decoder(engine), too_much_for_long_chunks):
        film, retried = made(engine, assign())
    assert retried == made(least, assign())[1]
    assert film.fingerprint == least.fingerprint
    assert made(engine, assign())[0].fingerprint is None
    assert graphs() == before


def test_weights_that_do_not_fit_end_the_start_with_what_to_do(cells_folder: Path) -> None:
    huge = replace(profile("cells"), native_sizes=(), warm_size=(6_400_000, 6_400_000))
    with pytest.raises(UserError, match=r"cpu ran out of memory while loading .* whole: .*PRESET=part"):
        Engine(huge, cells_folder, "cpu")

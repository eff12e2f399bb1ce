"""The engine's whole way on `cuda:0`, on a pretended card (`card.py`): every tensor where it belongs."""

import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bench import gpu, rigs, work
from bench.rows import read
from stillmotion.engine import Engine
from stillmotion.engine.weights import fingerprint
from stillmotion.errors import DeviceLost
from stillmotion.types import Assignment, Level, Sampler
from tests.engine.card import Card, pretended
from tests.engine.conftest import Notebook
from tests.engine.test_memory import decoder, hooked, profile

Assign = Callable[..., Assignment]
#: Where a film of each sampler may have the host wait for the card, first frame and end of steps left aside.
WAITS = {
    # What the host draws, it draws while the card is at the step before.
    Sampler.LCM: {"film.initial_noise", "film.fresh"},
    Sampler.EULER: {"film.initial_noise", "film.sample_euler"},
}


@pytest.fixture(scope="module")
def card() -> Iterator[Card]:
    for size in (rigs.KINDS["tiny"][1], *gpu.TINY_SIZES):
        work.counted(size)  # kept; the meta device's networks cannot be asked from a pretended card
    with pretended() as card:
        yield card


@pytest.fixture(scope="module")
def engine(card: Card, kl_folder: Path) -> Engine:
    return Engine(profile(), kl_folder, "cuda:0", memory_preset="whole")


@pytest.mark.parametrize(
    ("weights", "preset", "sampler"), [("kl", "least", Sampler.EULER), ("cells", "none", Sampler.LCM)]
)
def test_films_are_made_with_every_tensor_where_it_belongs(
    card: Card,
    kl_folder: Path,
    cells_folder: Path,
    assign: Assign,
    weights: str,
    preset: str,
    sampler: Sampler,
) -> None:
    folder = {"kl": kl_folder, "cells": cells_folder}[weights]
    engine = Engine(profile(weights), folder, "cuda:0", memory_preset=preset)
    film = engine.make(assign(sampler=sampler), Notebook())
    assert film.frames == 4
    # Page-locked memory and compiled code are the current device's.
    assert card.current == 0
    assert Path(assign().output).stat().st_size > 0
    stay = {engine.memory.parts[name] for name in engine.memory.preset.stay}
    for part in engine.memory.parts.values():
        where = {tensor.device.type for module in part.modules for tensor in module.parameters()}
        assert where <= {"cuda" if part in stay else "cpu"}


@pytest.mark.parametrize("sampler", Sampler)
def test_steps_wait_for_nothing_but_what_the_host_draws(
    card: Card, engine: Engine, assign: Assign, sampler: Sampler
) -> None:
    card.waits.clear()
    engine.make(assign(sampler=sampler, steps=3), Notebook())
    assert {wait for wait in card.waits if wait.startswith(("film", "samplers"))} - {
        "film.condition_on"
    } == WAITS[sampler]
    # Each chunk: is it finite (two bounds), and its bytes.
    assert card.waits.count("pictures.to_bytes") == 2
    assert card.waits.count("film.fresh") == (2 if sampler is Sampler.LCM else 0)


def test_a_film_in_half_precision_and_one_that_ran_out_of_memory_are_made(
    card: Card, kl_folder: Path, assign: Assign
) -> None:
    half = replace(profile(), dtype=replace(profile().dtype, cuda="float16"))
    engine = Engine(half, kl_folder, "cuda:0", memory_preset="whole")
    tries: list[int] = []

    def fill(*_: object) -> None:
        tries.append(1)
        if len(tries) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    notebook = Notebook()
    with hooked(decoder(engine), fill):
        engine.make(assign(), notebook)
    assert [level for level, _ in notebook.lines].count(Level.WARN) == 1


def test_a_part_left_behind_is_noticed(engine: Engine, assign: Assign) -> None:
    decoder(engine).to("cpu")
    try:
        with pytest.raises(RuntimeError, match="found at least two devices"):
            engine.make(assign(), Notebook())
    finally:
        decoder(engine).to("cuda:0")


def test_a_library_s_plain_error_from_a_lost_card_ends_the_runner_s_process(
    engine: Engine, assign: Assign, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = False

    def refuse(device: object = None) -> None:
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    def fail(*_: object) -> None:
        if lost:
            monkeypatch.setattr(torch.cuda, "synchronize", refuse)
        raise RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED")

    with hooked(decoder(engine), fail):
        with pytest.raises(RuntimeError, match="cuDNN"):
            engine.make(assign(), Notebook())
        lost = True
        with pytest.raises(DeviceLost, match="cuda:0 failed: cuDNN error"):
            engine.make(assign(), Notebook())


def test_another_cudnn_is_another_fingerprint(
    engine: Engine, kl_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: set[str] = set()
    for version in (91400, 91501, 91501):
        monkeypatch.setattr(torch.backends.cudnn, "version", lambda version=version: version)
        found.add(fingerprint(profile(), kl_folder, torch.device("cuda:0"), torch.bfloat16))
    assert len(found) == 2


def test_the_gpu_bench_gets_through_on_a_card(
    card: Card, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(rigs.KINDS, "full", rigs.KINDS["tiny"])
    monkeypatch.setattr(gpu, "JOBS", gpu.TINY_JOBS[1:])
    monkeypatch.setattr(gpu, "OTHER_SIZES", gpu.TINY_SIZES)
    monkeypatch.setattr(gpu, "CHANGES", gpu.CHANGES[:1])
    monkeypatch.setattr(gpu, "LEVERS", gpu.LEVERS[-1:])
    results = tmp_path / "rows.jsonl"
    called = ["gpu", "--rounds", "1", "--compile", "--results", str(results)]
    monkeypatch.setattr(sys, "argv", called)
    gpu.main()
    told = capsys.readouterr().out
    assert "failed" not in told
    assert "Ceilings: bfloat16 product" in told
    assert [row.name for row in read(results)] == [
        "ceilings",
        "stock diffusers",
        "default",
        "float8; reuse, interval 2, branch 0",
        "stock diffusers",
        "default",
    ]

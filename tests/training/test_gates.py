"""Intervals are what they say, trials go on where they stopped, every gate has its records."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from stillmotion.endpoints.inputs import LARGEST_SIDE, SMALLEST_SIDE
from stillmotion.profiles import load_profile
from stillmotion.types import VIDEO_SIZES
from training.checker import WAYS
from training.gates import (
    GATES,
    Estimate,
    Gate,
    alone,
    checker_records,
    draw_sheets,
    keep,
    kept,
    mean,
    ratio,
    share,
    speed_records,
    worst,
)
from training.trials import PARTS, Tried, asked_size
from training.world import SIZES


def test_intervals_are_wide_for_few_trials_and_narrow_for_many() -> None:
    few, many = ([{"hit": i % 20 != 0} for i in range(n)] for n in (20, 400))
    assert share("hit")(few).low < 0.8 < 0.92 < share("hit")(many).low < 0.95
    pairs = [{"a": 2.0 + i % 3, "b": 1.0} for i in range(99)]
    assert mean("a", "b")(pairs).value == pytest.approx(2.0)
    assert 2.8 < ratio("a", "b")(pairs).low < 3 < ratio("a", "b")(pairs).high < 3.2


def test_a_ceiling_is_held_by_the_upper_end() -> None:
    floor, ceiling = (Gate("g", "picture", mean("x"), 1.5, "", under) for under in (False, True))
    assert not floor.passes(Estimate(1.6, 1.4, 1.8)) and floor.passes(Estimate(1.7, 1.6, 1.8))
    assert floor.verdict(Estimate(1.6, 1.4, 1.8)) == "not yet shown"
    assert not ceiling.passes(Estimate(1.4, 1.2, 1.6)) and ceiling.passes(Estimate(1.3, 1.2, 1.4))


def test_the_worst_group_speaks_for_all() -> None:
    records = [{"x": float(i % 3), "kind": kind} for i in range(30) for kind in ("good", "bad")]
    for record in records:
        record["x"] = float(record["x"]) - 5 * (record["kind"] == "bad")
    assert worst(mean("x"), "kind")(records).value == pytest.approx(-4)


def test_only_what_occurs_once_is_alone() -> None:
    assert alone("film")([{"film": name} for name in "aabc"]).value == 0.5


def test_every_gate_has_its_records() -> None:
    assert {gate.part for gate in GATES} == {*PARTS, "checker", "speed"}
    assert len({gate.name for gate in GATES}) == len(GATES)
    assert len(WAYS) == 7
    told = {"checker": checker_records(), "speed": speed_records()}
    for gate in GATES:
        if told.get(gate.part):
            found = gate.measure(told[gate.part])
            assert found.low <= found.value <= found.high


def test_kept_trials_are_found_again_and_failed_ones_can_be_looked_at(tmp_path: Path) -> None:
    film = torch.rand(3, 3, 32, 64)
    for index, right in ((0, True), (11, True), (12, False)):
        keep(Tried({"shown": right, "sure": 0.123456}, [film, film]), tmp_path, "rocket", index)
    found = kept(tmp_path)
    assert found["rocket"] == {i: {"shown": i != 12, "sure": 0.1235} for i in (0, 11, 12)}
    draw_sheets(found, tmp_path)
    assert {path.name for path in (tmp_path / "strips").iterdir()} == {"rocket-0.jpg", "rocket-12.jpg"}
    with Image.open(tmp_path / "rocket-failed.jpg") as sheet:
        assert sheet.width > 750
    assert json.loads((tmp_path / "rocket.jsonl").read_text().splitlines()[0])["trial"] == 0


def test_prompts_are_asked_for_in_every_size_an_endpoint_takes() -> None:
    asked = [asked_size(index) for index in range(70)]
    assert {name for name, _ in asked} == {*VIDEO_SIZES, "custom"}
    for name, (width, height) in asked:
        if name == "custom":
            assert width % 2 == height % 2 == 0
            assert SMALLEST_SIDE <= min(width, height) <= max(width, height) <= LARGEST_SIDE


def test_scenes_are_drawn_in_the_sizes_the_profile_works_at() -> None:
    assert set(load_profile("pocket").native_sizes) == set(SIZES)

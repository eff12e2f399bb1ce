"""The shipped weights are the ones the committed figures belong to, and are no worse than those say."""

import json

import pytest
import torch

from training.checker import FOLDER, Checker
from training.gates import GATES, RATCHET, RATCHET_TRIALS, REPORT, digest, speed_records
from training.loop import WEIGHTS
from training.product import Product
from training.trials import PARTS, Bench, Record


@pytest.fixture(scope="module")
def trials(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Record]]:
    bench = Bench(Product(WEIGHTS, tmp_path_factory.mktemp("product")), Checker())
    parts = dict.fromkeys(part for part, _ in RATCHET)
    with torch.no_grad():
        return {part: [PARTS[part](bench, i).record for i in range(RATCHET_TRIALS)] for part in parts}


def test_committed_gates_are_those_of_the_shipped_weights() -> None:
    assert json.loads(REPORT.read_text())["weights"] == digest(WEIGHTS), (
        "the shipped weights changed: run `make gates` and look at what its figures say"
    )


def test_every_gate_has_a_committed_figure() -> None:
    tried = [gate.name for gate in GATES if gate.part != "speed" or speed_records()]
    assert [figure["gate"] for figure in json.loads(REPORT.read_text())["gates"]] == tried


@pytest.mark.parametrize(("part", "key"), RATCHET)
def test_no_figure_falls_below_the_best_one_committed(
    trials: dict[str, list[Record]], part: str, key: str
) -> None:
    best = json.loads(REPORT.read_text())["ratchet"][f"{part} {key}"]
    found = sum(float(record[key]) for record in trials[part]) / RATCHET_TRIALS
    noise = RATCHET[part, key]
    assert found >= best - noise if noise > 0 else found <= best - noise


def test_checker_names_unseen_films_and_learns_nothing_from_shuffled_labels() -> None:
    figures = json.loads((FOLDER / "figures.json").read_text())
    # Two of eight motions go up, so naming "up" always is right a quarter of the time.
    for name, likeliest in (("looks", (1 / 9, 1 / 8, 1 / 6)), ("moves", (1 / 4,))):
        assert min(figures[name].values()) >= 0.99
        for share, chance in zip(figures[f"{name} after shuffled labels"].values(), likeliest, strict=True):
            assert share < chance + 0.05

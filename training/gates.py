"""Hold the shipped weights against their gates: `python -m training.gates --n 400`.

Trials are kept in `.pocket/gates/`, by the weights' digest, so that a run goes on where the last one stopped,
in as many sittings as it takes. Each ends with the table in docs/pocket.md and the figures in
training/gates.json, which the tests hold later weights against.
"""

import argparse
import hashlib
import json
import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from training.checker import Checker
from training.loop import STATE, WEIGHTS
from training.maker import Maker
from training.trials import PARTS, Bench, Record

REPORT = Path("training/gates.json")
PAGE = Path("docs/pocket.md")
BEGIN, END = "<!-- gates -->", "<!-- /gates -->"
#: The trials that the tests repeat, and what may be lost by chance or by another processor's arithmetic.
RATCHET_TRIALS = 4
RATCHET = {
    ("prompt", "sure"): 0.05,
    ("picture", "first_db"): 0.3,
    ("picture", "film_db"): 0.3,
    ("picture", "sure"): 0.05,
    ("picture", "flicker"): -0.2,
    ("picture", "sharp_last"): 0.03,
}


@dataclass(frozen=True)
class Estimate:
    value: float
    low: float
    high: float


Measure = Callable[[list[Record]], Estimate]


def share(key: str) -> Measure:
    """Wilson's 95 % interval of a share."""

    def measure(records: list[Record]) -> Estimate:
        n, z = len(records), 1.96
        p = sum(bool(r[key]) for r in records) / n
        middle = (p + z * z / (2 * n)) / (1 + z * z / n)
        half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        return Estimate(p, middle - half, middle + half)

    return measure


def mean(key: str, less: str | None = None) -> Measure:
    """Normal 95 % interval of a mean, or of the mean of a difference within trials."""

    def measure(records: list[Record]) -> Estimate:
        values = [float(r[key]) - (float(r[less]) if less else 0) for r in records]
        middle = sum(values) / len(values)
        spread = math.sqrt(sum((v - middle) ** 2 for v in values) / max(1, len(values) - 1))
        half = 1.96 * spread / math.sqrt(len(values))
        return Estimate(middle, middle - half, middle + half)

    return measure


def ratio(key: str, to: str) -> Measure:
    """Ratio of two means, with a bootstrap over trials."""

    def measure(records: list[Record]) -> Estimate:
        pairs = [(float(r[key]), float(r[to])) for r in records]

        def of(chosen: list[tuple[float, float]]) -> float:
            return sum(a for a, _ in chosen) / max(1e-9, sum(b for _, b in chosen))

        rng = random.Random(1)
        drawn = sorted(of(rng.choices(pairs, k=len(pairs))) for _ in range(1000))
        return Estimate(of(pairs), drawn[25], drawn[974])

    return measure


@dataclass(frozen=True)
class Gate:
    name: str
    part: str
    measure: Measure
    bar: float
    unit: str = "%"
    #: The bar is a ceiling: the interval's upper end must be below it.
    ceiling: bool = False

    def passes(self, found: Estimate) -> bool:
        return found.high <= self.bar if self.ceiling else found.low >= self.bar

    def verdict(self, found: Estimate) -> str:
        right = found.value <= self.bar if self.ceiling else found.value >= self.bar
        return "holds" if self.passes(found) else "not yet shown" if right else "**fails**"

    def written(self, value: float) -> str:
        return f"{100 * value:.1f} %" if self.unit == "%" else f"{value:.2f}{self.unit}"


GATES = (
    Gate("the prompt's object is in the film", "prompt", share("thing"), 0.95),
    Gate("the prompt's colour is in the film", "prompt", share("colour"), 0.95),
    Gate("the prompt's place is in the film", "prompt", share("place"), 0.95),
    Gate("the film goes the way the prompt says", "prompt", share("direction"), 0.9),
    Gate("frame 0 is the given picture", "picture", mean("first_db"), 25, " dB"),
    Gate("object and colour are kept to the last frame", "picture", share("kept"), 0.95),
    Gate("a film from a picture goes the right way", "picture", share("direction"), 0.9),
    Gate(
        "temporal difference beside the renderer's",
        "picture", ratio("difference", "true_difference"), 1.5, " ×", True,
    ),
    Gate("bucket 20 to 127: way grows by", "bucket", mean("way_127", "way_20"), 0, " px"),
    Gate("bucket 127 to 230: way grows by", "bucket", mean("way_230", "way_127"), 0, " px"),
    Gate("bucket 20 to 230: way", "bucket", ratio("way_230", "way_20"), 2, " ×"),
    Gate("bucket 20 to 230: frame difference", "bucket", ratio("difference_230", "difference_20"), 2, " ×"),
    Gate("cond_aug 0.02 to 0.5: away from the picture", "cond_aug", mean("away_0.5", "away_0.02"), 0, " dB"),
    Gate("cond_aug 0.5 to 3: away from the picture", "cond_aug", mean("away_3", "away_0.5"), 0, " dB"),
    Gate("2 steps are no worse than 1", "steps", mean("film_db_2", "film_db_1"), -0.1, " dB"),
    Gate("4 steps are no worse than 2", "steps", mean("film_db_4", "film_db_2"), -0.1, " dB"),
    Gate("8 steps are no worse than 4", "steps", mean("film_db_8", "film_db_4"), -0.1, " dB"),
    Gate("the checker is as sure after 4 steps as after 1", "steps", mean("sure_4", "sure_1"), -0.01, ""),
    Gate("4 steps are clean: the checker is 90 % sure", "steps", share("clean_4"), 0.95),
    Gate("the same seed gives the same film", "seed", share("same"), 0.95),
    Gate("another seed gives another film", "seed", share("other"), 0.95),
    Gate("the rocket that is about to take off takes off", "rocket", share("shown"), 0.9),
    Gate("last frame's sharpness in all sizes", "size", mean("sharp_last"), 0.85, ""),
    Gate("right way in all sizes", "size", share("direction"), 0.9),
    Gate("a prompt without a known word shows a scene", "unknown", share("shown"), 0.9),
    Gate("a foreign picture gives a sensible film", "foreign", share("sensible"), 0.9),
    Gate("25 Euler steps: object and colour are kept", "quality", share("kept"), 0.95),
    Gate("25 Euler steps: right way", "quality", share("direction"), 0.9),
)  # fmt: skip


def digest(weights: Path) -> str:
    """What the weights are, in a few letters."""
    whole = hashlib.sha256()
    for path in sorted(weights.rglob("*.safetensors")):
        whole.update(path.relative_to(weights).as_posix().encode() + path.read_bytes())
    return whole.hexdigest()[:16]


def kept(folder: Path) -> dict[str, dict[int, Record]]:
    """Trials already made, by part and number."""
    found: dict[str, dict[int, Record]] = {}
    for part in PARTS:
        path = folder / f"{part}.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        found[part] = {r.pop("trial"): r for r in map(json.loads, lines)}
    return found


def make_trials(bench: Bench, folder: Path, parts: list[str], n: int, minutes: float) -> None:
    """Make what is missing, all parts side by side, until there are n of each or the time is up."""
    end, done = time.monotonic() + 60 * minutes, kept(folder)
    for index in range(n):
        for part in parts:
            if index in done[part]:
                continue
            if time.monotonic() > end:
                return
            with torch.no_grad():
                record = PARTS[part](bench, index)
            rounded = {k: round(v, 4) if isinstance(v, float) else v for k, v in record.items()}
            with (folder / f"{part}.jsonl").open("a") as file:
                file.write(json.dumps({"trial": index, **rounded}) + "\n")


def ratchet_of(trials: dict[str, dict[int, Record]]) -> dict[str, float]:
    """Means over the first trials, of which the tests make the same again; a committed better one stays."""
    found = json.loads(REPORT.read_text())["ratchet"] if REPORT.exists() else {}
    for (part, key), noise in RATCHET.items():
        values = [float(trials[part][i][key]) for i in range(RATCHET_TRIALS) if i in trials[part]]
        if len(values) == RATCHET_TRIALS:
            name, fresh = f"{part} {key}", round(sum(values) / len(values), 4)
            found[name] = (max if noise > 0 else min)(fresh, found.get(name, fresh))
    return found


def report(trials: dict[str, dict[int, Record]], weights: Path) -> str:
    """Write gates.json and the table of docs/pocket.md; returns the table."""
    rows = ["| gate | n | found | 95 % interval | bar | |", "|---|---|---|---|---|---|"]
    figures = []
    for gate in GATES:
        records = list(trials[gate.part].values())
        if not records:
            continue
        found = gate.measure(records)
        value, low, high, bar = map(gate.written, (found.value, found.low, found.high, gate.bar))
        sign, verdict = "≤" if gate.ceiling else "≥", gate.verdict(found)
        rows.append(
            f"| {gate.name} | {len(records)} | {value} | {low} to {high} | {sign} {bar} | {verdict} |"
        )
        figures.append(
            {"gate": gate.name, "n": len(records), "bar": gate.bar, "holds": gate.passes(found)}
            | {k: round(v, 4) for k, v in vars(found).items()}
        )
    told = {"weights": digest(weights), "ratchet": ratchet_of(trials), "gates": figures}
    REPORT.write_text(json.dumps(told, indent=1, ensure_ascii=False) + "\n")
    page = PAGE.read_text()
    before, rest = page.split(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n" + "\n".join(rows) + f"\n{END}{rest.split(END)[1]}")
    return "\n".join(rows)


def main() -> None:
    ask = argparse.ArgumentParser()
    ask.add_argument("--n", type=int, default=400)
    ask.add_argument("--minutes", type=float, default=math.inf)
    ask.add_argument("--parts", nargs="*", choices=PARTS, default=list(PARTS))
    ask.add_argument("--weights", type=Path, default=WEIGHTS)
    told = ask.parse_args()
    torch.set_num_threads(1)
    folder = STATE / "gates" / digest(told.weights)
    folder.mkdir(parents=True, exist_ok=True)
    make_trials(Bench(Maker(told.weights), Checker()), folder, told.parts, told.n, told.minutes)
    print(report(kept(folder), told.weights))


if __name__ == "__main__":
    main()

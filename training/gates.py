"""Hold the shipped weights against their gates: `python -m training.gates --n 400`.

Trials are kept in `.pocket/gates/`, by the weights' digest, so that a run goes on where the last one stopped,
in as many sittings and processes as it takes. Each ends with the table in docs/pocket.md, contact sheets
beside the trials, and the figures in training/gates.json, which the tests hold later weights against.
"""

import argparse
import hashlib
import json
import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from stillmotion.profiles import load_profile
from training.checker import FOLDER, Checker
from training.loop import STATE, WEIGHTS
from training.product import Product
from training.sheets import save_sheet, stack
from training.trials import EDITION, PARTS, Bench, Record, Tried

REPORT = Path("training/gates.json")
PAGE = Path("docs/pocket.md")
#: Written by `python -m bench.speed`; a timing is no trial.
SPEED = Path("bench/speed.json")
BEGIN, END = "<!-- gates -->", "<!-- /gates -->"
#: What may come on top of chance: a judge that learned nothing still names one class or another.
CHANCE = 0.05
#: Of each part so many first trials are shown on its contact sheet, and so many of those that failed.
SHOWN, FAILED = 8, 24
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
        if len(values) == 1:
            return Estimate(middle, -math.inf, math.inf)
        spread = math.sqrt(sum((v - middle) ** 2 for v in values) / (len(values) - 1))
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


def worst(measure: Measure, by: str) -> Measure:
    """The estimate of the group that does worst."""

    def of(records: list[Record]) -> Estimate:
        groups: dict[str, list[Record]] = {}
        for record in records:
            groups.setdefault(str(record[by]), []).append(record)
        return min(map(measure, groups.values()), key=lambda found: found.low)

    return of


def alone(key: str) -> Measure:
    """Share of records whose value no other one has."""

    def measure(records: list[Record]) -> Estimate:
        values = [record[key] for record in records]
        return share("alone")([{"alone": values.count(value) == 1} for value in values])

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
    Gate("25 frames of the size asked for", "prompt", share("whole"), 0.95),
    Gate(
        "last frame's edges, as steep as the renderer's: worst of 7 sizes",
        "prompt", worst(mean("steep_last"), "size"), 0.5, " ×",
    ),
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
    Gate("the checker is as sure after 2 steps as after 1", "steps", mean("sure_2", "sure_1"), -0.01, ""),
    Gate("the checker is as sure after 4 steps as after 2", "steps", mean("sure_4", "sure_2"), -0.01, ""),
    Gate("the checker is as sure after 8 steps as after 4", "steps", mean("sure_8", "sure_4"), -0.01, ""),
    Gate("4 steps are clean: as sure as nine tenths of the true film", "steps", share("clean_4"), 0.95),
    Gate("the same seed gives the same bytes", "rocket", share("same"), 0.95),
    Gate("another seed gives another film", "rocket", alone("film"), 0.95),
    Gate("the rocket that is about to take off takes off", "rocket", share("shown"), 0.9),
    Gate("a prompt without a known word shows a scene", "unknown", share("shown"), 0.9),
    Gate("and has the log line that says what is known", "unknown", share("told"), 0.95),
    Gate("a prompt with known words does not", "prompt", share("quiet"), 0.95),
    Gate("a foreign picture gives a sensible film", "foreign", share("sensible"), 0.9),
    Gate("25 Euler steps: object and colour are kept", "quality", share("kept"), 0.95),
    Gate("25 Euler steps: right way", "quality", share("direction"), 0.9),
    Gate(
        "25 Euler steps: temporal difference beside the renderer's",
        "quality", ratio("difference", "true_difference"), 1.5, " ×", True,
    ),
    Gate("checker: object of unseen renderer films", "checker", share("thing"), 0.99),
    Gate("checker: colour", "checker", share("colour"), 0.99),
    Gate("checker: place", "checker", share("place"), 0.99),
    Gate("checker: direction", "checker", share("direction"), 0.99),
    # At chance: no better than naming the likeliest always. Two of eight motions go up.
    Gate("checker, shuffled labels: object", "checker", share("not thing"), CHANCE + 1 / 9, "%", True),
    Gate("checker, shuffled labels: colour", "checker", share("not colour"), CHANCE + 1 / 8, "%", True),
    Gate("checker, shuffled labels: place", "checker", share("not place"), CHANCE + 1 / 6, "%", True),
    Gate("checker, shuffled labels: direction", "checker", share("not direction"), CHANCE + 1 / 4, "%", True),
    Gate("whole turbo request, 1024×576", "speed", mean("turbo"), 3, " s", True),
    Gate("whole stable-video request, 1024×576", "speed", mean("quality"), 6, " s", True),
)  # fmt: skip


def digest(weights: Path) -> str:
    """What films come from, in a few letters: the weights and the samplers' levels."""
    samplers = load_profile("pocket").samplers
    levels = [(s.sigma_min, s.sigma_max) for s in (samplers.lcm, samplers.euler)]
    whole = hashlib.sha256(repr(levels).encode())
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


@dataclass(frozen=True)
class Order:
    """What one process has to try; every `of`th trial is its own."""

    weights: Path
    folder: Path
    parts: list[str]
    n: int
    #: On the steady clock, which all processes share.
    until: float
    turn: int = 0
    of: int = 1


def make_trials(order: Order) -> None:
    """Make what is missing, all parts side by side, until there are n of each or the time is up."""
    with TemporaryDirectory(prefix="pocket-") as scratch:
        make_missing(order, Bench(Product(order.weights, Path(scratch)), Checker()))


def make_missing(order: Order, bench: Bench) -> None:
    done = kept(order.folder)
    for index in range(order.turn, order.n, order.of):
        for part in order.parts:
            if index in done[part]:
                continue
            if time.monotonic() > order.until:
                return
            with torch.no_grad():
                keep(PARTS[part](bench, index), order.folder, part, index)


def keep(tried: Tried, folder: Path, part: str, index: int) -> None:
    """Add a trial to its part's file in one write, and its strip if somebody should see it."""
    rounded = {k: round(v, 4) if isinstance(v, float) else v for k, v in tried.record.items()}
    if index < SHOWN or failed(rounded):
        rows = [list(row) for row in tried.rows]
        save_sheet(rows, folder / "strips" / f"{part}-{index}.jpg", 800 // len(rows[0]))
    with (folder / f"{part}.jsonl").open("a") as file:
        file.write(json.dumps({"trial": index, **rounded}) + "\n")


def failed(record: Record) -> bool:
    return any(value is False for value in record.values())


def draw_sheets(trials: dict[str, dict[int, Record]], folder: Path) -> None:
    """For each part the first trials and the first failures, from their strips."""
    for part, records in trials.items():
        shown = [index for index in sorted(records) if index < SHOWN]
        missed = [index for index in sorted(records) if failed(records[index])][:FAILED]
        for name, chosen in ((part, shown), (f"{part}-failed", missed)):
            if chosen:
                stack([folder / "strips" / f"{part}-{i}.jpg" for i in chosen], folder / f"{name}.jpg")


def checker_records() -> list[Record]:
    """The checker's own figures, film by film."""
    figures = json.loads((FOLDER / "figures.json").read_text())
    plain = figures["looks"] | figures["moves"]
    shuffled = figures["looks after shuffled labels"] | figures["moves after shuffled labels"]
    shares = plain | {f"not {kind}": p for kind, p in shuffled.items()}
    films = range(figures["films"])
    return [{kind: i < round(p * len(films)) for kind, p in shares.items()} for i in films]


def speed_records() -> list[Record]:
    """Seconds of whole requests, as `bench.speed` last measured them; none before it did."""
    if not SPEED.exists():
        return []
    seconds = json.loads(SPEED.read_text())["seconds"]
    return [dict(zip(seconds, pair, strict=True)) for pair in zip(*seconds.values(), strict=True)]


def ratchet_of(trials: dict[str, dict[int, Record]]) -> dict[str, float]:
    """Means over the first trials, of which the tests make the same again; a committed better one stays."""
    committed = json.loads(REPORT.read_text()) if REPORT.exists() else {}
    found = committed["ratchet"] if committed.get("edition") == EDITION else {}
    for (part, key), noise in RATCHET.items():
        values = [float(trials[part][i][key]) for i in range(RATCHET_TRIALS) if i in trials[part]]
        if len(values) == RATCHET_TRIALS:
            name, fresh = f"{part} {key}", round(sum(values) / len(values), 4)
            found[name] = (max if noise > 0 else min)(fresh, found.get(name, fresh))
    return found


def report(trials: dict[str, dict[int, Record]], weights: Path) -> str:
    """Write gates.json and the table of docs/pocket.md; returns the table."""
    rows = ["| gate | n | found | 95 % interval | bar | |", "|---|---|---|---|---|---|"]
    all_records = {part: list(found.values()) for part, found in trials.items()}
    all_records |= {"checker": checker_records(), "speed": speed_records()}
    figures = []
    for gate in GATES:
        records = all_records[gate.part]
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
    told = {"weights": digest(weights), "edition": EDITION, "ratchet": ratchet_of(trials), "gates": figures}
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
    ask.add_argument("--jobs", type=int, default=1, help="processes, of one thread each")
    ask.add_argument("--dry", action="store_true", help="only make trials; change neither page nor figures")
    told = ask.parse_args()
    folder = STATE / "gates" / f"{digest(told.weights)}-{EDITION}"
    folder.mkdir(parents=True, exist_ok=True)
    until = time.monotonic() + 60 * told.minutes
    orders = [
        Order(told.weights, folder, told.parts, told.n, until, turn, told.jobs) for turn in range(told.jobs)
    ]
    others = [get_context("spawn").Process(target=make_trials, args=(order,)) for order in orders[1:]]
    for process in others:
        process.start()
    make_trials(orders[0])
    for process in others:
        process.join()
    trials = kept(folder)
    draw_sheets(trials, folder)
    if not told.dry:
        print(report(trials, told.weights))
    print(f"contact sheets: {folder}")


if __name__ == "__main__":
    main()

"""Does anything grow? Half an hour at full rate with one call in a hundred wrong: `make soak`.

One real server with the timed engine, films of one frame, and retention of a minute, so that a server that
forgets what it should is flat. Memory, open files, database, write-ahead log, media and stuck rows are
sampled; after a warm-up of a third of the run a line is fitted through each, and what grew by more than its
bound over the rest fails the run. Writes soak.csv and soak.png.
"""

import argparse
import asyncio
import csv
import os
import random
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import asdict, dataclass
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import NamedTuple

import matplotlib as mpl
import psutil

from bench.figures import machine
from bench.soak_load import Load
from stillmotion.settings import DAY_S, MIB
from tests.receiver import OK, Receiver, status
from tests.server import Server

mpl.use("agg")
from matplotlib import pyplot

CLIENTS = 8
SAMPLES = 240
#: What the server keeps, in seconds; it sweeps once a minute.
KEPT_S = 60
WARM_SHARE = 1 / 3
#: A request open for longer is stuck.
STUCK_S = 90
#: What was under way at the end may take this long.
END_S = 120
#: Share of webhooks the receiver answers with a 500.
RECEIVER_FAULTS = 0.01
ENV = {
    "STILLMOTION_WEBHOOK_ALLOW": "127.0.0.1",
    "STILLMOTION_WEBHOOK_RETRY_BASE_S": "1",
    "STILLMOTION_UNSTORED_RESULT_S": "0",
    **{f"STILLMOTION_{kind}_DAYS": str(KEPT_S / DAY_S) for kind in ("OUTPUT", "UPLOAD", "REQUEST")},
}


class Bound(NamedTuple):
    """The most a series may grow over the measured window: in its unit, or by a share of its median."""

    unit: str
    amount: float
    share: float = 0.0


BOUNDS = {
    "server_mib": Bound("MiB", 12),
    "runner_mib": Bound("MiB", 24),
    "server_files": Bound("open files and sockets", 10),
    # Pools fill up once, each when it is first busy.
    "server_threads": Bound("threads", 32),
    "database_mib": Bound("MiB", 8, 0.25),
    "wal_mib": Bound("MiB", 8),
    "media_mib": Bound("MiB", 2, 0.25),
    "media_files": Bound("files", 50, 0.25),
    "open_rows": Bound("requests waiting or running", 20),
    "stuck_rows": Bound("requests open for over 90 s", 0.5),
}


@dataclass(frozen=True)
class Sample:
    at_s: float
    server_mib: float
    runner_mib: float
    server_files: int
    server_threads: int
    database_mib: float
    wal_mib: float
    media_mib: float
    media_files: int
    open_rows: int
    stuck_rows: int
    films: int
    calls: int
    faults: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--out", type=Path, default=Path("build/soak"), help="folder of soak.csv, soak.png")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1_000_000))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="stillmotion-soak-") as folder:
        said = machine(Path(folder))
        samples, left = asyncio.run(soak(Path(folder), options.minutes * 60, options.seed))
    grown = {name: growth(samples, name) for name in BOUNDS}
    problems = [problem for name in BOUNDS if (problem := judge(samples, name, grown[name]))] + left
    write_csv(options.out / "soak.csv", samples)
    last = samples[-1]
    title = (
        f"{time.strftime('%Y-%m-%d')}, {options.minutes:g} min: {last.calls} calls, {last.films} films, "
        f"{last.faults} faults, seed {options.seed}"
    )
    plot(options.out / "soak.png", samples, grown, f"{title}\n{said}")
    print(table(samples, grown))
    print(f"\n{title}.\n{said}")
    for problem in problems:
        print(f"GROWS: {problem}", file=sys.stderr)
    sys.exit(1 if problems else 0)


async def soak(folder: Path, seconds: float, seed: int) -> tuple[list[Sample], list[str]]:
    """Load a server for a while; returns the samples and what was left undone at the end."""
    flaky = random.Random(seed)

    def answer(handler: BaseHTTPRequestHandler) -> None:
        (status(500) if flaky.random() < RECEIVER_FAULTS else OK)(handler)

    samples: list[Sample] = []
    with (
        Receiver(answer) as receiver,
        Server(folder / "data", engine="tests.timed_engine:open_brief", env=ENV) as server,
    ):
        load = Load(server.url, server.key, receiver.url, seed)
        begun = time.monotonic()
        running = asyncio.create_task(load.run(CLIENTS))
        while (at_s := time.monotonic() - begun) < seconds and not running.done():
            samples.append(await asyncio.to_thread(take, server, at_s, load.counts))
            while not receiver.got.empty():
                receiver.got.get()
            await asyncio.wait({running}, timeout=seconds / SAMPLES)
        load.ending.set()
        await running
        left = await finish(server)
        server.stop()
        # A traceback is a fault of ours, whatever its caller was told, unless the engine was told to raise.
        traces = [trace[:1500] for trace in server.output().split("Traceback")[1:]]
        left += [f"the server logged {trace}" for trace in traces if "timed_engine" not in trace][:3]
    return samples, left


async def finish(server: Server) -> list[str]:
    """Wait until no request and no webhook is open; returns what is."""
    deadline = time.monotonic() + END_S
    while True:
        open_rows = count(server, "SELECT count(*) FROM request WHERE state <> 'done'")
        unsent = count(server, "SELECT count(*) FROM outbox WHERE delivered IS NULL")
        if not open_rows and not unsent:
            return []
        if time.monotonic() > deadline:
            return [f"{END_S} s after the last call {open_rows} requests and {unsent} webhooks are open"]
        await asyncio.sleep(0.5)


def take(server: Server, at_s: float, counts: Mapping[str, int]) -> Sample:
    process = psutil.Process(server.process.pid)
    runner_bytes = 0
    for child in process.children():
        # One that died a moment ago, or has not yet begun, is no runner to measure.
        try:
            runner_bytes += child.memory_info().rss if "stillmotion.runner" in child.cmdline() else 0
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
    database = server.data_dir / "stillmotion.db"
    media = file_sizes(server.data_dir / "media")
    opened = "SELECT count(*) FROM request WHERE state <> 'done' AND created <= ?"
    return Sample(
        at_s=round(at_s, 1),
        server_mib=process.memory_info().rss / MIB,
        runner_mib=runner_bytes / MIB,
        server_files=process.num_fds(),
        server_threads=process.num_threads(),
        database_mib=database.stat().st_size / MIB,
        wal_mib=database.with_name("stillmotion.db-wal").stat().st_size / MIB,
        media_mib=sum(media) / MIB,
        media_files=len(media),
        open_rows=count(server, opened, time.time()),
        stuck_rows=count(server, opened, time.time() - STUCK_S),
        films=counts.get("films", 0),
        calls=counts.get("calls", 0),
        faults=counts.get("faults", 0),
    )


def file_sizes(root: Path) -> list[int]:
    """Measure the files below a folder, which come and go meanwhile."""
    sizes: list[int] = []
    for folder, _, names in os.walk(root):
        for name in names:
            with suppress(FileNotFoundError):
                sizes.append((Path(folder) / name).stat().st_size)
    return sizes


def count(server: Server, sql: str, *values: float) -> int:
    path = server.data_dir / "stillmotion.db"
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as conn:
        return int(conn.execute(sql, values).fetchone()[0])


def window(samples: Sequence[Sample], name: str) -> tuple[list[float], list[float]]:
    """Times and values after the warm-up; a moment without a runner says nothing of its memory."""
    warm_s = samples[-1].at_s * WARM_SHARE
    kept = [one for one in samples if one.at_s >= warm_s and getattr(one, name) + (name != "runner_mib")]
    return [one.at_s for one in kept], [float(getattr(one, name)) for one in kept]


def growth(samples: Sequence[Sample], name: str) -> float:
    """Return by how much the fitted line rises over the measured window."""
    times, values = window(samples, name)
    return statistics.linear_regression(times, values).slope * (times[-1] - times[0])


def judge(samples: Sequence[Sample], name: str, grown: float) -> str | None:
    bound = BOUNDS[name]
    most = max(bound.amount, bound.share * statistics.median(window(samples, name)[1]))
    if grown <= most:
        return None
    return f"{name} by {grown:.1f} {bound.unit} over the measured window, at most {most:.1f} allowed"


def write_csv(path: Path, samples: Sequence[Sample]) -> None:
    with path.open("w", newline="") as file:
        rows = csv.DictWriter(file, list(asdict(samples[0])))
        rows.writeheader()
        rows.writerows({k: round(v, 2) for k, v in asdict(one).items()} for one in samples)


def table(samples: Sequence[Sample], grown: Mapping[str, float]) -> str:
    lines = ["| series | unit | median | largest | grew | bound |", "|---|---|---|---|---|---|"]
    for name, bound in BOUNDS.items():
        values = window(samples, name)[1]
        allowed = f"{bound.amount:g}" + (f" or {bound.share:.0%}" if bound.share else "")
        middle, most = statistics.median(values), max(values)
        lines.append(
            f"| {name} | {bound.unit} | {middle:.1f} | {most:.1f} | {grown[name]:+.2f} | {allowed} |"
        )
    return "\n".join(lines)


def plot(path: Path, samples: Sequence[Sample], grown: Mapping[str, float], title: str) -> None:
    figure, axes = pyplot.subplots(len(BOUNDS) // 2, 2, figsize=(14, 14), sharex=True, layout="constrained")
    minutes = [one.at_s / 60 for one in samples]
    for axis, (name, bound) in zip(axes.flat, BOUNDS.items(), strict=True):
        values = [getattr(one, name) for one in samples]
        axis.plot(minutes, values, linewidth=1)
        times, measured = window(samples, name)
        line = statistics.linear_regression(times, measured)
        ends = [times[0], times[-1]]
        axis.plot([at / 60 for at in ends], [line.slope * at + line.intercept for at in ends], linestyle="--")
        axis.set_ylim(0, max(values) * 1.15 or 1)
        axis.set_title(f"{name}: {grown[name]:+.2f} {bound.unit}", fontsize=10)
        axis.grid(alpha=0.3)
    for axis in axes[-1]:
        axis.set_xlabel("minutes")
    figure.suptitle(title, fontsize=9)
    figure.savefig(path, dpi=80)


if __name__ == "__main__":
    main()

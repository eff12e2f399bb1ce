"""What a real server does on this machine: `make bench` prints one Markdown table.

Each part starts `stillmotion serve` processes of its own on fresh data directories; `--quick` takes few
samples, to see that everything works. docs/benchmarks.md says how to read the figures.
"""

import argparse
import http.client
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import httpx

from bench.crowd import measure_crowd
from bench.depth import measure_depths
from bench.figures import Row, machine, peak_mib, table
from bench.films import PROMPT, TURBO, measure_films, measure_queue
from bench.load import Figures, Order, run_load
from stillmotion.cli.datadir import ANNOUNCEMENT
from tests.server import PATIENCE_S, TIMED_ENGINE, Server

#: How closely a starting server is watched.
LOOK_S = 0.01
GENERATOR = "asyncio load generator in a process of its own, sharing the cores with the server"


@dataclass(frozen=True, slots=True, kw_only=True)
class Extent:
    """How much is measured."""

    starts: int
    queue_samples: int
    films: int
    load_s: float
    #: Requests in the queue that 200 clients poll.
    crowd: int
    depths: tuple[int, ...]
    depth_samples: int


FULL = Extent(
    starts=3,
    queue_samples=40,
    films=5,
    load_s=8,
    crowd=10_000,
    depths=(100_000, 1_000_000),
    depth_samples=200,
)
QUICK = Extent(starts=1, queue_samples=5, films=1, load_s=1, crowd=500, depths=(5_000,), depth_samples=20)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few samples: does it work?")
    parser.add_argument("--only", choices=list(PARTS), help="one part alone")
    options = parser.parse_args()
    extent = QUICK if options.quick else FULL
    with tempfile.TemporaryDirectory(prefix="stillmotion-bench-") as folder:
        said = machine(Path(folder))
        rows: list[Row] = []
        for name, part in PARTS.items():
            if options.only in (None, name):
                print(f"measuring {name} …", file=sys.stderr, flush=True)
                rows += part(Path(folder), extent)
    print(table(rows))
    print(f"\n{said}")


def measure_starts(folder: Path, extent: Extent) -> list[Row]:
    """Time `serve` with the pocket weights until a runner can take work."""
    waits: list[float] = []
    peaks: list[float] = []
    for number in range(extent.starts):
        begun = time.monotonic()
        with Server(folder / f"start-{number}", wait=False) as server:
            wait_ready(server)
            waits.append(time.monotonic() - begun)
            peaks.append(peak_mib(server.process.pid))
    return [
        Row(
            "`serve` to /readyz 200",
            f"{statistics.median(waits):.2f} s",
            f"median of {len(waits)}: new process, new data directory, program files in the page cache; "
            "Python's start, schema, torch's import, weights and the runner's warm-up",
        ),
        Row("server's memory at that moment", f"{max(peaks):.0f} MiB", "highest VmHWM of those starts"),
    ]


def wait_ready(server: Server) -> None:
    """Watch more closely than tests do: `Server.wait_ready` would cost the starting server CPU."""
    deadline = time.monotonic() + PATIENCE_S
    while not (server.data_dir / ANNOUNCEMENT).exists():
        look_again(server, deadline)
    url = httpx.URL(server.url)
    connection = http.client.HTTPConnection(url.host, url.port, timeout=PATIENCE_S)
    while True:
        connection.request("GET", "/readyz")
        answer = connection.getresponse()
        answer.read()
        if answer.status == 200:
            connection.close()
            return
        look_again(server, deadline)


def look_again(server: Server, deadline: float) -> None:
    if server.process.poll() is not None or time.monotonic() > deadline:
        sys.exit(f"The server did not become ready:\n{server.output()}")
    time.sleep(LOOK_S)


def measure_load(folder: Path, extent: Extent) -> list[Row]:
    """Load one server whose only runner is asleep: everything submitted after the first request waits."""
    with Server(folder / "load", engine=TIMED_ENGINE) as server, server.client() as client:
        done = submit(client, "steps=20 pause=0")
        wait_done(client, done)
        submit(client, "steps=1 pause=3600")
        waiting = submit(client, PROMPT)

        def load(method: str, path: str, connections: int, prompt: str | None = None) -> Figures:
            url = httpx.URL(server.url)
            assert url.port is not None
            order = Order(
                host=url.host,
                port=url.port,
                method=method,
                paths=[path],
                key=server.key,
                body=None if prompt is None else {"prompt": prompt},
                connections=connections,
                seconds=extent.load_s,
            )
            return run_load(order)

        rows = [
            status_row("one waiting", 16, load("GET", waiting, 16)),
            status_row("one waiting", 200, load("GET", waiting, 200)),
            status_row("one finished, its 21 log lines read", 16, load("GET", f"{done}?logs=1", 16)),
            submit_row(16, load("POST", f"/queue/{TURBO}", 16, PROMPT)),
            Row(
                "peak memory, server under load",
                f"{peak_mib(server.process.pid):.0f} MiB",
                "VmHWM after the four loads above, timed engine",
            ),
        ]
        # A drain would wait for the sleeper.
        server.kill()
    return rows + measure_crowd(folder, extent.crowd, extent.load_s)


def submit(client: httpx.Client, prompt: str) -> str:
    """Submit a prompt; returns the path of its status."""
    ticket = client.post(f"/queue/{TURBO}", json={"prompt": prompt}).raise_for_status().json()
    return httpx.URL(ticket["status_url"]).path


def wait_done(client: httpx.Client, status: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while client.get(status).raise_for_status().json()["status"] != "COMPLETED":
        assert time.monotonic() < deadline, "the film was not made in time"
        time.sleep(LOOK_S)


def status_row(which: str, connections: int, figures: Figures) -> Row:
    return Row(
        f"status reads, {which}, {connections} connections",
        f"{figures.per_s:.0f}/s, {_latency(figures)}",
        f"answers per second, p50 / p99: whole HTTP call with key check; {GENERATOR}",
    )


def submit_row(connections: int, figures: Figures) -> Row:
    return Row(
        f"submits, {connections} at once",
        f"{figures.per_s:.0f}/s, {_latency(figures)}",
        f"answers per second, p50 / p99: prompt validated, row synced to disk (synchronous=FULL) and its "
        f"position read before the 200; the runner sleeps; {GENERATOR}",
    )


def _latency(figures: Figures) -> str:
    return f"{figures.p50_ms:.1f} / {figures.p99_ms:.1f} ms"


Part = Callable[[Path, Extent], list[Row]]
PARTS: dict[str, Part] = {
    "starts": measure_starts,
    "queue": lambda folder, extent: measure_queue(folder, extent.queue_samples),
    "films": lambda folder, extent: measure_films(folder, extent.films),
    "load": measure_load,
    "depth": lambda folder, extent: measure_depths(folder, extent.depths, extent.depth_samples),
}


if __name__ == "__main__":
    main()

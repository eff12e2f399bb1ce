"""Very many requests wait on one server with SQLite, and 200 clients ask where theirs stands."""

import random
import sqlite3
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import httpx

from bench.figures import Row, peak_mib
from bench.films import PROMPT, TURBO
from bench.load import Figures, Order, run_load
from tests.server import TIMED_ENGINE, Server, wait_until

POLLERS = 200
#: How often JavaScript's clients ask.
PAUSE_S = 0.5
#: Requests cancelled in the middle of the queue, which makes the marks stale until they are set anew.
CANCELLED = 50
#: The longest that filling the queue may take.
FILL_S = 600
#: Marks are set anew at most every half second.
SETTLED_S = 10
APP = "/queue/fal-ai/fast-svd-lcm/requests"


def measure_crowd(folder: Path, waiting: int, seconds: float) -> list[Row]:
    with Server(folder / "crowd", engine=TIMED_ENGINE) as server, server.client() as client:
        # The only runner is kept busy, so that all others wait.
        client.post(f"/queue/{TURBO}", json={"prompt": "steps=1 pause=3600"}).raise_for_status()
        url = httpx.URL(server.url)
        assert url.port is not None
        where = {"host": url.host, "port": url.port, "key": server.key}
        filled = run_load(
            Order(
                **where,
                method="POST",
                paths=[f"/queue/{TURBO}"],
                body={"prompt": PROMPT},
                connections=16,
                seconds=FILL_S,
                calls=waiting,
            )
        )
        wait_until(lambda: client.get("/readyz").status_code == 200, "the server answers")
        chosen = random.Random(0).sample(in_order(server), POLLERS)
        check_positions(server, client, chosen)

        def poll(pause_s: float) -> Figures:
            paths = [f"{APP}/{request_id}/status" for request_id in chosen]
            order = Order(
                **where, method="GET", paths=paths, connections=POLLERS, seconds=seconds, pause_s=pause_s
            )
            return run_load(order)

        paced, flat_out = poll(PAUSE_S), poll(0)
        gone = random.Random(1).sample(sorted(set(in_order(server)) - set(chosen)), CANCELLED)
        for request_id in gone:
            client.put(f"{APP}/{request_id}/cancel").raise_for_status()
        settled_s = time_settling(server, client, chosen)
        memory = peak_mib(server.process.pid)
        # A drain would wait for the sleeper.
        server.kill()
    return rows_of(waiting, filled, paced, flat_out, settled_s, memory)


def rows_of(
    waiting: int, filled: Figures, paced: Figures, flat_out: Figures, settled_s: float, memory: float
) -> list[Row]:
    crowd = f"{waiting:,} queued, {POLLERS} pollers"
    return [
        Row(
            f"{waiting:,} submits, 16 at once",
            f"{filled.per_s:.0f}/s",
            "answers per second until all are queued",
        ),
        Row(
            f"status, {crowd} every {PAUSE_S:g} s",
            f"p50 {paced.p50_ms:.1f} / p99 {paced.p99_ms:.1f} ms, {paced.per_s:.0f}/s",
            "each asks for a request of its own anywhere in the queue, as JavaScript's clients do",
        ),
        Row(
            f"status, {crowd} without pause",
            f"p50 {flat_out.p50_ms:.1f} / p99 {flat_out.p99_ms:.1f} ms, {flat_out.per_s:.0f}/s",
            "the most this process answers",
        ),
        Row(
            f"positions with {crowd}",
            f"all {POLLERS} exact; {settled_s:.1f} s after {CANCELLED} cancels again",
            "held against the table itself, before and after cancels spread over the queue",
        ),
        Row(f"peak memory, {crowd}", f"{memory:.0f} MiB", "VmHWM of the server after all of this"),
    ]


def in_order(server: Server) -> list[str]:
    """Read the queue past the server: the ids that wait, next first."""
    path = server.data_dir / "stillmotion.db"
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as conn:
        rows = conn.execute("SELECT id FROM request WHERE state IN ('held', 'ready') ORDER BY ord")
        return [row[0] for row in rows]


def wrong_positions(server: Server, client: httpx.Client, chosen: Sequence[str]) -> int:
    ahead = {request_id: position for position, request_id in enumerate(in_order(server))}
    told = {
        request_id: client.get(f"{APP}/{request_id}/status").raise_for_status().json()["queue_position"]
        for request_id in chosen
    }
    return sum(told[request_id] != ahead[request_id] for request_id in chosen)


def check_positions(server: Server, client: httpx.Client, chosen: Sequence[str]) -> None:
    wrong = wrong_positions(server, client, chosen)
    assert wrong == 0, f"{wrong} of {len(chosen)} positions are wrong"


def time_settling(server: Server, client: httpx.Client, chosen: Sequence[str]) -> float:
    """Return the seconds until every position is exact again."""
    begun = time.monotonic()
    wait_until(lambda: wrong_positions(server, client, chosen) == 0, "exact positions", SETTLED_S)
    return time.monotonic() - begun

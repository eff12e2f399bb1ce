"""The store alone with a long queue: what a claim and a position cost when very many requests wait."""

import random
import time
from collections.abc import Sequence
from pathlib import Path

from sqlalchemy import Connection, func, insert, select, text, update

from bench.figures import Row, p50_p99_ms
from stillmotion import ids
from stillmotion.store.open import Store, open_store
from stillmotion.store.position import queue_position
from stillmotion.store.queue import claim_next, get, submit
from stillmotion.store.tables import IS_WAITING, queue, request
from stillmotion.types import Bases, NewRequest, Request
from tests.postgres import postgres

PROFILE = "pocket"
#: Requests put in by one transaction while the queue is filled.
FILL = 5_000
BASES = Bases(queue="http://127.0.0.1:8000/queue", files="http://127.0.0.1:8000/cdn")


def measure_depths(folder: Path, depths: Sequence[int], samples: int) -> list[Row]:
    """Measure each depth on both databases, each on a database of its own."""
    measured: list[Row] = []
    with postgres(folder / "postgres") as cluster:
        for rows in depths:
            measured += measure_depth(f"sqlite:///{folder / f'deep-{rows}.db'}", rows, samples)
            measured += measure_depth(cluster.create(f"deep_{rows}"), rows, samples)
    return measured


def measure_depth(url: str, rows: int, samples: int) -> list[Row]:
    where = "PostgreSQL" if url.startswith("postgresql") else "SQLite"
    store = open_store(url)
    try:
        waiting = fill(store, rows)
        if where == "PostgreSQL":
            # Its autovacuum would, in its own time.
            store.write_now(lambda conn: conn.execute(text("ANALYZE")).close())
        rebuild = time_rebuild(store)
        near, anywhere = time_positions(store, waiting, samples)
        counted = time_counts(store, waiting, samples)
        whole, inside = time_claims(store, samples)
    finally:
        store.close_now()
    depth = f"{rows:,}"
    return [
        Row(
            f"{where}: position with {depth} queued, any of them",
            p50_p99_ms(anywhere),
            f"p50 / p99 of {samples}: one read transaction on a reading connection, no HTTP",
        ),
        Row(
            f"{where}: the same by counting all {depth}",
            p50_p99_ms(counted),
            f"p50 / p99 of {samples}: what it would cost without marks, in the same run",
        ),
        Row(
            f"{where}: marks of {depth} queued rebuilt",
            f"{rebuild * 1000:.0f} ms",
            "once: walk over the queue on a reading connection, result stored durably; while positions are "
            "asked it is done at most every 0.5 s and for at most 5 % of the time",
        ),
        Row(
            f"{where}: position with {depth} queued, among the next 100",
            p50_p99_ms(near),
            f"p50 / p99 of {samples}: the same for requests soon to start",
        ),
        Row(
            f"{where}: claim with {depth} queued",
            p50_p99_ms(inside),
            f"p50 / p99 of {samples}: the claim inside its transaction, without COMMIT",
        ),
        Row(
            f"{where}: claim with {depth} queued, durable",
            p50_p99_ms(whole),
            f"p50 / p99 of {samples}: through the writing thread, COMMIT synced to disk",
        ),
    ]


def fill(store: Store, rows: int) -> list[str]:
    """Put requests in line, the first as any submit and the others as its copies; returns ids in order."""
    first = store.write_now(lambda conn: submit(conn, _new(), time.time()))
    row = store.read_now(lambda conn: dict(conn.execute(select(request)).mappings().one()))
    waiting = [first.id]

    def copy(conn: Connection) -> None:
        fresh = [ids.request_id(time.time()) for _ in range(min(FILL, rows - len(waiting)))]
        copies = [{**row, "id": id, "ord": first.ord + len(waiting) + n} for n, id in enumerate(fresh)]
        conn.execute(insert(request), copies)
        conn.execute(update(queue).values(last_ord=first.ord + len(waiting) + len(fresh)))
        waiting.extend(fresh)

    while len(waiting) < rows:
        store.write_now(copy)
    return waiting


def _new() -> NewRequest:
    return NewRequest(
        id=ids.request_id(time.time()),
        profile=PROFILE,
        endpoint="fal-ai/fast-svd-lcm/text-to-video",
        key_id="bench",
        input={"prompt": "A rocket flying that is about to take off", "seed": 7, "steps": 4, "fps": 10},
        picture=None,
        bases=BASES,
    )


def choose(store: Store, among: Sequence[str], samples: int) -> list[Request]:
    """Read that many requests of the queue, always the same ones."""
    chosen = random.Random(0)
    asked = [chosen.choice(among) for _ in range(samples)]
    found = [store.read_now(lambda conn, id=id: get(conn, id)) for id in asked]
    return [one for one in found if one is not None]


def time_positions(store: Store, waiting: Sequence[str], samples: int) -> tuple[list[float], list[float]]:
    near = [_position_s(store, asked) for asked in choose(store, waiting[:100], samples)]
    return near, [_position_s(store, asked) for asked in choose(store, waiting, samples)]


def time_rebuild(store: Store) -> float:
    begun = time.perf_counter()
    store.refresh_marks(PROFILE)
    return time.perf_counter() - begun


def time_counts(store: Store, waiting: Sequence[str], samples: int) -> list[float]:
    """Time the plain count, and hold the marks' answers against it."""
    spent: list[float] = []
    for asked in choose(store, waiting, samples):
        ahead = select(func.count()).select_from(request)
        ahead = ahead.where(request.c.profile == PROFILE, IS_WAITING, request.c.ord < asked.ord)
        begun = time.perf_counter()
        counted = store.read_now(lambda conn, ahead=ahead: conn.execute(ahead).scalar_one())
        spent.append(time.perf_counter() - begun)
        assert counted == store.read_now(lambda conn, asked=asked: queue_position(conn, asked))
    return spent


def _position_s(store: Store, asked: Request) -> float:
    begun = time.perf_counter()
    store.read_now(lambda conn: queue_position(conn, asked))
    return time.perf_counter() - begun


def time_claims(store: Store, samples: int) -> tuple[list[float], list[float]]:
    """Return the seconds of whole claims, and those of the statement alone."""
    inside: list[float] = []

    def claim(conn: Connection) -> None:
        begun = time.perf_counter()
        claimed = claim_next(
            conn, profile=PROFILE, owner="bench", now=time.time(), steady=time.time(), lease_s=20
        )
        inside.append(time.perf_counter() - begun)
        assert claimed is not None, "the queue was filled"

    whole: list[float] = []
    for _ in range(samples):
        begun = time.perf_counter()
        store.write_now(claim)
        whole.append(time.perf_counter() - begun)
    return whole, inside

"""The store alone with a long queue: what a claim and a position cost when very many requests wait."""

import random
import time
from collections.abc import Sequence
from pathlib import Path

from sqlalchemy import Connection, func, select

from bench.figures import Row, p50_p99_ms
from stillmotion import ids
from stillmotion.store.open import Store, open_store
from stillmotion.store.position import queue_position
from stillmotion.store.queue import claim_next, submit
from stillmotion.store.tables import IS_WAITING, request
from stillmotion.types import Bases, NewRequest, Request

PROFILE = "pocket"
#: Requests put in by one transaction while the queue is filled.
FILL = 5_000
BASES = Bases(queue="http://127.0.0.1:8000/queue", files="http://127.0.0.1:8000/cdn")


def measure_depth(folder: Path, rows: int, samples: int) -> list[Row]:
    store = open_store(f"sqlite:///{folder / 'deep.db'}")
    try:
        waiting = fill(store, rows)
        rebuild = time_rebuild(store)
        near, anywhere = time_positions(store, waiting, samples)
        counted = time_counts(store, waiting, samples)
        whole, inside = time_claims(store, samples)
    finally:
        store.close_now()
    depth = f"{rows:,}"
    return [
        Row(
            f"position with {depth} queued, any of them",
            p50_p99_ms(anywhere),
            f"p50 / p99 of {samples}: one read transaction on a reading connection, no HTTP",
        ),
        Row(
            f"the same by counting all {depth}",
            p50_p99_ms(counted),
            f"p50 / p99 of {samples}: what it would cost without marks, in the same run",
        ),
        Row(
            f"marks of {depth} queued rebuilt",
            f"{rebuild * 1000:.0f} ms",
            "once: walk over the queue on a reading connection, result stored durably; while positions are "
            "asked it is done at most every 0.5 s and for at most 5 % of the time",
        ),
        Row(
            f"position with {depth} queued, among the next 100",
            p50_p99_ms(near),
            f"p50 / p99 of {samples}: the same for requests soon to start",
        ),
        Row(
            f"claim with {depth} queued",
            p50_p99_ms(inside),
            f"p50 / p99 of {samples}: the claim inside its transaction, without COMMIT",
        ),
        Row(
            f"claim with {depth} queued, durable",
            p50_p99_ms(whole),
            f"p50 / p99 of {samples}: through the writing thread, COMMIT synced to disk",
        ),
    ]


def fill(store: Store, rows: int) -> list[Request]:
    waiting: list[Request] = []

    def put(conn: Connection) -> list[Request]:
        return [submit(conn, _new(), time.time()) for _ in range(min(FILL, rows - len(waiting)))]

    while len(waiting) < rows:
        waiting += store.write_now(put)
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


def time_positions(store: Store, waiting: Sequence[Request], samples: int) -> tuple[list[float], list[float]]:
    chosen = random.Random(0)
    near = [_position_s(store, chosen.choice(waiting[:100])) for _ in range(samples)]
    return near, [_position_s(store, chosen.choice(waiting)) for _ in range(samples)]


def time_rebuild(store: Store) -> float:
    begun = time.perf_counter()
    store.refresh_marks(PROFILE)
    return time.perf_counter() - begun


def time_counts(store: Store, waiting: Sequence[Request], samples: int) -> list[float]:
    """Time the plain count, and hold the marks' answers against it."""
    chosen = random.Random(0)
    spent: list[float] = []
    for _ in range(samples):
        asked = chosen.choice(waiting)
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
        claimed = claim_next(conn, profile=PROFILE, owner="bench", now=time.time(), lease_s=20)
        inside.append(time.perf_counter() - begun)
        assert claimed is not None, "the queue was filled"

    whole: list[float] = []
    for _ in range(samples):
        begun = time.perf_counter()
        store.write_now(claim)
        whole.append(time.perf_counter() - begun)
    return whole, inside

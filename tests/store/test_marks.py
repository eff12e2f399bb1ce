"""Positions by marks against the plain count, on both databases, with marks fresh and stale."""

import asyncio
import logging
import sqlite3
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, delete, func, insert, select, update

from stillmotion import ids
from stillmotion.store import marks, position, queue
from stillmotion.store.open import Store, open_store
from stillmotion.store.position import queue_length, queue_position
from stillmotion.store.rows import request_values, to_request
from stillmotion.store.tables import IS_WAITING, queue_mark, request
from stillmotion.store.tables import queue as queues
from stillmotion.types import Request, State
from tests.manual_clock import ManualClock
from tests.store.asks import NOW, ask, claim_on, claimed, limited_key, submit

PATIENCE_S = 10.0


def fill(conn: Connection, count: int) -> None:
    """Submit many at once: rows as `submit` writes them, in one statement."""
    last = int(NOW * 1_000_000) + count
    rows = [
        request_values(ask(id=ids.request_id(NOW)), state=State.READY, ord=last - count + n, now=NOW)
        for n in range(count)
    ]
    conn.execute(insert(request), rows)
    conn.execute(insert(queues).values(profile="pocket", last_ord=last))


def depart(conn: Connection, count: int) -> None:
    """Claim the first ones; they stay running."""
    first = select(request.c.id).where(IS_WAITING).order_by(request.c.ord).limit(count)
    conn.execute(
        update(request)
        .where(request.c.id.in_(first))
        .values(state="running", owner="w1", lease_until=NOW + 20, attempt=1)
    )


def rebuild(conn: Connection) -> None:
    marks.replace(conn, "pocket", marks.walk(conn, "pocket"))


def kept(conn: Connection) -> list[tuple[int, int]]:
    rows = conn.execute(select(queue_mark.c.ord, queue_mark.c.rnk).order_by(queue_mark.c.ord))
    return [(row.ord, row.rnk) for row in rows]


def waiting(conn: Connection) -> list[Request]:
    rows = conn.execute(select(*request.c).where(IS_WAITING).order_by(request.c.ord)).mappings()
    return [to_request(row) for row in rows]


def errors(conn: Connection, every: int = 1) -> list[int]:
    """How far each position is from the plain count."""
    return [
        queue_position(conn, each) - ahead for ahead, each in enumerate(waiting(conn)) if ahead % every == 0
    ]


def steps(conn: Connection, work: Callable[[Connection], object]) -> int:
    """How many instructions SQLite runs for `work`, in hundreds."""
    driver = conn.connection.driver_connection
    assert isinstance(driver, sqlite3.Connection)
    count = 0

    def step() -> int:
        nonlocal count
        count += 1
        return 0

    driver.set_progress_handler(step, 100)
    work(conn)
    driver.set_progress_handler(None, 100)
    return count


def test_the_length_of_a_deep_queue_needs_no_count_of_all(sqlite_store: Store) -> None:
    sqlite_store.write_now(lambda conn: fill(conn, 20_000))

    def look(conn: Connection) -> int:
        assert queue_length(conn, "pocket") == 20_000
        return steps(conn, lambda conn: queue_length(conn, "pocket"))

    plain = sqlite_store.write_now(look)
    sqlite_store.write_now(rebuild)
    assert sqlite_store.write_now(look) < plain / 10


def test_the_length_counts_held_and_ready_and_nobody_elses(store: Store) -> None:
    key_id = limited_key(store, 1)
    for _ in range(3):
        submit(store, ask(key_id=key_id))
    submit(store, ask(profile="svd"))
    assert store.read_now(lambda conn: queue_length(conn, "pocket")) == 3
    claimed(store)
    assert store.read_now(lambda conn: queue_length(conn, "pocket")) == 2
    assert store.read_now(lambda conn: queue_length(conn, "nobody")) == 0


def test_departures_and_arrivals_leave_stale_marks_exact(store: Store) -> None:
    store.write_now(lambda conn: fill(conn, 4_000))
    store.write_now(rebuild)
    before = store.read_now(kept)
    assert [rank for _, rank in before] == list(range(0, 4_000, marks.EVERY))
    for departures in (1, 511, 512, 476):
        store.write_now(lambda conn, departures=departures: depart(conn, departures))
        submit(store, ask(), NOW + 1)
        assert not any(store.read_now(lambda conn: errors(conn, 7)))
    assert store.read_now(kept) == before


def test_requests_given_back_to_the_head_leave_stale_marks_exact(store: Store) -> None:
    store.write_now(lambda conn: fill(conn, 3_000))
    store.write_now(rebuild)
    store.write_now(lambda conn: depart(conn, 1_500))
    first = store.read_now(
        lambda conn: conn.execute(select(request.c.id).order_by(request.c.ord).limit(20)).scalars().all()
    )
    for request_id in first:
        assert store.write_now(lambda conn, request_id=request_id: queue.give_back(conn, request_id, 1, NOW))
    assert not any(store.read_now(lambda conn: errors(conn, 7)))


def test_cancels_in_the_middle_shift_those_behind_until_the_next_rebuild(store: Store) -> None:
    store.write_now(lambda conn: fill(conn, 4_000))
    store.write_now(rebuild)
    gone = [each.id for each in store.read_now(waiting)[1_100:1_140]]
    store.write_now(lambda conn: [queue.cancel(conn, each, NOW) for each in gone])
    stale = store.read_now(lambda conn: errors(conn, 7))
    assert min(stale) == 0 and max(stale) == len(gone)
    store.write_now(rebuild)
    assert not any(store.read_now(lambda conn: errors(conn, 7)))


def test_low_priority_requests_are_counted_right_after_a_rebuild(store: Store) -> None:
    store.write_now(lambda conn: fill(conn, 2_500))
    for _ in range(3):
        submit(store, ask(low_priority=True), NOW + 1)
        submit(store, ask(), NOW + 1)
    store.write_now(rebuild)
    assert not any(store.read_now(errors)[-10:])


def test_shallow_queue_keeps_no_marks(store: Store) -> None:
    store.write_now(lambda conn: fill(conn, marks.FEW * marks.EVERY + 1))
    store.write_now(rebuild)
    assert len(store.read_now(kept)) == marks.FEW + 1
    store.write_now(lambda conn: depart(conn, 1))
    store.write_now(rebuild)
    assert store.read_now(kept) == []
    assert not any(store.read_now(lambda conn: errors(conn, 7)))


def test_each_queue_has_its_own_marks(store: Store) -> None:
    store.write_now(lambda conn: fill(conn, 2_500))
    store.write_now(rebuild)
    before = store.read_now(kept)
    other = submit(store, ask(profile="svd"))
    assert store.read_now(lambda conn: queue_position(conn, other)) == 0
    store.refresh_marks("svd")
    assert store.read_now(kept) == before


moves = st.lists(
    st.one_of(
        st.tuples(st.just("submit"), st.integers(1, 8)),
        st.tuples(st.just("claim"), st.integers(1, 8)),
        st.tuples(st.just("give_back"), st.integers(1, 2)),
        st.tuples(st.just("cancel"), st.integers(0, 99)),
        st.tuples(st.just("submit_low"), st.integers(1, 2)),
        st.tuples(st.just("rebuild"), st.just(1)),
    ),
    max_size=25,
)


class Line:
    """A queue under moves, with how many of them were in its middle since the marks were set."""

    def __init__(self, conn: Connection) -> None:
        self.conn = conn
        self.running: deque[Request] = deque()
        self.shifted = 0
        self.low = False

    def move(self, kind: str, n: int) -> None:
        if kind == "cancel":
            self.cancel(n)
        elif kind == "rebuild":
            rebuild(self.conn)
            self.shifted = 0
        else:
            for _ in range(n):
                self.step(kind)

    def step(self, kind: str) -> None:
        if kind == "claim":
            found = claim_on(self.conn)
            self.running.extend([found] if found else [])
        elif kind == "give_back" and self.running:
            back = self.running.pop()
            assert queue.give_back(self.conn, back.id, back.attempt, NOW)
        elif kind == "submit":
            self.shifted += self.low
            queue.submit(self.conn, ask(), NOW)
        elif kind == "submit_low":
            self.low = True
            queue.submit(self.conn, ask(low_priority=True), NOW)

    def cancel(self, n: int) -> None:
        rows = waiting(self.conn)
        if rows:
            self.shifted += 1
            queue.cancel(self.conn, rows[n % len(rows)].id, NOW)


def test_any_moves_keep_positions_within_the_changes_in_the_middle(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(marks, "EVERY", 4)
    monkeypatch.setattr(marks, "FEW", 2)
    # More than can be given back between two rebuilds.
    monkeypatch.setattr(position, "HEAD", 50)

    @settings(
        max_examples=60,
        derandomize=True,
        deadline=None,
        database=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=[HealthCheck.too_slow],
    )
    @given(first=st.integers(20, 120), moves=moves)
    def holds(first: int, moves: list[tuple[str, int]]) -> None:
        def play(conn: Connection) -> None:
            for table in (request, queue_mark, queues):
                conn.execute(delete(table))
            fill(conn, first)
            rebuild(conn)
            line = Line(conn)
            for kind, n in moves:
                line.move(kind, n)
                assert max(map(abs, errors(conn)), default=0) <= line.shifted

        store.write_now(play)

    holds()


def test_one_of_many_wins_the_rebuild_until_the_rest_is_over(store: Store) -> None:
    submit(store, ask())

    def turns(*times: float) -> list[bool]:
        return [
            store.write_now(lambda conn, now=now: marks.take_turn(conn, "pocket", now, 2.0)) for now in times
        ]

    assert turns(NOW, NOW, NOW + 1.9, NOW + 2, NOW + 3) == [True, False, False, True, False]
    # The clock went back: the mark time ahead of it holds nobody up.
    assert turns(NOW - 3600, NOW - 3600) == [True, False]


def test_rebuild_rests_and_no_rest_is_lost_when_the_database_fails(
    store_url: str, clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    store = open_store(store_url, clock)
    store.write_now(lambda conn: fill(conn, 2_500))
    store.refresh_marks("pocket")
    before = store.read_now(kept)
    assert len(before) == 5
    store.write_now(lambda conn: depart(conn, 100))
    store.refresh_marks("pocket")
    assert store.read_now(kept) == before
    clock.advance(marks.REST_S)
    store.refresh_marks("pocket")
    assert store.read_now(kept)[0] > before[0]
    store.close_now()
    clock.advance(marks.REST_S)
    with caplog.at_level(logging.WARNING):
        store.refresh_marks("pocket")
    assert "queue marks not rebuilt profile=pocket" in caplog.text


@pytest.mark.anyio
async def test_asking_positions_in_a_deep_queue_keeps_its_marks_fresh(store: Store) -> None:
    await store.write(lambda conn: fill(conn, 3_000))
    last = (await store.read(waiting))[-1]
    asked = 0

    async def until(position: int, marked: bool) -> None:
        nonlocal asked
        deadline = time.monotonic() + PATIENCE_S
        while True:
            asked += 1
            found = await store.read(lambda conn: (queue_position(conn, last), bool(kept(conn))))
            if found == (position, marked):
                return
            assert time.monotonic() < deadline, found
            await asyncio.sleep(0)

    await until(2_999, True)
    gone = [each.id for each in (await store.read(waiting))[1_000:1_300]]
    await store.write(lambda conn: [queue.cancel(conn, each, NOW) for each in gone])
    await until(2_699, True)
    await store.write(lambda conn: depart(conn, 2_000))
    await until(699, False)
    assert asked > 3


@pytest.mark.anyio
async def test_asking_positions_in_a_shallow_queue_writes_nothing(store: Store) -> None:
    row = submit(store, ask())

    def look(conn: Connection) -> tuple[int, Any]:
        return queue_position(conn, row), conn.execute(select(func.max(queues.c.marks_at))).scalar_one()

    for _ in range(5):
        assert await store.read(look) == (0, 0)

"""Shared reads: what one transaction serves, and what each caller may rely on."""

import asyncio
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any

import pytest
from sqlalchemy import Connection, create_engine, func, select, text
from sqlalchemy.exc import DBAPIError

from stillmotion.errors import StoreUnavailable
from stillmotion.store import queue
from stillmotion.store.databases import READERS
from stillmotion.store.open import Store, open_store
from stillmotion.store.readers import BATCH
from stillmotion.store.tables import request
from tests.store.asks import NOW, ask, submit

pytestmark = pytest.mark.anyio

Operation = Callable[[Connection], Any]


class Gate:
    """An operation that holds its reading thread until it is opened."""

    def __init__(self) -> None:
        self._inside = threading.Semaphore(0)
        self._open = threading.Event()

    def hold(self, conn: Connection) -> None:
        self._inside.release()
        assert self._open.wait(10)

    async def wait_inside(self) -> None:
        assert await asyncio.to_thread(self._inside.acquire, timeout=10)

    def open(self) -> None:
        self._open.set()


@contextmanager
def opened_at_last(gate: Gate) -> Iterator[None]:
    try:
        yield
    finally:
        gate.open()


async def hold_all(store: Store, gate: Gate) -> list[asyncio.Task[None]]:
    """Hold every reading thread: what is read meanwhile shares the next batch."""
    held: list[asyncio.Task[None]] = []
    for _ in range(READERS):
        held.append(asyncio.ensure_future(store.read(gate.hold)))
        await gate.wait_inside()
    return held


async def read_together(store: Store, *operations: Operation) -> list[Any]:
    """Read operations in one batch; give results and exceptions in their order."""
    gate = Gate()
    with opened_at_last(gate):
        held = await hold_all(store, gate)
        tasks = [asyncio.ensure_future(store.read(operation)) for operation in operations]
        await asyncio.sleep(0)
    await asyncio.gather(*held)
    return await asyncio.gather(*tasks, return_exceptions=True)


def transaction(conn: Connection) -> int:
    return id(conn.get_transaction())


def count(conn: Connection) -> int:
    return conn.execute(select(func.count()).select_from(request)).scalar_one()


def refused(conn: Connection) -> None:
    raise KeyError("not here")


async def test_reads_that_wait_share_one_transaction(store: Store) -> None:
    answers = await read_together(store, *[transaction] * 20)
    assert len(set(answers)) == 1


async def test_more_reads_than_a_batch_each_get_their_own_answer(store: Store) -> None:
    def give(n: int) -> Operation:
        return lambda conn: n

    numbers = list(range(3 * BATCH))
    assert await read_together(store, *map(give, numbers)) == numbers


async def test_one_failing_read_harms_no_neighbour(store: Store) -> None:
    submit(store, ask())
    answers = await read_together(
        store, count, refused, count, lambda conn: conn.execute(text("?!")), count, refused, count
    )
    assert [answers[n] for n in (0, 2, 4, 6)] == [1, 1, 1, 1]
    assert isinstance(answers[1], KeyError) and isinstance(answers[5], KeyError)
    assert isinstance(answers[3], DBAPIError | StoreUnavailable)


async def test_operation_that_runs_out_of_items_harms_no_neighbour(store: Store) -> None:
    answers = await read_together(store, count, lambda conn: next(iter(())), count)
    assert (answers[0], answers[2]) == (0, 0)
    assert isinstance(answers[1], RuntimeError)


async def test_read_sees_what_was_acknowledged_before_it_was_asked(store: Store) -> None:
    async def write_then_read(n: int) -> None:
        row = await store.write(lambda conn: submit_on(conn, n))
        found = await store.read(
            lambda conn: conn.execute(select(request.c.id).where(request.c.id == row)).scalar_one_or_none()
        )
        assert found == row

    await asyncio.gather(*(write_then_read(n) for n in range(100)))


def submit_on(conn: Connection, n: int) -> str:
    return queue.submit(conn, ask(id=f"r{n}"), NOW).id


async def test_one_read_sees_one_snapshot(store: Store) -> None:
    def look_twice(conn: Connection) -> tuple[int, int]:
        before = count(conn)
        submit(store, ask())
        return before, count(conn)

    assert await store.read(look_twice) == (0, 0)
    assert await store.read(count) == 1


async def test_cancelled_caller_disturbs_nobody(store: Store) -> None:
    gate = Gate()
    with opened_at_last(gate):
        held = await hold_all(store, gate)
        tasks = [asyncio.ensure_future(store.read(count)) for _ in range(3)]
        await asyncio.sleep(0)
        tasks[1].cancel()
        held[0].cancel()
    answers = await asyncio.gather(*tasks, *held, return_exceptions=True)
    assert [answers[0], answers[2]] == [0, 0]
    assert isinstance(answers[1], asyncio.CancelledError)
    assert await store.read(count) == 0


def test_caller_whose_loop_is_gone_disturbs_nobody(store: Store) -> None:
    gate = Gate()

    async def ask_and_leave() -> None:
        held = asyncio.ensure_future(store.read(gate.hold))
        await gate.wait_inside()
        held.cancel()

    with opened_at_last(gate):
        asyncio.run(ask_and_leave())
    assert asyncio.run(store.read(count)) == 0


async def test_close_finishes_what_is_under_way_and_fails_what_waits(store: Store) -> None:
    gate = Gate()
    with opened_at_last(gate):
        held = await hold_all(store, gate)
        waiting = asyncio.ensure_future(store.read(count))
        await asyncio.sleep(0)
        closing = asyncio.ensure_future(store.close())
        while not store.closed:
            await asyncio.sleep(0)
    await closing
    assert await asyncio.gather(*held) == [None] * READERS
    with pytest.raises(StoreUnavailable, match="shutting down"):
        await waiting
    with pytest.raises(StoreUnavailable, match="shutting down"):
        await store.read(count)


async def test_no_snapshot_outlives_its_batch(sqlite_store: Store, sqlite_url: str) -> None:
    await asyncio.gather(*(sqlite_store.read(count) for _ in range(20)))
    submit(sqlite_store, ask())

    # TRUNCATE answers "busy" while any reader still needs a part of the log.
    path = sqlite_url.removeprefix("sqlite:///")
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        assert other.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0] == 0


async def test_connection_lost_in_a_batch_fails_one_read_and_the_rest_go_on(postgres_url: str) -> None:
    store = open_store(postgres_url)

    def lose_the_connection(conn: Connection) -> None:
        conn.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))

    answers = await read_together(store, count, lose_the_connection, count)
    assert (answers[0], answers[2]) == (0, 0)
    assert isinstance(answers[1], StoreUnavailable)
    await store.close()


async def test_vanished_database_fails_the_whole_batch(new_postgres_database: Callable[[], str]) -> None:
    url = new_postgres_database()
    store = open_store(url)
    assert await store.read(count) == 0
    name = url.partition("?")[0].rpartition("/")[2]
    admin = create_engine(url.replace(f"/{name}", "/postgres", 1), isolation_level="AUTOCOMMIT")
    with admin.connect() as conn:
        conn.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
    admin.dispose()
    answers = await asyncio.gather(*(store.read(count) for _ in range(3)), return_exceptions=True)
    assert {type(each) for each in answers} == {StoreUnavailable}
    await store.close()

"""Group commit, with the databases' own failures."""

import asyncio
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any

import pytest
from sqlalchemy import Connection, create_engine, func, make_url, select, text
from sqlalchemy.exc import IntegrityError

from stillmotion.errors import StoreUnavailable
from stillmotion.store import databases, queue
from stillmotion.store.databases import open_writer
from stillmotion.store.open import Store, open_store
from stillmotion.store.tables import request
from stillmotion.store.writer import DEADLOCK_TRIES, Writer
from tests.store.asks import NOW, ask, claimed, submit

pytestmark = pytest.mark.anyio

Operation = Callable[[Connection], Any]

#: What PostgreSQL says to one of two that wait for each other.
CROSSED = text("DO $$ BEGIN RAISE EXCEPTION 'crossed' USING ERRCODE = '40P01'; END $$")


@contextmanager
def paused(store: Store) -> Iterator[None]:
    """Hold the writing thread inside an operation: what is written meanwhile shares the next batch."""
    entered, go_on = threading.Event(), threading.Event()

    def wait(conn: Connection) -> None:
        entered.set()
        assert go_on.wait(10)

    thread = threading.Thread(target=store.write_now, args=(wait,))
    thread.start()
    assert entered.wait(10)
    try:
        yield
    finally:
        go_on.set()
        thread.join()


async def write_together(store: Store, *operations: Operation) -> list[Any]:
    """Write operations in one batch; give results and exceptions in their order."""
    with paused(store):
        tasks = [asyncio.ensure_future(store.write(operation)) for operation in operations]
        await asyncio.sleep(0)
    return await asyncio.gather(*tasks, return_exceptions=True)


def submitting(new_id: str) -> Operation:
    return lambda conn: queue.submit(conn, ask(id=new_id), NOW).id


def stored(store: Store) -> list[str]:
    return list(
        store.read_now(lambda conn: conn.execute(select(request.c.id).order_by(request.c.ord)).scalars())
    )


def break_the_commit(conn: Connection) -> str:
    """Break a rule the database checks at COMMIT only."""
    if conn.dialect.name == "sqlite":
        conn.execute(text("PRAGMA defer_foreign_keys = ON"))
        conn.execute(text("INSERT INTO log VALUES ('nobody', 1, 1, 0, 'INFO', 'x')"))
    else:
        conn.execute(text("CREATE TEMP TABLE once (n int UNIQUE DEFERRABLE INITIALLY DEFERRED)"))
        conn.execute(text("INSERT INTO once VALUES (1), (1)"))
    return "looked fine"


async def test_writes_that_wait_share_one_transaction(store: Store) -> None:
    def transaction(conn: Connection) -> int:
        return id(conn.get_transaction())

    answers = await write_together(store, *[transaction] * 20)
    assert len(set(answers)) == 1


async def test_one_bad_operation_harms_no_neighbour_and_leaves_nothing(store: Store) -> None:
    def half_done(conn: Connection) -> None:
        queue.submit(conn, ask(id="half"), NOW)
        raise ValueError("changed my mind")

    answers = await write_together(
        store,
        submitting("a"),
        half_done,
        submitting("a"),
        submitting("b"),
        lambda conn: conn.execute(text("?!")),
    )
    assert (answers[0], answers[3]) == ("a", "b")
    assert isinstance(answers[1], ValueError)
    assert isinstance(answers[2], IntegrityError)
    assert isinstance(answers[4], Exception)
    assert stored(store) == ["a", "b"]


async def test_failed_commit_acknowledges_nothing_and_the_next_write_works(store: Store) -> None:
    answers = await write_together(store, submitting("a"), break_the_commit, submitting("b"))
    assert {type(each) for each in answers} == {StoreUnavailable}
    assert stored(store) == []
    assert await store.write(submitting("c")) == "c"
    assert stored(store) == ["c"]


async def test_result_is_released_only_after_the_commit(store: Store) -> None:
    seen: list[list[str]] = []

    def look_from_outside(conn: Connection) -> None:
        seen.append(stored(store))

    await write_together(store, submitting("a"), look_from_outside)
    assert seen == [[]]
    assert stored(store) == ["a"]


async def test_cancelled_caller_disturbs_nobody(store: Store) -> None:
    with paused(store):
        tasks = [asyncio.ensure_future(store.write(submitting(name))) for name in "abc"]
        await asyncio.sleep(0)
        tasks[1].cancel()
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert (answers[0], answers[2]) == ("a", "c")
    assert isinstance(answers[1], asyncio.CancelledError)
    assert await store.write(submitting("d")) == "d"


def test_caller_whose_loop_is_gone_disturbs_nobody(store: Store) -> None:
    async def ask_and_leave() -> None:
        asyncio.ensure_future(store.write(submitting("left")))  # noqa: RUF006
        await asyncio.sleep(0)

    with paused(store):
        asyncio.run(ask_and_leave())
    assert store.write_now(submitting("b")) == "b"
    assert stored(store) == ["left", "b"]


async def test_more_writes_than_a_batch_all_arrive(store: Store) -> None:
    names = [f"r{n}" for n in range(300)]
    assert await write_together(store, *map(submitting, names)) == names
    assert stored(store) == names


async def test_close_fails_what_waits_and_refuses_the_rest(store: Store) -> None:
    with paused(store):
        waiting = asyncio.ensure_future(store.write(submitting("late")))
        await asyncio.sleep(0)
        closing_task = asyncio.ensure_future(store.close())
        while not store.closed:
            await asyncio.sleep(0)
    await closing_task
    with pytest.raises(StoreUnavailable, match="shutting down"):
        await waiting
    with pytest.raises(StoreUnavailable, match="shutting down"):
        await store.write(submitting("later"))
    with pytest.raises(StoreUnavailable, match="shutting down"):
        await store.read(lambda conn: None)
    await store.close()


async def test_readers_cannot_write(store: Store) -> None:
    with pytest.raises(Exception, match=r"readonly|read-only"):
        await store.read(lambda conn: conn.execute(text("DELETE FROM request")))


async def test_reader_is_not_kept_waiting_by_a_long_write(store: Store) -> None:
    submit(store, ask(id="before"))
    with paused(store):
        assert (
            await store.read(lambda conn: conn.execute(select(func.count()).select_from(request)).scalar())
            == 1
        )


async def test_locked_file_fails_the_write_after_the_busy_timeout(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(databases, "BUSY_TIMEOUT_S", 0.05)
    store = open_store(sqlite_url)
    path = sqlite_url.removeprefix("sqlite:///")
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreUnavailable, match="locked"):
            await store.write(submitting("a"))
        other.execute("ROLLBACK")
    assert await store.write(submitting("c")) == "c"
    await store.close()


async def test_full_disk_fails_the_whole_batch_and_room_mends_it(sqlite_url: str) -> None:
    store = open_store(sqlite_url)

    def fill_the_disk(conn: Connection) -> None:
        pages = conn.execute(text("PRAGMA page_count")).scalar_one()
        conn.execute(text(f"PRAGMA max_page_count = {pages}"))
        for n in range(1000):
            queue.submit(conn, ask(id=f"big{n}", input={"prompt": "x" * 5000}), NOW)

    answers = await write_together(store, submitting("a"), fill_the_disk, submitting("b"))
    assert isinstance(answers[1], StoreUnavailable) and "full" in str(answers[1])
    acknowledged = [each for each in answers if isinstance(each, str)]
    assert stored(store) == acknowledged
    await store.write(lambda conn: conn.execute(text("PRAGMA max_page_count = 1000000")).scalar_one())
    assert await store.write(submitting("c")) == "c"
    await store.close()


async def test_connection_lost_in_a_batch_fails_it_and_the_next_reconnects(postgres_url: str) -> None:
    store = open_store(postgres_url)

    def lose_the_connection(conn: Connection) -> None:
        conn.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))

    answers = await write_together(store, submitting("a"), lose_the_connection, submitting("b"))
    assert {type(each) for each in answers} == {StoreUnavailable}
    assert await store.write(submitting("c")) == "c"
    assert stored(store) == ["c"]
    await store.close()


async def test_restarted_database_costs_no_write_and_no_read(postgres_url: str) -> None:
    store = open_store(postgres_url)
    await store.write(submitting("a"))
    assert stored(store) == ["a"]
    other = create_engine(postgres_url)
    with other.connect() as conn:
        conn.execute(
            text(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        )
    other.dispose()
    assert await store.write(submitting("b")) == "b"
    assert stored(store) == ["a", "b"]
    await store.close()


async def test_deadlock_with_another_client_is_tried_again(postgres_url: str) -> None:
    store = open_store(postgres_url)
    one, two = submit(store, ask()), submit(store, ask())
    touch = text("UPDATE request SET progress = NULL WHERE id = :id")
    other = create_engine(postgres_url)
    crossed = threading.Event()
    tries: list[int] = []

    def cross(conn: Connection) -> str:
        tries.append(1)
        conn.execute(text("SET LOCAL deadlock_timeout = '20ms'"))
        conn.execute(touch, {"id": two.id})
        crossed.set()
        conn.execute(touch, {"id": one.id})
        return "done"

    with other.begin() as conn:
        conn.execute(text("SET LOCAL deadlock_timeout = '60s'"))
        conn.execute(touch, {"id": one.id})
        task = asyncio.ensure_future(store.write(cross))
        await asyncio.to_thread(crossed.wait, 10)
        await asyncio.to_thread(conn.execute, touch, {"id": two.id})
    assert await task == "done"
    assert len(tries) >= 2
    other.dispose()
    await store.close()


async def test_deadlock_that_never_ends_is_told_after_some_tries(postgres_url: str) -> None:
    store = open_store(postgres_url)
    tries: list[int] = []

    def lock(conn: Connection) -> None:
        tries.append(1)
        conn.execute(CROSSED)

    with pytest.raises(StoreUnavailable, match="crossed"):
        async with asyncio.timeout(10):
            await store.write(lock)
    assert len(tries) == 1 + DEADLOCK_TRIES
    await store.close()


async def test_a_deadlock_met_while_the_writer_closes_keeps_nobody_waiting(postgres_url: str) -> None:
    writer = Writer(open_writer(make_url(postgres_url)))

    def lock(conn: Connection) -> None:
        writer.stop()
        conn.execute(CROSSED)

    with pytest.raises(StoreUnavailable, match="shutting down"):
        async with asyncio.timeout(10):
            await writer.write(lock)
    writer.close()


async def test_f06_a_process_that_stops_inside_a_transaction_does_not_keep_its_rows(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(databases, "IDLE_TRANSACTION_S", 0.2)
    stopped, other = open_store(postgres_url), open_store(postgres_url)
    request_id = submit(stopped, ask()).id
    assert claimed(stopped).id == request_id
    renewed, go_on = threading.Event(), threading.Event()

    def renew_and_stop(conn: Connection) -> None:
        queue.renew(conn, [(request_id, 1)], until=NOW + 60)
        renewed.set()
        assert go_on.wait(10)

    stopping = asyncio.ensure_future(stopped.write(renew_and_stop))
    assert await asyncio.to_thread(renewed.wait, 10)
    deadline = asyncio.get_running_loop().time() + 10
    while not await other.write(lambda conn: queue.lapse(conn, NOW, NOW + 40)):
        assert asyncio.get_running_loop().time() < deadline, "the row stays locked"
    go_on.set()
    with pytest.raises(StoreUnavailable):
        await stopping
    await stopped.close()
    await other.close()


async def test_constraint_refusal_keeps_its_own_type(store: Store) -> None:
    submit(store, ask(id="twice"))
    again = ask(id="twice", input={"prompt": "nobody else's business"})
    with pytest.raises(IntegrityError) as refused:
        await store.write(lambda conn: queue.submit(conn, again, NOW))
    assert "business" not in str(refused.value)


async def test_a_database_that_became_a_standby_is_unavailable_and_not_broken(postgres_url: str) -> None:
    store = open_store(postgres_url)

    def write(conn: Connection) -> None:
        conn.execute(text("SET TRANSACTION READ ONLY"))
        conn.execute(text("DELETE FROM queue"))

    with pytest.raises(StoreUnavailable, match="read-only"):
        await store.write(write)
    submit(store, ask())
    await store.close()

"""Two transactions stepped by hand: the second starts while the first has not committed.

PostgreSQL really interleaves them, row lock by row lock; SQLite lets the second begin when the first is done.
Both must end the same.
"""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from sqlalchemy import Connection, event, make_url, text

from stillmotion.keys import list_keys
from stillmotion.store import queue
from stillmotion.store.databases import open_writer
from stillmotion.store.open import Store, open_store
from stillmotion.types import CancelAnswer, Outcome, State
from tests.store.asks import LEASE_S, NOW, OK, ask, claim_on, claimed, limited_key, read, submit

T = TypeVar("T")
U = TypeVar("U")

DEADLINE_S = 10.0


def interleave(url: str, first: Callable[[Connection], T], second: Callable[[Connection], U]) -> tuple[T, U]:
    """Run `first`, start `second` on its own connection, commit `first` once `second` is done or blocked."""
    one, two = open_writer(make_url(url)), open_writer(make_url(url))
    answer: Future[U] = Future()
    backend: Future[int] = Future()

    def run_second() -> None:
        with two.connect() as conn:
            if two.dialect.name == "postgresql":
                backend.set_result(conn.execute(text("SELECT pg_backend_pid()")).scalar_one())
                conn.rollback()
            with conn.begin():
                answer.set_result(second(conn))

    thread = threading.Thread(target=run_second)
    try:
        with one.begin() as conn:
            kept = first(conn)
            thread.start()
            if one.dialect.name == "postgresql":
                wait_until_done_or_blocked(conn, answer, backend.result(DEADLINE_S))
        thread.join(DEADLINE_S)
        return kept, answer.result(0)
    finally:
        one.dispose()
        two.dispose()


def wait_until_done_or_blocked(conn: Connection, answer: "Future[U]", backend: int) -> None:
    blocked = text("SELECT cardinality(pg_blocking_pids(:backend)) > 0")
    pause = threading.Event()
    for _ in range(int(DEADLINE_S / 0.002)):
        if answer.done() or conn.execute(blocked, {"backend": backend}).scalar_one():
            return
        pause.wait(0.002)
    raise AssertionError("the second transaction neither ended nor met a lock")


def finish_on(conn: Connection, request_id: str) -> bool:
    return queue.finish(conn, request_id, 1, OK, [], NOW + 5)


def active(store: Store) -> int:
    return store.read_now(list_keys)[0].active


def test_claim_beside_claim_takes_two_requests(store: Store, store_url: str) -> None:
    waiting = [submit(store, ask()), submit(store, ask())]
    one, two = interleave(store_url, claim_on, claim_on)
    assert one and two and [one.id, two.id] == [each.id for each in waiting]


def test_claim_beside_claim_of_one_request_gives_it_to_the_first(store: Store, store_url: str) -> None:
    submit(store, ask())
    one, two = interleave(store_url, claim_on, claim_on)
    assert one is not None and two is None
    assert read(store, one.id).attempt == 1


def test_claim_beside_cancel_never_starts(store: Store, store_url: str) -> None:
    waiting = submit(store, ask())
    answer, found = interleave(store_url, lambda conn: queue.cancel(conn, waiting.id, NOW), claim_on)
    assert (answer, found) == (CancelAnswer.REMOVED, None)
    assert read(store, waiting.id).outcome is Outcome.CANCELLED


def test_cancel_beside_claim_asks_the_runner(store: Store, store_url: str) -> None:
    waiting = submit(store, ask())
    found, answer = interleave(store_url, claim_on, lambda conn: queue.cancel(conn, waiting.id, NOW))
    assert found is not None and answer is CancelAnswer.ASKED
    after = read(store, waiting.id)
    assert (after.state, after.cancel_at) == (State.RUNNING, NOW)


def test_cancel_beside_finish_comes_too_late(store: Store, store_url: str) -> None:
    running = submit(store, ask(webhook="http://hook/x"))
    claimed(store)
    finished, answer = interleave(
        store_url,
        lambda conn: finish_on(conn, running.id),
        lambda conn: queue.cancel(conn, running.id, NOW),
    )
    assert (finished, answer) == (True, CancelAnswer.ALREADY_DONE)
    assert read(store, running.id).outcome is Outcome.OK


def test_finish_beside_an_asked_cancel_still_publishes(store: Store, store_url: str) -> None:
    running = submit(store, ask())
    claimed(store)
    answer, finished = interleave(
        store_url,
        lambda conn: queue.cancel(conn, running.id, NOW),
        lambda conn: finish_on(conn, running.id),
    )
    assert (answer, finished) == (CancelAnswer.ASKED, True)
    assert read(store, running.id).outcome is Outcome.OK


def test_finish_beside_lapse_is_fenced(store: Store, store_url: str) -> None:
    running = submit(store, ask(webhook="http://hook/x"))
    claimed(store)
    freed, finished = interleave(
        store_url,
        lambda conn: queue.lapse(conn, NOW + LEASE_S + 1, NOW + LEASE_S + 1),
        lambda conn: finish_on(conn, running.id),
    )
    assert (freed, finished) == ([running.id], False)
    assert read(store, running.id).state is State.READY


def test_lapse_beside_finish_frees_nothing(store: Store, store_url: str) -> None:
    running = submit(store, ask(webhook="http://hook/x"))
    claimed(store)
    finished, freed = interleave(
        store_url,
        lambda conn: finish_on(conn, running.id),
        lambda conn: queue.lapse(conn, NOW + LEASE_S + 1, NOW + LEASE_S + 1),
    )
    assert (finished, freed) == (True, [])
    assert read(store, running.id).outcome is Outcome.OK


def test_lapse_beside_renew_leaves_the_lease(store: Store, store_url: str) -> None:
    running = submit(store, ask())
    claimed(store)
    kept, freed = interleave(
        store_url,
        lambda conn: queue.renew(conn, [(running.id, 1)], until=NOW + 19 + LEASE_S),
        lambda conn: queue.lapse(conn, NOW + LEASE_S + 1, NOW + LEASE_S + 1),
    )
    assert (kept, freed) == ({(running.id, 1): False}, [])


def test_cancel_between_the_looks_of_a_give_back_is_not_lost(postgres_url: str) -> None:
    store, other = open_store(postgres_url), open_store(postgres_url)
    running = submit(store, ask())
    claimed(store)
    asked: list[CancelAnswer] = []

    def cancel(conn: Connection, cursor: object, statement: str, *more: object) -> None:
        if statement.startswith("UPDATE request") and not asked:
            asked.append(other.write_now(lambda conn: queue.cancel(conn, running.id, NOW)))

    def give_back(conn: Connection) -> bool:
        event.listen(conn, "after_cursor_execute", cancel)
        return queue.give_back(conn, running.id, 1, NOW)

    assert not store.write_now(give_back)
    assert asked == [CancelAnswer.ASKED]
    assert store.write_now(lambda conn: queue.give_back(conn, running.id, 1, NOW))
    assert read(store, running.id).outcome is Outcome.CANCELLED
    store.close_now()
    other.close_now()


def test_submit_beside_finish_on_a_limited_key_takes_the_freed_place(store: Store, store_url: str) -> None:
    key = limited_key(store, 1)
    running, following = submit(store, ask(key_id=key)), ask(key_id=key)
    claimed(store)
    finished, submitted = interleave(
        store_url,
        lambda conn: finish_on(conn, running.id),
        lambda conn: queue.submit(conn, following, NOW),
    )
    assert finished and submitted.state is State.READY
    assert active(store) == 1


def test_finish_beside_submit_on_a_limited_key_promotes_what_was_just_held(
    store: Store, store_url: str
) -> None:
    key = limited_key(store, 1)
    running, following = submit(store, ask(key_id=key)), ask(key_id=key)
    claimed(store)
    submitted, finished = interleave(
        store_url,
        lambda conn: queue.submit(conn, following, NOW),
        lambda conn: finish_on(conn, running.id),
    )
    assert submitted.state is State.HELD and finished
    assert read(store, following.id).state is State.READY
    assert active(store) == 1


def test_cancel_of_a_held_request_beside_the_finish_that_promotes_it(store: Store, store_url: str) -> None:
    key = limited_key(store, 1)
    running, held = submit(store, ask(key_id=key)), submit(store, ask(key_id=key))
    claimed(store)
    finished, answer = interleave(
        store_url,
        lambda conn: finish_on(conn, running.id),
        lambda conn: queue.cancel(conn, held.id, NOW),
    )
    assert (finished, answer) == (True, CancelAnswer.REMOVED)
    assert read(store, held.id).outcome is Outcome.CANCELLED
    assert active(store) == 0


def test_submits_beside_each_other_keep_the_order_of_their_commits(store: Store, store_url: str) -> None:
    one, two = interleave(
        store_url,
        lambda conn: queue.submit(conn, ask(), NOW),
        lambda conn: queue.submit(conn, ask(), NOW),
    )
    assert two.ord == one.ord + 1

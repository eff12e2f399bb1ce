"""What a key may do, replays of a submit, and requests that are not to be kept or tried again."""

from collections.abc import Callable

import pytest
from sqlalchemy import Connection, update

from stillmotion.errors import IdempotencyReused, LimitReached
from stillmotion.keys import create_key, list_keys
from stillmotion.settings import DAY_S
from stillmotion.store import outbox, queue
from stillmotion.store.files import add_file, expired_files
from stillmotion.store.idempotency import find_replay
from stillmotion.store.limits import MINUTE_S, count_submit, count_upload, upload_allowance
from stillmotion.store.open import Store
from stillmotion.store.position import queue_length
from stillmotion.store.retention import drop_old_requests, drop_unstored_requests
from stillmotion.store.tables import api_key
from stillmotion.types import FileRecord, Idempotency, NewRequest, Outcome, Request, State
from tests.store.asks import NOW, ask, claimed, finish, limited_key, read, submit
from tests.store.test_interleavings import interleave


def key_with(
    store: Store, *, submits_per_minute: int | None = None, upload_bytes_per_day: int | None = None
) -> str:
    def create(conn: Connection) -> str:
        return create_key(
            conn,
            "limited",
            NOW,
            submits_per_minute=submits_per_minute,
            upload_bytes_per_day=upload_bytes_per_day,
        )

    return store.write_now(create).partition(":")[0]


def named(name: str = "n", body: str = "a" * 64) -> Idempotency:
    return Idempotency(key=name, digest=body)


def submit_or_replay(new: NewRequest) -> Callable[[Connection], Request]:
    def keep(conn: Connection) -> Request:
        assert new.idempotency is not None
        return find_replay(conn, new.key_id, new.idempotency) or queue.submit(conn, new, NOW)

    return keep


def test_submits_are_counted_from_the_first_of_a_minute_to_its_end(store: Store) -> None:
    key = key_with(store, submits_per_minute=2)

    def count(now: float) -> int | None:
        try:
            store.write_now(lambda conn: count_submit(conn, key, now))
        except LimitReached as reached:
            assert (reached.failure.status, reached.failure.kind) == (429, "rate_limited")
            return reached.retry_after_s
        return None

    assert [count(NOW), count(NOW + 59), count(NOW + 59.5)] == [None, None, 1]
    assert count(NOW + 1) == 59
    assert [count(NOW + MINUTE_S), count(NOW + 61), count(NOW + 62)] == [None, None, 58]
    # A clock set back by an hour locks nobody out for an hour.
    assert count(NOW - 3600) is None


def test_key_without_a_limit_is_never_written(store: Store) -> None:
    free = key_with(store)
    with_one = key_with(store, submits_per_minute=1)
    for _ in range(3):
        store.write_now(lambda conn: (count_submit(conn, free, NOW), count_upload(conn, free, 10**12, NOW)))
    store.write_now(lambda conn: count_submit(conn, with_one, NOW))
    rows = {row.id: row for row in store.read_now(lambda conn: conn.execute(api_key.select()).all())}
    assert (rows[free].minute_submits, rows[free].day_upload_bytes) == (0, 0)
    assert rows[with_one].minute_submits == 1
    assert store.read_now(lambda conn: upload_allowance(conn, free, NOW)) is None


def test_uploads_are_counted_by_the_byte_and_a_refused_one_costs_nothing(store: Store) -> None:
    key = key_with(store, upload_bytes_per_day=100)

    def left(now: float) -> int:
        allowance = store.read_now(lambda conn: upload_allowance(conn, key, now))
        assert allowance is not None
        return allowance.left

    assert left(NOW) == 100
    store.write_now(lambda conn: count_upload(conn, key, 60, NOW))
    with pytest.raises(LimitReached, match="may upload 100 bytes a day and has 40 left") as refused:
        store.write_now(lambda conn: count_upload(conn, key, 41, NOW + 10))
    # Not 429: a client would send the bytes again, ten times.
    assert refused.value.failure.status == 403
    assert refused.value.retry_after_s == DAY_S - 10
    store.write_now(lambda conn: count_upload(conn, key, 40, NOW + 10))
    assert (left(NOW + 10), left(NOW + DAY_S)) == (0, 100)


def test_two_submits_at_once_do_not_pass_a_limit_of_one(store_url: str, store: Store) -> None:
    key = key_with(store, submits_per_minute=1)

    def second(conn: Connection) -> bool:
        try:
            count_submit(conn, key, NOW)
        except LimitReached:
            return False
        return True

    assert interleave(store_url, lambda conn: count_submit(conn, key, NOW), second) == (None, False)


def test_same_idempotency_key_is_the_same_request_and_another_body_is_refused(store: Store) -> None:
    key = key_with(store)
    first = store.write_now(submit_or_replay(ask(key_id=key, idempotency=named())))
    again = store.write_now(submit_or_replay(ask(key_id=key, idempotency=named())))
    assert again.id == first.id
    finish(store, claimed(store))
    done = store.write_now(submit_or_replay(ask(key_id=key, idempotency=named())))
    assert (done.id, done.state) == (first.id, State.DONE)
    with pytest.raises(IdempotencyReused):
        store.write_now(submit_or_replay(ask(key_id=key, idempotency=named(body="b" * 64))))
    other_name = store.write_now(submit_or_replay(ask(key_id=key, idempotency=named("m"))))
    other_caller = store.write_now(submit_or_replay(ask(key_id=key_with(store), idempotency=named())))
    assert len({first.id, other_name.id, other_caller.id}) == 3


def test_two_replays_at_once_are_one_request(store_url: str, store: Store) -> None:
    key = key_with(store)
    one, two = (submit_or_replay(ask(key_id=key, idempotency=named())) for _ in range(2))
    first, second = interleave(store_url, one, two)
    assert first.id == second.id
    assert store.read_now(lambda conn: queue_length(conn, "pocket")) == 1


def test_idempotency_key_is_free_again_when_its_request_is_forgotten(store: Store) -> None:
    key = key_with(store)
    first = store.write_now(submit_or_replay(ask(key_id=key, idempotency=named())))
    finish(store, claimed(store))
    assert store.write_now(lambda conn: drop_old_requests(conn, NOW + 6, 10)) == 1
    assert store.write_now(submit_or_replay(ask(key_id=key, idempotency=named(body="b" * 64)))).id != first.id


def test_input_that_is_not_to_be_kept_goes_with_the_ending(store: Store) -> None:
    kept, unkept = submit(store, ask()), submit(store, ask(store_io=False))
    cancelled = submit(store, ask(store_io=False))
    for _ in range(2):
        finish(store, claimed(store))
    store.write_now(lambda conn: queue.cancel(conn, cancelled.id, NOW))
    assert read(store, kept.id).input == kept.input
    for one in (unkept, cancelled):
        assert (one.input, read(store, one.id).input) == (kept.input, {})
    # The answer is still to be fetched.
    assert read(store, unkept.id).result == {"file": "f1", "seed": 7}


def test_unkept_request_is_forgotten_with_its_picture_but_not_before_its_webhook_is_sent(
    store: Store,
) -> None:
    def picture(name: str, request_id: str | None) -> FileRecord:
        return FileRecord(
            id=name,
            key_id="nobody",
            request_id=request_id,
            name="picture.png",
            content_type="image/png",
            media_key=f"uploads/{name}/picture.png",
            size=1,
            digest="d",
            created=NOW,
            expires=NOW + 9999,
            complete=True,
        )

    inside = ask(store_io=False, picture="file:inside")
    hosted = ask(store_io=False, picture="file:hosted", webhook="http://hook/x")
    submit(store, ask())
    for new in (inside, hosted):
        submit(store, new)
    for record in (picture("inside", inside.id), picture("hosted", None)):
        store.write_now(lambda conn, record=record: add_file(conn, record))
    for _ in range(3):
        finish(store, claimed(store))

    def drop(before: float) -> int:
        return store.write_now(lambda conn: drop_unstored_requests(conn, before, 10))

    assert (drop(NOW + 5), drop(NOW + 6)) == (0, 1)
    assert [file.id for file in store.read_now(lambda conn: expired_files(conn, NOW + 6, 9))] == ["inside"]
    store.write_now(lambda conn: conn.execute(update(outbox.outbox).values(delivered=NOW + 6)))
    assert drop(NOW + 6) == 1
    assert [file.id for file in store.read_now(lambda conn: expired_files(conn, NOW + 6, 9))] == ["inside"]


def test_request_that_is_not_to_be_retried_fails_with_its_first_runner(store: Store) -> None:
    submit(store, ask(retry=False))
    held = claimed(store)
    # A restart or a drain is no failure of the request.
    assert store.write_now(lambda conn: queue.give_back(conn, held.id, held.attempt, NOW))
    held = claimed(store)
    crash = store.write_now(lambda conn: queue.crashed(conn, held.id, held.attempt, now=NOW, max_crashes=3))
    assert crash is State.DONE
    failed = read(store, held.id)
    assert failed.failure is not None and failed.failure.kind == "runner_disconnected"


@pytest.mark.parametrize("ending", ["finish", "cancel ready", "cancel running", "deadline", "crash"])
def test_held_requests_are_promoted_in_order_however_the_one_before_ends(store: Store, ending: str) -> None:
    key = limited_key(store, 1)
    start_by = NOW + 1 if ending == "deadline" else None
    requests = [
        # The second is the last in line.
        submit(store, ask(key_id=key, start_by=start_by if n == 0 else None, low_priority=n == 1))
        for n in range(4)
    ]
    ids = [request.id for request in sorted(requests, key=lambda request: request.ord)]

    def states() -> list[State]:
        return [read(store, request_id).state for request_id in ids]

    assert states() == [State.READY, State.HELD, State.HELD, State.HELD]
    if ending == "deadline":
        assert (
            store.write_now(lambda conn: queue.expire_waiting(conn, now=NOW + 2, steady=NOW + 2)) == ids[:1]
        )
    elif ending == "cancel ready":
        store.write_now(lambda conn: queue.cancel(conn, ids[0], NOW))
    else:
        held = claimed(store)
        if ending == "cancel running":
            store.write_now(lambda conn: queue.cancel(conn, held.id, NOW))
            store.write_now(lambda conn: queue.give_back(conn, held.id, held.attempt, NOW))
        elif ending == "crash":
            store.write_now(lambda conn: queue.crashed(conn, held.id, held.attempt, now=NOW, max_crashes=1))
        else:
            finish(store, held)
    assert states() == [State.DONE, State.READY, State.HELD, State.HELD]
    # A held one that is cancelled frees no place, and the next in line is passed over for nobody.
    store.write_now(lambda conn: queue.cancel(conn, ids[2], NOW))
    assert states() == [State.DONE, State.READY, State.DONE, State.HELD]
    assert read(store, ids[2]).outcome is Outcome.CANCELLED
    assert finish(store, claimed(store))
    assert states()[3] is State.READY
    assert finish(store, claimed(store))
    assert store.read_now(list_keys)[0].active == 0

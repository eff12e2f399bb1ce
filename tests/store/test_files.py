from dataclasses import replace

from sqlalchemy import func, select

from stillmotion.store import files, queue, retention
from stillmotion.store.open import Store
from stillmotion.store.tables import log, outbox, request
from stillmotion.types import FileRecord, Level, LogLine
from tests.store.asks import NOW, OK, ask, claimed, submit

PENDING = FileRecord(
    id="0" * 32,
    key_id="k1",
    request_id=None,
    name="start.png",
    content_type="image/png",
    media_key="uploads/0",
    size=0,
    digest="",
    created=NOW,
    expires=NOW + 100,
    complete=False,
)


def complete(store: Store, file_id: str, now: float = NOW, size: int = 5 * 2**30) -> bool:
    return store.write_now(
        lambda conn: files.complete_file(
            conn, file_id, size=size, digest="ab", content_type="image/jpeg", now=now
        )
    )


def test_upload_completes_once(store: Store) -> None:
    store.write_now(lambda conn: files.add_file(conn, PENDING))
    assert store.read_now(lambda conn: files.get_file(conn, PENDING.id)) == PENDING
    assert complete(store, PENDING.id)
    assert not complete(store, PENDING.id, size=1)
    assert not complete(store, "unknown")
    assert store.read_now(lambda conn: files.get_file(conn, PENDING.id)) == replace(
        PENDING, size=5 * 2**30, digest="ab", content_type="image/jpeg", complete=True
    )


def test_expired_upload_cannot_complete(store: Store) -> None:
    store.write_now(lambda conn: files.add_file(conn, PENDING))
    assert not complete(store, PENDING.id, now=NOW + 100)


def test_expired_files_are_listed_oldest_first_then_dropped(store: Store) -> None:
    expiries = [NOW + 30, NOW + 10, NOW + 20, None]
    for n, expires in enumerate(expiries):
        store.write_now(
            lambda conn, n=n, expires=expires: files.add_file(
                conn, replace(PENDING, id=f"f{n}", expires=expires)
            )
        )
    due = store.read_now(lambda conn: files.expired_files(conn, NOW + 20, 10))
    assert [each.id for each in due] == ["f1", "f2"]
    assert len(store.read_now(lambda conn: files.expired_files(conn, NOW + 90, 1))) == 1
    store.write_now(lambda conn: files.drop_files(conn, [each.id for each in due]))
    assert store.read_now(lambda conn: files.get_file(conn, "f1")) is None
    left = store.read_now(lambda conn: files.expired_files(conn, NOW + 90, 10))
    assert [each.id for each in left] == ["f0"]


def test_old_finished_requests_go_with_their_logs_and_webhook_rows(store: Store) -> None:
    words = [LogLine(at=NOW, level=Level.INFO, message="done")]
    for n in range(3):
        submit(store, ask(webhook="http://hook/x"))
        held = claimed(store)
        store.write_now(
            lambda conn, held=held, n=n: queue.finish(conn, held.id, held.attempt, OK, words, NOW + n)
        )
    waiting = submit(store, ask(), NOW - 100)
    assert store.write_now(lambda conn: retention.drop_old_requests(conn, NOW + 2, 1)) == 1
    assert store.write_now(lambda conn: retention.drop_old_requests(conn, NOW + 2, 10)) == 1
    assert store.write_now(lambda conn: retention.drop_old_requests(conn, NOW + 2, 10)) == 0

    def rows(table: str) -> int:
        chosen = {"request": request, "log": log, "outbox": outbox}[table]
        return store.read_now(
            lambda conn: conn.execute(select(func.count()).select_from(chosen)).scalar_one()
        )

    assert {table: rows(table) for table in ("request", "log", "outbox")} == {
        "request": 2,
        "log": 1,
        "outbox": 1,
    }
    assert store.read_now(lambda conn: queue.get(conn, waiting.id)) is not None

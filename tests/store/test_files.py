from collections.abc import Callable
from dataclasses import replace

from sqlalchemy import Connection, func, select, update

from stillmotion.store import files, parts, queue, retention
from stillmotion.store.open import Store
from stillmotion.store.tables import log, outbox, request
from stillmotion.types import Access, Acl, FileRecord, Level, LogLine, UploadPart
from tests.store.asks import NOW, OK, ask, claimed, submit
from tests.store.test_interleavings import interleave

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
            conn, file_id, size=size, digest="ab", content_type="image/jpeg", now=now, media_key="uploads/1"
        )
    )


def test_upload_completes_once(store: Store) -> None:
    store.write_now(lambda conn: files.add_file(conn, PENDING))
    assert store.read_now(lambda conn: files.get_file(conn, PENDING.id)) == PENDING
    assert complete(store, PENDING.id)
    assert not complete(store, PENDING.id, size=1)
    assert not complete(store, "unknown")
    assert store.read_now(lambda conn: files.get_file(conn, PENDING.id)) == replace(
        PENDING,
        size=5 * 2**30,
        digest="ab",
        content_type="image/jpeg",
        media_key="uploads/1",
        complete=True,
    )


def test_expired_upload_cannot_complete(store: Store) -> None:
    store.write_now(lambda conn: files.add_file(conn, PENDING))
    assert not complete(store, PENDING.id, now=NOW + 100)


def test_an_upload_lives_on_from_its_completion(store: Store) -> None:
    acl = Acl(default=Access.HIDE, rules={"k2": Access.ALLOW, "k3": Access.FORBID})
    store.write_now(lambda conn: files.add_file(conn, replace(PENDING, keep_s=60, acl=acl)))
    assert complete(store, PENDING.id, now=NOW + 99)
    kept = store.read_now(lambda conn: files.get_file(conn, PENDING.id))
    assert kept is not None
    assert (kept.expires, kept.acl) == (NOW + 159, acl)


def test_parts_add_up_and_a_later_try_replaces_the_first(store: Store) -> None:
    def put(number: int, size: int, key: str, now: float = NOW) -> parts.Placed | None:
        part = UploadPart(number=number, size=size, digest=f"d{key}", media_key=key)
        return store.write_now(lambda conn: parts.put_part(conn, PENDING.id, part, now))

    assert put(1, 5, "a") is None, "there is no such upload"
    store.write_now(lambda conn: files.add_file(conn, PENDING))
    assert put(2, 3 * 2**30, "b") == parts.Placed(3 * 2**30, None)
    assert put(1, 5, "c") == parts.Placed(3 * 2**30 + 5, None)
    assert put(2, 7, "d") == parts.Placed(12, "b")
    held = store.read_now(lambda conn: parts.get_parts(conn, PENDING.id))
    assert [(part.number, part.size, part.digest, part.media_key) for part in held] == [
        (1, 5, "dc", "c"),
        (2, 7, "dd", "d"),
    ]
    pending = store.read_now(lambda conn: files.get_file(conn, PENDING.id))
    assert pending is not None and (pending.size, pending.complete) == (12, False)
    assert put(3, 1, "e", NOW + 100) is None, "given up"
    assert complete(store, PENDING.id)
    assert put(3, 1, "e") is None, "complete"
    store.write_now(lambda conn: parts.drop_parts(conn, PENDING.id))
    assert store.read_now(lambda conn: parts.get_parts(conn, PENDING.id)) == []


def test_parts_beside_each_other_add_up(store: Store, store_url: str) -> None:
    store.write_now(lambda conn: files.add_file(conn, PENDING))

    def put(number: int) -> Callable[[Connection], object]:
        part = UploadPart(number=number, size=number, digest="d", media_key=f"part{number}")
        return lambda conn: parts.put_part(conn, PENDING.id, part, NOW)

    interleave(store_url, put(1), put(2))
    whole = store.read_now(lambda conn: files.get_file(conn, PENDING.id))
    assert whole is not None and whole.size == 3


def test_parts_go_with_their_upload(store: Store) -> None:
    part = UploadPart(number=1, size=1, digest="d", media_key="a")
    store.write_now(lambda conn: files.add_file(conn, PENDING))
    store.write_now(lambda conn: parts.put_part(conn, PENDING.id, part, NOW))
    store.write_now(lambda conn: files.drop_files(conn, [PENDING.id]))
    assert store.read_now(lambda conn: parts.get_parts(conn, PENDING.id)) == []


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
    store.write_now(lambda conn: conn.execute(update(outbox).values(delivered=NOW)))
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

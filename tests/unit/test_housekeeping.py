"""What the server forgets, and what it must never forget."""

import asyncio
import os
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import insert

from stillmotion.cli import housekeeping
from stillmotion.cli.housekeeping import drop_unnamed_films, drop_unrecorded, keep_house
from stillmotion.errors import DataRefused, StoreUnavailable
from stillmotion.media.store import MediaStore, open_media
from stillmotion.settings import DAY_S, Settings
from stillmotion.store import files, queue
from stillmotion.store.endings import CANCELLED
from stillmotion.store.open import Store
from stillmotion.store.tables import upload_part
from stillmotion.types import FileRecord
from tests.manual_clock import ManualClock
from tests.store.asks import NOW, OK, ask, claimed, finish, submit

pytestmark = pytest.mark.anyio


def film_of(request_id: str, attempt: int) -> str:
    return f"films/{request_id}/{attempt}/film.mp4"


def record(media_key: str, request_id: str | None) -> FileRecord:
    return FileRecord(
        id="f1",
        key_id="k1",
        request_id=request_id,
        name="film.mp4",
        content_type="video/mp4",
        media_key=media_key,
        size=4,
        digest="",
        created=NOW,
        expires=None,
        complete=True,
    )


async def put(media: MediaStore, tmp_path: Path, key: str) -> str:
    source = tmp_path / "film.mp4"
    source.write_bytes(b"film")
    await media.publish(source, key)
    return key


async def left(media: MediaStore, folder: str = "films") -> set[str]:
    return {key async for keys in media.keys(folder) for key in keys}


async def test_f04_films_no_result_names_are_removed_and_no_others(store: Store, tmp_path: Path) -> None:
    media = open_media(tmp_path)
    assert await drop_unnamed_films(store, media) == 0
    made, cancelled, running = (submit(store, ask()).id for _ in range(3))
    claimed(store)
    again = store.write_now(lambda conn: queue.give_back(conn, made, 1, NOW)) and claimed(store)
    assert again and (again.id, again.attempt) == (made, 2)
    store.write_now(lambda conn: files.add_file(conn, record(film_of(made, 2), made)))
    assert finish(store, again, replace(OK, result={"file": "f1", "seed": 7}))
    assert finish(store, claimed(store), CANCELLED)
    assert claimed(store).id == running
    kept = {
        await put(media, tmp_path, film_of(made, 2)),
        await put(media, tmp_path, film_of(running, 1)),
        await put(media, tmp_path, film_of("of-another-database", 1)),
    }
    for key in (film_of(made, 1), film_of(cancelled, 1)):
        await put(media, tmp_path, key)
    assert await drop_unnamed_films(store, media) == 2
    assert await left(media) == kept


async def test_uploads_without_a_record_are_removed_once_old(store: Store, tmp_path: Path) -> None:
    media = open_media(tmp_path)
    store.write_now(lambda conn: files.add_file(conn, record("uploads/recorded", None)))
    part = {"file_id": "f1", "number": 1, "size": 4, "digest": "", "media_key": "uploads/f1/part"}
    store.write_now(lambda conn: conn.execute(insert(upload_part).values(part)))
    for name in ("recorded", "f1/part", "orphan", "fresh"):
        await put(media, tmp_path, f"uploads/{name}")
        os.utime(tmp_path / "media" / "uploads" / name, (NOW, NOW + (name == "fresh")))
    assert await drop_unrecorded(store, media, "uploads", NOW + 1) == 1
    assert await left(media, "uploads") == {"uploads/recorded", "uploads/f1/part", "uploads/fresh"}


@pytest.mark.parametrize("fault", [DataRefused("once"), OSError("once"), StoreUnavailable("once")])
async def test_house_is_kept_again_and_again_and_a_failure_ends_nothing(
    sqlite_store: Store,
    tmp_path: Path,
    clock: ManualClock,
    monkeypatch: pytest.MonkeyPatch,
    fault: Exception,
) -> None:
    store = sqlite_store
    monkeypatch.setattr(housekeeping, "FORGET_EVERY_S", 0.01)
    media, renewed = open_media(tmp_path), list[int]()
    old, cancelled = (submit(store, ask()).id for _ in range(2))
    assert finish(store, claimed(store)) and finish(store, claimed(store), CANCELLED)
    store.write_now(lambda conn: files.add_file(conn, replace(record("uploads/f1", None), expires=NOW + 1)))
    keys = ("uploads/f1", film_of(cancelled, 1))
    for key in keys:
        await put(media, tmp_path, key)

    def renew() -> None:
        renewed.append(1)
        if len(renewed) == 1:
            raise fault

    def state() -> tuple[int, int, int]:
        request = store.read_now(lambda conn: queue.get(conn, old))
        there = [key for key in keys if (tmp_path / "media" / key).exists()]
        return int(request is not None), len(there), len(renewed)

    settings = Settings(data_dir=tmp_path, request_days=1)
    keeping = asyncio.create_task(keep_house(settings, store, media, clock, renew))
    async with asyncio.timeout(30):
        for expected in ((1, 1, 1), (0, 0, 2)):
            while state() != expected:
                assert not keeping.done()
                await asyncio.sleep(0.01)
            clock.advance(2 * DAY_S)
    keeping.cancel()
    await asyncio.wait({keeping})


async def test_bytes_that_cannot_be_removed_keep_nothing_else(
    sqlite_store: Store, tmp_path: Path, clock: ManualClock
) -> None:
    store, media = sqlite_store, open_media(tmp_path)
    old = submit(store, ask()).id
    assert finish(store, claimed(store))
    for number, name in enumerate(("stuck", "next"), 1):
        file = replace(record(f"uploads/{name}", None), id=name, expires=NOW + number)
        store.write_now(lambda conn, file=file: files.add_file(conn, file))
    (tmp_path / "media" / "uploads" / "stuck").mkdir(parents=True)
    await put(media, tmp_path, "uploads/next")
    clock.advance(2 * DAY_S)
    settings = Settings(data_dir=tmp_path, request_days=1)
    keeping = asyncio.create_task(keep_house(settings, store, media, clock, threading.Event().set))
    async with asyncio.timeout(30):
        while store.read_now(lambda conn: queue.get(conn, old)) is not None:
            assert not keeping.done()
            await asyncio.sleep(0.01)
    keeping.cancel()
    await asyncio.wait({keeping})
    assert await left(media, "uploads") == set()
    found = store.read_now(lambda conn: files.expired_files(conn, clock.now(), 10))
    assert [file.id for file in found] == ["stuck"]


async def test_films_of_nobody_are_removed_when_no_database_would_keep_them_any_longer(
    store: Store, tmp_path: Path, clock: ManualClock
) -> None:
    media = open_media(tmp_path)
    settings = Settings(data_dir=tmp_path, output_days=30)
    store.write_now(lambda conn: files.add_file(conn, record(film_of("recorded", 1), "recorded")))
    for name, days in (("recorded", 31), ("old", 31), ("young", 29)):
        key = await put(media, tmp_path, film_of(name, 1))
        written = clock.now() - days * DAY_S
        os.utime(tmp_path / "media" / key, (written, written))
    swept = threading.Event()
    keeping = asyncio.create_task(keep_house(settings, store, media, clock, swept.set))
    assert await asyncio.to_thread(swept.wait, 30)
    keeping.cancel()
    await asyncio.wait({keeping})
    assert await left(media) == {film_of("recorded", 1), film_of("young", 1)}

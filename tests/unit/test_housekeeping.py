"""What the server forgets, and what it must never forget."""

from dataclasses import replace
from pathlib import Path

import pytest

from stillmotion.cli.housekeeping import drop_unnamed_films
from stillmotion.media.store import MediaStore, open_media
from stillmotion.store import files, queue
from stillmotion.store.endings import CANCELLED
from stillmotion.store.open import Store
from stillmotion.types import FileRecord
from tests.store.asks import NOW, OK, ask, claimed, finish, submit

pytestmark = pytest.mark.anyio


def film_of(request_id: str, attempt: int) -> str:
    return f"films/{request_id}/{attempt}/film.mp4"


async def put(media: MediaStore, tmp_path: Path, key: str) -> str:
    source = tmp_path / "film.mp4"
    source.write_bytes(b"film")
    await media.publish(source, key)
    return key


async def left(media: MediaStore) -> set[str]:
    return {key async for keys in media.keys("films") for key in keys}


async def test_f04_films_no_result_names_are_removed_and_no_others(store: Store, tmp_path: Path) -> None:
    media = open_media(tmp_path)
    assert await drop_unnamed_films(store, media) == 0
    made, cancelled, running = (submit(store, ask()).id for _ in range(3))
    claimed(store)
    again = store.write_now(lambda conn: queue.give_back(conn, made, 1, NOW)) and claimed(store)
    assert again and (again.id, again.attempt) == (made, 2)
    record = FileRecord(
        id="f1",
        key_id="k1",
        request_id=made,
        name="film.mp4",
        content_type="video/mp4",
        media_key=film_of(made, 2),
        size=4,
        digest="",
        created=NOW,
        expires=NOW + 100,
        complete=True,
    )
    store.write_now(lambda conn: files.add_file(conn, record))
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

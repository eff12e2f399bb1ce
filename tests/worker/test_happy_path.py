import hashlib
from pathlib import Path

import pytest

from stillmotion.store.open import Store
from stillmotion.types import Level, Outcome, State
from stillmotion.video import read_frames
from tests.worker.house import open_house, png

pytestmark = pytest.mark.anyio


async def test_a_prompt_becomes_a_published_film_with_log_progress_and_timings(
    store: Store, tmp_path: Path
) -> None:
    async with open_house(store, tmp_path) as house:
        row = await house.ended(await house.submit("a rocket steps=3"))
        [film] = await house.films()
        assert (row.outcome, row.result, row.attempt) == (Outcome.OK, {"file": film.id, "seed": 7}, 1)
        assert row.fingerprint == house.worker.fingerprint == "timed-cpu"
        assert row.progress == {"stage": "denoise", "step": 3, "steps": 3}
        assert {"denoise", "decode", "queue", "publish"} <= row.timings.keys()
        assert (await house.log(row)).startswith("started on cpu\nstep 1/3")
        [path] = house.film_bytes()
        assert (film.size, film.digest) == (
            path.stat().st_size,
            hashlib.sha256(path.read_bytes()).hexdigest(),
        )
        assert (film.complete, film.content_type, film.request_id) == (True, "video/mp4", row.id)
        assert film.expires == pytest.approx(film.created + 30 * 86_400)
        assert read_frames(path).shape == (25, 256, 256, 3)
        # Cleared right after the ending is written.
        await house.until(lambda: not list((tmp_path / "scratch").iterdir()), "scratch to be cleared")


async def test_an_uploaded_picture_reaches_the_runner(sqlite_store: Store, tmp_path: Path) -> None:
    async with open_house(sqlite_store, tmp_path) as house:
        row = await house.ended(await house.submit(picture=await house.upload(png((200, 40, 90)))))
        assert row.outcome is Outcome.OK
        corner = read_frames(house.film_bytes()[0])[0, 5, 5]
        assert abs(corner.astype(int) - (200, 40, 90)).max() < 8


async def test_equal_requests_give_equal_bytes(sqlite_store: Store, tmp_path: Path) -> None:
    async with open_house(sqlite_store, tmp_path) as house:
        for _ in range(2):
            await house.ended(await house.submit())
        one, two = await house.films()
        assert one.digest == two.digest


async def test_two_devices_work_side_by_side(sqlite_store: Store, tmp_path: Path) -> None:
    async with open_house(sqlite_store, tmp_path, devices=2) as house:
        await house.until(lambda: "cpu, cpu1" in house.worker.readiness().reason, "both ready")
        both = [await house.submit("steps=1000 pause=0.02") for _ in range(2)]
        for request in both:
            await house.at_step(request)
        assert {(await house.read(request)).owner for request in both} != {None}
        for request in both:
            await house.cancel(request)
            assert (await house.ended(request)).outcome is Outcome.CANCELLED


async def test_what_the_model_prints_is_the_request_s_log(sqlite_store: Store, tmp_path: Path) -> None:
    async with open_house(sqlite_store, tmp_path) as house:
        row = await house.ended(await house.submit("print=hello"))
        assert await house.printed(row, Level.STDOUT) == ["hello"]
        assert await house.printed(row, Level.STDERR) == ["hello"]
        row = await house.ended(await house.submit("print=bytes"))
        assert await house.printed(row, Level.STDOUT) == ["caf\ufffd \ufffd done"]


async def test_a_flood_of_output_is_capped_and_the_film_is_made(sqlite_store: Store, tmp_path: Path) -> None:
    async with open_house(sqlite_store, tmp_path) as house:
        row = await house.ended(await house.submit("print=flood"))
        assert row.outcome is Outcome.OK
        assert "truncated: " in await house.log(row)
        assert len(await house.printed(row, Level.STDOUT)) <= 5000
        assert (await house.ended(await house.submit())).outcome is Outcome.OK


async def test_a_request_past_its_deadline_is_never_started(sqlite_store: Store, tmp_path: Path) -> None:
    async with open_house(sqlite_store, tmp_path) as house:
        first = await house.submit("steps=1000 pause=0.02")
        await house.at_step(first)
        late = await house.ended(await house.submit(start_by=house.clock.steady() + 0.1))
        assert late.failure is not None
        assert (late.failure.status, late.failure.kind, late.attempt) == (504, "request_timeout", 0)
        assert (await house.read(first)).state is State.RUNNING

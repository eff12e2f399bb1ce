import asyncio
import hashlib
import os
from pathlib import Path

import pytest

from stillmotion.store.open import Store
from stillmotion.types import Level, Outcome, State
from stillmotion.video import read_frames
from stillmotion.work.runners import PENDING_CHARS, PENDING_LINES, PRINTED_LINE_CHARS, Notes, Printed
from tests.manual_clock import ManualClock
from tests.worker.house import PATIENCE_S, open_house, png

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
        assert all(0 < seconds < PATIENCE_S for seconds in row.timings.values())
        steps = [f"step {step}/3 (0.01 s)" for step in (1, 2, 3)]
        assert (await house.log(row)).splitlines() == ["started on cpu", *steps]
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


async def test_a_film_made_under_another_fingerprint_is_kept_with_that_one(
    sqlite_store: Store, tmp_path: Path
) -> None:
    async with open_house(sqlite_store, tmp_path) as house:
        row = await house.ended(await house.submit("made_under=smaller"))
        assert (row.outcome, row.fingerprint) == (Outcome.OK, "smaller")
        assert (await house.ended(await house.submit())).fingerprint == "timed-cpu"


async def test_no_heartbeat_is_waited_for_to_tell_progress_to_hear_a_cancel_or_to_wake_who_waits(
    sqlite_store: Store, tmp_path: Path
) -> None:
    rare = {"heartbeat_s": 600, "sweep_s": 600, "lease_s": 60, "cancel_grace_s": 0.2}
    async with open_house(sqlite_store, tmp_path, **rare) as house:
        request = await house.submit("hang_at=2")
        await house.at_step(request)
        webhook = asyncio.create_task(house.wakeup.wait("webhook", PATIENCE_S))
        await house.cancel(request)
        while True:
            hint = asyncio.create_task(house.wakeup.wait(f"request:{request.id}", PATIENCE_S))
            if (await house.read(request)).outcome is Outcome.CANCELLED:
                break
            assert await hint
        hint.cancel()
        assert await webhook


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
        row = await house.ended(await house.submit("print=unended"))
        assert await house.printed(row, Level.STDOUT) == ["no end"]


async def test_what_a_model_says_after_its_film_is_nobodys_log(sqlite_store: Store, tmp_path: Path) -> None:
    async with open_house(sqlite_store, tmp_path) as house:
        first = await house.ended(await house.submit("late"))
        second = await house.ended(await house.submit("steps=20 pause=0.02"))
        assert second.outcome is Outcome.OK
        assert "too late" not in await house.log(first) + await house.log(second)


@pytest.mark.parametrize(("line", "most"), [("x", PENDING_LINES), ("x" * (PENDING_CHARS // 8), 8)])
async def test_lines_that_come_faster_than_they_are_kept_are_counted_and_told(
    clock: ManualClock, line: str, most: int
) -> None:
    notes = Notes(clock, asyncio.Event())
    for _ in range(2):
        for _ in range(most + 5):
            notes.log(line)
        assert len(notes.lines) == most
        notes.written(most, None)
        (told,) = notes.lines
        assert told.message == "truncated: 5 lines came faster than they could be kept"
        notes.written(1, None)


async def test_a_line_without_end_is_cut_and_not_kept() -> None:
    ours, theirs = os.pipe()
    said: list[str] = []
    printed = Printed(ours, lambda line, level: said.append(line), Level.STDOUT)
    for _ in range(20):
        os.write(theirs, b"x" * 10_000)
        printed.drain()
    printed.close()
    os.close(theirs)
    assert [len(line) for line in said] == [PRINTED_LINE_CHARS] * 20


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

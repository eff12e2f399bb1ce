"""A worker works under leases: it keeps them, and drops what it could not keep."""

import asyncio
import logging
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, event, select
from sqlalchemy.exc import OperationalError

from stillmotion.clock import SystemClock
from stillmotion.store import databases, queue
from stillmotion.store.open import Store, open_store
from stillmotion.store.tables import request as requests
from stillmotion.types import Outcome, State
from stillmotion.work.attempts import Attempt
from stillmotion.work.runners import Notes, Runner
from tests.commits import lost_answer
from tests.worker.house import open_house, png

pytestmark = pytest.mark.anyio

LONG = "steps=1000 pause=0.02"


async def test_a_lost_lease_stops_the_runner(sqlite_store: Store, tmp_path: Path) -> None:
    # Long, so that it is the loss that stops it and not the time.
    async with open_house(sqlite_store, tmp_path, lease_s=60) as house:
        request = await house.submit(LONG)
        row = await house.at_step(request)
        child, now = house.child, house.clock.now()
        # Not through the worker: as another server would that took the lease for lapsed.
        await house.store.write(lambda conn: queue.give_back(conn, row.id, row.attempt, now))
        await house.becomes(request, lambda row: row.attempt == 2, "claimed again")
        assert not child.is_running()
        assert (await house.read(request)).crashes == 0
        await house.cancel(request)
        assert (await house.ended(request)).outcome is Outcome.CANCELLED


async def test_work_whose_lease_cannot_be_renewed_is_dropped_before_it_lapses(
    sqlite_store: Store, tmp_path: Path
) -> None:
    async with open_house(sqlite_store, tmp_path, lease_s=2) as house:
        request = await house.submit("steps=100 pause=0.02")
        await house.at_step(request)
        child = house.child
        blocker = sqlite3.connect(tmp_path / "stillmotion.db", isolation_level=None)
        blocker.execute("BEGIN IMMEDIATE")
        await house.until(lambda: not child.is_running(), "the runner is killed", timeout_s=4)
        blocker.execute("ROLLBACK")
        blocker.close()
        row = await house.ended(request)
        assert (row.outcome, row.crashes) == (Outcome.OK, 0)
        assert len(await house.films()) == 1


async def test_an_attempt_that_ends_clears_nothing_of_the_next_one(
    sqlite_store: Store, tmp_path: Path
) -> None:
    scratch = tmp_path / "scratch"
    async with open_house(sqlite_store, tmp_path) as house:
        request = await house.submit(LONG)
        row = await house.at_step(request)
        notes = Notes(house.clock, asyncio.Event())
        newer = Attempt(
            replace(row, attempt=2), Runner("cpu", lambda: None), notes, scratch, held_until=0, claimed=0
        )
        # Given back, it may begin on another device before what the first one left is cleared.
        newer.folder.mkdir(parents=True)
        await house.cancel(request)
        await house.ended(request)
        await house.until(lambda: list(scratch.rglob("*")) == [newer.folder], "the first one's to be cleared")


@pytest.fixture
def impatient_store(sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """A store that does not wait for a locked file."""
    monkeypatch.setattr(databases, "BUSY_TIMEOUT_S", 0.05)
    store = open_store(sqlite_url)
    yield store
    store.close_now()


@pytest.mark.parametrize("told_to_stop", [False, True])
async def test_an_ending_the_database_refuses_is_written_later_unless_the_worker_is_told_to_stop(
    impatient_store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture, told_to_stop: bool
) -> None:
    with closing(sqlite3.connect(tmp_path / "stillmotion.db", isolation_level=None)) as blocker:
        async with open_house(impatient_store, tmp_path, lease_s=60) as house:
            request = await house.submit("steps=30 pause=0.02")
            await house.at_step(request)
            blocker.execute("BEGIN IMMEDIATE")
            await house.until(lambda: "ending not written" in caplog.text, "the refusal")
            if not told_to_stop:
                blocker.execute("ROLLBACK")
                row = await house.ended(request)
                assert (row.outcome, row.attempt) == (Outcome.OK, 1)
    row = impatient_store.read_now(lambda conn: queue.get(conn, request.id))
    assert row is not None and (row.state is State.RUNNING) == told_to_stop


async def test_a_film_whose_ending_was_kept_without_an_answer_stays(
    sqlite_store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "stillmotion")
    ended = select(requests.c.id).where(requests.c.outcome.is_not(None))
    with lost_answer(ended) as lost:
        async with open_house(sqlite_store, tmp_path) as house:
            request = await house.submit("steps=1")
            await house.until(lambda: "kept=" in caplog.text, "the attempt's end")
    assert lost == [request.id] and "ending not written" in caplog.text
    assert len(await house.films()) == len(house.film_bytes()) == 1


async def test_a_picture_whose_record_cannot_be_read_is_tried_again_after_a_pause(
    sqlite_store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    refused_until: list[float] = []

    def refuse(conn: Any, cursor: Any, statement: str, *rest: Any) -> None:
        if "FROM file" in statement:
            refused_until.append(time.monotonic() + 1.5)
            if time.monotonic() < refused_until[0]:
                raise OperationalError(statement, {}, Exception("too many clients"))

    async with open_house(sqlite_store, tmp_path) as house:
        picture = await house.upload(png((200, 30, 30)))
        event.listen(Engine, "before_cursor_execute", refuse)
        try:
            row = await house.ended(await house.submit(picture=picture))
        finally:
            event.remove(Engine, "before_cursor_execute", refuse)
        assert row.outcome is Outcome.OK
        assert row.attempt <= 3
    assert "its picture's record cannot be read" in caplog.text and "too many clients" in caplog.text


async def test_an_idle_worker_is_ready_again_as_soon_as_its_database_is(
    impatient_store: Store, tmp_path: Path
) -> None:
    with closing(sqlite3.connect(tmp_path / "stillmotion.db", isolation_level=None)) as blocker:
        async with open_house(impatient_store, tmp_path) as house:
            blocker.execute("BEGIN IMMEDIATE")
            await house.until(lambda: "takes no writes" in house.worker.readiness().reason, "the reason")
            assert not house.worker.readiness().ready
            blocker.execute("ROLLBACK")
            await house.until(lambda: house.worker.readiness().ready, "ready again")


class RunningClock(SystemClock):
    """A clock whose time passes as told, beside its own."""

    ahead_s = 0.0

    def steady(self) -> float:
        return super().steady() + self.ahead_s


@pytest.mark.parametrize(
    "renewals", [{"heartbeat_s": 0.02}, {"heartbeat_s": 600, "log_flush_s": 600, "sweep_s": 0.02}]
)
async def test_a_film_that_takes_longer_than_a_lease_is_made_in_one_attempt(
    sqlite_store: Store, tmp_path: Path, renewals: dict[str, Any]
) -> None:
    clock = RunningClock()
    async with open_house(sqlite_store, tmp_path, clock=clock, lease_s=60, **renewals) as house:
        request = await house.submit(LONG)
        await house.at_step(request)
        for _ in range(3):
            clock.ahead_s += 30
            await house.becomes(
                request, lambda row: (row.lease_until or 0) > clock.steady() + 50, "renewed in time"
            )
        told = (await house.read(request)).progress
        # 0.4 s: the worker looks at its leases every 0.25 s.
        await house.at_step(request, (told or {})["step"] + 20)
        await house.cancel(request)
        row = await house.ended(request)
        assert (row.outcome, row.attempt) == (Outcome.CANCELLED, 1)


class JumpingClock(SystemClock):
    """A wall clock somebody sets."""

    ahead_s = 0.0

    def now(self) -> float:
        return super().now() + self.ahead_s


@pytest.mark.parametrize("jump_s", [-3600, 3600])
async def test_f18_a_clock_that_jumps_lapses_no_lease_and_no_deadline(
    store: Store, tmp_path: Path, jump_s: float, caplog: pytest.LogCaptureFixture
) -> None:
    clock = JumpingClock()
    # Nothing renews a lease in time but what a sweep does first.
    slow = {"heartbeat_s": 600, "log_flush_s": 600, "sweep_s": 0.05}
    async with open_house(store, tmp_path, clock=clock, **slow) as house:
        running = await house.submit("steps=60 pause=0.02")
        waiting = await house.submit(start_by=clock.steady() + 60)
        await house.becomes(running, lambda row: row.state is State.RUNNING, "running")
        clock.ahead_s = jump_s
        swept = clock.now(), clock.steady()
        assert (
            await house.store.write(
                lambda conn: queue.lapse(conn, *swept) + queue.expire_waiting(conn, *swept)
            )
            == []
        )
        for request in (running, waiting):
            row = await house.ended(request)
            assert (row.outcome, row.attempt, row.crashes) == (Outcome.OK, 1, 0)
        assert "lapsed" not in caplog.text

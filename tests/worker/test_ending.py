import asyncio
import logging
import time
from pathlib import Path

import pytest

from stillmotion.store.open import Store
from stillmotion.types import CancelAnswer, Outcome, State
from stillmotion.work.lanes import Lane
from tests.worker.house import PATIENCE_S, open_house

pytestmark = pytest.mark.anyio

LONG = "steps=1000 pause=0.02"


async def test_cancel_of_a_running_request_stops_at_the_next_step_and_the_same_runner_goes_on(
    store: Store, tmp_path: Path
) -> None:
    async with open_house(store, tmp_path) as house:
        request = await house.submit(LONG)
        await house.at_step(request)
        before = house.child.pid
        began = time.monotonic()
        assert await house.cancel(request) is CancelAnswer.ASKED
        row = await house.ended(request)
        assert time.monotonic() - began < 2
        assert (row.outcome, row.result, await house.films()) == (Outcome.CANCELLED, None, [])
        assert (await house.ended(await house.submit())).outcome is Outcome.OK
        assert house.child.pid == before


async def test_a_runner_that_ignores_a_cancel_is_killed_after_the_grace(
    sqlite_store: Store, tmp_path: Path
) -> None:
    async with open_house(sqlite_store, tmp_path, cancel_grace_s=0.5) as house:
        request = await house.submit(f"{LONG} ignore_cancel")
        await house.at_step(request)
        before = house.child.pid
        await house.cancel(request)
        row = await house.ended(request)
        assert (row.outcome, row.crashes) == (Outcome.CANCELLED, 0)
        assert (await house.ended(await house.submit())).outcome is Outcome.OK
        assert house.child.pid != before


async def test_cancel_while_the_picture_is_fetched_never_reaches_the_runner(
    sqlite_store: Store, tmp_path: Path, silent_url: str
) -> None:
    async with open_house(sqlite_store, tmp_path, fetch_allow=["127.0.0.1"]) as house:
        request = await house.submit(picture=silent_url)
        await house.becomes(request, lambda row: row.state is State.RUNNING, "running")
        await house.cancel(request)
        assert (await house.ended(request)).outcome is Outcome.CANCELLED
        assert (await house.ended(await house.submit())).outcome is Outcome.OK


async def test_drain_finishes_what_runs_and_claims_nothing_more(sqlite_store: Store, tmp_path: Path) -> None:
    async with open_house(sqlite_store, tmp_path, devices=2) as house:
        await house.until(lambda: "cpu, cpu1" in house.worker.readiness().reason, "both ready")
        running = await house.submit("steps=50 pause=0.02")
        await house.at_step(running)
        house.worker.drain()
        waiting = await house.submit()
        assert not house.worker.readiness().ready
        row = await house.ended(running)
        assert (row.outcome, row.attempt) == (Outcome.OK, 1)
        await house.until(lambda: house.children() == [], "every child reaped")
        assert (await house.read(waiting)).attempt == 0


@pytest.mark.parametrize("gently", [True, False])
async def test_what_cannot_finish_is_given_back_to_its_place(
    sqlite_store: Store, tmp_path: Path, gently: bool
) -> None:
    async with open_house(sqlite_store, tmp_path, drain_grace_s=0.2) as house:
        request = await house.submit(LONG)
        await house.at_step(request)
        if gently:
            house.worker.drain()
        else:
            house.worker.stop()
        row = await house.becomes(request, lambda row: row.state is State.READY, "given back")
        assert (row.crashes, row.ord, row.attempt) == (0, request.ord, 1)
        await house.until(lambda: house.children() == [], "every child reaped")
    async with open_house(sqlite_store, tmp_path) as house:
        await house.at_step(request)
        await house.cancel(request)
        assert (await house.ended(request)).attempt == 2


async def test_a_drain_before_the_weights_are_loaded_ends_at_once(
    sqlite_store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "stillmotion")
    slow = "tests.timed_engine:open_never"
    async with open_house(sqlite_store, tmp_path, engine=slow, ready=False) as house:
        await house.until(lambda: "loading for ever" in caplog.text, "a runner that loads")
        house.worker.drain()
        await house.until(lambda: house.children() == [], "every child reaped")


async def test_a_drain_while_a_runner_is_being_started_ends_it() -> None:
    ending = asyncio.Event()
    lane = Lane("cpu", ending, lambda: None)
    starting = asyncio.create_task(lane.start("tests.timed_engine:open_never", {}, 10 * PATIENCE_S))
    await asyncio.sleep(0)
    ending.set()
    # There is no process yet that it could end.
    lane.end()
    try:
        await asyncio.wait_for(starting, PATIENCE_S)
    finally:
        await lane.ended()

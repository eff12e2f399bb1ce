"""One film is prepared, one on the device, one being finished: who may begin when, and who is blamed."""

import asyncio
import time
from pathlib import Path

import pytest

from stillmotion.clock import SystemClock
from stillmotion.store.open import Store
from stillmotion.types import Outcome, Request, State
from stillmotion.work.attempts import Attempt
from stillmotion.work.lanes import MOST_AHEAD, SLOW_S, Lane
from stillmotion.work.runners import Notes, Runner
from tests.store.asks import ask, claimed, submit
from tests.worker.house import PATIENCE_S, House, open_house

pytestmark = pytest.mark.anyio


def began(row: Request) -> float:
    return row.created + row.timings["queue"]


def left_runner(row: Request) -> float:
    """When its file was whole."""
    return began(row) + sum(row.timings[stage] for stage in ("denoise", "decode", "close"))


async def told(house: House, request: Request, words: str) -> None:
    """Wait until its log says so; until then the request may not end."""
    deadline = time.monotonic() + PATIENCE_S
    while words not in await house.log(request):
        row = await house.read(request)
        assert row.state is not State.DONE and time.monotonic() < deadline, f"never {words!r}: {row}"
        await house.wakeup.wait(f"request:{request.id}", 0.05)


async def test_a_film_begins_while_the_last_one_is_still_being_written(store: Store, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    async with open_house(store, tmp_path) as house:
        first = await house.submit(f"close_until={gate}")
        second = await house.submit("print=hello")
        await told(house, second, "step 4/4")
        assert (await house.read(first)).state is State.RUNNING
        gate.touch()
        rows = [await house.ended(first), await house.ended(second)]
        assert [row.outcome for row in rows] == [Outcome.OK] * 2
        assert began(rows[1]) < left_runner(rows[0])
        assert ["hello" in await house.log(row) for row in rows] == [False, True]
        assert len(house.film_bytes()) == 2


async def test_what_a_film_printed_is_in_its_log_when_it_is_off_the_device(
    sqlite_store: Store, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    async with open_house(sqlite_store, tmp_path) as house:
        request = await house.submit(f"print=unended close_until={gate}")
        await told(house, request, "no end")
        gate.touch()
        assert (await house.ended(request)).outcome is Outcome.OK


async def test_a_third_film_ends_only_after_the_first(sqlite_store: Store, tmp_path: Path) -> None:
    gates = [tmp_path / "first", tmp_path / "second"]
    async with open_house(sqlite_store, tmp_path) as house:
        first = await house.submit(f"close_until={gates[0]}")
        second = await house.submit(f"close_until={gates[1]}")
        third = await house.submit()
        await told(house, second, "step 4/4")
        gates[0].touch()
        gates[1].touch()
        rows = [await house.ended(request) for request in (first, second, third)]
        assert [row.outcome for row in rows] == [Outcome.OK] * 3
        # Two at most are under way: the encoder holds the device back.
        assert began(rows[2]) >= left_runner(rows[0])


async def test_the_next_request_is_claimed_once_only_decoding_is_left_and_its_cancel_is_instant(
    store: Store, tmp_path: Path
) -> None:
    denoised, decoded = tmp_path / "denoised", tmp_path / "decoded"
    async with open_house(store, tmp_path) as house:
        first = await house.submit(f"steps=3 step_until={denoised} decode_until={decoded}")
        second, third = await house.submit(), await house.submit()
        await house.at_step(first, 2)
        assert (await house.read(second)).state is State.READY
        denoised.touch()
        await house.becomes(second, lambda row: row.state is State.RUNNING, "claimed ahead")
        assert (await house.read(third)).state is State.READY
        await house.cancel(second)
        row = await house.ended(second)
        assert (row.outcome, await house.log(second)) == (Outcome.CANCELLED, "started on cpu")
        # Its place in front of the device goes to the next.
        await house.becomes(third, lambda row: row.state is State.RUNNING, "claimed ahead")
        assert (await house.read(first)).state is State.RUNNING
        decoded.touch()
        assert [(await house.ended(each)).outcome for each in (first, third)] == [Outcome.OK] * 2


def claimed_for(lane: Lane, store: Store, folder: Path, *, retry: bool = True) -> Attempt:
    submit(store, ask(retry=retry))
    notes = Notes(SystemClock(), asyncio.Event(), lane.tell)
    runner = Runner("cpu", lambda: None)
    attempt = Attempt(claimed(store), runner, notes, folder, held_until=0, claimed=0)
    lane.attempts.append(attempt)
    return attempt


async def test_a_device_wants_another_request_when_its_film_is_denoised_and_none_is_about_to_follow(
    sqlite_store: Store, tmp_path: Path
) -> None:
    lane = Lane("cpu", asyncio.Event(), lambda: None)

    def claim() -> Attempt:
        return claimed_for(lane, sqlite_store, tmp_path)

    assert lane.wants_another(0)
    first = claim()
    assert not lane.wants_another(0)
    await lane.take(first)
    for stage, step, wanted in (("denoise", 1, False), ("decode", 2, False), ("denoise", 2, True)):
        first.notes.tell_progress({"stage": stage, "step": step, "steps": 2})
        assert lane.wants_another(0) is wanted
    second = claim()
    assert [lane.wants_another(now) for now in (0, SLOW_S + 1)] == [False, True]
    taking = asyncio.create_task(lane.take(second))
    await asyncio.sleep(0)
    assert not lane.wants_another(SLOW_S + 1)
    first.notes.leave_device()
    await taking
    # The first one's file is whole, and its place on the device has long been another's.
    lane.leave(first)
    assert lane.on_device is second
    second.notes.leave_device()
    for waiting in range(MOST_AHEAD):
        # Each waits for a picture that does not come.
        assert lane.wants_another(SLOW_S + 1), f"{waiting} wait"
        claim()
    assert not lane.wants_another(SLOW_S + 1)


async def test_nobody_overtakes_a_film_that_waits_to_have_the_runner_to_itself(
    sqlite_store: Store, tmp_path: Path
) -> None:
    lane = Lane("cpu", asyncio.Event(), lambda: None)
    first, alone, later = (
        claimed_for(lane, sqlite_store, tmp_path, retry=retry) for retry in (True, False, True)
    )
    await lane.take(first)
    first.running = True
    first.notes.leave_device()
    taking = [asyncio.create_task(lane.take(attempt)) for attempt in (alone, later)]
    await asyncio.sleep(0)
    assert lane.on_device is None
    first.running = False
    lane.leave(first)
    await taking[0]
    assert lane.on_device is alone
    taking[1].cancel()


@pytest.mark.parametrize("gently", [True, False])
async def test_what_was_claimed_ahead_goes_back_to_its_place_when_the_worker_ends(
    sqlite_store: Store, tmp_path: Path, gently: bool
) -> None:
    decoded = tmp_path / "decoded"
    async with open_house(sqlite_store, tmp_path) as house:
        first, second = await house.submit(f"decode_until={decoded}"), await house.submit()
        await house.becomes(second, lambda row: row.state is State.RUNNING, "claimed ahead")
        if gently:
            house.worker.drain()
        else:
            house.worker.stop()
        row = await house.becomes(second, lambda row: row.state is State.READY, "given back")
        assert (row.crashes, row.ord, row.attempt) == (0, second.ord, 1)
        if gently:
            assert (await house.read(first)).state is State.RUNNING
            decoded.touch()
            assert (await house.ended(first)).outcome is Outcome.OK
        await house.until(lambda: house.children() == [], "every child reaped")


@pytest.mark.parametrize("ticks", [1, 2, 3])
async def test_a_drain_while_a_claim_ahead_is_under_way_leaves_it_to_the_next_server(
    sqlite_store: Store, tmp_path: Path, ticks: int
) -> None:
    decoded = tmp_path / "decoded"
    async with open_house(sqlite_store, tmp_path) as house:
        first = await house.submit(f"decode_until={decoded}")
        await told(house, first, "step 4/4")
        second = await house.submit()
        for _ in range(ticks):
            await asyncio.sleep(0)
        house.worker.drain()
        # Writes come in turn: the claim, if it was begun, is kept before this.
        await house.store.write(lambda conn: None)
        await house.becomes(second, lambda row: row.state is State.READY, "given back")
        decoded.touch()
        assert (await house.ended(first)).outcome is Outcome.OK
        await house.until(lambda: house.children() == [], "every child reaped")
        assert (await house.read(second)).state is State.READY


async def test_a_busy_device_claims_nothing_ahead_while_another_is_idle(
    sqlite_store: Store, tmp_path: Path
) -> None:
    decoded = tmp_path / "decoded"
    async with open_house(sqlite_store, tmp_path, devices=2) as house:
        await house.until(lambda: "cpu, cpu1" in house.worker.readiness().reason, "both ready")
        first = await house.submit(f"decode_until={decoded}")
        await told(house, first, "step 4/4")
        busy = (await house.log(first)).splitlines()[0]
        # Both hear of each request; often enough that the busy one would be first if it might.
        for _ in range(12):
            request = await house.submit()
            free = asyncio.create_task(house.wakeup.wait("queue", PATIENCE_S))
            second = await house.ended(request)
            assert second.outcome is Outcome.OK
            assert (await house.log(second)).splitlines()[0] != busy
            assert await free, "the device that made it is idle again"
        assert (await house.read(first)).state is State.RUNNING
        decoded.touch()
        assert (await house.ended(first)).outcome is Outcome.OK


async def test_a_picture_that_does_not_come_keeps_the_device_from_nobody(
    sqlite_store: Store, tmp_path: Path, silent_url: str
) -> None:
    async with open_house(sqlite_store, tmp_path, fetch_allow=["127.0.0.1"]) as house:
        waiting = await house.submit(picture=silent_url)
        row = await house.ended(await house.submit())
        assert row.outcome is Outcome.OK
        assert (await house.read(waiting)).state is State.RUNNING
        await house.cancel(waiting)
        assert (await house.ended(waiting)).outcome is Outcome.CANCELLED


async def test_a_dead_runner_is_replaced_while_a_picture_does_not_come(
    sqlite_store: Store, tmp_path: Path, silent_url: str
) -> None:
    async with open_house(
        sqlite_store, tmp_path, fetch_allow=["127.0.0.1"], fetch_timeout_s=2 * PATIENCE_S
    ) as house:
        waiting = await house.submit(picture=silent_url)
        row = await house.ended(await house.submit("crash_at=2 until=1"))
        assert (row.outcome, row.crashes) == (Outcome.OK, 1)
        row = await house.read(waiting)
        assert (row.state, row.crashes, row.attempt) == (State.RUNNING, 0, 2)
        await house.cancel(waiting)
        assert (await house.ended(waiting)).outcome is Outcome.CANCELLED


async def test_a_death_with_two_films_is_counted_for_neither_and_the_guilty_one_found_alone(
    sqlite_store: Store, tmp_path: Path
) -> None:
    gate, decoded = tmp_path / "gate", tmp_path / "decoded"
    async with open_house(sqlite_store, tmp_path) as house:
        poison = await house.submit(f"close_until={gate} crash_at=close")
        good = await house.submit(f"decode_until={decoded}")
        await house.at_step(good)
        gate.touch()
        await told(house, poison, "the runner died (signal 9) with two films; this one runs again")
        gate.unlink()
        # It is off the device again, and the other one waits: nothing may be beside it now.
        await told(house, poison, "started on cpu again")
        await house.becomes(good, lambda row: row.attempt == 2, "claimed ahead")
        gate.touch()
        decoded.touch()
        bad = await house.ended(poison)
        assert bad.failure is not None
        assert (bad.failure.kind, bad.crashes, bad.attempt) == ("runner_disconnected", 3, 4)
        row = await house.ended(good)
        assert (row.outcome, row.crashes) == (Outcome.OK, 0)


async def test_a_film_that_is_not_to_be_made_twice_has_the_runner_to_itself(
    sqlite_store: Store, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    async with open_house(sqlite_store, tmp_path) as house:
        requests = [
            await house.submit(f"close_until={gate}"),
            await house.submit("frames=200", retry=False),
            await house.submit(),
        ]
        await told(house, requests[0], "step 4/4")
        gate.touch()
        rows = [await house.ended(request) for request in requests]
        assert [row.outcome for row in rows] == [Outcome.OK] * 3
        assert began(rows[1]) >= left_runner(rows[0])
        assert began(rows[2]) >= left_runner(rows[1])


async def test_a_film_that_is_never_whole_is_found_by_the_watch(sqlite_store: Store, tmp_path: Path) -> None:
    async with open_house(sqlite_store, tmp_path, stall_timeout_s=1) as house:
        row = await house.ended(await house.submit("hang_at=close until=1"))
        assert (row.outcome, row.attempt, row.crashes) == (Outcome.OK, 2, 1)
        assert "runner died (made no step for 1 s)" in await house.log(row)


async def test_a_file_that_cannot_be_finished_fails_its_request_alone(
    sqlite_store: Store, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    async with open_house(sqlite_store, tmp_path) as house:
        before = house.child.pid
        first, good = await house.submit(f"close_until={gate} raise_at=close"), await house.submit()
        await told(house, good, "step 4/4")
        gate.touch()
        row, second = await house.ended(first), await house.ended(good)
        assert row.failure is not None
        assert (row.failure.kind, second.outcome) == ("internal_server_error", Outcome.OK)
        assert house.child.pid == before

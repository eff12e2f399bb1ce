"""A runner warms further sizes while no request waits for it."""

import logging
from pathlib import Path

import pytest

from stillmotion.store.open import Store
from stillmotion.types import CancelAnswer, Outcome, Warmth
from tests.worker.house import House, open_house

pytestmark = pytest.mark.anyio

WARMING = "tests.timed_engine:open_warming"


async def begun(house: House, folder: Path, size: int) -> None:
    await house.until((folder / f"warming-{size}").exists, f"size {size} to be begun")


async def becomes_warm(house: House, warm: int) -> None:
    state = [Warmth(device="cpu", warm=warm, sizes=3)]
    await house.until(lambda: house.worker.readiness().runners == state, f"{warm} warm sizes")


async def test_a_request_waits_for_one_size_and_the_warm_up_goes_on_after_it(
    sqlite_store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "stillmotion"):
        async with open_house(sqlite_store, tmp_path, engine=WARMING) as house:
            await becomes_warm(house, 1)
            await begun(house, tmp_path, 2)
            waiting = await house.submit("steps=1")
            # The runner is busy with size 2, and size 3 ends only after the request.
            await house.until(lambda: f"{waiting.id} started" in caplog.text, "the hand-over")
            assert (await house.read(waiting)).progress is None
            (tmp_path / "warm-2").touch()
            assert (await house.ended(waiting)).outcome is Outcome.OK
            await becomes_warm(house, 2)
            await begun(house, tmp_path, 3)
            (tmp_path / "warm-3").touch()
            await becomes_warm(house, 3)
            assert caplog.text.count("runner warm device=cpu sizes=3") == 1


async def test_cancel_of_a_request_that_waits_for_a_size_is_answered_at_once_by_the_same_runner(
    sqlite_store: Store, tmp_path: Path
) -> None:
    async with open_house(sqlite_store, tmp_path, engine=WARMING) as house:
        await begun(house, tmp_path, 2)
        before = house.child.pid
        waiting = await house.submit()
        await house.becomes(waiting, lambda row: row.owner is not None, "claimed")
        assert await house.cancel(waiting) is CancelAnswer.ASKED
        assert (await house.ended(waiting)).outcome is Outcome.CANCELLED
        (tmp_path / "warm-2").touch()
        assert (await house.ended(await house.submit())).outcome is Outcome.OK
        assert house.child.pid == before


async def test_a_size_that_hangs_costs_the_runner_and_no_request(
    sqlite_store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "stillmotion"):
        async with open_house(sqlite_store, tmp_path, engine=WARMING, stall_timeout_s=1) as house:
            await begun(house, tmp_path, 2)
            waiting = await house.submit()
            await house.until(lambda: caplog.text.count("runner ready") > 1, "another runner")
            for size in (2, 3):
                (tmp_path / f"warm-{size}").touch()
            row = await house.ended(waiting)
            assert (row.outcome, row.crashes) == (Outcome.OK, 0)

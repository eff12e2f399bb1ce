"""What a model may do to its runner, beyond `tests/worker/test_faults.py`."""

from pathlib import Path

import pytest

from stillmotion.store.open import Store
from stillmotion.types import Outcome
from tests.worker.house import open_house

pytestmark = pytest.mark.anyio


async def test_f10_a_model_out_of_memory_fails_its_request_with_advice_and_the_runner_lives_on(
    sqlite_store: Store, tmp_path: Path
) -> None:
    async with open_house(sqlite_store, tmp_path) as house:
        before = house.child.pid
        row = await house.ended(await house.submit("memory_at=1"))
        assert row.failure is not None
        assert (row.failure.status, row.attempt) == (500, 1)
        assert "too little memory for this video; a smaller video_size" in row.failure.message
        assert "Tried to allocate" not in row.failure.message + await house.log(row)
        assert (await house.ended(await house.submit())).outcome is Outcome.OK
        assert house.child.pid == before


async def test_f11_a_runner_whose_device_is_lost_is_replaced_and_the_request_runs_again(
    sqlite_store: Store, tmp_path: Path
) -> None:
    async with open_house(sqlite_store, tmp_path) as house:
        before = house.child.pid
        row = await house.ended(await house.submit("lost_at=1 until=1"))
        assert (row.outcome, row.attempt, row.crashes) == (Outcome.OK, 2, 1)
        assert "runner died (cuda:0 failed: CUDA error" in await house.log(row)
        assert "Traceback" not in await house.log(row)
        assert house.child.pid != before


async def test_f12_a_disk_that_fills_under_a_film_is_told_and_the_next_film_is_made(
    sqlite_store: Store, tmp_path: Path
) -> None:
    async with open_house(sqlite_store, tmp_path) as house:
        first, full = await house.submit("steps=50 pause=0.02"), await house.submit()
        # Every write to it is refused with ENOSPC, as by a disk that is full.
        folder = tmp_path / "scratch" / f"{full.id}-1"
        folder.mkdir(parents=True)
        (folder / "film.mp4.part").symlink_to("/dev/full")
        assert (await house.ended(first)).outcome is Outcome.OK
        row = await house.ended(full)
        assert row.failure is not None
        assert (row.failure.status, row.attempt) == (500, 1)
        assert "The server's disk is full." in row.failure.message
        assert (await house.ended(await house.submit())).outcome is Outcome.OK
        assert len(house.film_bytes()) == 2
        # Cleared right after the ending is written.
        await house.until(lambda: not list((tmp_path / "scratch").iterdir()), "scratch to be cleared")

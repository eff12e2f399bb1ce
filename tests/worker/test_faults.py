import asyncio
import logging
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from sqlalchemy import create_engine, text

from stillmotion.clock import SystemClock
from stillmotion.errors import RunnerGone
from stillmotion.store import queue
from stillmotion.store.open import Store, open_store
from stillmotion.types import Assignment, Film, Level, Outcome, Sampler, State
from stillmotion.work import lanes
from stillmotion.work.runners import Notes, start_runner
from tests.store.asks import NOW, ask
from tests.worker.house import PATIENCE_S, PROMPT, TIMED, open_house, runners_of

pytestmark = pytest.mark.anyio

ASSIGNMENT = Assignment(
    request_id="r1",
    attempt=1,
    sampler=Sampler.LCM,
    prompt=None,
    picture=None,
    width=256,
    height=256,
    steps=2,
    fps=10,
    motion_bucket_id=127,
    cond_aug=0.02,
    seed=7,
    output="film.mp4",
)


async def test_a_killed_runner_is_replaced_and_its_request_runs_again_at_its_old_place(
    store: Store, tmp_path: Path
) -> None:
    async with open_house(store, tmp_path) as house:
        first = await house.submit("steps=60 pause=0.02")
        second = await house.submit()
        await house.at_step(first)
        before = house.child.pid
        house.child.kill()
        row, next_row = await house.ended(first), await house.ended(second)
        assert (row.outcome, row.attempt, row.crashes, row.ord) == (Outcome.OK, 2, 1, first.ord)
        assert "runner died (signal 9), the request runs again\nstarted on cpu again" in await house.log(row)
        assert row.finished is not None
        assert next_row.finished is not None
        assert row.finished < next_row.finished
        assert len(await house.films()) == len(house.film_bytes()) == 2
        assert house.child.pid != before


async def test_a_request_that_kills_its_runner_three_times_fails_and_the_next_succeeds(
    sqlite_store: Store, tmp_path: Path
) -> None:
    async with open_house(sqlite_store, tmp_path) as house:
        poison, good = await house.submit("crash_at=1"), await house.submit()
        row = await house.ended(poison)
        assert row.failure is not None
        assert (row.failure.status, row.failure.kind) == (500, "runner_disconnected")
        assert (row.crashes, row.attempt) == (3, 3)
        told = [line for line in (await house.log(row)).splitlines() if line.startswith("runner died")]
        assert [line.rpartition("the request ")[2] for line in told] == ["runs again", "runs again", "fails"]
        assert (await house.ended(good)).outcome is Outcome.OK
        assert house.worker.readiness().ready


async def test_a_request_that_is_not_to_be_retried_fails_with_its_runner_and_its_log_says_so(
    sqlite_store: Store, tmp_path: Path
) -> None:
    async with open_house(sqlite_store, tmp_path) as house:
        row = await house.ended(await house.submit("crash_at=1", retry=False))
        assert (row.outcome, row.attempt, row.crashes) == (Outcome.ERROR, 1, 1)
        told = (await house.log(row)).splitlines()[-1]
        assert told.startswith("runner died (signal ") and told.endswith("), the request fails")


@pytest.mark.parametrize(
    ("fault", "reason"),
    [("exit_at=1", "exit status 3"), ("garbage_at=1", "broke the protocol"), ("cut_at=1", "signal 9")],
)
async def test_a_runner_that_exits_or_babbles_counts_as_dead(
    sqlite_store: Store, tmp_path: Path, fault: str, reason: str
) -> None:
    async with open_house(sqlite_store, tmp_path) as house:
        row = await house.ended(await house.submit(f"{fault} until=1 steps=2"))
        assert (row.outcome, row.attempt, row.crashes) == (Outcome.OK, 2, 1)
        assert f"runner died ({reason}" in await house.log(row)


async def test_an_exception_in_the_model_fails_that_request_alone_and_the_runner_lives_on(
    sqlite_store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_house(sqlite_store, tmp_path) as house:
        before = house.child.pid
        with caplog.at_level(logging.ERROR, "stillmotion"):
            row = await house.ended(await house.submit("raise_at=1"))
        assert row.failure is not None
        assert (row.failure.status, row.failure.kind) == (500, "internal_server_error")
        assert "told to raise" not in row.failure.message + await house.log(row)
        assert f"{row.id} failed in the model" in caplog.text
        assert "RuntimeError: told to raise by the timetable" in caplog.text
        assert (await house.ended(await house.submit())).outcome is Outcome.OK
        assert house.child.pid == before


@pytest.mark.parametrize(("prompt", "outcome"), [("huge", Outcome.OK), ("huge raise_at=1", Outcome.ERROR)])
async def test_what_the_model_says_at_length_is_cut_and_breaks_nothing(
    sqlite_store: Store, tmp_path: Path, prompt: str, outcome: Outcome
) -> None:
    async with open_house(sqlite_store, tmp_path) as house:
        row = await house.ended(await house.submit(prompt))
        assert (row.outcome, row.attempt) == (outcome, 1)


async def test_a_request_that_cannot_be_prepared_fails_alone(
    sqlite_store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # As a row may look that another version wrote.
    strange = ask(endpoint=PROMPT, input={"seed": 7})
    await sqlite_store.write(lambda conn: queue.submit(conn, strange, NOW))
    async with open_house(sqlite_store, tmp_path) as house:
        row = await house.ended(await house.submit())
        assert row.outcome is Outcome.OK
        found = await house.store.read(lambda conn: queue.get(conn, strange.id))
        assert found is not None and found.failure is not None
        assert (found.failure.status, found.failure.kind) == (500, "internal_server_error")
        assert f"{strange.id} cannot be prepared" in caplog.text
        assert "KeyError" in caplog.text


@pytest.mark.parametrize("ticks", [1, 2, 3])
async def test_a_stop_while_a_claim_is_under_way_prepares_nothing(
    sqlite_store: Store, tmp_path: Path, silent_url: str, ticks: int
) -> None:
    async with open_house(sqlite_store, tmp_path, fetch_allow=["127.0.0.1"]) as house:
        request = await house.submit(picture=silent_url)
        for _ in range(ticks):
            await asyncio.sleep(0)
        house.worker.stop()
        await house.until(lambda: house.children() == [], "the end", timeout_s=5)
    assert (await house.read(request)).state is State.READY


async def test_a_stopped_runner_is_replaced(sqlite_store: Store, tmp_path: Path) -> None:
    async with open_house(sqlite_store, tmp_path, lease_s=2) as house:
        request = await house.submit("steps=50 pause=0.02")
        await house.at_step(request)
        house.child.send_signal(signal.SIGSTOP)
        row = await house.ended(request)
        assert (row.outcome, row.attempt, row.crashes) == (Outcome.OK, 2, 1)
        assert "runner died (said nothing for 2 s)" in await house.log(row)


async def test_a_runner_that_speaks_is_not_taken_for_a_silent_one(tmp_path: Path) -> None:
    runner = await start_runner(TIMED, "cpu", {"device": "cpu"}, lambda: None)
    await runner.opened(PATIENCE_S)
    assignment = replace(ASSIGNMENT, output=str(tmp_path / "film.mp4"))
    for _ in range(3):
        runner.watch(tick_s=6, quiet_limit_s=10, still_limit_s=600)
        assert isinstance(await runner.run(assignment, Notes(SystemClock(), asyncio.Event())), Film)
    runner.kill("the test is over")
    await runner.gone()


async def test_a_film_is_not_blamed_for_the_slow_steps_of_the_one_before(tmp_path: Path) -> None:
    runner = await start_runner(TIMED, "cpu", {"device": "cpu"}, lambda: None)
    await runner.opened(PATIENCE_S)
    assignment = replace(ASSIGNMENT, output=str(tmp_path / "film.mp4"))
    notes = Notes(SystemClock(), asyncio.Event())
    # The child tells once a second for how long there was no step.
    assert isinstance(await runner.run(replace(assignment, steps=1, prompt="pause=1.8"), notes), Film)
    making = asyncio.create_task(runner.run(assignment, notes))
    await asyncio.sleep(0)
    runner.watch(tick_s=0, quiet_limit_s=600, still_limit_s=0.5)
    assert isinstance(await making, Film)
    runner.kill("the test is over")
    await runner.gone()


async def test_a_model_that_makes_no_step_is_replaced(sqlite_store: Store, tmp_path: Path) -> None:
    async with open_house(sqlite_store, tmp_path, stall_timeout_s=1) as house:
        row = await house.ended(await house.submit("hang_at=2 until=1"))
        assert (row.outcome, row.crashes) == (Outcome.OK, 1)
        assert "runner died (made no step for 1 s)" in await house.log(row)


async def test_a_runner_that_dies_idle_costs_no_request_a_crash(sqlite_store: Store, tmp_path: Path) -> None:
    async with open_house(sqlite_store, tmp_path) as house:
        house.child.kill()
        row = await house.ended(await house.submit())
        assert (row.outcome, row.crashes) == (Outcome.OK, 0)


async def test_a_runner_that_dies_before_it_took_its_job_costs_no_crash(
    sqlite_store: Store, tmp_path: Path
) -> None:
    async with open_house(sqlite_store, tmp_path) as house:
        house.child.send_signal(signal.SIGSTOP)
        request = await house.submit()
        await house.becomes(request, lambda row: row.state is State.RUNNING, "claimed")
        house.child.kill()
        row = await house.ended(request)
        assert (row.outcome, row.attempt, row.crashes) == (Outcome.OK, 2, 0)


async def test_a_runner_dies_of_what_it_had_begun_alone(tmp_path: Path) -> None:
    runner = await start_runner(TIMED, "cpu", {"device": "cpu"}, lambda: None)
    await runner.opened(PATIENCE_S)
    moved = asyncio.Event()
    closing = Notes(SystemClock(), asyncio.Event(), moved.set)
    first = replace(ASSIGNMENT, prompt=f"close_until={tmp_path / 'never'}")
    making = [asyncio.create_task(runner.run(first, closing))]
    while not closing.off_device:
        await asyncio.wait_for(moved.wait(), PATIENCE_S)
        moved.clear()
    [child] = runners_of(os.getpid())
    child.send_signal(signal.SIGSTOP)
    second = replace(ASSIGNMENT, request_id="r2")
    making.append(asyncio.create_task(runner.run(second, Notes(SystemClock(), asyncio.Event()))))
    await asyncio.sleep(0)
    child.kill()
    answers = await asyncio.gather(*making, return_exceptions=True)
    assert [str(answer) for answer in answers] == ["signal 9"] * 2
    assert runner.died_of == 1
    await runner.gone()


async def test_a_runner_that_had_made_something_is_replaced_without_a_pause(
    sqlite_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for pause in ("RESTART_FIRST_S", "RESTART_LAST_S"):
        monkeypatch.setattr(lanes, pause, 10 * PATIENCE_S)
    async with open_house(sqlite_store, tmp_path) as house:
        for _ in range(2):
            assert (await house.ended(await house.submit())).outcome is Outcome.OK
            house.child.kill()
        assert (await house.ended(await house.submit())).outcome is Outcome.OK


async def test_a_runner_that_had_made_nothing_is_replaced_after_a_pause(
    sqlite_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for pause in ("RESTART_FIRST_S", "RESTART_LAST_S"):
        monkeypatch.setattr(lanes, pause, 4.0)
    async with open_house(sqlite_store, tmp_path) as house:
        began = time.monotonic()
        row = await house.ended(await house.submit("crash_at=1 until=1"))
        assert (row.outcome, row.crashes) == (Outcome.OK, 1)
        # Spread over the second half of the pause.
        assert time.monotonic() - began > 2


async def test_readiness_says_why_runners_do_not_start(sqlite_store: Store, tmp_path: Path) -> None:
    engine = "tests.timed_engine:open_without_weights"
    async with open_house(sqlite_store, tmp_path, engine=engine, ready=False) as house:
        await house.until(
            lambda: house.worker.readiness().reason.endswith(
                "): unet.safetensors is missing for profile pocket."
            ),
            "the reason",
        )
        assert not house.worker.readiness().ready
    engine = "tests.timed_engine:open_and_exit"
    async with open_house(sqlite_store, tmp_path, engine=engine, ready=False) as house:
        await house.until(
            lambda: "(2 in a row): exit status 4: no such device" in house.worker.readiness().reason, "again"
        )


async def test_an_attempt_that_was_overtaken_publishes_nothing(store: Store, tmp_path: Path) -> None:
    async with open_house(
        store, tmp_path, heartbeat_s=600, log_flush_s=600, sweep_s=600, lease_s=60
    ) as house:
        request = await house.submit("steps=20 pause=0.02")
        row = await house.becomes(request, lambda row: row.state is State.RUNNING, "running")
        now = house.clock.now()
        assert await house.store.write(lambda conn: queue.give_back(conn, row.id, row.attempt, now))
        newer = await house.store.write(
            lambda conn: queue.claim_next(
                conn, profile="pocket", owner="other", now=now, steady=now, lease_s=60
            )
        )
        assert newer is not None
        assert (newer.id, newer.attempt) == (row.id, 2)
        # The device is free again once the refused film is thrown away.
        assert (await house.ended(await house.submit())).outcome is Outcome.OK
        after = await house.read(request)
        assert (after.state, after.owner, after.attempt) == (State.RUNNING, "other", 2)
        assert [film.request_id != request.id for film in await house.films()] == [True]
        assert len(house.film_bytes()) == 1


async def test_a_film_whose_server_died_before_the_commit_is_removed(
    sqlite_store: Store, tmp_path: Path
) -> None:
    async with open_house(sqlite_store, tmp_path / "first") as house:
        made = await house.ended(await house.submit())
        [film] = await house.films()
        house.worker.drain()
        request = await house.submit()
        now = house.clock.now()
        dead = await house.store.write(
            lambda conn: queue.claim_next(
                conn, profile="pocket", owner="dead", now=now, steady=now, lease_s=0.01
            )
        )
        assert dead is not None
        source = tmp_path / "first" / "media" / film.media_key
        target = tmp_path / "second" / "media" / film.media_key.replace(made.id, request.id)
        target.parent.mkdir(parents=True)
        shutil.copy(source, target)
    async with open_house(sqlite_store, tmp_path / "second") as house:
        row = await house.ended(request)
        assert (row.outcome, row.attempt) == (Outcome.OK, 2)
        await house.until(lambda: not target.exists(), "the orphan is removed")
        assert len(house.film_bytes()) == 1


async def test_a_database_that_drops_its_connections_stops_nothing(postgres_url: str, tmp_path: Path) -> None:
    store = open_store(postgres_url)
    async with open_house(store, tmp_path) as house:
        request = await house.submit("steps=60 pause=0.02")
        await house.at_step(request)
        engine = create_engine(postgres_url, isolation_level="AUTOCOMMIT")
        with engine.connect() as conn:
            conn.execute(
                text(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                    "WHERE datname = current_database() AND pid <> pg_backend_pid()"
                )
            )
        engine.dispose()
        row = await house.ended(request)
        assert (row.outcome, row.crashes) == (Outcome.OK, 0)
    await store.close()


@pytest.mark.parametrize("stopped", [False, True])
async def test_no_runner_survives_its_killed_worker(sqlite_url: str, tmp_path: Path, stopped: bool) -> None:
    lonely = subprocess.Popen(
        [sys.executable, "-m", "tests.worker.lonely", sqlite_url, str(tmp_path), "hang_at=2", "5"],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert lonely.stdout is not None
    assert lonely.stdout.readline() == "running\n"
    [child] = runners_of(lonely.pid)
    if stopped:
        child.send_signal(signal.SIGSTOP)
    lonely.kill()
    lonely.wait(PATIENCE_S)
    lonely.stdout.close()
    deadline = time.monotonic() + 2
    while child.is_running() and child.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline, "the runner outlived its worker by 2 s"


@pytest.mark.parametrize("spare", [0, 1, 2, 4])
async def test_a_runner_without_file_descriptors_is_a_runner_that_did_not_start(spare: int) -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    with Path(os.devnull).open() as newest:
        first_free = newest.fileno()
    resource.setrlimit(resource.RLIMIT_NOFILE, (first_free + spare, limits[1]))
    try:
        with pytest.raises(RunnerGone, match="could not be started"):
            await start_runner(TIMED, "cpu", {"device": "cpu"}, lambda: None)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def runner_of(parent: int, listening: socket.socket) -> subprocess.Popen[bytes]:
    words = ["-m", "stillmotion.runner", "--engine", TIMED, "--parent", str(parent)]
    descriptor = listening.fileno()
    return subprocess.Popen([sys.executable, *words, "--fd", str(descriptor)], pass_fds=[descriptor])


async def test_a_runner_ends_with_its_socket_and_when_its_worker_was_gone_before_it() -> None:
    here, there = socket.socketpair()
    with here, there:
        orphan = runner_of(1, there)
        assert orphan.wait(PATIENCE_S) == 1
        child = runner_of(os.getpid(), there)
        here.sendall(b'{"type": "open", "device": "cpu"}\n')
        assert b"alive" in here.recv(1024)
    assert child.wait(PATIENCE_S) == 0


async def test_short_of_memory_the_kernel_takes_a_runner_before_the_server(
    sqlite_store: Store, tmp_path: Path
) -> None:
    async with open_house(sqlite_store, tmp_path) as house:
        assert Path(f"/proc/{house.child.pid}/oom_score_adj").read_text() == "500\n"


async def test_a_runner_that_cannot_hear_any_more_ends() -> None:
    runner = await start_runner(TIMED, "cpu", {"device": "cpu"}, lambda: None)
    await runner.opened(PATIENCE_S)
    unreadable = replace(ASSIGNMENT, sampler="no such sampler")  # pyright: ignore[reportArgumentType]
    with pytest.raises(RunnerGone, match="exit status 1"):
        await asyncio.wait_for(runner.run(unreadable, Notes(SystemClock(), asyncio.Event())), PATIENCE_S)
    await runner.gone()


async def test_a_runner_that_is_gone_takes_no_job() -> None:
    runner = await start_runner(TIMED, "cpu", {"device": "cpu"}, lambda: None)
    await runner.opened(PATIENCE_S)
    runner.kill("lost its device")
    await runner.gone()
    with pytest.raises(RunnerGone, match="lost its device"):
        await asyncio.wait_for(runner.run(ASSIGNMENT, Notes(SystemClock(), asyncio.Event())), PATIENCE_S)


async def test_runner_output_while_idle_goes_to_the_server_log(sqlite_store: Store, tmp_path: Path) -> None:
    async with open_house(sqlite_store, tmp_path) as house:
        row = await house.ended(await house.submit("print=once"))
        other = await house.ended(await house.submit())
        assert await house.printed(row, Level.STDOUT) == ["once"]
        assert await house.printed(other, Level.STDOUT) == []


async def test_signals_meant_for_the_server_do_not_cut_a_film_short(
    sqlite_store: Store, tmp_path: Path
) -> None:
    async with open_house(sqlite_store, tmp_path) as house:
        request = await house.submit("steps=40 pause=0.02")
        await house.at_step(request)
        house.child.send_signal(signal.SIGTERM)
        house.child.send_signal(signal.SIGINT)
        row = await house.ended(request)
        assert (row.outcome, row.attempt) == (Outcome.OK, 1)


@pytest.mark.parametrize("place", ["scratch", "media/films"])
async def test_a_disk_that_cannot_be_written_fails_the_request_and_the_next_succeeds(
    sqlite_store: Store, tmp_path: Path, place: str
) -> None:
    async with open_house(sqlite_store, tmp_path) as house:
        # A file where a folder must be: the same kind of error as a full disk.
        (tmp_path / place).write_text("in the way")
        row = await house.ended(await house.submit())
        assert row.failure is not None
        assert (row.failure.status, row.failure.kind) == (500, "internal_server_error")
        assert "could not write or read a file" in row.failure.message
        (tmp_path / place).unlink()
        assert (await house.ended(await house.submit())).outcome is Outcome.OK
        assert len(house.film_bytes()) == 1

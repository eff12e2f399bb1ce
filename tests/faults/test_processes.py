"""Processes that stand still, die at their first start, or find a lock or a full queue."""

import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from sqlalchemy import Connection, func, select, text

from stillmotion.endpoints import ENDPOINTS
from stillmotion.errors import StoreUnavailable
from stillmotion.store import queue
from stillmotion.store.open import Store, open_store
from stillmotion.store.position import queue_length
from stillmotion.store.tables import request
from stillmotion.types import Outcome, State
from tests.acceptance.calls import ENDPOINT, film, status, steps_told, submit, wait_for
from tests.faults import points
from tests.server import ROOT, TIMED_ENGINE, Server, ask_readiness, wait_until
from tests.store.asks import NOW, ask
from tests.worker.house import open_house

LEASE_S = 2
QUEUED = 10_000


def test_f06_a_server_stopped_past_its_lease_blames_nobody_and_makes_the_film(tmp_path: Path) -> None:
    env = {"STILLMOTION_LEASE_S": str(LEASE_S), "STILLMOTION_HEARTBEAT_S": "0.5"}
    with Server(tmp_path / "data", engine=TIMED_ENGINE, env=env) as server:
        ticket = submit(server, "steps=60 pause=0.05")
        wait_until(lambda: steps_told(status(server, ticket)), "the first step")
        server.process.send_signal(signal.SIGSTOP)
        until = time.monotonic() + LEASE_S + 1
        wait_until(lambda: time.monotonic() > until, "the lease to lapse")
        server.process.send_signal(signal.SIGCONT)
        told = wait_for(server, ticket, "COMPLETED")
        assert film(server, ticket)[4:8] == b"ftyp"
        assert not any("runner died" in line["message"] for line in told["logs"])


@pytest.mark.anyio
@pytest.mark.parametrize("number", [signal.SIGSTOP, signal.SIGKILL])
async def test_f06_a_worker_that_stops_or_dies_is_overtaken_and_publishes_nothing(
    postgres_url: str, tmp_path: Path, number: signal.Signals
) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    words = [postgres_url, str(one), "steps=60 pause=0.05", str(LEASE_S)]
    lonely = subprocess.Popen(
        [sys.executable, "-m", "tests.worker.lonely", *words], stdout=subprocess.PIPE, cwd=ROOT
    )
    assert lonely.stdout is not None
    assert lonely.stdout.readline() == b"running\n"
    store = open_store(postgres_url)
    request_id = await store.read(lambda conn: conn.execute(select(request.c.id)).scalar_one())
    lonely.send_signal(number)
    stopped_at = time.monotonic()
    async with open_house(store, two, lease_s=LEASE_S) as house:
        row = await house.read_id(request_id)
        await house.becomes(row, lambda row: row.attempt == 2, "overtaken")
        print(f"overtaken {time.monotonic() - stopped_at:.1f} s after {number.name}, lease {LEASE_S} s")
        row = await house.ended(row)
        if number is signal.SIGSTOP:
            lonely.send_signal(signal.SIGCONT)
            await house.until(lambda: not list((one / "scratch").iterdir()), "the one that woke to give up")
        after = await house.read(row)
        assert (after.outcome, after.attempt, after.crashes) == (Outcome.OK, 2, 0)
        assert after == row
        assert len(await house.films()) == len(house.film_bytes()) == 1
        assert not list((one / "media" / "films").rglob("*.mp4"))
    lonely.kill()
    lonely.wait()
    lonely.stdout.close()
    await store.close()


def readiness(server: Server, code: int) -> str:
    """The reason /readyz gives with this status, else nothing."""
    answer = ask_readiness(server.url, 30)
    return str(answer.json()["reason"]) if answer.status_code == code else ""


def test_f14_a_database_locked_by_another_process_costs_refusals_and_no_request(tmp_path: Path) -> None:
    with Server(tmp_path / "data", engine=TIMED_ENGINE) as server, server.client() as client:
        running = submit(server, "steps=40 pause=0.1")
        wait_for(server, running, "IN_PROGRESS")
        with closing(sqlite3.connect(server.data_dir / "stillmotion.db", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            refused = client.post(f"/queue/{ENDPOINT}", json={"prompt": "a rocket"})
            assert (refused.status_code, refused.headers["Retry-After"]) == (503, "1")
            assert "nothing of it was kept" in refused.json()["detail"]
            # What only reads goes on.
            assert status(server, running)["status"] == "IN_PROGRESS"
            wait_until(lambda: "locked" in readiness(server, 503), "the reason")
            other.execute("ROLLBACK")
        wait_until(lambda: "ready on cpu" in readiness(server, 200), "readiness")
        told = wait_for(server, running, "COMPLETED")
        assert steps_told(told)[-1] == "step 40/40"
        wait_for(server, submit(server, "a rocket"), "COMPLETED")
        assert "Traceback" not in server.output()


@pytest.mark.anyio
async def test_f15_a_database_damaged_under_a_running_server_is_unavailable(sqlite_url: str) -> None:
    store = open_store(sqlite_url)
    store.write_now(lambda conn: queue.submit(conn, ask(), NOW))
    path = Path(sqlite_url.removeprefix("sqlite:///"))
    for file in (path, path.with_name(path.name + "-wal")):
        file.write_bytes(b"\xff" * file.stat().st_size)
    with pytest.raises(StoreUnavailable, match=r"not a database|malformed"):
        await store.read(lambda conn: conn.execute(select(func.count()).select_from(request)))
    with pytest.raises(StoreUnavailable, match=r"not a database|malformed"):
        store.read_now(lambda conn: conn.execute(select(func.count()).select_from(request)))
    await store.close()


def test_a_first_start_killed_at_any_point_is_made_up_for_by_the_next(tmp_path: Path) -> None:
    order = tmp_path / "order"
    data_dir = tmp_path / "data"
    program = "tests.faults.points"
    env = {points.ORDER: str(order)}
    for point in points.FIRST_START_POINTS:
        points.give_order(order, point)
        with Server(data_dir, engine=TIMED_ENGINE, env=env, program=program, wait=False) as server:
            assert server.wait() == -signal.SIGKILL, server.output()
        assert not order.exists()
    with Server(data_dir, engine=TIMED_ENGINE) as server:
        wait_for(server, submit(server, "a rocket"), "COMPLETED")


def test_u03_an_upload_cut_off_at_any_point_is_absent_or_whole(tmp_path: Path) -> None:
    order = tmp_path / "order"
    env = {points.ORDER: str(order)}
    with Server(tmp_path / "data", engine=TIMED_ENGINE, env=env, program="tests.faults.points") as server:
        with server.client() as client:
            given = {"content_type": "application/x-large", "file_name": "large.bin"}
            told = client.post("/rest/storage/upload/initiate", json=given).json()
        target, place = urlsplit(told["upload_url"]), urlsplit(told["file_url"]).path
        for point, found in (
            ("film_before_rename", b""),
            ("upload_before_commit", b""),
            ("upload_committed", b"bytes"),
        ):
            points.give_order(order, point)
            with server.client() as client, pytest.raises(httpx.TransportError):
                client.put(f"{target.path}?{target.query}", content=b"bytes")
            server.wait()
            server.restart()
            with server.client() as client:
                answer = client.get(place)
            assert (answer.status_code, answer.content if found else b"") == (200 if found else 404, found)
        with server.client() as client:
            again = client.put(f"{target.path}?{target.query}", content=b"other")
            assert 400 <= again.status_code < 500
            assert client.get(place).content == b"bytes"


def fill(conn: Connection) -> None:
    """Queue copies of one request; the first fifty were running when their server died."""
    endless = {"prompt": "steps=100000 pause=0.05", "video_size": "square"}
    values = {**ENDPOINTS[ENDPOINT].settle(endless).values, "seed": 7}
    first = queue.submit(conn, ask(endpoint=ENDPOINT, input=values), NOW)
    names = [column.name for column in request.c]
    taken = {"id": "'r' || n", "ord": "ord + n"}
    conn.execute(
        text(
            f"WITH RECURSIVE number(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM number WHERE n < {QUEUED}) "
            f"INSERT INTO request ({', '.join(names)}) "
            f"SELECT {', '.join(taken.get(name, name) for name in names)} FROM request, number"
        )
    )
    conn.execute(
        text(
            "UPDATE request SET state = 'running', attempt = 1, owner = 'dead', lease_until = :until "
            "WHERE ord < :ord"
        ),
        {"until": time.time() + 3600, "ord": first.ord + 50},
    )


def look(store: Store) -> tuple[int, str | None, int]:
    """Count the waiting, and say which one runs and in which attempt."""
    ready = store.read_now(lambda conn: queue_length(conn, "pocket"))
    running = store.read_now(
        lambda conn: conn.execute(
            select(request.c.id, request.c.attempt).where(request.c.state == State.RUNNING.value)
        ).first()
    )
    return (ready, running.id, running.attempt) if running else (ready, None, 0)


def test_f17_a_server_with_ten_thousand_queued_is_ready_in_seconds_and_goes_on_with_the_first(
    tmp_path: Path,
) -> None:
    data_dir = tmp_path / "data"
    data_dir.mkdir()
    url = f"sqlite:///{data_dir / 'stillmotion.db'}"
    store = open_store(url)
    store.write_now(fill)
    [first] = store.read_now(
        lambda conn: conn.execute(select(request.c.id).order_by(request.c.ord).limit(1)).scalars()
    )
    began = time.monotonic()
    with Server(data_dir, engine=TIMED_ENGINE) as server:
        ready_s = time.monotonic() - began
        wait_until(lambda: look(store) == (QUEUED, first, 2), "the first to run again")
        server.terminate()
        wait_until(lambda: "worker drains" in server.output(), "the drain")
        server.terminate()
        server.wait()
    assert look(store) == (QUEUED + 1, None, 0)
    store.close_now()
    print(f"ready after {ready_s:.1f} s with {QUEUED} queued")
    assert ready_s < 20

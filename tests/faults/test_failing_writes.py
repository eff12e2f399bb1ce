"""Writes that fail, each in its turn: nothing acknowledged is lost, nothing refused is kept."""

import json
import random
import shutil
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, text

from stillmotion.errors import StoreUnavailable
from stillmotion.store import queue
from stillmotion.store.open import Store, open_store
from stillmotion.store.queue import submit
from stillmotion.types import Level, LogLine
from tests.faults.broken_disk import files_end_at
from tests.faults.load import INPUTS, Load
from tests.receiver import Receiver
from tests.server import TIMED_ENGINE, Server, wait_until
from tests.store.asks import NOW, OK, ask, claim_on

#: One and a half pages with their headers in SQLite's log: writes fail at their start and in their middle.
STEP = 6180
ROUNDS = 6
#: Failing writes are looked for within this many bytes of the log: its first hundred pages.
LOG_BYTES = 400_000

Snapshot = list[Any]


def snapshot(store: Store) -> Snapshot:
    tables = ("request", "log", "outbox", "queue")
    return store.read_now(
        lambda conn: [conn.execute(text(f"SELECT * FROM {table}")).all() for table in tables]
    )


def life_of_two_requests() -> list[Callable[[Connection], object]]:
    """All writes of one request that is made and one that is cancelled, a transaction each."""
    one, two = ask(webhook="http://127.0.0.1/hook", input={"prompt": "x" * 5000}), ask()
    lines = [LogLine(at=NOW, level=Level.INFO, message=f"step {step}/50") for step in range(1, 51)]
    return [
        lambda conn: submit(conn, one, NOW),
        lambda conn: submit(conn, two, NOW),
        lambda conn: claim_on(conn),
        lambda conn: queue.renew(conn, [(one.id, 1)], until=NOW + 60),
        lambda conn: queue.finish(conn, one.id, 1, OK, lines, NOW),
        lambda conn: queue.cancel(conn, two.id, NOW),
    ]


@pytest.mark.anyio
async def test_f13_whichever_write_fails_its_caller_is_told_and_the_rest_is_kept(
    sqlite_template: Path, tmp_path: Path
) -> None:
    """Fail at each place of the log in turn, until a life passes untouched."""
    failed = 1
    place = 0
    while failed:
        path = tmp_path / f"{place}.db"
        shutil.copy(sqlite_template, path)
        store = open_store(f"sqlite:///{path}")
        kept, failed = snapshot(store), 0
        for write in life_of_two_requests():
            with files_end_at(place * STEP):
                try:
                    await store.write(write)
                except StoreUnavailable:
                    failed += 1
                    assert snapshot(store) == kept
                    continue
            before, kept = kept, snapshot(store)
            assert kept != before or failed
        assert await store.write(lambda conn: submit(conn, ask(), NOW))
        kept = snapshot(store)
        await store.close()
        again = open_store(f"sqlite:///{path}")
        assert snapshot(again) == kept
        await again.close()
        place += 1
    print(f"failed at {place - 1} places")
    assert place > 5


def test_f12_f13_a_server_whose_disk_fails_over_and_over_tells_it_and_recovers_by_itself(
    tmp_path: Path,
) -> None:
    data_dir = tmp_path / "data"
    env = {
        "STILLMOTION_WEBHOOK_ALLOW": "127.0.0.1",
        # A delivery that could not be written down is made again once its time and its pause are over.
        "STILLMOTION_WEBHOOK_TIMEOUT_S": "3",
        "STILLMOTION_WEBHOOK_RETRY_BASE_S": "0.5",
    }
    rng = random.Random()
    recoveries: list[float] = []
    with (
        Receiver() as receiver,
        Server(data_dir, engine=TIMED_ENGINE, env=env) as server,
    ):
        load = Load(data_dir, server.headers, receiver.url, rng)
        digests = [load.film_digest(load.make_film(which)) for which in range(len(INPUTS))]
        with load.running():
            for number in range(ROUNDS):
                made, refused = load.made, load.refused
                with files_end_at(0 if number == 0 else rng.randrange(LOG_BYTES), server.process.pid):
                    wait_until(lambda refused=refused: load.refused > refused + 3, "refusals", 30)
                mended = time.monotonic()
                assert load.wait_for_film(made, 30), "no film after the disk was mended"
                recoveries.append(time.monotonic() - mended)
        films = load.film_digests()
        calls = load.collect(receiver)
        load.close()
        server.terminate()
        assert server.wait() == 0
    print(f"refused {load.refused}, kept {len(load.asked)}, next film after at most {max(recoveries):.2f} s")
    with closing(sqlite3.connect(data_dir / "stillmotion.db")) as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        rows = dict(database.execute("SELECT id, state FROM request"))
    # Every submit was answered: what is there beyond the first films was acknowledged, and the other way.
    assert len(rows) == len(load.asked) + len(INPUTS)
    assert load.asked.keys() <= rows.keys()
    assert set(rows.values()) == {"done"}
    assert load.unanswered <= load.refused
    for asked in load.asked.values():
        assert asked.ending is not None
        assert asked.ending.kind == "ok" or asked.cancel_sent, asked
        assert films.get(asked.id, digests[asked.which]) == digests[asked.which]
    bodies = {json.loads(call.body)["request_id"]: call.body for call in calls}
    assert all(bodies[asked.id] for asked in load.asked.values() if asked.webhook)

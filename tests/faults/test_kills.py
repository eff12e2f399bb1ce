"""Kill -9, over and over, under load: what was acknowledged is kept, whatever dies, and wherever.

One run, told by its seed: `KILL_SEED=7 KILLS=300 pytest tests/faults/test_kills.py -s`. Without a seed each
run draws its own and prints it; `KILL_ENGINE=pocket` makes real films. Twenty kills are one at each fault
point and some at random; the server is restarted at once on the same data directory.
"""

import json
import os
import random
import sqlite3
import statistics
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from stillmotion.video import read_frames
from tests.faults import points
from tests.faults.kills import Kill, Killer, Victim
from tests.faults.load import INPUTS, Asked, Load
from tests.receiver import Call, Receiver, verify
from tests.server import Server, wait_until

KILLS = int(os.environ.get("KILLS", "20"))
SEED = int(os.environ.get("KILL_SEED") or random.SystemRandom().randrange(1_000_000))
ENGINE = f"tests.faults.points:open_{os.environ.get('KILL_ENGINE', 'timed')}"

SETTINGS = {
    "STILLMOTION_WEBHOOK_ALLOW": "127.0.0.1",
    # A delivery whose server was killed is made again once its time and its pause are over.
    "STILLMOTION_WEBHOOK_TIMEOUT_S": "3",
    "STILLMOTION_WEBHOOK_RETRY_BASE_S": "0.5",
}
REQUESTS = """
    SELECT id, state, outcome, attempt, crashes, finished, json_extract(failure, '$.kind') AS failure
    FROM request
"""
DEATHS = "SELECT request_id, at FROM log WHERE message LIKE 'runner died%' ORDER BY at"


@dataclass
class Aftermath:
    """All that is known after the last kill: the books of clients, receiver, database and disk."""

    load: Load
    kills: list[Kill]
    #: SHA-256 of each input's film, made before anything was killed.
    digests: list[str]
    #: The same of each film that came out of the storm, by request.
    films: dict[str, str]
    calls: list[Call]
    jwks: dict[str, Any]
    exit_status: int
    runners_left: list[Any]
    output: str
    requests: dict[str, sqlite3.Row]
    deaths: list[sqlite3.Row]
    recorded: set[str]
    #: Media files, by key, before the server started for the last time and after.
    on_disk: set[str]
    swept: set[str]
    scratch: list[Path]
    integrity: str

    @property
    def asked(self) -> list[Asked]:
        return list(self.load.asked.values())


@pytest.fixture(scope="module")
def aftermath(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Aftermath]:
    print(f"\nKILL_SEED={SEED} KILLS={KILLS}")
    rng = random.Random(SEED)
    data_dir = tmp_path_factory.mktemp("killed") / "data"
    order = data_dir.with_name("order")
    env = {**SETTINGS, points.ORDER: str(order)}
    with (
        Receiver() as receiver,
        Server(data_dir, engine=ENGINE, env=env, program="tests.faults.points") as server,
    ):
        load = Load(data_dir, server.headers, receiver.url, rng)
        undisturbed = [load.make_film(which) for which in range(len(INPUTS))]
        digests = [load.film_digest(ending) for ending in undisturbed]
        for ending in undisturbed:
            film = data_dir.parent / "film.mp4"
            film.write_bytes(load.film(ending))
            assert read_frames(film).shape == (25, 256, 256, 3)
        killer = Killer(server, order, load, rng)
        with load.running():
            killer.kill_all(KILLS)
        # Of those whose submit was never answered some exist; this one is last in the queue.
        load.make_film(0)
        films = load.film_digests()
        calls = load.collect(receiver)
        jwks = httpx.get(f"{server.url}/rest/.well-known/jwks.json", trust_env=False).json()
        for asked in load.asked.values():
            load.check_unchanged(asked)
        load.close()
        server.terminate()
        status = server.wait()
        with closing(sqlite3.connect(data_dir / "stillmotion.db")) as database:
            database.row_factory = sqlite3.Row
            found = Aftermath(
                load=load,
                kills=killer.kills,
                digests=digests,
                films=films,
                calls=calls,
                jwks=jwks,
                exit_status=status,
                runners_left=killer.runners(),
                output=server.output(),
                requests={row["id"]: row for row in database.execute(REQUESTS)},
                deaths=database.execute(DEATHS).fetchall(),
                recorded={row["media_key"] for row in database.execute("SELECT media_key FROM file")},
                on_disk=stored(data_dir),
                swept=set(),
                scratch=[path for path in (data_dir / "scratch").rglob("*") if path.is_file()],
                integrity=database.execute("PRAGMA integrity_check").fetchone()[0],
            )
        tell(found)
        server.restart()
        wait_until(lambda: "films/" not in "".join(stored(data_dir) - found.recorded), "orphans to go")
        found.swept = stored(data_dir)
        yield found


def stored(data_dir: Path) -> set[str]:
    media = data_dir / "media"
    return {str(path.relative_to(media)) for path in media.rglob("*") if path.is_file()}


def tell(found: Aftermath) -> None:
    """Print the run in a few lines; `pytest -s` shows them."""
    ends = Counter(asked.ending.kind for asked in found.asked if asked.ending is not None)
    finished = sorted(row["finished"] for row in found.requests.values() if row["outcome"] == "ok")
    print(f"acknowledged {len(found.asked)}, unanswered submits {found.load.unanswered}, ended {dict(ends)}")
    print(f"webhooks {len(found.calls)} for {sum(asked.webhook for asked in found.asked)} requests")
    print(f"deaths counted {len(found.deaths)}, orphan files {len(found.on_disk - found.recorded)}")
    for place in sorted({(kill.victim.value, kill.point or "") for kill in found.kills}):
        kills = [kill for kill in found.kills if (kill.victim.value, kill.point or "") == place]
        ready = [kill.ready_s for kill in kills if kill.ready_s is not None]
        ended = [
            at - kill.died for kill in kills if (at := next((at for at in finished if at > kill.died), None))
        ]
        print(
            f"{place[0]} killed {len(kills)} at {place[1] or 'random'}: ready again after {spread(ready)}, "
            f"next film after {spread(ended)}"
        )


def spread(seconds: list[float]) -> str:
    if not seconds:
        return "-"
    return f"{statistics.mean(seconds):.2f} s (longest {max(seconds):.2f}, n={len(seconds)})"


def test_all_kills_were_done_and_work_went_on_between_them(aftermath: Aftermath) -> None:
    assert len(aftermath.kills) == KILLS
    assert len(aftermath.films) >= KILLS // 2


def test_every_acknowledged_request_ended_and_each_look_at_it_said_the_same(aftermath: Aftermath) -> None:
    assert all(asked.ending is not None for asked in aftermath.asked)
    # Once each at the end, and at random all the while.
    assert aftermath.load.looks > len(aftermath.asked)


def test_database_is_whole_and_nothing_in_it_waits(aftermath: Aftermath) -> None:
    assert aftermath.integrity == "ok"
    assert {asked.id for asked in aftermath.asked} <= aftermath.requests.keys()
    assert [row["id"] for row in aftermath.requests.values() if row["state"] != "done"] == []


def test_every_film_is_the_one_an_undisturbed_server_makes(aftermath: Aftermath) -> None:
    for asked in aftermath.asked:
        if asked.id in aftermath.films:
            assert aftermath.films[asked.id] == aftermath.digests[asked.which], asked.id


def test_only_cancels_and_runners_killed_three_times_keep_a_request_from_its_film(
    aftermath: Aftermath,
) -> None:
    for asked in aftermath.asked:
        assert asked.ending is not None
        if asked.ending.kind == "client_cancelled":
            assert asked.cancel_sent, f"{asked.id} was cancelled by nobody"
        elif asked.ending.kind == "runner_disconnected":
            assert aftermath.requests[asked.id]["crashes"] == 3
        else:
            assert asked.ending.kind == "ok", asked


def test_a_cancel_that_came_too_late_changed_nothing(aftermath: Aftermath) -> None:
    cancelled = [asked for asked in aftermath.asked if asked.cancel_code == 202]
    late = [asked for asked in aftermath.asked if asked.cancel_code == 400]
    assert cancelled
    # A kill between a cancel and its answer makes the second try come too late for the first.
    assert all(asked.ending and asked.ending.kind in ("ok", "client_cancelled") for asked in late)


def test_a_crash_is_counted_for_a_killed_runner_and_never_for_a_killed_server(aftermath: Aftermath) -> None:
    blamed = [
        max(
            (kill for kill in aftermath.kills if kill.at <= row["at"]), key=lambda kill: kill.at, default=None
        )
        for row in aftermath.deaths
    ]
    assert all(kill is not None and kill.victim is Victim.RUNNER for kill in blamed)
    assert len({id(kill) for kill in blamed}) == len(blamed), "two crashes for one kill"
    counted = Counter(row["request_id"] for row in aftermath.deaths)
    assert counted == Counter(
        {row["id"]: row["crashes"] for row in aftermath.requests.values() if row["crashes"]}
    )


def test_every_webhook_was_told_signed_and_alike_each_time(aftermath: Aftermath) -> None:
    bodies: dict[str, bytes] = {}
    for call in aftermath.calls:
        request_id = call.headers["X-Fal-Webhook-Request-Id"]
        assert bodies.setdefault(request_id, call.body) == call.body
        assert verify(call.headers, call.body, aftermath.jwks, call.timestamp)
    for asked in aftermath.asked:
        if asked.webhook:
            assert asked.ending is not None
            told = json.loads(bodies[asked.id])
            assert (told["request_id"], told["payload"]) == (asked.id, asked.ending.result)
        else:
            assert asked.id not in bodies


def test_no_runner_and_no_scratch_file_is_left(aftermath: Aftermath) -> None:
    assert aftermath.exit_status == 0
    assert aftermath.runners_left == []
    assert aftermath.scratch == []
    assert "Traceback" not in aftermath.output


def test_every_recorded_film_is_kept_and_every_orphan_goes_at_the_next_start(aftermath: Aftermath) -> None:
    assert aftermath.recorded <= aftermath.on_disk
    assert aftermath.swept == aftermath.recorded

"""SIGKILL at random instants and at every fault point, and the time it takes to come back."""

import random
import time
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import httpx
import psutil

from stillmotion.cli.datadir import read_announcement
from tests.acceptance.calls import all_gone
from tests.faults import points
from tests.faults.load import Load
from tests.server import Server, ask_readiness, wait_until

#: Longest a server may take to be ready, or the next film made, after a kill.
RECOVERY_S = 120
#: A kill comes at most this long after the last one's recovery.
CALM_S = 0.8
#: Share of kills that do not wait for recovery: they hit a server or runner that is still starting.
HASTY = 0.25
#: Kills at random instants, of each victim, that go with one kill at each fault point.
RANDOM_EACH = 2


class Victim(Enum):
    SERVER = "server"
    RUNNER = "runner"


POINTS = {
    **dict.fromkeys((*points.SERVER_POINTS, *points.START_POINTS), Victim.SERVER),
    **dict.fromkeys((*points.RUNNER_POINTS, points.RUNNER_OPENING), Victim.RUNNER),
}


@dataclass
class Kill:
    victim: Victim
    #: A name of `points`; None for a random instant.
    point: str | None
    #: Wall clock, as the server's own times are: from here on the victim may be dead.
    at: float
    #: And from here on it is.
    died: float
    #: Seconds from there until /readyz said 200; None when the next kill came first.
    ready_s: float | None = None


def plan(count: int, rng: random.Random) -> list[tuple[Victim, str | None]]:
    """Mix rounds, each of all fault points and some random instants, up to `count` kills."""
    kills: list[tuple[Victim, str | None]] = []
    while len(kills) < count:
        one_round: list[tuple[Victim, str | None]] = [(victim, point) for point, victim in POINTS.items()]
        one_round += [(victim, None) for victim in Victim for _ in range(RANDOM_EACH)]
        rng.shuffle(one_round)
        kills += one_round
    return kills[:count]


class Killer:
    """Kills and restarts one server; knows every process that ever belonged to it."""

    def __init__(self, server: Server, order: Path, load: Load, rng: random.Random) -> None:
        self.server = server
        self.order = order
        self.load = load
        self.rng = rng
        self.kills: list[Kill] = []
        self.servers = [server.process.pid]

    def kill_all(self, count: int) -> None:
        """Kill as planned; the load must go on after each."""
        kills = plan(count, self.rng)
        for number, (victim, point) in enumerate(kills, 1):
            self.load.ending.wait(self.rng.uniform(0, CALM_S))
            if self.load.ending.is_set():
                return
            made = self.load.made
            kill = self._kill_server(point) if victim is Victim.SERVER else self._kill_runner(point)
            self.kills.append(kill)
            # A fault point is reached by what works, and its death must not be mistaken for the last one's.
            if number < count and kills[number][1] is None and self.rng.random() < HASTY:
                continue
            wait_until(self._is_ready, f"/readyz after kill {number}, {kill}", RECOVERY_S)
            kill.ready_s = time.time() - kill.died
            assert self.load.wait_for_film(made, RECOVERY_S), f"no film after kill {number}, {kill}"

    def runners(self, *servers: int) -> list[psutil.Process]:
        """The living runners of these servers, or of all there ever were, whoever their parent is now."""
        parents = {str(pid) for pid in servers or self.servers}
        found: list[psutil.Process] = []
        for process in psutil.process_iter(["cmdline"]):
            words: list[str] = process.info["cmdline"] or []
            if "stillmotion.runner" in words and words[words.index("--parent") + 1] in parents:
                found.append(process)
        return found

    def _kill_server(self, point: str | None) -> Kill:
        at = time.time()
        runners = self.runners()
        if point in points.SERVER_POINTS:
            self._order(point)
            self.server.wait()
        else:
            self.server.kill()
        if point in points.START_POINTS:
            points.give_order(self.order, point)
            self._start_server()
            self.server.wait()
            assert not self.order.exists(), f"the server ended before {point}: {self.server.output()}"
        kill = Kill(Victim.SERVER, point, at, time.time())
        self._start_server()
        # A runner that outlived its server would hold the device, and might publish.
        wait_until(lambda: all_gone(runners), "the runners of a killed server to end", 10)
        return kill

    def _start_server(self) -> None:
        self.server.start_again()
        self.servers.append(self.server.process.pid)

    def _kill_runner(self, point: str | None) -> Kill:
        at = time.time()
        if point in points.RUNNER_POINTS:
            self._order(point)
            return Kill(Victim.RUNNER, point, at, time.time())
        if point is not None:
            points.give_order(self.order, point)
        [runner, *_] = wait_until(lambda: self.runners(self.servers[-1]), "a runner", RECOVERY_S)
        with suppress(psutil.NoSuchProcess):
            runner.kill()
        if point is not None:
            wait_until(lambda: not self.order.exists(), f"a runner to reach {point}", RECOVERY_S)
        return Kill(Victim.RUNNER, point, at, time.time())

    def _order(self, point: str) -> None:
        """Have someone die at a fault point, and wait for it."""
        points.give_order(self.order, point)
        wait_until(lambda: not self.order.exists(), f"someone to reach {point}", RECOVERY_S)

    def _is_ready(self) -> bool:
        assert self.server.process.poll() is None, f"the server ended: {self.server.output()}"
        announced = read_announcement(self.server.data_dir)
        try:
            return announced is not None and ask_readiness(announced.http, 10).status_code == 200
        except httpx.TransportError:
            return False

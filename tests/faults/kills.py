"""SIGKILL at random instants, to the server or to its runner, and the time it takes to come back."""

import random
import time
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum

import httpx
import psutil

from stillmotion.cli.datadir import read_announcement
from tests.acceptance.calls import all_gone
from tests.faults.load import Load
from tests.server import Server, wait_until

#: Longest a server may take to be ready, or the next film made, after a kill.
RECOVERY_S = 60
#: A kill comes at most this long after the last one's recovery.
CALM_S = 0.8
#: Share of kills that do not wait for recovery: they hit a server or runner that is still starting.
HASTY = 0.25


class Victim(Enum):
    SERVER = "server"
    RUNNER = "runner"


@dataclass
class Kill:
    victim: Victim
    #: Wall clock, as the server's own times are.
    at: float
    #: Seconds until /readyz said 200; None when the next kill came first.
    ready_s: float | None = None


class Killer:
    """Kills and restarts one server; knows every process that ever belonged to it."""

    def __init__(self, server: Server, load: Load, rng: random.Random) -> None:
        self.server = server
        self.load = load
        self.rng = rng
        self.kills: list[Kill] = []
        self.servers = [server.process.pid]

    def kill_all(self, count: int) -> None:
        """Kill `count` times, half of them the server; the load must go on after each."""
        victims = [Victim.SERVER] * (count // 2) + [Victim.RUNNER] * (count - count // 2)
        self.rng.shuffle(victims)
        for number, victim in enumerate(victims, 1):
            self.load.ending.wait(self.rng.uniform(0, CALM_S))
            if self.load.ending.is_set():
                return
            made = self.load.made
            kill = self._kill_server() if victim is Victim.SERVER else self._kill_runner()
            self.kills.append(kill)
            if number < count and self.rng.random() < HASTY:
                continue
            wait_until(self._is_ready, f"/readyz after kill {number}", RECOVERY_S)
            kill.ready_s = time.time() - kill.at
            assert self.load.wait_for_film(made, RECOVERY_S), f"no film after kill {number}"

    def runners(self, *servers: int) -> list[psutil.Process]:
        """The living runners of these servers, or of all there ever were, whoever their parent is now."""
        parents = {str(pid) for pid in servers or self.servers}
        found: list[psutil.Process] = []
        for process in psutil.process_iter(["cmdline"]):
            words: list[str] = process.info["cmdline"] or []
            if "stillmotion.runner" in words and words[words.index("--parent") + 1] in parents:
                found.append(process)
        return found

    def _kill_server(self) -> Kill:
        runners = self.runners()
        kill = Kill(Victim.SERVER, time.time())
        self.server.kill()
        self.server.start_again()
        self.servers.append(self.server.process.pid)
        # A runner that outlived its server would hold the device, and might publish.
        wait_until(lambda: all_gone(runners), "the runners of a killed server to end", 10)
        return kill

    def _kill_runner(self) -> Kill:
        [runner, *_] = wait_until(lambda: self.runners(self.servers[-1]), "a runner", RECOVERY_S)
        kill = Kill(Victim.RUNNER, time.time())
        with suppress(psutil.NoSuchProcess):
            runner.kill()
        return kill

    def _is_ready(self) -> bool:
        assert self.server.process.poll() is None, f"the server ended: {self.server.output()}"
        announced = read_announcement(self.server.data_dir)
        try:
            return (
                announced is not None
                and httpx.get(f"{announced.http}/readyz", timeout=10, trust_env=False).status_code == 200
            )
        except httpx.TransportError:
            return False

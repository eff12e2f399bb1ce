"""One device and the runner that holds it: started, started again after a pause, ended."""

import asyncio
import logging
import random
from collections.abc import Callable, Mapping
from typing import Any

from stillmotion.errors import RunnerGone
from stillmotion.work.runners import Runner, start_runner

RESTART_FIRST_S, RESTART_LAST_S = 0.5, 30.0

log = logging.getLogger("stillmotion.worker")


class Lane:
    """A device's place in the worker; `ending` stops its starts, `on_gone` is told when its runner died."""

    def __init__(self, device: str, ending: asyncio.Event, on_gone: Callable[[], None]) -> None:
        self.device = device
        self.runner: Runner | None = None
        #: Starts since the last answer; they set the pause before the next one.
        self.starts = 0
        #: Why no runner is ready, for people.
        self.reason = f"the runner on {device} is starting"
        self._ending = ending
        self._on_gone = on_gone

    @property
    def ready(self) -> bool:
        return self.runner is not None and self.runner.ready

    async def start(self, engine: str, opening: Mapping[str, Any], timeout_s: float) -> None:
        """Try once to get a runner, after the pause that earlier tries ask for."""
        self.starts += 1
        if self.starts == 1:
            self.reason = f"the runner on {self.device} is loading its weights"
        # The first death is replaced at once; a device that keeps failing must not spin.
        elif await happens(self._ending, pause_s(self.starts - 1, RESTART_FIRST_S, RESTART_LAST_S)):
            return
        try:
            self.runner = await start_runner(engine, self.device, opening, self._on_gone)
            if self._ending.is_set():
                self.end()
            await self.runner.opened(timeout_s)
        except RunnerGone as gone:
            if self._ending.is_set():
                return
            self.reason = f"the runner on {self.device} did not start ({self.starts} in a row): {gone}"
            log.warning("runner did not start device=%s starts=%d: %s", self.device, self.starts, gone)
        else:
            self.reason = f"the runner on {self.device} died and is being replaced"

    def end(self) -> None:
        if self.runner is not None:
            self.runner.kill("the worker ends")

    async def ended(self) -> None:
        """End the runner and wait until it is reaped."""
        self.end()
        if self.runner is not None:
            await self.runner.gone()


def pause_s(tries: int, first_s: float, last_s: float) -> float:
    """Double with each try up to a bound, and spread, so that many do not come at once."""
    spread = random.uniform(0.5, 1.0)  # noqa: S311
    return min(last_s, first_s * 2 ** min(tries - 1, 16)) * spread


async def happens(event: asyncio.Event, within_s: float) -> bool:
    try:
        # Not wait_for: on Python 3.11 it loses a cancel that meets the event.
        async with asyncio.timeout(within_s):
            await event.wait()
    except TimeoutError:
        return False
    return True

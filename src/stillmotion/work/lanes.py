"""One device and the runner that holds it: started, started again after a pause, ended; and whose turn it is.

An attempt is prepared while the one before it is decoded, begins when that one is off the device, and ends
after it: mostly one attempt is on the device, one before it, one behind it.
"""

import asyncio
import logging
import random
from collections.abc import Callable, Mapping
from typing import Any

from stillmotion.errors import RunnerGone
from stillmotion.wakeup import Wakeup
from stillmotion.work.attempts import Attempt, Stop
from stillmotion.work.runners import Runner, start_runner

RESTART_FIRST_S, RESTART_LAST_S = 0.5, 30.0
#: A picture that takes longer to come no longer keeps the device from the next request.
SLOW_S = 1.0
#: Attempts that may be before the device, waiting for slow pictures.
MOST_AHEAD = 4

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
        #: Attempts that were claimed for it and have not ended.
        self.attempts: list[Attempt] = []
        self.on_device: Attempt | None = None
        #: Those that need nothing any more but the device, first come first.
        self._prepared: list[Attempt] = []
        self._hints = Wakeup()
        self._ending = ending
        self._on_gone = on_gone

    @property
    def ready(self) -> bool:
        return self.runner is not None and self.runner.ready

    @property
    def idle(self) -> bool:
        return self.ready and not self.attempts

    @property
    def waiting(self) -> list[Attempt]:
        """Attempts that the device has still to take."""
        return [attempt for attempt in self.attempts if not attempt.had_device]

    def wants_another(self, now: float) -> bool:
        """Whether the device is free, or will be in a moment, and nobody is about to take it."""
        if self.on_device is not None and not self.on_device.notes.denoised:
            return False
        waiting = self.waiting
        slow = all(now > attempt.claimed + SLOW_S and attempt not in self._prepared for attempt in waiting)
        return slow and len(waiting) < MOST_AHEAD

    async def take(self, attempt: Attempt) -> None:
        """Wait until the device is the attempt's."""
        self._prepared.append(attempt)
        try:
            while not self._may_take(attempt):
                await self.moved()
            self.on_device, attempt.had_device = attempt, True
        finally:
            self._prepared.remove(attempt)

    def _may_take(self, attempt: Attempt) -> bool:
        others = [other for other in self.attempts if other.running]
        apart = all(each.may_share for each in (attempt, *others))
        return self.on_device is None and self._prepared[0] is attempt and (apart or not others)

    def drop_waiting(self) -> None:
        """Give up what the device has still to take; each goes back to its place."""
        for attempt in self.waiting:
            attempt.drop(Stop.ENDING)

    def leave(self, attempt: Attempt) -> None:
        """Give the device up, if it is the attempt's."""
        if self.on_device is attempt:
            self.on_device = None
        self.hint()

    def tell(self) -> None:
        """Hear that the attempt on the device came further."""
        if self.on_device is not None and self.on_device.notes.off_device:
            self.on_device = None
        self.hint()

    def hint(self) -> None:
        self._hints.notify("moved")

    async def moved(self) -> None:
        """Wait until something changed for those who wait for this device, or a second."""
        await self._hints.wait("moved", SLOW_S)

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
        self.hint()
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

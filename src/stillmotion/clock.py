"""Time as a value: production reads the system clocks, tests set their own."""

import time
from typing import Protocol


class Clock(Protocol):
    """Three clocks: `now` is Unix seconds and may jump, `monotonic` never goes back; `steady` is Unix seconds
    as of the start of this process, moved by `monotonic`: for leases, deadlines and pauses kept in the store.
    """

    def now(self) -> float: ...

    def monotonic(self) -> float: ...

    def steady(self) -> float: ...


class SystemClock:
    def __init__(self) -> None:
        self._start = time.time() - time.monotonic()

    def now(self) -> float:
        return time.time()

    def monotonic(self) -> float:
        return time.monotonic()

    def steady(self) -> float:
        return self._start + time.monotonic()


class ManualClock:
    """A clock that moves only when told; for tests and replays."""

    def __init__(self, now: float = 1_700_000_000.0) -> None:
        self._now = self._start = now
        self._monotonic = 0.0

    def now(self) -> float:
        return self._now

    def monotonic(self) -> float:
        return self._monotonic

    def steady(self) -> float:
        return self._start + self._monotonic

    def advance(self, seconds: float) -> None:
        self._now += seconds
        self._monotonic += seconds

    def jump(self, seconds: float) -> None:
        """Move the wall clock alone, as NTP or an operator does."""
        self._now += seconds

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

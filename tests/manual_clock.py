"""A clock that moves only when told."""


class ManualClock:
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

"""Rows of a long benchmark, kept in a file as they come: a run that is cut off goes on where it stopped."""

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from stillmotion.errors import StillmotionError


@dataclass(frozen=True, slots=True)
class Row:
    """One measured run."""

    #: Card, versions, sizes: rows of another setting are another benchmark's.
    setting: str
    job: str
    name: str
    #: Median seconds by stage; empty where the run failed.
    seconds: dict[str, float]
    #: Counted TFLOP by stage, empty where nothing was counted; or a card's ceilings.
    work: dict[str, float]
    peak_gb: float = 0.0
    #: Decibels to stock's frames.
    db: float | None = None
    failure: str = ""


class Rows:
    """The rows of one setting; without a file, those of this run."""

    def __init__(self, setting: str, file: Path | None, minutes: float = 0) -> None:
        self._setting, self._file = setting, file
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
        self._until = time.monotonic() + minutes * 60 if minutes else float("inf")
        self._known = {(row.job, row.name): row for row in read(file) if row.setting == setting}

    def take(self, job: str, name: str, measure: Callable[[], Row]) -> Row | None:
        """Return a row: the kept one, else a measured one; None when no time is left to begin it."""
        if (job, name) not in self._known:
            if time.monotonic() > self._until:
                return None
            try:
                row = measure()
            except (RuntimeError, StillmotionError) as error:
                if isinstance(error, torch.AcceleratorError):
                    raise  # of a lost card every later row would fail alike
                # One lever that a card, or its torch, cannot do leaves the others to be measured.
                row = Row(self._setting, job, name, {}, {}, failure=f"{type(error).__name__}: {error}"[:300])
            self._known[job, name] = row
            if self._file is not None:
                with self._file.open("a", encoding="utf-8") as lines:
                    lines.write(json.dumps(asdict(row)) + "\n")
        return self._known[job, name]


def read(file: Path | None) -> list[Row]:
    """Read what a file holds; a last line that was cut short is taken off."""
    if file is None or not file.is_file():
        return []
    text = file.read_text(encoding="utf-8")
    whole, _, rest = text.rpartition("\n")
    if rest:
        file.write_text(f"{whole}\n" if whole else "", encoding="utf-8")
    return [Row(**json.loads(line)) for line in whole.splitlines()]

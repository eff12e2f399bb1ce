"""What an engine may tell while it makes a film, and what it must ask."""

from typing import Protocol

from stillmotion.types import Level

#: The stage whose last step leaves the device only the decoding to do.
DENOISE = "denoise"


class Report(Protocol):
    """The engine's only line to the outside; each call also proves that the engine has not hung."""

    def log(self, message: str, level: Level = Level.INFO) -> None:
        """Write a line into the request's log."""
        ...

    def progress(self, stage: str, step: int, steps: int) -> None:
        """Say that `step` of `steps` of `stage` is done."""
        ...

    def check_cancelled(self) -> None:
        """Raise RequestCancelled when the request was cancelled; call it between steps."""
        ...

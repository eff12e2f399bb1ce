"""Everything that can go wrong, one class per thing a caller can act on.

StillmotionError
├── UserError            the operator or caller can mend it; shown as one line, no traceback
│   ├── WeightsMissing   a profile's weights are not here, or not whole
│   └── DataRefused      data directory or database cannot be used (locked, newer schema, corrupt)
├── InputRefused         an input value is wrong -> 422 naming its field
├── LimitReached         a key has used up what it may do in a minute or a day
├── IdempotencyReused    one name for two different submits -> 422 naming the header
├── StoreUnavailable     the database did not commit -> 503, nothing acknowledged
│   └── CommitUnanswered its connection broke during COMMIT, which may have been kept
├── RequestCancelled     raised inside a runner at the next step after a cancel
├── DeviceLost           raised inside a runner whose device takes no more work from its process
└── RunnerGone           the runner's process ended or broke its protocol
"""

from collections.abc import Mapping
from typing import Any

from stillmotion.types import Failure


class StillmotionError(Exception):
    """Base of all errors raised on purpose."""


class UserError(StillmotionError):
    """The person who started the program can mend this; the text says how."""


class InputRefused(StillmotionError):
    """An input value cannot be used; carries the failure the caller will see."""

    def __init__(
        self,
        message: str,
        *,
        kind: str = "value_error",
        field: str | None = None,
        status: int = 422,
        context: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.failure = Failure(
            status=status, kind=kind, message=message, field=field, context=dict(context or {})
        )


class WeightsMissing(UserError):
    """A part of a profile's weights is absent, truncated or of the wrong shape."""


class DataRefused(UserError):
    """The data directory is in use, corrupt, or written by a newer version."""


class LimitReached(StillmotionError):
    """A key has used up its allowance; carries the failure and when there is more."""

    def __init__(self, failure: Failure, *, retry_after_s: int) -> None:
        super().__init__(failure.message)
        self.failure = failure
        self.retry_after_s = retry_after_s


class IdempotencyReused(StillmotionError):
    """The caller's name for a submit already stands for one with another body or endpoint."""


class StoreUnavailable(StillmotionError):
    """The database did not take the write; nothing of it was kept."""


class CommitUnanswered(StoreUnavailable):
    """The connection broke during COMMIT: the write may have been kept after all."""


class RequestCancelled(StillmotionError):
    """The request was cancelled while it ran."""


class DeviceLost(StillmotionError):
    """The device failed in a way that lasts as long as the process; a fresh one may use it."""


class RunnerGone(StillmotionError):
    """The runner's process is gone."""

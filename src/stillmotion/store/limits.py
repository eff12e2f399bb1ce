"""What a key may do in a minute or a day, counted in its own row; requests at once are in `endings.py`.

A window begins with the first use after the one before it has ended, so its end is a moment one can name.
The row is locked while it is counted, and what was counted is taken back if the transaction fails.
"""

import math
from dataclasses import dataclass

from sqlalchemy import Column, Connection, Row, Select, select, update

from stillmotion.errors import LimitReached
from stillmotion.settings import DAY_S
from stillmotion.store.tables import api_key
from stillmotion.types import Failure

MINUTE_S = 60


@dataclass(frozen=True, slots=True)
class Allowance:
    """What a key has left of one limit."""

    limit: int
    left: int
    #: Unix seconds of the window's first use, and of its end.
    began: float
    ends: float

    def reached(self, now: float, failure: Failure) -> LimitReached:
        return LimitReached(failure, retry_after_s=max(math.ceil(self.ends - now), 1))


@dataclass(frozen=True, slots=True)
class _Window:
    limit: "Column[int | None]"
    began: "Column[float]"
    used: "Column[int]"
    seconds: int

    def row_of(self, key_id: str) -> "Select[int | None, float, int]":
        columns = select(self.limit.label("limit"), self.began.label("began"), self.used.label("used"))
        return columns.where(api_key.c.id == key_id, self.limit.is_not(None))

    def allowance(self, row: "Row[int | None, float, int]", now: float) -> Allowance:
        # A clock that was set back begins a new window, rather than one that lasts till it catches up.
        fresh = not row.began <= now < row.began + self.seconds
        began, used = (now, 0) if fresh else (row.began, row.used)
        return Allowance(row.limit, max(row.limit - used, 0), began, began + self.seconds)


_SUBMITS = _Window(api_key.c.submits_per_minute, api_key.c.minute_began, api_key.c.minute_submits, MINUTE_S)
_UPLOADS = _Window(api_key.c.upload_bytes_per_day, api_key.c.day_began, api_key.c.day_upload_bytes, DAY_S)


def count_submit(conn: Connection, key_id: str, now: float) -> None:
    """Count one submit of a key; raises LimitReached when its minute is used up."""
    allowance = _spend(conn, _SUBMITS, key_id, 1, now)
    if allowance is not None:
        raise allowance.reached(
            now,
            Failure(
                status=429,
                kind="rate_limited",
                message=f"This key may submit {allowance.limit} requests a minute and has; try again later",
            ),
        )


def count_upload(conn: Connection, key_id: str, size: int, now: float) -> None:
    """Count an upload's bytes, in the transaction that completes it; raises LimitReached."""
    allowance = _spend(conn, _UPLOADS, key_id, size, now)
    if allowance is not None:
        raise upload_refused(allowance, now)


def upload_allowance(conn: Connection, key_id: str, now: float) -> Allowance | None:
    """Return what a key may still upload, to refuse a body before it is read; None = no limit."""
    row = conn.execute(_UPLOADS.row_of(key_id)).one_or_none()
    return None if row is None else _UPLOADS.allowance(row, now)


def upload_refused(allowance: Allowance, now: float) -> LimitReached:
    # Not 429: clients would send the whole body again, up to ten times within a minute.
    message = (
        f"This key may upload {allowance.limit} bytes a day and has {allowance.left} left; "
        "its day ends after the seconds in Retry-After"
    )
    return allowance.reached(now, Failure(status=403, kind="upload_limit", message=message))


def _spend(conn: Connection, window: _Window, key_id: str, amount: int, now: float) -> Allowance | None:
    """Count an amount; return the allowance instead when it is more than is left."""
    row = conn.execute(window.row_of(key_id).with_for_update()).one_or_none()
    if row is None:
        return None
    allowance = window.allowance(row, now)
    if amount > allowance.left:
        return allowance
    used = allowance.limit - allowance.left + amount
    conn.execute(
        update(api_key)
        .where(api_key.c.id == key_id)
        .values({window.began: allowance.began, window.used: used})
    )
    return None

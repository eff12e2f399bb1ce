"""Marks: what rank every 512th waiting request had when they were last set, so that a position in a deep
queue is two short counts and a difference instead of one count of all that wait.

Marks are derived and may be stale. Departures at the head and arrivals at the tail keep them exact, for only
differences of ranks are used; a change in the middle (a cancel, a normal request going before the low ones)
shifts the positions behind it by one until the next rebuild. They are rebuilt only while positions are asked,
by whoever wins the guarded UPDATE; the walk over the queue is a read, the writer only stores its result.
"""

import logging
import math
import threading
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from sqlalchemy import Connection, bindparam, delete, insert, or_, text, update
from sqlalchemy.exc import SQLAlchemyError

from stillmotion.clock import Clock
from stillmotion.errors import StoreUnavailable
from stillmotion.store.tables import queue, queue_mark

T = TypeVar("T")

log = logging.getLogger(__name__)

#: Waiting requests from one mark to the next: the most a position counts on either side.
EVERY = 512
#: Marks of a queue not worth them: up to 2,048 waiting are counted in 0.2 ms.
FEW = 4
#: A rebuild rests at least this long, and 20 times what it took, so it costs 5 % of one core at most.
REST_S = 0.5
REST_COSTS = 20

_DEEP = "stillmotion.deep_queues"

# One step per mark, each a walk along the index: a window function would number and keep every row.
_WALK = text("""
WITH RECURSIVE
waiting AS NOT MATERIALIZED (
    SELECT ord FROM request WHERE profile = :of_profile AND state IN ('held', 'ready')
),
mark (ord, rnk) AS (
    SELECT (SELECT min(ord) FROM waiting), 0
    UNION ALL
    SELECT (
        SELECT later.ord FROM waiting AS later WHERE later.ord > mark.ord ORDER BY later.ord
        LIMIT 1 OFFSET :every - 1
    ), mark.rnk + :every
    FROM mark WHERE mark.ord IS NOT NULL
)
SELECT ord, rnk FROM mark WHERE ord IS NOT NULL
""")
_TAKE_TURN = (
    update(queue)
    .where(
        queue.c.profile == bindparam("of_profile"),
        # A mark time ahead of now was set before the clock went back.
        or_(queue.c.marks_at <= bindparam("before"), queue.c.marks_at > bindparam("now")),
    )
    .values(marks_at=bindparam("now"))
)


class Run(Protocol):
    """`Store.read_now` or `Store.write_now`."""

    def __call__(self, operation: Callable[[Connection], T], /) -> T: ...


def note_deep(conn: Connection, profile: str) -> None:
    """Leave word on the connection that a position was asked in a deep queue."""
    conn.info.setdefault(_DEEP, set()).add(profile)


def take_deep(conn: Connection) -> set[str]:
    """Take the queues noted on a connection."""
    return conn.info.pop(_DEEP, set())


def take_turn(conn: Connection, profile: str, now: float, rest_s: float) -> bool:
    """Win or lose the right to rebuild a queue's marks."""
    turn = {"of_profile": profile, "now": now, "before": now - rest_s}
    return conn.execute(_TAKE_TURN, turn).rowcount == 1


def walk(conn: Connection, profile: str) -> list[dict[str, Any]]:
    """Find where a queue's marks belong now; none for a queue that is quickly counted."""
    rows = conn.execute(_WALK, {"of_profile": profile, "every": EVERY}).all()
    if len(rows) <= FEW:
        return []
    return [{"profile": profile, "ord": row.ord, "rnk": row.rnk} for row in rows]


def replace(conn: Connection, profile: str, marks: list[dict[str, Any]]) -> None:
    conn.execute(delete(queue_mark).where(queue_mark.c.profile == profile))
    if marks:
        conn.execute(insert(queue_mark), marks)


class Marks:
    """Rebuilds marks, one queue in one thread at a time."""

    def __init__(self, read: Run, write: Run, clock: Clock) -> None:
        self._read = read
        self._write = write
        self._clock = clock
        self._lock = threading.Lock()
        #: By queue: when it may be looked at again (monotonic), and the rest its last rebuild earned.
        self._due: dict[str, float] = {}
        self._rest: dict[str, float] = {}

    def refresh(self, profile: str) -> None:
        """Rebuild a queue's marks if it is time and no other process did; blocks while it does."""
        with self._lock:
            if self._clock.monotonic() < self._due.get(profile, -math.inf):
                return
            self._due[profile] = math.inf
        try:
            self._rebuild(profile)
        except (StoreUnavailable, SQLAlchemyError) as error:
            # Stale marks are only stale; the next who asks tries again.
            log.warning("queue marks not rebuilt profile=%s: %s", profile, error)
        finally:
            self._due[profile] = self._clock.monotonic() + self._rest.get(profile, REST_S)

    def _rebuild(self, profile: str) -> None:
        rest_s = self._rest.get(profile, REST_S)
        if not self._write(lambda conn: take_turn(conn, profile, self._clock.now(), rest_s)):
            return
        begun = self._clock.monotonic()
        marks = self._read(lambda conn: walk(conn, profile))
        self._write(lambda conn: replace(conn, profile, marks))
        self._rest[profile] = max(REST_S, REST_COSTS * (self._clock.monotonic() - begun))

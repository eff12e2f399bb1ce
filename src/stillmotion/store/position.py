"""How many requests are ahead of one in its queue, by the marks of `marks.py` where the queue is deep."""

from typing import Any

from sqlalchemy import Connection, Row, func, select, text

from stillmotion.store import marks
from stillmotion.store.tables import IS_WAITING, request
from stillmotion.types import Request, State

#: Waiting requests at the head that a mark must leave behind to be counted from: what a runner gives back
#: returns to the head, and would else make a long departed mark the nearest.
HEAD = 64
#: Behind every request: the largest `ord` there can be.
_END = 2**63 - 1

# One statement, so one snapshot on PostgreSQL too. `near` is the first mark behind the head, `last` the last
# one not behind the request itself; between them nothing is counted. NOT MATERIALIZED: each use is a walk
# along the partial index.
_AHEAD = text("""
WITH
waiting AS NOT MATERIALIZED (
    SELECT ord FROM request WHERE profile = :of_profile AND state IN ('held', 'ready')
),
last AS (
    SELECT ord, rnk FROM queue_mark WHERE profile = :of_profile AND ord <= :mine ORDER BY ord DESC LIMIT 1
),
near AS (
    SELECT ord, rnk FROM queue_mark
    WHERE profile = :of_profile AND ord >= (SELECT ord FROM waiting ORDER BY ord LIMIT 1 OFFSET :head)
    ORDER BY ord LIMIT 1
)
SELECT
    CASE WHEN (SELECT ord FROM near) <= (SELECT ord FROM last) THEN
        (SELECT count(*) FROM waiting WHERE ord < (SELECT ord FROM near))
        + (SELECT rnk FROM last) - (SELECT rnk FROM near)
        + (SELECT count(*) FROM waiting WHERE ord >= (SELECT ord FROM last) AND ord < :mine)
    ELSE (SELECT count(*) FROM waiting WHERE ord < :mine) END AS ahead,
    (SELECT ord FROM last) IS NOT NULL AS marked
""")


def queue_position(conn: Connection, waiting: Request) -> int:
    """Count the waiting requests ahead in the whole profile's queue; 0 means next, or no longer waiting."""
    if waiting.state not in (State.HELD, State.READY):
        return 0
    row = _count_ahead(conn, waiting.profile, waiting.ord)
    if row.marked or row.ahead >= marks.FEW * marks.EVERY:
        marks.note_deep(conn, waiting.profile)
    return row.ahead


def queue_length(conn: Connection, profile: str) -> int:
    """Count all that wait in a queue: exact while it is short, by its marks where it is deep."""
    return _count_ahead(conn, profile, _END).ahead


def waiting_elsewhere(conn: Connection, profile: str) -> dict[str, int]:
    """Count by profile what waits in the queues of others: nobody who runs this one will claim it."""
    rows = conn.execute(
        select(request.c.profile, func.count())
        .where(IS_WAITING, request.c.profile != profile)
        .group_by(request.c.profile)
        .order_by(request.c.profile)
    )
    return {other: waiting for other, waiting in rows}


def _count_ahead(conn: Connection, profile: str, ord: int) -> Row[Any]:
    return conn.execute(_AHEAD, {"of_profile": profile, "mine": ord, "head": HEAD}).one()

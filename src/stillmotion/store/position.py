"""How many requests are ahead of one in its queue, by the marks of `marks.py` where the queue is deep."""

from sqlalchemy import Connection, text

from stillmotion.store import marks
from stillmotion.types import Request, State

#: Waiting requests at the head that a mark must leave behind to be counted from: what a runner gives back
#: returns to the head, and would else make a long departed mark the nearest.
HEAD = 64

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
    where = {"of_profile": waiting.profile, "mine": waiting.ord, "head": HEAD}
    row = conn.execute(_AHEAD, where).one()
    if row.marked or row.ahead >= marks.FEW * marks.EVERY:
        marks.note_deep(conn, waiting.profile)
    return row.ahead

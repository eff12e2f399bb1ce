"""How many requests are ahead of one in its queue."""

from sqlalchemy import Connection, func, select

from stillmotion.store.tables import IS_WAITING, request
from stillmotion.types import Request, State


def queue_position(conn: Connection, waiting: Request) -> int:
    """Count the waiting requests ahead in the whole profile's queue; 0 means next, or no longer waiting."""
    if waiting.state not in (State.HELD, State.READY):
        return 0
    ahead = select(func.count()).select_from(request)
    ahead = ahead.where(request.c.profile == waiting.profile, IS_WAITING, request.c.ord < waiting.ord)
    return conn.execute(ahead).scalar_one()

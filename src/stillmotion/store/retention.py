"""Forgetting finished requests."""

from sqlalchemy import Connection, delete, select

from stillmotion.store.tables import IS_DONE, request


def drop_old_requests(conn: Connection, before: float, limit: int) -> int:
    """Delete up to `limit` requests finished before a time, with their logs and webhook rows.

    Small batches keep the writer free for others; files have an expiry of their own.
    """
    old = select(request.c.id).where(IS_DONE, request.c.finished < before).limit(limit)
    return conn.execute(delete(request).where(request.c.id.in_(old), IS_DONE)).rowcount

"""Forgetting finished requests."""

from sqlalchemy import Connection, delete, select, update

from stillmotion.store.tables import IS_DONE, IS_TO_SEND, IS_UNSTORED, file, outbox, request

#: Whose webhook is still to be sent; they stay until it is, or until it is parked.
_ANNOUNCED = select(outbox.c.request_id).where(IS_TO_SEND)


def drop_old_requests(conn: Connection, before: float, limit: int) -> int:
    """Delete up to `limit` requests finished before a time, with their logs and webhook rows.

    Small batches keep the writer free for others; files have an expiry of their own.
    """
    old = (
        select(request.c.id)
        .where(IS_DONE, request.c.finished < before, request.c.id.not_in(_ANNOUNCED))
        .limit(limit)
    )
    return conn.execute(delete(request).where(request.c.id.in_(old), IS_DONE)).rowcount


def drop_unstored_requests(conn: Connection, before: float, limit: int) -> int:
    """Delete up to `limit` requests that asked not to be kept and finished before a time.

    A picture that came inside the input was part of it and expires now; the film has an expiry of its own.
    """
    old = (
        select(request.c.id)
        .where(IS_UNSTORED, request.c.finished < before, request.c.id.not_in(_ANNOUNCED))
        .limit(limit)
    )
    dropped = conn.execute(
        delete(request).where(request.c.id.in_(old), IS_UNSTORED).returning(request.c.id, request.c.picture)
    ).all()
    pictures = [row.picture.removeprefix("file:") for row in dropped if row.picture is not None]
    conn.execute(
        update(file)
        .where(file.c.id.in_(pictures), file.c.request_id.in_([row.id for row in dropped]))
        .values(expires=before)
    )
    return len(dropped)

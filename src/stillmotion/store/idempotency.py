"""Submits that carry a name of their caller's choice: the same name again is the same request."""

from sqlalchemy import Connection, select

from stillmotion.errors import IdempotencyReused
from stillmotion.store.rows import to_request
from stillmotion.store.tables import api_key, request
from stillmotion.types import Idempotency, Request


def find_replay(conn: Connection, key_id: str, given: Idempotency) -> Request | None:
    """Return the request a caller submitted under this name, in the transaction that would submit anew.

    Raises IdempotencyReused when that one had another body or endpoint. The name is free again when its
    request is forgotten.
    """
    # Two replays at once on two connections: the second waits here, then finds the first one's row.
    conn.execute(select(api_key.c.id).where(api_key.c.id == key_id).with_for_update())
    row = (
        conn.execute(
            select(*request.c).where(request.c.key_id == key_id, request.c.idempotency_key == given.key)
        )
        .mappings()
        .one_or_none()
    )
    if row is None:
        return None
    if row["idempotency_digest"] != given.digest:
        raise IdempotencyReused
    return to_request(row)

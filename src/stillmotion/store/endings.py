"""The one way into DONE: outcome, webhook row and the key's next held request, in one transaction.

The key's row is locked before the request's: a submit that reads the limit and a finish that frees a place
then see each other, and no held request is forgotten.
"""

from dataclasses import dataclass

from sqlalchemy import Connection, TextClause, bindparam, case, literal, select, update
from sqlalchemy.sql.elements import ColumnElement

from stillmotion.store.outbox import announce
from stillmotion.store.rows import failure_values
from stillmotion.store.tables import IS_HELD, IS_READY, api_key, request
from stillmotion.types import Ending, Outcome, State

Guard = ColumnElement[bool] | TextClause

CANCELLED = Ending(outcome=Outcome.CANCELLED)

# Built once: building a statement costs more than SQLite needs to run it.
_LIMIT = (
    select(api_key.c.lim, api_key.c.active)
    .where(api_key.c.id == bindparam("key_id"), api_key.c.lim.is_not(None))
    .with_for_update()
)
#: What a caller wants not kept goes with the last moment it is needed.
_KEPT_INPUT = case((request.c.store_io, request.c.input), else_=literal({}, request.c.input.type))


@dataclass(frozen=True, slots=True)
class KeyLimit:
    """A limited key's row, locked until the transaction ends."""

    key_id: str
    lim: int
    active: int


def lock_limit(conn: Connection, key_id: str) -> KeyLimit | None:
    """Lock a key's row if it has a limit; None for keys without one, whose row is left alone."""
    row = conn.execute(_LIMIT, {"key_id": key_id}).one_or_none()
    return None if row is None else KeyLimit(key_id, row.lim, row.active)


def count_active(conn: Connection, limit: KeyLimit, change: int) -> None:
    conn.execute(update(api_key).where(api_key.c.id == limit.key_id).values(active=api_key.c.active + change))


def end_request(conn: Connection, request_id: str, ending: Ending, now: float, *guards: Guard) -> bool:
    """Move one request that passes the guards to DONE; False when none does."""
    key_id = conn.execute(select(request.c.key_id).where(request.c.id == request_id)).scalar_one_or_none()
    if key_id is None:
        return False
    limit = lock_limit(conn, key_id)
    return _write_ending(conn, request_id, ending, now, limit, *guards)


def end_waiting(conn: Connection, request_id: str, ending: Ending, now: float, *guards: Guard) -> bool:
    """Move a held or ready request to DONE; a held one gives no place back, for it had none."""
    key_id = conn.execute(select(request.c.key_id).where(request.c.id == request_id)).scalar_one_or_none()
    if key_id is None:
        return False
    limit = lock_limit(conn, key_id)
    return _write_ending(conn, request_id, ending, now, None, IS_HELD, *guards) or _write_ending(
        conn, request_id, ending, now, limit, IS_READY, *guards
    )


def _write_ending(
    conn: Connection, request_id: str, ending: Ending, now: float, limit: KeyLimit | None, *guards: Guard
) -> bool:
    ended = conn.execute(
        update(request)
        .where(request.c.id == request_id, *guards)
        .values(
            state=State.DONE.value,
            outcome=ending.outcome.value,
            result=None if ending.result is None else dict(ending.result),
            failure=None if ending.failure is None else failure_values(ending.failure),
            fingerprint=ending.fingerprint,
            timings=dict(ending.timings),
            finished=now,
            input=_KEPT_INPUT,
            owner=None,
            lease_until=None,
        )
        .returning(request.c.webhook)
    ).one_or_none()
    if ended is None:
        return False
    if ended.webhook is not None:
        announce(conn, request_id, ended.webhook, now)
    if limit is not None:
        _pass_place_on(conn, limit)
    return True


def _pass_place_on(conn: Connection, limit: KeyLimit) -> None:
    oldest_held = (
        select(request.c.id)
        .where(request.c.key_id == limit.key_id, IS_HELD)
        .order_by(request.c.ord)
        .limit(1)
        .scalar_subquery()
    )
    promoted = conn.execute(
        update(request).where(request.c.id == oldest_held, IS_HELD).values(state=State.READY.value)
    )
    if promoted.rowcount == 0:
        count_active(conn, limit, -1)

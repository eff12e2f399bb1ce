"""The queue: every edge between states is one guarded UPDATE, and zero rows means someone else did it.

`attempt` fences: it grows with each claim, and only the newest attempt may renew, log, finish or crash.
`crashes` counts runner deaths alone; drains, restarts and lapsed leases never count. A request keeps its
`ord`, its place in the queue, until it is done.
Times come from the caller's clock, on both databases: `now` is kept for people, leases and deadlines go by
`steady`, which no jump of the wall clock moves. While one server process writes there is one clock; several
writing hosts would need the database's instead.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, bindparam, insert, or_, select, text, tuple_, update

from stillmotion.store.endings import CANCELLED, Guard, count_active, end_request, end_waiting, lock_limit
from stillmotion.store.logs import append_logs
from stillmotion.store.rows import request_values, to_request
from stillmotion.store.tables import HAS_DEADLINE, IS_READY, IS_RUNNING, IS_WAITING, request
from stillmotion.types import CancelAnswer, Ending, Failure, LogLine, NewRequest, Outcome, Request, State

#: Low priority starts an hour further back and ages like all others, so it is never starved.
LOW_PRIORITY_US = 3600 * 1_000_000

#: Rows one sweep ends in one transaction; the next sweep takes the rest.
SWEEP_ROWS = 500

_NEXT_ORD = text(
    "INSERT INTO queue (profile, last_ord) VALUES (:profile, :now_us) ON CONFLICT (profile) DO UPDATE "
    "SET last_ord = CASE WHEN queue.last_ord >= :now_us THEN queue.last_ord + 1 ELSE :now_us END "
    "RETURNING last_ord"
)

# Built once: building a statement costs more than SQLite needs to run it.
_INSERT = insert(request)
_BY_ID = select(*request.c).where(request.c.id == bindparam("request_id"))
_FIRST_READY = (
    select(request.c.id)
    .where(
        request.c.profile == bindparam("of_profile"),
        IS_READY,
        or_(request.c.start_by.is_(None), request.c.start_by > bindparam("steady"), request.c.attempt > 0),
    )
    .order_by(request.c.ord)
    .limit(1)
    .with_for_update(skip_locked=True)
    .scalar_subquery()
)
_CLAIM = (
    update(request)
    .where(request.c.id == _FIRST_READY, IS_READY)
    .values(
        state=State.RUNNING.value,
        attempt=request.c.attempt + 1,
        owner=bindparam("by"),
        lease_until=bindparam("until"),
        started=bindparam("now"),
    )
    .returning(*request.c)
)

#: A fresh row's columns, as the database fills in what `submit` leaves out.
_UNTOUCHED: dict[str, Any] = {column.name: None for column in request.c} | {"attempt": 0, "crashes": 0}

_BACK_TO_READY = {"state": State.READY.value, "owner": None, "lease_until": None, "progress": None}

_TOO_LATE = Ending(
    outcome=Outcome.ERROR,
    failure=Failure(
        status=504, kind="request_timeout", message="The request did not start before its deadline."
    ),
)


def submit(conn: Connection, new: NewRequest, now: float) -> Request:
    """Put a request into its queue: ready, or held when its key is at its limit."""
    limit = lock_limit(conn, new.key_id)
    state = State.READY
    if limit is not None:
        if limit.active < limit.lim:
            count_active(conn, limit, 1)
        else:
            state = State.HELD
    ord = conn.execute(_NEXT_ORD, {"profile": new.profile, "now_us": int(now * 1_000_000)}).scalar_one()
    if new.low_priority:
        ord += LOW_PRIORITY_US
    values = request_values(new, state=state, ord=ord, now=now)
    conn.execute(_INSERT, values)
    return to_request({**_UNTOUCHED, **values})


def claim_next(
    conn: Connection, *, profile: str, owner: str, now: float, steady: float, lease_s: float
) -> Request | None:
    """Take the first ready request of a queue under a new attempt; None when nothing waits."""
    times = {"now": now, "steady": steady, "until": steady + lease_s}
    claimed = conn.execute(_CLAIM, {"of_profile": profile, "by": owner, **times})
    row = claimed.mappings().one_or_none()
    return None if row is None else to_request(row)


def renew(
    conn: Connection,
    held: Sequence[tuple[str, int]],
    *,
    until: float,
    progress: Mapping[str, Mapping[str, Any]] | None = None,
) -> dict[tuple[str, int], bool]:
    """Extend the leases of (id, attempt) pairs `until` a steady second; say which have a cancel asked.

    A pair missing from the answer is lost. `progress` maps request ids to what their runner told last.
    """
    if not held:
        return {}
    kept = conn.execute(
        update(request)
        .where(tuple_(request.c.id, request.c.attempt).in_(held), IS_RUNNING)
        .values(lease_until=until)
        .returning(request.c.id, request.c.attempt, request.c.cancel_at)
    ).all()
    told = [
        {"of_id": row.id, "of_attempt": row.attempt, "progress": dict(progress[row.id])}
        for row in kept
        if progress and row.id in progress
    ]
    if told:
        conn.execute(
            update(request).where(
                request.c.id == bindparam("of_id"), request.c.attempt == bindparam("of_attempt"), IS_RUNNING
            ),
            told,
        )
    return {(row.id, row.attempt): row.cancel_at is not None for row in kept}


def finish(
    conn: Connection, request_id: str, attempt: int, ending: Ending, logs: Sequence[LogLine], now: float
) -> bool:
    """Publish an attempt's ending with its last log lines; False when the attempt no longer holds it."""
    if logs:
        append_logs(conn, request_id, attempt, logs)
    return end_request(conn, request_id, ending, now, *_held_by(attempt))


def crashed(conn: Connection, request_id: str, attempt: int, *, now: float, max_crashes: int) -> State | None:
    """Record that the runner died on this attempt while its worker lived.

    READY: it waits again at its old place. DONE: cancelled, if that was asked, or failed after
    `max_crashes`, or at once when it is not to be retried. None: the attempt no longer holds it.
    """
    counted = conn.execute(
        update(request)
        .where(request.c.id == request_id, *_held_by(attempt))
        .values(crashes=request.c.crashes + 1)
        .returning(request.c.crashes, request.c.cancel_at, request.c.retry)
    ).one_or_none()
    if counted is None:
        return None
    if counted.cancel_at is not None:
        ending = CANCELLED
    elif counted.crashes >= max_crashes or not counted.retry:
        ending = _poisoned(counted.crashes)
    else:
        conn.execute(
            update(request).where(request.c.id == request_id, *_held_by(attempt)).values(_BACK_TO_READY)
        )
        return State.READY
    end_request(conn, request_id, ending, now, *_held_by(attempt))
    return State.DONE


def give_back(conn: Connection, request_id: str, attempt: int, now: float) -> bool:
    """Return an attempt unharmed (drain, lost lease) to its old place; no crash is counted.

    One whose cancel was asked ends as cancelled instead.
    """
    if end_request(conn, request_id, CANCELLED, now, *_held_by(attempt), request.c.cancel_at.is_not(None)):
        return True
    returned = conn.execute(
        update(request)
        .where(request.c.id == request_id, *_held_by(attempt), request.c.cancel_at.is_(None))
        .values(_BACK_TO_READY)
    )
    return returned.rowcount == 1


def lapse(conn: Connection, now: float, steady: float) -> list[str]:
    """Free the requests whose lease ran out: cancelled if that was asked, else ready; return their ids."""
    return _requeue(conn, now, request.c.lease_until < steady)


def requeue_running(conn: Connection, now: float) -> list[str]:
    """Free every running request at once; for a starting server, which alone may have had runners."""
    freed: list[str] = []
    while batch := _requeue(conn, now, request.c.lease_until.is_not(None)):
        freed += batch
    return freed


def _requeue(conn: Connection, now: float, which: Guard) -> list[str]:
    cancelled = conn.execute(
        select(request.c.id).where(IS_RUNNING, which, request.c.cancel_at.is_not(None)).limit(SWEEP_ROWS)
    ).scalars()
    freed = [
        request_id
        for request_id in cancelled.all()
        if end_request(conn, request_id, CANCELLED, now, IS_RUNNING, which, request.c.cancel_at.is_not(None))
    ]
    lapsed = (
        select(request.c.id)
        .where(IS_RUNNING, which, request.c.cancel_at.is_(None))
        .limit(SWEEP_ROWS)
        .with_for_update(skip_locked=True)
    )
    returned = conn.execute(
        update(request)
        .where(request.c.id.in_(lapsed), IS_RUNNING, which, request.c.cancel_at.is_(None))
        .values(_BACK_TO_READY)
        .returning(request.c.id)
    )
    return [*freed, *returned.scalars()]


def cancel_abandoned(conn: Connection, now: float) -> list[str]:
    """Cancel what clients waited for on a connection to a server that is gone; for a starting server.

    Runs after `requeue_running`.
    """
    orphans = conn.execute(select(request.c.id).where(IS_WAITING, request.c.attached)).scalars().all()
    return [request_id for request_id in orphans if end_waiting(conn, request_id, CANCELLED, now)]


def expire_waiting(conn: Connection, now: float, steady: float) -> list[str]:
    """Fail the requests that never started and whose `start_by` has passed; return their ids."""
    late = (HAS_DEADLINE, request.c.start_by <= steady, request.c.attempt == 0)
    ids = conn.execute(select(request.c.id).where(*late).limit(SWEEP_ROWS)).scalars().all()
    return [request_id for request_id in ids if end_waiting(conn, request_id, _TOO_LATE, now, *late)]


def cancel(conn: Connection, request_id: str, now: float) -> CancelAnswer:
    """End a waiting request, or ask a running one to stop at its next step."""
    while True:
        if end_waiting(conn, request_id, CANCELLED, now):
            return CancelAnswer.REMOVED
        asked = conn.execute(
            update(request).where(request.c.id == request_id, IS_RUNNING).values(cancel_at=now)
        )
        if asked.rowcount == 1:
            return CancelAnswer.ASKED
        state = conn.execute(select(request.c.state).where(request.c.id == request_id)).scalar_one_or_none()
        if state is None:
            return CancelAnswer.UNKNOWN
        if state == State.DONE:
            return CancelAnswer.ALREADY_DONE
        # It was given back between the two statements, on another connection: look again.


def get(conn: Connection, request_id: str) -> Request | None:
    row = conn.execute(_BY_ID, {"request_id": request_id}).mappings().one_or_none()
    return None if row is None else to_request(row)


def _held_by(attempt: int) -> tuple[Guard, Guard]:
    return request.c.attempt == attempt, IS_RUNNING


def _poisoned(crashes: int) -> Ending:
    times = "once" if crashes == 1 else f"{crashes} times"
    return Ending(
        outcome=Outcome.ERROR,
        failure=Failure(
            status=500,
            kind="runner_disconnected",
            message=f"The runner died {times} on this request; it will not be tried again.",
        ),
    )

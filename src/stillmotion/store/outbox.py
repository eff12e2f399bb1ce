"""Webhook deliveries: a row per request that asked for one, written with the request's ending.

A delivery is claimed under a lease, so one whose sender died between the POST and its mark is sent again.
`tries` and the lease fence: only the newest try may mark the row, and none from before a `redeliver`. The
body is frozen by the first try. A row rests when delivered or parked; `redeliver` brings either back.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from sqlalchemy import Connection, Row, bindparam, func, insert, or_, select, update
from sqlalchemy.sql.elements import ColumnElement

from stillmotion.store.tables import IS_TO_SEND, IS_UNDELIVERED, outbox


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """One row of the outbox."""

    request_id: str
    url: str
    #: Host and port: what the limit of deliveries at once counts by.
    host: str
    created: float
    #: When it may be tried next.
    due: float
    tries: int
    #: The frozen bytes; None before the first try.
    body: bytes | None
    lease_until: float | None
    #: The class of the last problem.
    last_error: str | None
    delivered: float | None
    parked: float | None


_COLUMNS = tuple(outbox.c[name] for name in Delivery.__slots__)
_FREE = or_(outbox.c.lease_until.is_(None), outbox.c.lease_until <= bindparam("steady"))
_FIRST_DUE = (
    select(outbox.c.request_id)
    .where(
        IS_TO_SEND,
        outbox.c.due <= bindparam("now"),
        _FREE,
        outbox.c.host.not_in(bindparam("full", expanding=True)),
    )
    .order_by(outbox.c.due)
    .limit(1)
    .with_for_update(skip_locked=True)
    .scalar_subquery()
)
_CLAIM = (
    update(outbox)
    .where(outbox.c.request_id == _FIRST_DUE, IS_TO_SEND, _FREE)
    .values(tries=outbox.c.tries + 1, lease_until=bindparam("until"))
    .returning(*_COLUMNS)
)


def announce(conn: Connection, request_id: str, url: str, now: float) -> None:
    """Put the ending of a request on its way; part of the transaction that ends it."""
    host = urlsplit(url).netloc.lower()
    conn.execute(insert(outbox).values(request_id=request_id, url=url, host=host, created=now, due=now))


def claim_due(
    conn: Connection,
    *,
    now: float,
    steady: float,
    lease_s: float,
    most: int,
    per_host: int,
    under_way: Mapping[str, int],
) -> list[Delivery]:
    """Lease up to `most` due deliveries, oldest first, and no host beyond its limit.

    `under_way` counts by host what the caller is sending already.
    """
    load = Counter(under_way)
    claimed: list[Delivery] = []
    while len(claimed) < most:
        full = [host for host, count in load.items() if count >= per_host]
        times = {"now": now, "steady": steady, "until": steady + lease_s}
        row = conn.execute(_CLAIM, {**times, "full": full}).one_or_none()
        if row is None:
            break
        claimed.append(_to_delivery(row))
        load[row.host] += 1
    return claimed


def freeze(conn: Connection, request_id: str, body: bytes) -> bytes:
    """Keep the body unless one is kept already; return the one that counts."""
    return conn.execute(
        update(outbox)
        .where(outbox.c.request_id == request_id)
        .values(body=func.coalesce(outbox.c.body, body))
        .returning(outbox.c.body)
    ).scalar_one()


def delivered(conn: Connection, delivery: Delivery, now: float) -> bool:
    """Mark a try as acknowledged; False when it is no longer the newest."""
    marked = conn.execute(
        update(outbox)
        .where(*_newest(delivery))
        .values(delivered=now, parked=None, lease_until=None, last_error=None)
    )
    return marked.rowcount == 1


def failed(conn: Connection, delivery: Delivery, error: str, now: float, due: float | None) -> bool:
    """Record a try that came to nothing: due again at a time, or parked when `due` is None."""
    marked = conn.execute(
        update(outbox)
        .where(*_newest(delivery))
        .values(
            last_error=error,
            lease_until=None,
            due=outbox.c.due if due is None else due,
            parked=now if due is None else None,
        )
    )
    return marked.rowcount == 1


def free_claimed(conn: Connection) -> int:
    """Free every claimed delivery at once; for a starting server, which alone may have had a sender."""
    freed = conn.execute(
        update(outbox).where(IS_TO_SEND, outbox.c.lease_until.is_not(None)).values(lease_until=None)
    )
    return freed.rowcount


def redeliver(conn: Connection, request_id: str, now: float) -> bool:
    """Make a delivery due now with all its tries, also a delivered one; False when there is none."""
    revived = conn.execute(
        update(outbox)
        .where(outbox.c.request_id == request_id)
        .values(due=now, tries=0, delivered=None, parked=None, lease_until=None, last_error=None)
    )
    return revived.rowcount == 1


def list_deliveries(conn: Connection, limit: int, *, undelivered: bool) -> list[Delivery]:
    """List the newest deliveries, newest first: ids sort by time."""
    rows = select(*_COLUMNS).order_by(outbox.c.request_id.desc()).limit(limit)
    return [_to_delivery(row) for row in conn.execute(rows.where(IS_UNDELIVERED) if undelivered else rows)]


def _newest(delivery: Delivery) -> tuple[ColumnElement[bool], ...]:
    return (
        outbox.c.request_id == delivery.request_id,
        outbox.c.tries == delivery.tries,
        outbox.c.lease_until == delivery.lease_until,
        outbox.c.delivered.is_(None),
    )


def _to_delivery(row: Row[*tuple[object, ...]]) -> Delivery:
    return Delivery(**row._mapping)  # pyright: ignore[reportPrivateUsage]

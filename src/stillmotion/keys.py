"""API keys, `id:secret`: shown once, kept as SHA-256, checked in constant time.

The secret holds 32 random bytes behind a prefix secret scanners can look for, and ends in a checksum, so a
mistyped key is told from a wrong one without the database. A fast hash is right for random secrets; a slow
one would only let strangers burn our CPU.
"""

import hashlib
import hmac
import re
import secrets
import zlib
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

from sqlalchemy import Connection, Row, insert, select, update

from stillmotion.store.tables import api_key
from stillmotion.types import Caller

PREFIX = "stillm_"
SECRET_BYTES = 32

_SECRET = re.compile(rf"{PREFIX}([A-Za-z0-9_-]{{43}})([0-9a-f]{{8}})")
_NO_DIGEST = "0" * 64


class KeyProblem(Enum):
    """Why a credential is refused."""

    #: Not of the shape `id:secret`, or the secret's checksum is wrong.
    MALFORMED = auto()
    #: Unknown id, wrong secret, revoked or expired: a stranger is not told which.
    UNKNOWN = auto()


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyRecord:
    """What may be shown of a key; never its secret."""

    id: str
    name: str
    admin: bool
    #: Most requests ready or running at once; None in any limit = no limit.
    concurrency: int | None
    #: Requests ready or running now; counted only for keys with a limit.
    active: int
    submits_per_minute: int | None
    upload_bytes_per_day: int | None
    created: float
    expires: float | None
    revoked: float | None


def create_key(
    conn: Connection,
    name: str,
    now: float,
    *,
    admin: bool = False,
    concurrency: int | None = None,
    submits_per_minute: int | None = None,
    upload_bytes_per_day: int | None = None,
    expires: float | None = None,
) -> str:
    """Make a key and return `id:secret`, the only time the secret is seen."""
    key_id = secrets.token_hex(8)
    secret = _draw_secret()
    conn.execute(
        insert(api_key).values(
            id=key_id,
            name=name,
            digest=_digest(secret),
            admin=admin,
            lim=concurrency,
            submits_per_minute=submits_per_minute,
            upload_bytes_per_day=upload_bytes_per_day,
            created=now,
            expires=expires,
        )
    )
    return f"{key_id}:{secret}"


def list_keys(conn: Connection) -> list[KeyRecord]:
    rows = conn.execute(select(*api_key.c).order_by(api_key.c.created, api_key.c.id))
    return [
        KeyRecord(
            id=row.id,
            name=row.name,
            admin=row.admin,
            concurrency=row.lim,
            active=row.active,
            submits_per_minute=row.submits_per_minute,
            upload_bytes_per_day=row.upload_bytes_per_day,
            created=row.created,
            expires=row.expires,
            revoked=row.revoked,
        )
        for row in rows
    ]


def revoke_key(conn: Connection, key_id: str, now: float) -> bool:
    """Refuse a key from now on; False when it is unknown or already revoked."""
    revoked = conn.execute(
        update(api_key).where(api_key.c.id == key_id, api_key.c.revoked.is_(None)).values(revoked=now)
    )
    return revoked.rowcount == 1


def rotate_key(conn: Connection, key_id: str, now: float, *, overlap_s: float) -> str | None:
    """Give a key a new secret and return `id:secret`; None when it is unknown or revoked.

    The id stays, and with it the key's requests, files and limits. The secret before it is taken for
    another `overlap_s`, one from before that no longer.
    """
    secret = _draw_secret()
    rotated = conn.execute(
        update(api_key)
        .where(api_key.c.id == key_id, api_key.c.revoked.is_(None))
        .values(old_digest=api_key.c.digest, old_until=now + overlap_s, digest=_digest(secret))
    )
    return f"{key_id}:{secret}" if rotated.rowcount == 1 else None


def is_well_formed(credential: str) -> bool:
    """Tell whether a credential could be a key, from its shape and checksum alone."""
    key_id, _, secret = credential.partition(":")
    shape = _SECRET.fullmatch(secret)
    return key_id.isalnum() and key_id.isascii() and shape is not None and shape[2] == _checksum(shape[1])


def check_key(conn: Connection, credential: str, now: float) -> Caller | KeyProblem:
    """Authenticate `id:secret`."""
    if not is_well_formed(credential):
        return KeyProblem.MALFORMED
    key_id, _, secret = credential.partition(":")
    row = conn.execute(select(*api_key.c).where(api_key.c.id == key_id)).one_or_none()
    # An unknown id costs the same hash and comparisons as a known one, with or without an older secret.
    newest = old = _NO_DIGEST
    if row is not None:
        newest = row.digest
        old = row.old_digest if row.old_digest is not None and now < row.old_until else _NO_DIGEST
    given = _digest(secret)
    matches = hmac.compare_digest(given, newest) | hmac.compare_digest(given, old)
    return _caller(row, now) if matches else KeyProblem.UNKNOWN


def find_caller(conn: Connection, key_id: str, now: float) -> Caller | KeyProblem:
    """Find the caller a key stands for, for one who proved otherwise that it acts for that key."""
    return _caller(conn.execute(select(*api_key.c).where(api_key.c.id == key_id)).one_or_none(), now)


def _caller(row: "Row[Any] | None", now: float) -> Caller | KeyProblem:
    if row is None or row.revoked is not None or (row.expires is not None and row.expires <= now):
        return KeyProblem.UNKNOWN
    return Caller(key_id=row.id, name=row.name, admin=row.admin)


def _draw_secret() -> str:
    body = secrets.token_urlsafe(SECRET_BYTES)
    return f"{PREFIX}{body}{_checksum(body)}"


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _checksum(body: str) -> str:
    return f"{zlib.crc32(body.encode()):08x}"

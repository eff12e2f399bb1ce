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

from sqlalchemy import Connection, insert, select, update

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
    #: Most requests ready or running at once; None = no limit.
    concurrency: int | None
    #: Requests ready or running now; counted only for keys with a limit.
    active: int
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
    expires: float | None = None,
) -> str:
    """Make a key and return `id:secret`, the only time the secret is seen."""
    key_id = secrets.token_hex(8)
    body = secrets.token_urlsafe(SECRET_BYTES)
    secret = f"{PREFIX}{body}{_checksum(body)}"
    conn.execute(
        insert(api_key).values(
            id=key_id,
            name=name,
            digest=_digest(secret),
            admin=admin,
            lim=concurrency,
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


def check_key(conn: Connection, credential: str, now: float) -> Caller | KeyProblem:
    """Authenticate `id:secret`."""
    key_id, _, secret = credential.partition(":")
    shape = _SECRET.fullmatch(secret)
    if not key_id.isalnum() or not key_id.isascii() or shape is None or shape[2] != _checksum(shape[1]):
        return KeyProblem.MALFORMED
    row = conn.execute(select(*api_key.c).where(api_key.c.id == key_id)).one_or_none()
    # An unknown id costs the same hash and comparison as a known one.
    matches = hmac.compare_digest(_digest(secret), _NO_DIGEST if row is None else row.digest)
    if row is None or not matches or row.revoked is not None:
        return KeyProblem.UNKNOWN
    if row.expires is not None and row.expires <= now:
        return KeyProblem.UNKNOWN
    return Caller(key_id=row.id, name=row.name, admin=row.admin)


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _checksum(body: str) -> str:
    return f"{zlib.crc32(body.encode()):08x}"

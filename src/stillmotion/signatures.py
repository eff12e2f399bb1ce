"""The keys that sign webhooks, Ed25519, in DATA/webhook-keys; read anew at each use, so a rotation beside a
running server counts at once.

Receivers keep the published list for up to a day. A fresh key is therefore published a day before it signs,
and the one it follows stays published for a day after.
"""

import hashlib
import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from stillmotion.durable import write_whole
from stillmotion.errors import DataRefused

FILE = "webhook-keys"
#: How long receivers may keep the list of keys, by fal's documentation (1 day).
KEPT_S = 86_400


@dataclass(frozen=True, slots=True)
class SigningKey:
    """One key pair, as its 32 private bytes."""

    seed: bytes
    #: Unix seconds.
    signs_from: float

    @property
    def public(self) -> bytes:
        return self._pair().public_key().public_bytes_raw()

    def sign(self, message: bytes) -> bytes:
        return self._pair().sign(message)

    def _pair(self) -> Ed25519PrivateKey:
        return Ed25519PrivateKey.from_private_bytes(self.seed)


@dataclass(frozen=True, slots=True, kw_only=True)
class Seal:
    """What the headers of one try say."""

    request_id: str
    user_id: str
    #: Unix seconds of this try; receivers refuse what is five minutes off.
    timestamp: int
    #: Hex.
    signature: str


class SigningKeys:
    """The keys of one data directory; makes the first one."""

    def __init__(self, data_dir: Path, now: float) -> None:
        self._path = data_dir / FILE
        if not self._path.exists():
            _write(self._path, [SigningKey(secrets.token_bytes(32), now)])
        self.published()

    def published(self) -> list[bytes]:
        """Return every public key a receiver should accept."""
        return [key.public for key in _read(self._path)]

    def seal(self, request_id: str, user_id: str, body: bytes, now: float) -> Seal:
        """Sign the exact bytes of a body with the current key."""
        timestamp = int(now)
        lines = (request_id, user_id, str(timestamp), hashlib.sha256(body).hexdigest())
        signature = _current(_read(self._path), now).sign("\n".join(lines).encode())
        return Seal(request_id=request_id, user_id=user_id, timestamp=timestamp, signature=signature.hex())

    def rotate(self, now: float, *, at_once: bool) -> SigningKey:
        """Add a key; `at_once` makes it the only one, for when another may be known to strangers."""
        if at_once:
            fresh = SigningKey(secrets.token_bytes(32), now)
            _write(self._path, [fresh])
            return fresh
        fresh = SigningKey(secrets.token_bytes(32), now + KEPT_S)
        keys = _read(self._path)
        current = keys.index(_current(keys, now))
        succeeded_long_ago = keys[current].signs_from + KEPT_S <= now
        _write(self._path, [*keys[current if succeeded_long_ago else 0 :], fresh])
        return fresh


def _current(keys: Sequence[SigningKey], now: float) -> SigningKey:
    # Before the first key's time only after the clock was set back.
    return next((key for key in reversed(keys) if key.signs_from <= now), keys[0])


def _read(path: Path) -> list[SigningKey]:
    try:
        rows = json.loads(path.read_text())
        keys = [SigningKey(bytes.fromhex(row["seed"]), float(row["signs_from"])) for row in rows]
        if not keys or any(len(key.seed) != 32 for key in keys):
            raise ValueError("no whole key")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataRefused(
            f"{path} cannot be read ({error}). Restore it from a backup, or delete it and restart: a new key "
            "is made, and receivers accept it once they fetched the list of keys again."
        ) from error
    return keys


def _write(path: Path, keys: Sequence[SigningKey]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"seed": key.seed.hex(), "signs_from": key.signs_from} for key in keys]
    write_whole(path, json.dumps(rows).encode())

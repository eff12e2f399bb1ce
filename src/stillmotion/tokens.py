"""Temporary tokens: short-lived JWTs that a server hands to a browser instead of its key.

A token stands for the key that asked for it, for the apps it names and for a while; it dies with either.
One header is taken and no other, so that no token chooses how it is checked.
"""

import base64
import hmac
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

ALGORITHM = "HS256"


@dataclass(frozen=True, slots=True)
class Grant:
    """What a valid token permits."""

    key_id: str
    #: `owner/alias`, or `alias` alone, as clients ask.
    apps: tuple[str, ...]

    def covers(self, app: str) -> bool:
        return app in self.apps or app.partition("/")[2] in self.apps


class TokenSigner:
    def __init__(self, secret: bytes) -> None:
        # A key of its own, so that no other use of the secret can stand in for a token.
        self._key = hmac.digest(secret, b"stillmotion token", "sha256")

    def sign(self, key_id: str, apps: Sequence[str], now: float, expires: float) -> str:
        claims = {"sub": key_id, "apps": list(apps), "iat": int(now), "exp": int(expires)}
        signed = f"{_HEADER}.{_encode(claims)}"
        return f"{signed}.{self._mark(signed)}"

    def check(self, token: str, now: float) -> Grant | None:
        """Return what the token permits; None when it is altered or expired."""
        signed, _, mark = token.rpartition(".")
        header, _, claims = signed.partition(".")
        genuine = hmac.compare_digest(self._mark(signed).encode(), mark.encode())
        if not genuine or header != _HEADER:
            return None
        # Signed by us, so it has our shape.
        facts = json.loads(base64.urlsafe_b64decode(claims + "=" * (-len(claims) % 4)))
        return Grant(facts["sub"], tuple(facts["apps"])) if now < facts["exp"] else None

    def _mark(self, signed: str) -> str:
        return _armoured(hmac.digest(self._key, signed.encode(), "sha256"))


def _encode(part: dict[str, Any]) -> str:
    return _armoured(json.dumps(part, separators=(",", ":")).encode())


def _armoured(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


_HEADER = _encode({"alg": ALGORITHM, "typ": "JWT"})

"""Who calls: `Authorization: Key id:secret`, or Bearer with the same credential."""

import hashlib

from starlette.requests import Request

from stillmotion import keys
from stillmotion.http.answers import Refusal
from stillmotion.http.edge import notes_of
from stillmotion.http.site import Site
from stillmotion.types import Caller

#: Verified keys remembered at once.
CACHED_KEYS = 4096

_FORMAT = "Invalid Key Authorization header format. Expected '<key_id>:<key_secret>'."
_STRANGER = "No user found for Key ID and Secret"


class Callers:
    """Checks keys against the store; a verified one is trusted for `key_cache_s`, so a revoked one is too."""

    def __init__(self, site: Site) -> None:
        self._site = site
        #: By digest of the credential, so that no secret is kept: the caller and until when.
        self._verified: dict[bytes, tuple[Caller, float]] = {}

    async def identify(self, request: Request, wanted: str) -> Caller:
        """Return the calling key; raises a 401 Refusal. `wanted` names what was asked for."""
        header = request.headers.get("authorization")
        if header is None:
            raise _unauthorized(
                f"Cannot access {wanted}. Authentication is required: send the header "
                "'Authorization: Key <key_id>:<key_secret>'."
            )
        scheme, _, credential = header.partition(" ")
        credential = credential.strip()
        key_id, colon, secret = credential.partition(":")
        if scheme.lower() not in ("key", "bearer") or not (key_id and colon and secret):
            raise _unauthorized(_FORMAT)
        caller = await self._check(credential)
        notes_of(request).key_id = caller.key_id
        return caller

    async def _check(self, credential: str) -> Caller:
        digest = hashlib.sha256(credential.encode("utf-8", "surrogateescape")).digest()
        clock = self._site.clock
        caller, until = self._verified.get(digest, (None, 0.0))
        if caller is not None and clock.monotonic() < until:
            return caller
        now = clock.now()
        # Trust ends `key_cache_s` after the reading began, not after it was answered.
        until = clock.monotonic() + self._site.settings.key_cache_s
        found = await self._site.store.read(lambda conn: keys.check_key(conn, credential, now))
        if isinstance(found, keys.KeyProblem):
            self._verified.pop(digest, None)
            raise _unauthorized(_STRANGER)
        if len(self._verified) >= CACHED_KEYS:
            self._verified.clear()
        self._verified[digest] = (found, until)
        return found


def _unauthorized(message: str) -> Refusal:
    return Refusal(401, "unauthorized", message)

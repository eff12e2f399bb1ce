"""Who calls: `Authorization: Key id:secret`, or Bearer with the same credential."""

import hashlib
from collections.abc import Callable

from sqlalchemy import Connection
from starlette.requests import Request

from stillmotion import keys
from stillmotion.http import wire
from stillmotion.http.answers import Refusal
from stillmotion.http.site import Site
from stillmotion.http.ways.edge import notes_of
from stillmotion.http.ways.strangers import Strangers
from stillmotion.types import Caller

#: Verified keys remembered at once.
CACHED_KEYS = 4096

#: Stands for an app in the tokens that let their holder upload.
UPLOADS = "stillmotion/uploads"

#: How a credential becomes a caller; a key's own has a colon, a token's key id none.
Find = Callable[[Connection, str, float], Caller | keys.KeyProblem]

_FORMAT = "Invalid Key Authorization header format. Expected '<key_id>:<key_secret>'."
_STRANGER = "No user found for Key ID and Secret"


class Callers:
    """Checks keys against the store; a verified one is trusted for `key_cache_s`, so a revoked one is too."""

    def __init__(self, site: Site) -> None:
        self._site = site
        #: By digest of the credential, so that no secret is kept: the caller and until when.
        self._verified: dict[bytes, tuple[Caller, float]] = {}
        self._strangers = Strangers(site.clock, site.settings.bad_keys_per_minute)

    async def identify(self, request: Request, wanted: str) -> Caller:
        """Return the calling key; raises a 401 Refusal, or 429 to who sends wrong ones again and again.

        `wanted` names what was asked for.
        """
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
            raise self._refused(request, _FORMAT)
        if not keys.is_well_formed(credential):
            raise self._refused(request, _STRANGER)
        return await self._check(request, credential, keys.check_key)

    async def identify_for_stream(self, request: Request, wanted: str, app: str) -> Caller:
        """As `identify`, or by a temporary token in the query: a browser must not hold the key itself."""
        token = request.query_params.get(wire.TOKEN_PARAMETER)
        if token is None or "authorization" in request.headers:
            return await self.identify(request, wanted)
        grant = self._site.tokens.check(token, self._site.clock.now())
        if grant is None:
            raise self._refused(request, "The token is altered or expired; ask /tokens/ for another")
        # Found anew every `key_cache_s`, so that a token dies with its key.
        caller = await self._check(request, grant.key_id, keys.find_caller)
        if not grant.covers(app):
            raise Refusal(403, "forbidden", f"This token is not for {app[:200]}; name the app when asking")
        return caller

    async def identify_admin(self, request: Request) -> Caller:
        """As `identify`; raises a 403 Refusal for a key of another scope."""
        caller = await self.identify(request, "the operator's routes")
        if not caller.admin:
            raise Refusal(
                403,
                "forbidden",
                "This key's scope is api; make one with `stillmotion keys create NAME --scope admin`",
            )
        return caller

    async def identify_uploader(self, request: Request) -> Caller:
        """As `identify`, or by an upload token, which the places that take uploads accept, and no others."""
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or ":" in token:
            return await self.identify(request, "storage")
        grant = self._site.tokens.check(token.strip(), self._site.clock.now())
        if grant is None or not grant.covers(UPLOADS):
            raise self._refused(request, "The upload token is altered or expired; ask for another")
        return await self._check(request, grant.key_id, keys.find_caller)

    async def _check(self, request: Request, credential: str, find: Find) -> Caller:
        caller = await self._find(request, credential, find)
        notes_of(request).key_id = caller.key_id
        return caller

    async def _find(self, request: Request, credential: str, find: Find) -> Caller:
        digest = hashlib.sha256(credential.encode("utf-8", "surrogateescape")).digest()
        clock = self._site.clock
        caller, until = self._verified.get(digest, (None, 0.0))
        if caller is not None and clock.monotonic() < until:
            return caller
        now = clock.now()
        # Trust ends `key_cache_s` after the reading began, not after it was answered.
        until = clock.monotonic() + self._site.settings.key_cache_s
        found = await self._site.store.read(lambda conn: find(conn, credential, now))
        if isinstance(found, keys.KeyProblem):
            self._verified.pop(digest, None)
            raise self._refused(request, _STRANGER)
        if len(self._verified) >= CACHED_KEYS:
            self._verified.clear()
        self._verified[digest] = (found, until)
        return found

    def _refused(self, request: Request, message: str) -> Refusal:
        wait_s = self._strangers.count(request)
        if wait_s is None:
            return _unauthorized(message)
        return Refusal(
            429,
            "rate_limited",
            "Too many calls with a wrong key from this address; a good key is still taken",
            {"Retry-After": str(wait_s)},
        )


def _unauthorized(message: str) -> Refusal:
    return Refusal(401, "unauthorized", message)

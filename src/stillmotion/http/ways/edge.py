"""What holds for every answer, whoever made it: a request id, CORS, one access log line, no traceback.

Plain ASGI middlewares, from the outside in: AccessLog, RequestIds, Cors, LastResort.
"""

import logging
import uuid
from dataclasses import dataclass
from urllib.parse import quote

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from stillmotion.clock import Clock
from stillmotion.http.answers import failed
from stillmotion.types import Failure

log = logging.getLogger("stillmotion.http")

REQUEST_ID = "x-fal-request-id"
_NOTES = "stillmotion.notes"

_ALLOWED_HEADERS = (
    "authorization, content-type, accept, range, if-none-match, if-range, x-fal-target-url, "
    "x-fal-queue-priority, x-fal-request-timeout, x-fal-runner-hint, x-fal-object-lifecycle, "
    "x-fal-object-lifecycle-preference, x-fal-store-io, x-fal-no-retry, x-fal-file-name, idempotency-key"
)
CORS = {
    "access-control-allow-origin": "*",
    "access-control-expose-headers": (
        "x-fal-request-id, x-fal-error-type, x-fal-request-timeout-type, x-fal-billable-units, "
        "x-fal-retryable, x-fal-needs-retry, x-stillmotion-fingerprint, x-stillmotion-device-seconds, "
        "retry-after, etag, content-range, content-length, content-disposition, accept-ranges, expires, "
        "last-modified"
    ),
}
_PREFLIGHT = {
    "access-control-allow-methods": "GET, HEAD, POST, PUT, DELETE, OPTIONS",
    "access-control-max-age": "86400",
    "vary": "access-control-request-headers",
}


@dataclass(slots=True)
class Notes:
    """What a route tells the access log of its call."""

    key_id: str = "-"
    #: True for calls worth only DEBUG, as polls are.
    quiet: bool = False
    #: Our own path, which tells by a call's host or target what it is for.
    path: str | None = None


def notes_of(request: Request) -> Notes:
    notes: Notes = request.scope[_NOTES]
    return notes


class AccessLog:
    """Writes one line per call. Query strings stay out: they hold prompts and signatures."""

    def __init__(self, app: ASGIApp, clock: Clock) -> None:
        self.app = app
        self.clock = clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began = self.clock.monotonic()
        status, request_id = 0, "-"
        notes = scope[_NOTES] = Notes()

        async def watched(message: Message) -> None:
            nonlocal status, request_id
            if message["type"] == "http.response.start":
                status = message["status"]
                request_id = Headers(raw=message["headers"]).get(REQUEST_ID, "-")
            await send(message)

        try:
            await self.app(scope, receive, watched)
        finally:
            # Quoted, so that a line break in a path cannot forge a line.
            log.log(
                logging.DEBUG if notes.quiet else logging.INFO,
                "%s method=%s path=%s status=%d ms=%.1f key=%s",
                request_id,
                scope["method"],
                quote((notes.path or scope["path"])[:500], safe="/:@"),
                status,
                (self.clock.monotonic() - began) * 1000,
                notes.key_id,
            )


class RequestIds:
    """Puts `x-fal-request-id` on every answer: clients correlate by it, and one takes 503s without it for
    a proxy's and retries them."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def named(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                if REQUEST_ID not in headers:
                    headers[REQUEST_ID] = str(uuid.uuid4())
            await send(message)

        await self.app(scope, receive, named if scope["type"] == "http" else send)


class Cors:
    """Lets any web page call: calls are authorised by a header a page must hold, never by cookies."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if scope["method"] == "OPTIONS":
            # Preflights carry no key, so they are answered before anyone asks for one.
            asked = Headers(scope=scope).get("access-control-request-headers")
            allowed = {"access-control-allow-headers": asked or _ALLOWED_HEADERS}
            await Response(status_code=204, headers=CORS | _PREFLIGHT | allowed)(scope, receive, send)
            return

        async def shared(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(CORS)
            await send(message)

        await self.app(scope, receive, shared)


class LastResort:
    """Answers 500 in fal's shape for what no one expected, and logs it with the id the caller sees."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        began = False

        async def watched(message: Message) -> None:
            nonlocal began
            began = True
            await send(message)

        try:
            await self.app(scope, receive, watched)
        except Exception:
            # The last resort: what nobody foresaw costs this call its answer, and no other anything.
            if scope["type"] != "http" or began:
                raise
            request_id = str(uuid.uuid4())
            log.exception("%s method=%s failed", request_id, scope["method"])
            reason = Failure(status=500, kind="internal_error", message="Internal Server Error")
            await failed(reason, {REQUEST_ID: request_id})(scope, receive, send)

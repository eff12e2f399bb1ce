"""Server-sent events: a queued request's status as it changes, and a sync run that tells of its progress.

Both paths stream whatever the Accept header says. The first event is awaited before the answer begins, so
that what fails by then is an ordinary error answer. A stream that cannot be told to its end breaks off
without its last chunk: clients take a proper end for success.
"""

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, closing
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from stillmotion.endpoints import app_of
from stillmotion.errors import StillmotionError
from stillmotion.http import wire
from stillmotion.http.answers import Instead, Refusal
from stillmotion.http.requests.queue import find_owned, wants_logs
from stillmotion.http.requests.results import answer_result, find_output
from stillmotion.http.requests.run import METHODS, abandon, is_done, read_input
from stillmotion.http.requests.submit import accept, find_endpoint
from stillmotion.http.requests.watch import Look, Watch
from stillmotion.http.site import Site
from stillmotion.http.ways.callers import Callers
from stillmotion.http.ways.edge import REQUEST_ID, notes_of
from stillmotion.types import Failure, Outcome, Request

Spelling = Callable[[Look], dict[str, Any]]
Events = AsyncGenerator[bytes]


class EventStream(Response):
    """The rest of a stream whose first event is known."""

    media_type = "text/event-stream"

    def __init__(self, first: bytes, rest: Events, request_id: str) -> None:
        self.first, self.rest = first, rest
        self.status_code = 200
        self.background = None
        # For proxies that would hold events back or change them.
        unbuffered = {"cache-control": "no-cache, no-transform", "x-accel-buffering": "no"}
        self.init_headers({**unbuffered, REQUEST_ID: request_id})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with aclosing(self.rest) as rest:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            if scope["method"] != "HEAD":
                await send({"type": "http.response.body", "body": self.first, "more_body": True})
                try:
                    async for event in rest:
                        await send({"type": "http.response.body", "body": event, "more_body": True})
                except StillmotionError:
                    return
        await send({"type": "http.response.body", "body": b"", "more_body": False})


class StreamRoutes:
    def __init__(self, site: Site, callers: Callers) -> None:
        self.site = site
        self.callers = callers
        self.routes = [
            Route("/queue/{path:path}/requests/{request_id}/status/stream", self.status),
            Route("/run/{path:path}/stream", self.run, methods=METHODS),
        ]

    async def status(self, call: HttpRequest) -> Response:
        notes_of(call).quiet = True
        path: str = call.path_params["path"]
        caller = await self.callers.identify_for_stream(call, "this request", app_of(path))
        request = await self.site.store.read(lambda conn: find_owned(conn, call, caller))
        events = self._status_events(call, request.id, wants_logs(call))
        return EventStream(await anext(events), events, request.id)

    async def run(self, call: HttpRequest) -> Response:
        path: str = call.path_params["path"]
        wanted = f'application "{path[:200]}"'
        caller = await self.callers.identify_for_stream(call, wanted, app_of(path))
        endpoint = find_endpoint(path)
        given = await read_input(call, self.site.settings.body_bytes)
        request = await accept(self.site, call, endpoint, caller, given, attached=True)
        events = self._run_events(call, request.id)
        return EventStream(await anext(events), events, request.id)

    async def _status_events(self, call: HttpRequest, request_id: str, logs: bool) -> Events:
        with closing(Watch(self.site, call, request_id)) as watch:
            async with aclosing(self._changes(watch, _status, logs)) as changes:
                async for event in changes:
                    yield event

    async def _run_events(self, call: HttpRequest, request_id: str) -> Events:
        with closing(Watch(self.site, call, request_id)) as watch:
            ended = False
            try:
                begun = await watch.until(self._has_begun())
                if is_done(begun) and begun.outcome is not Outcome.OK:
                    ended = True
                    raise Instead(await answer_result(self.site, begun))
                async with aclosing(self._changes(watch, _progress, True)) as changes:
                    async for event in changes:
                        yield event
                done = await watch.until(is_done)
                ended = True
            finally:
                if not ended:
                    await abandon(self.site, request_id)
            output = await watch.insist(lambda: find_output(self.site, done))
        if isinstance(output, Failure):
            yield wire.event(wire.stream_error(output))
            raise Refusal(output.status, output.kind, output.message)
        yield wire.event(output)

    def _has_begun(self) -> Callable[[Request], bool]:
        """Tell when to begin: a picture that cannot be fetched or a passed deadline is known before the
        first step; but silence is bounded, for proxies and clients give up on it."""
        clock = self.site.clock
        patient_until = clock.monotonic() + self.site.settings.sse_ping_s

        def has_begun(request: Request) -> bool:
            moved = is_done(request) or request.progress is not None
            return moved or clock.monotonic() >= patient_until

        return has_begun

    async def _changes(self, watch: Watch, spell: Spelling, logs: bool) -> Events:
        """Tell each change until the request is done, and in silence that the connection lives."""
        clock = self.site.clock
        told: dict[str, Any] | None = None
        spoke = clock.monotonic()
        while True:
            look = await watch.look(logs=logs)
            if look is not None:
                event = spell(look)
                if event["logs"] or event != told:
                    told, spoke = event | {"logs": list[Any]()}, clock.monotonic()
                    yield wire.event(event)
                if is_done(look.request):
                    return
            if clock.monotonic() - spoke >= self.site.settings.sse_ping_s:
                spoke = clock.monotonic()
                yield wire.PING
            await watch.news()


def _status(look: Look) -> dict[str, Any]:
    return wire.status(look.request, look.position, look.lines)[1]


def _progress(look: Look) -> dict[str, Any]:
    return {**_status(look), "progress": wire.progress(look.request)}

"""The queue door: submit, status, result, cancel. Everything after the submit drops the endpoint's sub-path,
as clients do; the full form and `/response` are served too."""

import logging
import re

from sqlalchemy import Connection
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import Route

from stillmotion import ids
from stillmotion.endpoints import ENDPOINTS, app_of
from stillmotion.errors import StoreUnavailable
from stillmotion.http import wire
from stillmotion.http.answers import Json, Unknown, failed, wrong_method
from stillmotion.http.requests.results import answer_result
from stillmotion.http.requests.run import METHODS, cancel_request
from stillmotion.http.requests.submit import accept, find_endpoint, read_webhook
from stillmotion.http.site import Site
from stillmotion.http.ways.body import read_json
from stillmotion.http.ways.callers import Callers
from stillmotion.http.ways.edge import REQUEST_ID, notes_of
from stillmotion.net.guard import AllowList
from stillmotion.store.logs import read_logs
from stillmotion.store.position import queue_position
from stillmotion.store.queue import get
from stillmotion.types import Caller, LogLine, Request, State

log = logging.getLogger("stillmotion.http")

#: The address of a request; one that comes to `submit` came by a method that its route does not take.
_REQUEST = re.compile(r".+/requests/[^/]+(?:/status(?:/stream)?|/response|(?P<cancel>/cancel))?")


class QueueRoutes:
    def __init__(self, site: Site, callers: Callers) -> None:
        self.site = site
        self.callers = callers
        self.receivers = AllowList.parse(site.settings.webhook_allow)
        one = "/queue/{path:path}/requests/{request_id}"
        self.routes = [
            Route(f"{one}/status", self.status),
            Route(f"{one}/cancel", self.cancel, methods=["PUT"]),
            Route(f"{one}/response", self.result),
            Route(one, self.result),
            Route("/queue/{path:path}", self.submit, methods=METHODS),
        ]

    async def submit(self, call: HttpRequest) -> Response:
        path: str = call.path_params["path"]
        caller = await self.callers.identify(call, f'application "{path[:200]}"')
        if named := _REQUEST.fullmatch(path):
            raise wrong_method("PUT" if named["cancel"] else "GET, HEAD")
        endpoint = find_endpoint(path)
        if call.method != "POST":
            raise wrong_method("POST")
        webhook = await read_webhook(call, self.receivers)
        given = await read_json(call, self.site.settings.body_bytes)
        request = await accept(self.site, call, endpoint, caller, given, webhook=webhook)
        try:
            position = await self.site.store.read(lambda conn: queue_position(conn, request))
        except StoreUnavailable as error:
            # It is kept: a 503 would say that it is not, and its client would submit it again.
            log.warning("%s position not read: %s", request.id, error)
            position = 0
        return Json(wire.submitted(request, position), headers={REQUEST_ID: request.id})

    async def status(self, call: HttpRequest) -> Response:
        notes_of(call).quiet = True
        caller = await self._caller(call)
        with_logs = wants_logs(call)

        def look(conn: Connection) -> tuple[Request, int, list[LogLine]]:
            request = find_owned(conn, call, caller)
            # All of it in one read, so that state, position and logs belong together.
            lines = read_logs(conn, request.id)[0] if with_logs else []
            return request, queue_position(conn, request), lines

        request, position, lines = await self.site.store.read(look)
        code, body = wire.status(request, position, lines)
        return Json(body, code, headers={REQUEST_ID: request.id})

    async def result(self, call: HttpRequest) -> Response:
        caller = await self._caller(call)
        request = await self.site.store.read(lambda conn: find_owned(conn, call, caller))
        if request.state is not State.DONE:
            return failed(wire.IN_PROGRESS, {REQUEST_ID: request.id})
        return await answer_result(self.site, request)

    async def cancel(self, call: HttpRequest) -> Response:
        caller = await self._caller(call)
        request = await self.site.store.read(lambda conn: find_owned(conn, call, caller))
        code, body = wire.cancelled(await cancel_request(self.site, request.id))
        return Json(body, code, headers={REQUEST_ID: request.id})

    async def _caller(self, call: HttpRequest) -> Caller:
        return await self.callers.identify(call, "this request")


def wants_logs(call: HttpRequest) -> bool:
    return call.query_params.get("logs", "").lower() in ("1", "true")


def find_owned(conn: Connection, call: HttpRequest, caller: Caller) -> Request:
    """Read the request a call names; a stranger's and one of another app are as unknown as none."""
    request_id: str = call.path_params["request_id"]
    path: str = call.path_params["path"]
    request = get(conn, request_id) if ids.is_request_id(request_id) else None
    if request is None or request.key_id != caller.key_id:
        raise Unknown
    # By the app alone, as clients ask, or by a full id of that app.
    app = app_of(path) if path in ENDPOINTS else path
    if app != app_of(request.endpoint):
        raise Unknown
    return request

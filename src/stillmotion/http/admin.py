"""The operator's routes: what `stillmotion webhooks` does beside the server, for keys of scope admin."""

from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import Route

from stillmotion import ids
from stillmotion.http import wire
from stillmotion.http.answers import Json, Unknown
from stillmotion.http.site import Site
from stillmotion.http.ways.callers import Callers
from stillmotion.store import outbox

#: Most webhooks in one list.
LISTED = 200


class AdminRoutes:
    def __init__(self, site: Site, callers: Callers) -> None:
        self.site = site
        self.callers = callers
        self.routes = [
            Route("/admin/webhooks", self.webhooks, methods=["GET"]),
            Route("/admin/webhooks/{request_id}/redeliver", self.redeliver, methods=["POST"]),
        ]

    async def webhooks(self, call: HttpRequest) -> Response:
        await self.callers.identify_admin(call)
        undelivered = call.query_params.get("all") not in ("1", "true")
        found = await self.site.store.read(
            lambda conn: outbox.list_deliveries(conn, LISTED, undelivered=undelivered)
        )
        return Json({"webhooks": [wire.delivery(one, self.site.clock.now()) for one in found]})

    async def redeliver(self, call: HttpRequest) -> Response:
        await self.callers.identify_admin(call)
        request_id: str = call.path_params["request_id"]
        if not ids.is_request_id(request_id):
            raise Unknown
        now = self.site.clock.now()
        if not await self.site.store.write(lambda conn: outbox.redeliver(conn, request_id, now)):
            raise Unknown
        self.site.wakeup.notify("webhook")
        return Json({"status": "DUE"}, 202)

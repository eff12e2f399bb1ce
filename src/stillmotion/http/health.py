"""Is the process up, can it take work."""

from dataclasses import asdict

from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import Route

from stillmotion.http.answers import Json
from stillmotion.http.site import Site
from stillmotion.http.ways.edge import notes_of


class HealthRoutes:
    def __init__(self, site: Site) -> None:
        self.site = site
        self.routes = [Route("/healthz", self.health), Route("/readyz", self.readiness)]

    async def health(self, call: HttpRequest) -> Response:
        notes_of(call).quiet = True
        return Json({"status": "ok", "version": self.site.version})

    async def readiness(self, call: HttpRequest) -> Response:
        """Answer 200 only when a runner can take work."""
        notes_of(call).quiet = True
        readiness = self.site.readiness()
        body = {
            "ready": readiness.ready,
            "reason": readiness.reason,
            "profile": self.site.profile,
            "runners": [asdict(runner) for runner in readiness.runners],
        }
        return Json(body, 200 if readiness.ready else 503)

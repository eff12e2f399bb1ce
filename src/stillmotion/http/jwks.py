"""The public keys that webhook signatures verify with: open to everyone, as receivers hold no API key."""

from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import Route

from stillmotion.http import wire
from stillmotion.http.answers import Json
from stillmotion.http.site import Site

#: Seconds a copy of the list may be kept; a fresh key is published a day before it signs.
KEPT_S = 3600


class JwksRoutes:
    def __init__(self, site: Site) -> None:
        self.site = site
        self.routes = [Route("/rest/.well-known/jwks.json", self.keys)]

    async def keys(self, call: HttpRequest) -> Response:
        public = self.site.signatures.published()
        return Json(wire.jwks(public), headers={"cache-control": f"public, max-age={KEPT_S}"})

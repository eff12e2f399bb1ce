"""The proxy route: in a browser fal's clients send each call to one address, the real one in a header.

Nothing is ever forwarded. One of fal's names in `x-fal-target-url` becomes a path of ours, and the same
routes answer, streams and bodies untouched. A page may call without a key where the operator lends one.
"""

from dataclasses import replace
from ipaddress import ip_address
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.requests import Request as HttpRequest
from starlette.routing import Match, Route, Router
from starlette.types import Receive, Scope, Send

from stillmotion.http.answers import Refusal
from stillmotion.http.site import Site
from stillmotion.http.ways.doors import FAL_HOSTS, Door, Plane, door_of, local_names, through
from stillmotion.net.guard import AddressRefused, parse_url
from stillmotion.types import Bases

TARGET = "x-fal-target-url"
_SELF = "self"


class ProxyRoutes:
    def __init__(self, site: Site) -> None:
        settings = site.settings
        self.key = settings.proxy_key
        words = {word.lower() for word in settings.proxy_origins}
        #: Whether pages of the server's own origin are let in, and the names that make an origin its own.
        self.own = _SELF in words
        self.names = local_names(settings)
        if self.own and settings.public_url is not None:
            words.add(settings.public_url)
        self.origins = {_origin_of(word) for word in words}
        self.routes = [Route("/api/fal/proxy", self, methods=["GET", "POST", "PUT", "DELETE"])]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        call = HttpRequest(scope)
        inner = _aim(call)
        router: Router = scope["router"]
        if all(route.matches(inner)[0] is Match.NONE for route in router.routes):
            raise _no_target(f"Nothing here answers to {call.headers[TARGET][:200]}.")
        if self.key and "authorization" not in call.headers and self._lends_to(call.headers, door_of(call)):
            inner["headers"] = [*scope["headers"], (b"authorization", f"Key {self.key}".encode())]
        await router(inner, receive, send)

    def _lends_to(self, headers: Headers, door: Door) -> bool:
        origin = _page_origin(headers, door)
        if origin is None or origin in self.origins:
            return origin is not None
        # A stranger's page that points its own name here looks like ours, so the name must be one of ours.
        return self.own and origin == door.reached and self._is_own(door.host)

    def _is_own(self, host: str) -> bool:
        if host in self.names:
            return True
        try:
            ip_address(host)
        except ValueError:
            return False
        return True


def _aim(call: HttpRequest) -> Scope:
    """Return the scope of the call that is meant; raises a 400 Refusal for what is not one of fal's."""
    url = call.headers.get(TARGET)
    if url is None:
        raise _no_target("There is no target.")
    try:
        target = parse_url(url)
    except AddressRefused as error:
        raise _no_target(f"{url[:200]} is no target. {error}") from None
    plane = FAL_HOSTS.get(target.host.lower().rstrip("."))
    if plane is None or target.scheme != "https":
        raise _no_target(f"{url[:200]} is no target.")
    netloc = target.url.netloc.decode("ascii")
    door = door_of(call)
    queue = netloc if plane is Plane.QUEUE else "queue.fal.run"
    door = replace(door, bases=Bases(queue=f"https://{queue}", files=f"{door.origin}/cdn"))
    return {
        **through(call.scope, door, f"/{plane}{target.url.path}"),
        "raw_path": f"/{plane}".encode() + target.url.raw_path.partition(b"?")[0],
        "query_string": target.url.query,
    }


def _page_origin(headers: Headers, door: Door) -> str | None:
    """Return the origin of the page that calls, as its browser vouches for it.

    Browsers send no Origin with a GET to the page's own, and polls are such; which of the other two headers
    they send depends on the page's referrer policy and on its being secure.
    """
    origin = headers.get("origin")
    if origin is not None:
        return origin.lower()
    if headers.get("sec-fetch-site") == "same-origin":
        return door.reached
    return _origin_of(headers.get("referer", ""))


def _origin_of(url: str) -> str | None:
    try:
        parts = urlsplit(url)
    except ValueError:
        return None
    return f"{parts.scheme}://{parts.netloc}".lower() if parts.netloc else None


def _no_target(problem: str) -> Refusal:
    return Refusal(
        400,
        "bad_request",
        f"{problem} The proxy route takes an address of fal's in the header {TARGET}, such as "
        "https://queue.fal.run/fal-ai/stable-video, answers it itself and forwards nothing.",
    )

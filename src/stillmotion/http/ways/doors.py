"""Which of fal's hosts a call is meant for, and what its answers call themselves.

A sync run and a queue submit are byte-identical; only the host tells them apart. Callers reach us by path
(`/queue/…`) or by one of fal's names in the Host header. The second form is rewritten to the first here, the
third, a target named in a header, in `proxy`: three ways in, one set of handlers. Never redirects.
"""

import re
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from stillmotion.http.answers import Refusal, failed
from stillmotion.http.ways.edge import notes_of
from stillmotion.settings import Settings
from stillmotion.types import Bases

_KEY = "stillmotion.door"
_HOST = re.compile(r"(?P<name>[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::(?P<port>\d{1,5}))?")


class Plane(StrEnum):
    """What a fal host is for; also the first path segment of path-style calls."""

    RUN = "run"
    QUEUE = "queue"
    REST = "rest"
    CDN = "cdn"
    SITE = "site"


#: Every host name that fal's clients send an input or a file to, backup domains and retired ones too.
FAL_HOSTS: dict[str, Plane] = {
    "fal.run": Plane.RUN,
    "falrun.com": Plane.RUN,
    "ws.fal.run": Plane.RUN,
    "gateway.shark.fal.ai": Plane.RUN,
    "queue.fal.run": Plane.QUEUE,
    "queue.falrun.com": Plane.QUEUE,
    "rest.fal.ai": Plane.REST,
    "rest.alpha.fal.ai": Plane.REST,
    "v3.fal.media": Plane.CDN,
    "v3b.fal.media": Plane.CDN,
    "fal.media": Plane.CDN,
}
#: Those, and fal's web site, where no client calls but programs look for schemas: led here by choice only.
PLANES = {**FAL_HOSTS, "fal.ai": Plane.SITE}


@dataclass(frozen=True, slots=True, kw_only=True)
class Door:
    """How a call came in."""

    #: What our answers call this server: `reached`, or the public URL.
    origin: str
    #: `http://127.0.0.1:8000`, as the caller spelled it.
    reached: str
    #: Lower case, without port.
    host: str
    bases: Bases


def door_of(request: Request) -> Door:
    door: Door = request.scope[_KEY]
    return door


def through(scope: Scope, door: Door, path: str) -> Scope:
    """Return the scope of a call that came in by `door` and is meant for our own `path`."""
    # Both spellings are one address: some clients end theirs in a slash, and none follows redirects well.
    path = path.removesuffix("/") or "/"
    notes_of(Request(scope)).path = path
    return {**scope, "path": path, _KEY: door}


def is_loopback(name: str) -> bool:
    if name == "localhost":
        return True
    try:
        return ip_address(name.strip("[]")).is_loopback
    except ValueError:
        return False


def local_names(settings: Settings) -> frozenset[str]:
    """Return the names this server answers to besides fal's: loopback, this host, the configured ones."""
    names = {"localhost", "127.0.0.1", "::1", socket.gethostname().lower(), settings.host.lower()}
    names |= {name.lower() for name in (*settings.allowed_hosts, *settings.tls_name)}
    if settings.public_url is not None:
        names.add((urlsplit(settings.public_url).hostname or "").lower())
    return frozenset(names)


class Doors:
    """Middleware: checks the Host header, finds the plane and notes the bases of this call's URLs."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self.app = app
        self.public_url = (settings.public_url or "").rstrip("/")
        self.proxies = [ip_network(word, strict=False) for word in settings.trusted_proxies]
        #: None: bound to the outside, where any name may lead here.
        self.accepted = local_names(settings) | PLANES.keys() if is_loopback(settings.host) else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        try:
            scope = self.enter(scope)
        except Refusal as refusal:
            await failed(refusal.failure)(scope, receive, send)
            return
        await self.app(scope, receive, send)

    def enter(self, scope: Scope) -> Scope:
        headers = Headers(scope=scope)
        host = ",".join(headers.getlist("host") or ["localhost"])
        scheme = scope["scheme"]
        name, _ = _split_host(host)
        # Against DNS rebinding: a page that points its own name at 127.0.0.1 still sends that name.
        # The header itself counts here, whatever a proxy forwards.
        if self.accepted is not None and name not in self.accepted:
            raise Refusal(
                421,
                "misdirected_request",
                f"This server does not answer to the name {name}. If it should, start it with "
                f"STILLMOTION_ALLOWED_HOSTS={name}.",
            )
        if _is_trusted(scope, self.proxies):
            host = _forwarded(headers, "x-forwarded-host") or host
            scheme = _forwarded(headers, "x-forwarded-proto") or scheme
            if scheme not in ("http", "https"):
                raise Refusal(400, "bad_request", "X-Forwarded-Proto must be http or https")
            caller = _forwarded(headers, "x-forwarded-for")
            if caller:
                scope = {**scope, "client": (caller, 0)}
        name, port = _split_host(host)
        path = scope["path"]
        plane = PLANES.get(name)
        reached = f"{scheme}://{host}"
        if plane is None:
            origin = self.public_url or reached
            bases = Bases(queue=f"{origin}/queue", files=f"{origin}/cdn")
        else:
            origin = reached
            bases = Bases(queue=f"https://queue.fal.run{port}", files=f"https://v3.fal.media{port}")
            path = f"/{plane}{path}"
        return through(scope, Door(origin=origin, reached=reached, host=name, bases=bases), path)


def _split_host(host: str) -> tuple[str, str]:
    """Split into the lower-case name and `:port` or nothing."""
    match = _HOST.fullmatch(host)
    if match is None:
        raise Refusal(400, "bad_request", "The Host header is not a host name with an optional port")
    port = match["port"]
    return match["name"].lower().rstrip(".").strip("[]"), f":{port}" if port else ""


def _forwarded(headers: Headers, name: str) -> str:
    """Return the last value, which our own proxy wrote: behind the caller's in its line, or in one more."""
    return ",".join(headers.getlist(name)).rpartition(",")[2].strip()


def _is_trusted(scope: Scope, proxies: Sequence[IPv4Network | IPv6Network]) -> bool:
    if not proxies or not scope.get("client"):
        return False
    try:
        peer = ip_address(scope["client"][0])
    except ValueError:
        return False
    return any(peer in network for network in proxies)

"""All doors of one server as one ASGI application."""

import itertools

from starlette.applications import Starlette
from starlette.middleware import Middleware
from uvicorn.protocols.http import h11_impl, httptools_impl

from stillmotion.http.answers import ANSWERS
from stillmotion.http.callers import Callers
from stillmotion.http.doors import FAL_HOSTS, Doors
from stillmotion.http.edge import AccessLog, Cors, LastResort, RequestIds
from stillmotion.http.files import FileRoutes
from stillmotion.http.health import HealthRoutes
from stillmotion.http.jwks import JwksRoutes
from stillmotion.http.page import PageRoutes
from stillmotion.http.queue import QueueRoutes
from stillmotion.http.run import RunRoutes
from stillmotion.http.site import Site
from stillmotion.http.storage import StorageRoutes

__all__ = ["FAL_HOSTS", "Site", "build_app"]


def build_app(site: Site) -> Starlette:
    name_status_499()
    callers = Callers(site)
    rooms = (
        HealthRoutes(site),
        PageRoutes(site),
        QueueRoutes(site, callers),
        RunRoutes(site, callers),
        StorageRoutes(site, callers),
        JwksRoutes(site),
        FileRoutes(site),
    )
    app = Starlette(
        routes=list(itertools.chain.from_iterable(room.routes for room in rooms)),
        middleware=[
            Middleware(AccessLog, clock=site.clock),
            Middleware(RequestIds),
            Middleware(Cors),
            Middleware(LastResort),
            Middleware(Doors, settings=site.settings),
        ],
        exception_handlers=ANSWERS,
    )
    app.router.redirect_slashes = False
    return app


def name_status_499() -> None:
    """Give 499 its reason phrase: Python's table has none, and JS clients show the phrase as the message."""
    phrase = b"Client Closed Request"
    httptools_impl.STATUS_LINE[499] = b"HTTP/1.1 499 " + phrase + b"\r\n"
    h11_impl.STATUS_PHRASES[499] = phrase

"""All doors of one server as one ASGI application."""

import itertools

from starlette.applications import Starlette
from starlette.middleware import Middleware
from uvicorn.protocols.http import httptools_impl

from stillmotion.http.admin import AdminRoutes
from stillmotion.http.answers import ANSWERS
from stillmotion.http.documents.openapi import DocumentRoutes
from stillmotion.http.documents.page import PageRoutes
from stillmotion.http.health import HealthRoutes
from stillmotion.http.jwks import JwksRoutes
from stillmotion.http.requests.queue import QueueRoutes
from stillmotion.http.requests.run import RunRoutes
from stillmotion.http.requests.streams import StreamRoutes
from stillmotion.http.site import Site
from stillmotion.http.storage.downloads import FileRoutes
from stillmotion.http.storage.multipart import MultipartRoutes
from stillmotion.http.storage.routes import StorageRoutes
from stillmotion.http.storage.uploads import Uploads
from stillmotion.http.tokens import TokenRoutes
from stillmotion.http.ways.callers import Callers
from stillmotion.http.ways.doors import Doors
from stillmotion.http.ways.edge import AccessLog, Cors, LastResort, RequestIds
from stillmotion.http.ways.proxy import ProxyRoutes


def build_app(site: Site) -> Starlette:
    name_status_499()
    callers = Callers(site)
    uploads = Uploads(site)
    rooms = (
        HealthRoutes(site),
        PageRoutes(site),
        DocumentRoutes(site),
        StreamRoutes(site, callers),
        QueueRoutes(site, callers),
        RunRoutes(site, callers),
        TokenRoutes(site, callers),
        StorageRoutes(site, callers, uploads),
        MultipartRoutes(site, callers, uploads),
        JwksRoutes(site),
        AdminRoutes(site, callers),
        FileRoutes(site, callers),
        ProxyRoutes(site),
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
    httptools_impl.STATUS_LINE[499] = b"HTTP/1.1 499 Client Closed Request\r\n"

"""HTTP listeners inside our own event loop: sockets are bound here, uvicorn answers on them.

Binding first means a port in use is one clear sentence before anything starts, and port 0 is known at
once. uvicorn installs no signal handlers and writes no access log; both are ours.
"""

import asyncio
import contextlib
import logging
import os
import socket
import ssl
from collections.abc import Generator
from pathlib import Path
from typing import Any

import uvicorn

from stillmotion.errors import UserError
from stillmotion.http.ways.connection import Connection

#: Clients that poll keep their connection; most proxies close idle ones after 60 s, so we close later.
KEEP_ALIVE_S = 75
BACKLOG = 2048
#: What open responses get to finish once the runners are done.
CLOSE_GRACE_S = 5


def bind_tcp(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it cannot be a host name"
        raise UserError(
            f"Host {host!r} is no address of this machine: {reason}. "
            "Use 127.0.0.1 for this machine alone, 0.0.0.0 for every network."
        ) from error
    bound = socket.socket(family, kind, protocol)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind(address)
    except OSError as error:
        bound.close()
        raise UserError(
            f"Cannot listen on {host}:{port}: {error.strerror}. Stop what uses it, or choose another port."
        ) from error
    bound.setblocking(False)
    return bound


def bind_unix(path: Path) -> socket.socket:
    """Bind a socket file only its owner can connect to; a dead server's file is replaced."""
    path.unlink(missing_ok=True)
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with socket_address(path) as address:
        before = os.umask(0o177)
        try:
            bound.bind(address)
        finally:
            os.umask(before)
    bound.setblocking(False)
    return bound


@contextlib.contextmanager
def socket_address(path: Path) -> Generator[str]:
    """Give an address for a socket file; beyond the 107 bytes Linux takes, by its folder's descriptor."""
    if len(os.fsencode(path)) <= 100:
        yield str(path)
        return
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


class Listener(uvicorn.Server):
    """One ASGI app on one bound socket, until `should_exit` is set; `http` makes what reads a connection."""

    def __init__(
        self, app: Any, bound: socket.socket, http: Any = Connection, tls: ssl.SSLContext | None = None
    ) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=http,
                ssl_context_factory=None if tls is None else lambda config, default: tls,
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                backlog=BACKLOG,
                timeout_keep_alive=KEEP_ALIVE_S,
                timeout_graceful_shutdown=CLOSE_GRACE_S,
            )
        )
        self._bound = bound
        self._listening = asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        # Signals belong to `serve`, which drains the runners before it closes any listener.
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        self._listening.set()

    async def run_until_told(self) -> None:
        await self.serve(sockets=[self._bound])

    async def listening(self) -> None:
        """Return once connections are answered."""
        await self._listening.wait()


def quiet_uvicorn() -> None:
    """Keep uvicorn's start and stop chatter out of our log; its warnings stay."""
    server = logging.getLogger("uvicorn.error")
    server.setLevel(logging.WARNING)
    # A stream that fails breaks off on purpose; its request's own line says why.
    server.addFilter(lambda record: record.msg != "ASGI callable returned without completing response.")

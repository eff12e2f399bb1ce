"""A CONNECT proxy for fal's names alone, on the server's plain port, for clients led here by HTTPS_PROXY.

The tunnel ends in this process: what comes through is TLS with our certificate, then HTTP to our own
routes. Nothing is ever connected to. docs/decisions/0003-connect.md tells why it is made this way.
"""

import asyncio
import logging
import re
import ssl
from typing import Any

from stillmotion.http.ways.connection import Connection
from stillmotion.http.ways.doors import FAL_HOSTS

log = logging.getLogger(__name__)

#: Longest head of a CONNECT (8 KiB); clients send some hundred bytes.
HEAD_BYTES = 8 * 1024
HANDSHAKE_S = 30.0
_METHOD = b"CONNECT "
_TARGET = re.compile(rb"CONNECT ([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]):\d{1,5} HTTP/1\.[01]\r?\n")
_END = re.compile(rb"\r?\n\r?\n")


class TunnelConnection(Connection):
    """A connection that may open with CONNECT, and is a tunnel then."""

    def __init__(self, *args: Any, context: ssl.SSLContext, **options: Any) -> None:
        super().__init__(*args, **options)
        self._context = context
        #: What came before it was known whether this is a tunnel; None from then on.
        self._opening: bytes | None = b""
        self._opened: asyncio.Task[None] | None = None

    def data_received(self, data: bytes) -> None:
        if self._opening is None:
            if self._opened is None:
                super().data_received(data)
            else:
                # A client speaks again only after our answer.
                self.transport.close()
            return
        opening = self._opening + data
        if opening[: len(_METHOD)] != _METHOD[: len(opening)]:
            self._opening = None
            super().data_received(opening)
            return
        self._opening = opening
        end = _END.search(opening)
        if end is not None or len(opening) > HEAD_BYTES:
            self._opening = None
            self._take(opening if end is not None and end.end() == len(opening) else b"")

    def _take(self, head: bytes) -> None:
        target = _TARGET.match(head)
        if target is None:
            self._refuse(400, "bad_request", "A CONNECT reads: CONNECT queue.fal.run:443 HTTP/1.1")
        elif target[1].decode("ascii").lower().rstrip(".") not in FAL_HOSTS:
            self._refuse(
                403,
                "forbidden",
                f"This proxy answers for fal's own names alone, not for {target[1].decode()[:200]}, and "
                "connects to nothing. Name the other hosts in NO_PROXY.",
            )
        else:
            self._opened = self.loop.create_task(self._open())

    def shutdown(self) -> None:
        if self._opened is None:
            super().shutdown()
        else:
            self._opened.cancel()

    async def _open(self) -> None:
        """Answer that the tunnel stands, and be its far end ourselves."""
        if self.transport.is_closing():
            return
        self._unset_keepalive_if_required()
        inner = Connection(self.config, self.server_state, self.app_state)
        early = _Early()
        # Nothing of the handshake can come between these two: the client waits for the first.
        self.transport.write(b"HTTP/1.1 200 Connection Established\r\n\r\n")
        try:
            secure = await self.loop.start_tls(
                self.transport,
                early,
                self._context,
                server_side=True,
                ssl_handshake_timeout=HANDSHAKE_S,
            )
        except OSError as error:
            log.info("a tunnel's TLS handshake failed: %s", error)
            return
        finally:
            self.connections.discard(self)
        assert secure is not None
        inner.connection_made(secure)
        early.hand_over(secure, inner)


class _Early(asyncio.Protocol):
    """Keeps what arrives behind the handshake until the connection has its real protocol."""

    def __init__(self) -> None:
        self._data = b""
        self._lost = False

    def data_received(self, data: bytes) -> None:
        self._data += data

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost = True

    def hand_over(self, transport: asyncio.Transport, protocol: asyncio.Protocol) -> None:
        transport.set_protocol(protocol)
        if self._data:
            protocol.data_received(self._data)
        if self._lost:
            protocol.connection_lost(None)

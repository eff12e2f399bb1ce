"""One client connection: uvicorn's, with a bound on what precedes a body, and errors in fal's shape.

The parser beneath keeps a header until it is whole, at a cost that grows with its square; without a bound a
stranger needs no key to fill the memory and to stop everyone else.
"""

import asyncio
import uuid
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from stillmotion.http.answers import failed
from stillmotion.http.ways.edge import CORS, REQUEST_ID
from stillmotion.types import Failure

#: Most bytes of a request line with its headers, of trailers or of chunk extensions; what comes whole in one
#: read of the socket may be longer (64 KiB).
HEAD_BYTES = 64 * 1024
#: How long a server that stops waits for a client's answer to the end of TLS; idle clients do not listen.
GOODBYE_S = 1.0


class Connection(HttpToolsProtocol):
    """Reads requests off one socket."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        #: Bytes received since the last end of headers or piece of a body.
        self._pending = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        # uvicorn times only the pauses between requests, never the one before the first.
        self.timeout_keep_alive_task = self.loop.call_later(
            self.timeout_keep_alive, self.timeout_keep_alive_handler
        )

    def data_received(self, data: bytes) -> None:
        self._pending += len(data)
        super().data_received(data)
        if self._pending > HEAD_BYTES and not self.transport.is_closing():
            self._refuse(
                431, "headers_too_large", f"A request line with headers takes {HEAD_BYTES} bytes at most"
            )

    def shutdown(self) -> None:
        super().shutdown()
        if self.scheme == "https" and self.transport.is_closing():
            self.loop.call_later(GOODBYE_S, self.transport.abort)

    def on_headers_complete(self) -> None:
        self._pending = 0
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._pending = 0
        super().on_body(body)

    def send_400_response(self, msg: str) -> None:
        self._refuse(400, "bad_request", "This is no valid HTTP/1.1 request")

    def _refuse(self, status: int, kind: str, message: str) -> None:
        headers = {**CORS, REQUEST_ID: str(uuid.uuid4()), "connection": "close"}
        answer = failed(Failure(status=status, kind=kind, message=message), headers)
        lines = b"".join(b"%s: %s\r\n" % pair for pair in answer.raw_headers)
        self.transport.write(STATUS_LINE[status] + lines + b"\r\n" + bytes(answer.body))
        self.transport.close()

    def _unsupported_upgrade_warning(self) -> None:
        """Say nothing: an upgrade is an offer, and the request is answered as it is."""

"""An open event stream in this process, read while the app still writes it."""

import asyncio
import json
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

from tests.http.house import House

DEADLINE_S = 10


class OpenStream:
    """As a context manager it calls, and leaves on exit."""

    def __init__(
        self,
        house: House,
        address: str,
        *,
        method: str = "GET",
        given: dict[str, Any] | None = None,
        key: str | None = "",
    ) -> None:
        self._house = house
        parts = urlsplit(address)
        used = house.key if key == "" else key
        headers = [(b"host", b"127.0.0.1:8000")]
        if used is not None:
            headers.append((b"authorization", f"Key {used}".encode()))
        self._scope = {
            "type": "http",
            "method": method,
            "path": parts.path,
            "query_string": parts.query.encode(),
            "headers": headers,
            "scheme": "http",
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 8000),
        }
        self._body: list[bytes] = [b"" if given is None else json.dumps(given).encode()]
        self._left = asyncio.Event()
        self._sent: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
        self.status = 0
        self.headers: dict[str, str] = {}
        #: True once the body came to its proper end.
        self.ended = False

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.leave()
        async with asyncio.timeout(DEADLINE_S):
            await self._task

    def leave(self) -> None:
        self._left.set()

    async def begin(self) -> None:
        """Wait for status and headers."""
        async with asyncio.timeout(DEADLINE_S):
            start = await self._sent.get()
        assert start is not None
        self.status = start["status"]
        self.headers = {name.decode(): value.decode() for name, value in start["headers"]}

    async def chunk(self) -> bytes:
        """Return what comes next; nothing when the stream ended or broke off."""
        async with asyncio.timeout(DEADLINE_S):
            message = await self._sent.get()
        if message is None:
            return b""
        self.ended = not message.get("more_body", False)
        body: bytes = message["body"]
        return body

    async def event(self) -> dict[str, Any]:
        """Return the next event's JSON; comments are skipped."""
        while (chunk := await self.chunk()).startswith(b":"):
            pass
        assert chunk.startswith(b"data: ") and chunk.endswith(b"\n\n"), chunk
        return json.loads(chunk.removeprefix(b"data: "))

    async def rest(self) -> list[dict[str, Any]]:
        """Return the events up to the end."""
        events: list[dict[str, Any]] = []
        while chunk := await self.chunk():
            if not chunk.startswith(b":"):
                events.append(json.loads(chunk.removeprefix(b"data: ")))
        await self.chunk() if self.ended else None
        return events

    async def _run(self) -> None:
        try:
            await self._house.app(self._scope, self._receive, self._send)
        finally:
            self._sent.put_nowait(None)

    async def _receive(self) -> dict[str, Any]:
        if self._body:
            return {"type": "http.request", "body": self._body.pop(), "more_body": False}
        await self._left.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Any) -> None:
        self._sent.put_nowait(message)

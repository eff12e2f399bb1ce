"""A call that stays open for one request: sync runs and streams wait here, on hints, not by polling."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from sqlalchemy import Connection
from starlette.requests import Request as HttpRequest

from stillmotion.errors import StoreUnavailable
from stillmotion.http.answers import Refusal, Unknown
from stillmotion.http.site import Site
from stillmotion.store.logs import read_logs
from stillmotion.store.position import queue_position
from stillmotion.store.queue import get
from stillmotion.types import LogLine, Request

T = TypeVar("T")

#: Seconds between looks at the store while no hint comes; another process may have written it.
POLL_S = 1.0


@dataclass(frozen=True, slots=True)
class Look:
    """What one read of the store saw, all of it in one snapshot."""

    request: Request
    position: int
    #: Log lines that no earlier look has shown.
    lines: list[LogLine]


class Watch:
    """Looks at a request and waits for its next change; `close` it, or its tasks outlive the call."""

    def __init__(self, site: Site, call: HttpRequest, request_id: str) -> None:
        self._site = site
        self._request_id = request_id
        self._cursor = 0
        self._hint: asyncio.Task[bool] | None = None
        self._left = asyncio.create_task(_left(call))
        self._stopping = asyncio.create_task(site.stopping.wait())
        #: The server was stopping before the last look began.
        self._last = False

    async def look(self, *, logs: bool = False) -> Look | None:
        """Read where the request stands; None when the store cannot be read now. Raises Unknown."""
        # Listening begins before looking, so that no change falls between the two.
        if self._hint is not None:
            self._hint.cancel()
        self._hint = asyncio.create_task(self._site.wakeup.wait(f"request:{self._request_id}", POLL_S))
        self._last = self._site.stopping.is_set()
        after = self._cursor

        def read(conn: Connection) -> tuple[Look, int]:
            request = get(conn, self._request_id)
            if request is None:
                raise Unknown
            lines, cursor = read_logs(conn, request.id, after) if logs else ([], after)
            return Look(request, queue_position(conn, request), lines), cursor

        try:
            look, self._cursor = await self._site.store.read(read)
        except StoreUnavailable:
            # Failing a call that waits would make its client submit again what still runs.
            return None
        return look

    async def news(self) -> None:
        """Return when another look is due; raises a Refusal when the client left or the server stops."""
        assert self._hint is not None, "look first"
        if not self._last:
            waiting = {self._hint, self._left, self._stopping}
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        if self._left.done():
            raise Refusal(499, "client_disconnected", "The client left before its request was done")
        if self._last:
            raise Refusal(
                503,
                "server_stopping",
                "The server is stopping and this request is not done; submit again when it is back",
                {"Retry-After": "1"},
            )

    async def until(self, reached: Callable[[Request], bool]) -> Request:
        """Wait until the request is as `reached` wants it; raises as `news` does."""
        while True:
            look = await self.look()
            if look is not None and reached(look.request):
                return look.request
            await self.news()

    async def insist(self, ask: Callable[[], Awaitable[T]]) -> T:
        """Ask again while the store cannot be read: nothing is to be made twice; raises as `news` does."""
        while True:
            try:
                return await ask()
            except StoreUnavailable:
                await self.look()
                await self.news()

    def close(self) -> None:
        for task in (self._hint, self._left, self._stopping):
            if task is not None:
                task.cancel()


async def _left(call: HttpRequest) -> None:
    while (await call.receive())["type"] != "http.disconnect":
        pass

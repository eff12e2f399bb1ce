"""The sync door: the answer is the output, and a client that leaves cancels its request."""

import asyncio

from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import Route

from stillmotion.errors import StoreUnavailable
from stillmotion.http.answers import Refusal, wrong_method
from stillmotion.http.body import read_json
from stillmotion.http.callers import Callers
from stillmotion.http.results import answer_result
from stillmotion.http.site import Site
from stillmotion.http.submit import accept, find_endpoint, query_input
from stillmotion.store.queue import cancel, get
from stillmotion.types import CancelAnswer, Request, State

#: Seconds between looks at the store while no hint comes; another process may have written it.
POLL_S = 1.0
METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"]


class RunRoutes:
    def __init__(self, site: Site, callers: Callers) -> None:
        self.site = site
        self.callers = callers
        self.routes = [Route("/run/{path:path}", self.run, methods=METHODS)]

    async def run(self, call: HttpRequest) -> Response:
        path: str = call.path_params["path"]
        caller = await self.callers.identify(call, f'application "{path[:200]}"')
        endpoint = find_endpoint(path)
        if call.method == "POST":
            given = await read_json(call, self.site.settings.body_bytes)
        elif call.method == "GET":
            given = query_input(call)
        else:
            raise wrong_method("GET, POST")
        request = await accept(self.site, call, endpoint, caller, given, attached=True)
        done = await self._wait(call, request.id)
        return await answer_result(self.site, done)

    async def _wait(self, call: HttpRequest, request_id: str) -> Request:
        left = asyncio.create_task(_left(call))
        try:
            while True:
                # Listening begins before looking, so that no ending falls between the two.
                hint = asyncio.create_task(self.site.wakeup.wait(f"request:{request_id}", POLL_S))
                request = await self._look(request_id)
                if request is not None and request.state is State.DONE:
                    hint.cancel()
                    return request
                await asyncio.wait({hint, left}, return_when=asyncio.FIRST_COMPLETED)
                if left.done():
                    hint.cancel()
                    await cancel_request(self.site, request_id)
                    raise Refusal(499, "client_disconnected", "The client left; its request was cancelled")
        finally:
            left.cancel()

    async def _look(self, request_id: str) -> Request | None:
        try:
            return await self.site.store.read(lambda conn: get(conn, request_id))
        except StoreUnavailable:
            # Failing the call here would make the client submit again what still runs: look again later.
            return None


async def cancel_request(site: Site, request_id: str) -> CancelAnswer:
    """Cancel in the store and wake whoever has to act on it."""
    now = site.clock.now()
    answer = await site.store.write(lambda conn: cancel(conn, request_id, now))
    if answer is CancelAnswer.ASKED:
        site.wakeup.notify("worker")
    elif answer is CancelAnswer.REMOVED:
        site.wakeup.notify(f"request:{request_id}")
        site.wakeup.notify("webhook")
        # Its key may have had another request held back.
        site.wakeup.notify("queue")
    return answer


async def _left(call: HttpRequest) -> None:
    while (await call.receive())["type"] != "http.disconnect":
        pass

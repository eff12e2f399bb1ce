"""The sync door: the answer is the output, and a client that leaves cancels its request."""

import asyncio
from contextlib import closing, suppress
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import Route

from stillmotion.errors import StoreUnavailable
from stillmotion.http.answers import Refusal, wrong_method
from stillmotion.http.requests.results import answer_result
from stillmotion.http.requests.submit import accept, find_endpoint, query_input
from stillmotion.http.requests.watch import POLL_S, Watch
from stillmotion.http.site import Site
from stillmotion.http.ways.body import read_json
from stillmotion.http.ways.callers import Callers
from stillmotion.store.queue import cancel
from stillmotion.types import CancelAnswer, Request, State

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
        given = await read_input(call, self.site.settings.body_bytes)
        request = await accept(self.site, call, endpoint, caller, given, attached=True)
        with closing(Watch(self.site, call, request.id)) as watch:
            try:
                done = await watch.until(is_done)
                return await watch.insist(lambda: answer_result(self.site, done))
            except Refusal:
                await abandon(self.site, request.id)
                raise


async def read_input(call: HttpRequest, max_bytes: int) -> Any:
    """Read the input of a sync call: the body of a POST, the query of a GET."""
    if call.method == "POST":
        return await read_json(call, max_bytes)
    if call.method == "GET":
        return query_input(call)
    raise wrong_method("GET, POST")


def is_done(request: Request) -> bool:
    return request.state is State.DONE


async def abandon(site: Site, request_id: str) -> None:
    """Cancel what nobody is left to hear of when the store takes it, or leave it to the next start."""
    while True:
        try:
            await cancel_request(site, request_id)
            return
        except StoreUnavailable:
            if site.stopping.is_set():
                return
        with suppress(TimeoutError):
            async with asyncio.timeout(POLL_S):
                await site.stopping.wait()


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

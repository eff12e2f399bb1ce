"""A submit, sync or queued: validate, keep, tell the worker. What is answered 200 is on disk."""

import asyncio
import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError
from sqlalchemy import Connection
from starlette.requests import Request as HttpRequest

from stillmotion import ids
from stillmotion.endpoints import ENDPOINTS, Endpoint
from stillmotion.errors import StoreUnavailable
from stillmotion.http import wire
from stillmotion.http.answers import BadInput, Refusal, unknown_path
from stillmotion.http.doors import door_of
from stillmotion.http.pictures import Source, take_picture
from stillmotion.http.site import Site
from stillmotion.net.guard import AddressRefused, AllowList, NameUnknown, parse_url, resolve
from stillmotion.store.files import add_file
from stillmotion.store.queue import counts, submit
from stillmotion.types import Caller, NewRequest, Request, State

#: A submit waits this long for the name of its webhook's host; the sender asks again in any case.
LOOKUP_S = 1.0

_APPS = {endpoint.app for endpoint in ENDPOINTS.values()}


@dataclass(frozen=True, slots=True)
class Wishes:
    """What headers and query ask of the queue."""

    low_priority: bool
    start_by: float | None
    #: Most requests that may wait ahead; None = any number.
    max_waiting: int | None


def find_endpoint(path: str) -> Endpoint:
    endpoint = ENDPOINTS.get(path)
    if endpoint is not None:
        return endpoint
    owner, _, rest = path.partition("/")
    alias, _, sub = rest.partition("/")
    app = f"{owner}/{alias}"
    if app in _APPS:
        raise unknown_path(f"/{sub}")
    raise Refusal(404, "not_found", f'Application "{(app if alias else owner)[:200]}" not found')


def read_wishes(call: HttpRequest, now: float) -> Wishes:
    """Raise a 400 Refusal for a malformed header or parameter."""
    priority = call.headers.get("x-fal-queue-priority", "normal").lower()
    if priority not in ("normal", "low"):
        raise _malformed("X-Fal-Queue-Priority must be normal or low")
    start_by = None
    timeout = call.headers.get("x-fal-request-timeout")
    if timeout is not None:
        start_by = now + _seconds(timeout)
    max_waiting = None
    limit = call.query_params.get("fal_max_queue_length")
    if limit is not None:
        if not (limit.isascii() and limit.isdecimal() and len(limit) < 10):
            raise _malformed("fal_max_queue_length must be a whole number, 0 or more")
        max_waiting = int(limit)
    return Wishes(priority == "low", start_by, max_waiting)


async def read_webhook(call: HttpRequest, receivers: AllowList) -> str | None:
    """Return the webhook a submit asks for; raises BadInput for one this server would never send to.

    A name that is unknown now, or slow to look up, may be there when the film is: it passes here.
    """
    url = call.query_params.get("fal_webhook")
    if url is None:
        return None
    try:
        target = parse_url(url)
        with suppress(NameUnknown, TimeoutError):
            async with asyncio.timeout(LOOKUP_S):
                await resolve(target.host, target.port, receivers)
    except AddressRefused as error:
        advice = (
            "Give a public http(s) URL; STILLMOTION_WEBHOOK_ALLOW lets an operator exempt private receivers."
        )
        raise BadInput(wire.query_refused("fal_webhook", f"{error} {advice}")) from None
    # As the guard reads it: ASCII, so that nothing behind us takes its host for another.
    return str(target.url)


async def accept(
    site: Site,
    call: HttpRequest,
    endpoint: Endpoint,
    caller: Caller,
    given: object,
    *,
    attached: bool = False,
    webhook: str | None = None,
) -> Request:
    """Validate a call's input and keep it as a request; raises what `answers` knows."""
    wishes = read_wishes(call, site.clock.now())
    try:
        settled = endpoint.settle(given)
    except ValidationError as error:
        raise BadInput(wire.validation(error)) from None
    door = door_of(call)
    source = None
    if settled.image_url is not None:
        source = await take_picture(site, settled.image_url, caller, door)
    now = site.clock.now()
    new = NewRequest(
        id=ids.request_id(now),
        profile=site.profile,
        endpoint=endpoint.id,
        key_id=caller.key_id,
        input=settled.values,
        picture=source.picture if source else None,
        bases=door.bases,
        low_priority=wishes.low_priority,
        start_by=wishes.start_by,
        webhook=webhook,
        attached=attached,
    )
    row = await _keep(site, new, source, wishes, now)
    site.wakeup.notify("queue")
    return row


async def _keep(site: Site, new: NewRequest, source: Source | None, wishes: Wishes, now: float) -> Request:
    file = source.new_file if source else None

    def keep(conn: Connection) -> Request:
        if wishes.max_waiting is not None:
            _check_room(counts(conn, new.profile), wishes.max_waiting)
        if file is not None:
            add_file(conn, file)
        return submit(conn, new, now)

    try:
        return await site.store.write(keep)
    except (StoreUnavailable, Refusal):
        if file is not None:
            await site.media.delete([file.media_key])
        raise


def _check_room(live: Mapping[State, int], max_waiting: int) -> None:
    waiting = live[State.HELD] + live[State.READY]
    if waiting > max_waiting:
        headers = {"Retry-After": "1", "X-Fal-Needs-Retry": "1"}
        raise Refusal(
            429,
            "queue_full",
            f"{waiting} requests are waiting, more than the {max_waiting} of fal_max_queue_length",
            headers,
        )


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not (math.isfinite(seconds) and seconds > 0):
        raise _malformed("X-Fal-Request-Timeout must be a number of seconds above 0, such as 30 or 2.5")
    return seconds


def _malformed(message: str) -> Refusal:
    return Refusal(400, "bad_request", message)


def query_input(call: HttpRequest) -> dict[str, Any]:
    """Read an input from the query string, for sync runs by GET; fal's own parameters are left out."""
    return {name: value for name, value in call.query_params.items() if not name.startswith("fal_")}

"""A submit, sync or queued: validate, keep, tell the worker. What is answered 200 is on disk."""

import asyncio
import hashlib
import json
import math
import re
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from pydantic import ValidationError
from sqlalchemy import Connection
from starlette.requests import Request as HttpRequest

from stillmotion import ids
from stillmotion.endpoints import ENDPOINTS, Endpoint
from stillmotion.http import wire
from stillmotion.http.answers import BadInput, Refusal, unknown_path
from stillmotion.http.requests.pictures import Source, take_picture
from stillmotion.http.site import Site
from stillmotion.http.storage.lifecycle import read_lifecycle
from stillmotion.http.ways.doors import door_of
from stillmotion.net.guard import AddressRefused, AllowList, NameUnknown, parse_url, resolve
from stillmotion.store.files import add_file
from stillmotion.store.idempotency import find_replay
from stillmotion.store.limits import count_submit
from stillmotion.store.position import queue_length
from stillmotion.store.queue import submit
from stillmotion.types import Caller, Idempotency, NewRequest, Request

#: A submit waits this long for the name of its webhook's host; the sender asks again in any case.
LOOKUP_S = 1.0

#: First segments that stand before owner and alias; nothing of ours lies in one.
NAMESPACES = ("workflows", "comfy")
_APPS = {endpoint.app for endpoint in ENDPOINTS.values()}
_IDEMPOTENCY_KEY = re.compile(r"[!-~]{1,255}")


@dataclass(frozen=True, slots=True)
class Wishes:
    """What headers and query ask of the queue."""

    low_priority: bool
    start_by: float | None
    #: Most requests that may wait ahead; None = any number.
    max_waiting: int | None
    idempotency_key: str | None
    store_io: bool
    retry: bool


def find_endpoint(path: str) -> Endpoint:
    endpoint = ENDPOINTS.get(path)
    if endpoint is not None:
        return endpoint
    parts = path.split("/")
    length = 3 if parts[0] in NAMESPACES else 2
    app = "/".join(parts[:length])
    if app in _APPS:
        raise unknown_path(f"/{'/'.join(parts[length:])}")
    raise Refusal(404, "not_found", f'Application "{app[:200]}" not found')


def read_wishes(call: HttpRequest, steady: float) -> Wishes:
    """Raise a 400 Refusal for a malformed header or parameter."""
    priority = call.headers.get("x-fal-queue-priority", "normal").lower()
    if priority not in ("normal", "low"):
        raise _malformed("X-Fal-Queue-Priority must be normal or low")
    start_by = None
    timeout = call.headers.get("x-fal-request-timeout")
    if timeout is not None:
        start_by = steady + _seconds(timeout)
    max_waiting = None
    limit = call.query_params.get("fal_max_queue_length")
    if limit is not None:
        if not (limit.isascii() and limit.isdecimal() and len(limit) < 10):
            raise _malformed("fal_max_queue_length must be a whole number, 0 or more")
        max_waiting = int(limit)
    idempotency_key = call.headers.get("idempotency-key")
    if idempotency_key is not None and not _IDEMPOTENCY_KEY.fullmatch(idempotency_key):
        raise _malformed("Idempotency-Key must be 1 to 255 visible ASCII characters, such as a UUID")
    return Wishes(
        low_priority=priority == "low",
        start_by=start_by,
        max_waiting=max_waiting,
        idempotency_key=idempotency_key,
        store_io=call.headers.get("x-fal-store-io") != "0",
        retry=call.headers.get("x-fal-no-retry", "").lower() not in ("1", "true", "yes"),
    )


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
    """Validate a call's input and keep it as a request; raises what `answers` knows.

    The same idempotency key and submit again is answered with the request it made the first time.
    """
    wishes = read_wishes(call, site.clock.steady())
    lifecycle = read_lifecycle(call)
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
        lifecycle=lifecycle,
        idempotency=None if attached else _idempotency(wishes, endpoint, given),
        store_io=wishes.store_io,
        retry=wishes.retry,
    )
    row = await _keep(site, new, source, wishes, now)
    site.wakeup.notify("queue")
    return row


async def _keep(site: Site, new: NewRequest, source: Source | None, wishes: Wishes, now: float) -> Request:
    file = source.new_file if source else None
    if file is not None and not new.store_io:
        # Part of the input, so it goes with the request.
        file = replace(file, request_id=new.id)

    def keep(conn: Connection) -> Request:
        if new.idempotency is not None:
            replayed = find_replay(conn, new.key_id, new.idempotency)
            if replayed is not None:
                return replayed
        if wishes.max_waiting is not None:
            _check_room(queue_length(conn, new.profile), wishes.max_waiting)
        count_submit(conn, new.key_id, now)
        if file is not None:
            add_file(conn, file)
        return submit(conn, new, now)

    row = await site.record(keep, file and file.media_key)
    if file is not None and row.id != new.id:
        await site.media.delete([file.media_key])
    return row


def _idempotency(wishes: Wishes, endpoint: Endpoint, given: object) -> Idempotency | None:
    if wishes.idempotency_key is None:
        return None
    body = json.dumps([endpoint.id, given], sort_keys=True).encode()
    return Idempotency(key=wishes.idempotency_key, digest=hashlib.sha256(body).hexdigest())


def _check_room(waiting: int, max_waiting: int) -> None:
    if waiting > max_waiting:
        headers = {"Retry-After": "1"}
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

"""Every action of the conformance matrix with fal_client, sync or async; argv: which, the picture, actions.

The async functions are awaited one by one, so that both read alike here.
"""

import asyncio
import hashlib
import inspect
import json
import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import fal_client
import httpx
from matrix_inputs import HQ, INPUT, LARGE, LIMIT_S, SLOW, TURBO

IS_ASYNC = sys.argv[1] == "async"
PICTURE = Path(sys.argv[2])

LOOP = asyncio.new_event_loop()


def call(name: str, *args: Any, of: Any = fal_client, **more: Any) -> Any:
    """Call a function of the client, or its twin that ends in _async, to its end."""
    if IS_ASYNC and hasattr(of, f"{name}_async"):
        name = f"{name}_async"
    return ended(getattr(of, name)(*args, **more))


def ended(result: Any) -> Any:
    if inspect.isasyncgen(result):
        return LOOP.run_until_complete(collect(result))
    return LOOP.run_until_complete(result) if inspect.isawaitable(result) else result


async def collect(events: Any) -> list[Any]:
    return [event async for event in events]


def film(output: dict[str, Any], **more: object) -> dict[str, object]:
    url = output["video"]["url"]
    data = httpx.get(url, timeout=LIMIT_S).content
    whole = len(data) == output["video"]["file_size"]
    return {"url": url, "seed": output["seed"], "whole": whole, "box": data[4:8].decode(), **more}


def wait_for(handle: Any, kind: type[fal_client.Status]) -> Any:
    deadline = time.monotonic() + LIMIT_S
    while time.monotonic() < deadline:
        status = ended(handle.status(with_logs=True))
        if isinstance(status, kind):
            return status
        time.sleep(0.05)
    raise AssertionError(f"{handle.request_id} is not {kind.__name__} after {LIMIT_S} s")


def cancelled(handle: Any) -> object:
    ended(handle.cancel())
    last = wait_for(handle, fal_client.Completed)
    try:
        ended(handle.get())
    except fal_client.FalClientHTTPError as error:
        return {"kind": last.error_type, "status": error.status_code}
    raise AssertionError("a cancelled request has a result")


def while_busy(work: Callable[[Any], Any]) -> Any:
    """Do `work` while a slow request runs."""
    running = call("submit", TURBO, arguments=SLOW)
    try:
        wait_for(running, fal_client.InProgress)
        return work(running)
    finally:
        with suppress(fal_client.FalClientHTTPError):
            ended(running.cancel())


def subscribe() -> object:
    last: list[Any] = []

    async def note(update: fal_client.Status) -> None:
        last.append(update)

    watch = note if IS_ASYNC else last.append
    output = call("subscribe", TURBO, arguments=INPUT, with_logs=True, on_queue_update=watch)
    done = isinstance(last[-1], fal_client.Completed)
    return film(output, last="COMPLETED" if done else str(last[-1]), lines=len(last[-1].logs))


def run() -> object:
    return film(call("run", TURBO, arguments=INPUT))


def stream() -> object:
    events = list(call("stream", TURBO, arguments={**INPUT, "prompt": "steps=2 pause=0.1", "steps": 2}))
    return film(events[-1], events=len(events))


def submit() -> object:
    handle = call("submit", TURBO, arguments=INPUT)
    last = wait_for(handle, fal_client.Completed)
    output = call("result", TURBO, handle.request_id)
    return film(output, first="IN_QUEUE", last="COMPLETED", lines=len(last.logs))


def upload() -> object:
    url = call("upload_file", PICTURE)
    same = httpx.get(url, timeout=LIMIT_S).content == PICTURE.read_bytes()
    return film(call("subscribe", HQ, arguments={"image_url": url, "seed": 7}), same=same)


def upload_large() -> object:
    data = os.urandom(LARGE)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "large.bin"
        path.write_bytes(data)
        url = call("upload_file", path)
    back = httpx.get(url, timeout=LIMIT_S).content
    return {"same": hashlib.sha256(back).digest() == hashlib.sha256(data).digest()}


def cancel_queued() -> object:
    return while_busy(lambda running: cancelled(call("submit", TURBO, arguments=SLOW)))


def cancel_running() -> object:
    return while_busy(cancelled)


def invalid() -> object:
    return call("subscribe", TURBO, arguments={**INPUT, "fps": 0})


def missing() -> object:
    return call("subscribe", TURBO, arguments={})


def wrong_key() -> object:
    client = (fal_client.AsyncClient if IS_ASYNC else fal_client.SyncClient)(key="0000:not-the-secret")
    return call("run", TURBO, arguments=INPUT, of=client)


def start_timeout() -> object:
    return while_busy(lambda running: call("run", TURBO, arguments=INPUT, start_timeout=1.1))


for action in sys.argv[3:]:
    try:
        outcome: dict[str, Any] = {"value": globals()[action]()}
    except fal_client.FalClientHTTPError as error:
        outcome = {
            "error": {"status": error.status_code, "body": error.response.json(), "type": error.error_type}
        }
    except Exception as error:  # noqa: BLE001 - what one action broke with is its outcome; the others still run
        outcome = {"error": {"message": f"{type(error).__name__}: {error}"}}
    print(json.dumps({"action": action, **outcome}), flush=True)

"""The same as fal_client_sync.py with fal_client's async functions."""

import asyncio
import json
import sys
from dataclasses import asdict
from typing import Any

import fal_client
import httpx
import httpx_sse

TURBO = "fal-ai/fast-svd-lcm/text-to-video"
QUICK = {"prompt": "steps=1 pause=0", "seed": 7, "video_size": {"width": 320, "height": 256}}
SLOW = {"prompt": "steps=2000 pause=0.05"}


async def wait_for(handle: fal_client.AsyncRequestHandle, kind: type[fal_client.Status]) -> fal_client.Status:
    async for event in handle.iter_events(with_logs=True, interval=0.05):
        if isinstance(event, kind):
            return event
    raise AssertionError(f"{handle.request_id} ended without being {kind.__name__}")


async def subscribe() -> object:
    seen: list[dict[str, object]] = []

    async def note(update: fal_client.Status) -> None:
        seen.append({"kind": type(update).__name__, **asdict(update)})

    output = await fal_client.subscribe_async(TURBO, arguments=QUICK, with_logs=True, on_queue_update=note)
    return {"output": output, "seen": seen}


async def submit() -> object:
    handle = await fal_client.submit_async(TURBO, arguments=QUICK)
    last = await wait_for(handle, fal_client.Completed)
    by_id = await fal_client.status_async(TURBO, handle.request_id, with_logs=True)
    output = await fal_client.result_async(TURBO, handle.request_id)
    urls = [handle.status_url, handle.response_url, handle.cancel_url]
    return {"last": asdict(last), "by_id": type(by_id).__name__, "output": output, "urls": urls}


async def run() -> object:
    return await fal_client.run_async(TURBO, arguments=QUICK)


async def cancel() -> object:
    running = await fal_client.submit_async(TURBO, arguments=SLOW)
    await wait_for(running, fal_client.InProgress)
    queued = await fal_client.submit_async(TURBO, arguments=SLOW)
    position = await wait_for(queued, fal_client.Queued)
    ends: list[object] = []
    for handle in (queued, running):
        await handle.cancel()
        last = await wait_for(handle, fal_client.Completed)
        try:
            await handle.get()
        except fal_client.FalClientHTTPError as error:
            ends.append({**asdict(last), "code": error.status_code, "type": error.error_type})
    return {"position": asdict(position), "ends": ends}


async def bad_input() -> object:
    return await fal_client.subscribe_async(TURBO, arguments={"prompt": "x", "cond_aug": -1})


async def missing_input() -> object:
    return await fal_client.run_async(TURBO, arguments={})


async def wrong_key() -> object:
    return await fal_client.AsyncClient(key="0000:not-the-secret").run(TURBO, arguments=QUICK)


async def client_timeout() -> object:
    clock = asyncio.get_running_loop()
    began = clock.time()
    try:
        await fal_client.subscribe_async(TURBO, arguments=SLOW, client_timeout=2)
    except fal_client.FalClientTimeoutError as error:
        return {"request_id": error.request_id, "seconds": clock.time() - began}
    raise AssertionError("a request of 100 s came back within 2 s")


STEPS = {**QUICK, "prompt": "steps=4 pause=0.3"}
FAILING = {"prompt": "steps=9 pause=0.3 refuse_at=4"}


async def stream() -> object:
    return [event async for event in fal_client.stream_async(TURBO, arguments=STEPS)]


async def until_it_breaks(arguments: dict[str, Any]) -> object:
    events: list[object] = []
    try:
        async for event in fal_client.stream_async(TURBO, arguments=arguments):
            events.append(event)
    except (httpx.HTTPError, httpx_sse.SSEError) as error:
        return {"error": type(error).__name__, "events": events}
    raise AssertionError(f"ended as if all were well: {events}")


async def stream_bad_input() -> object:
    return await until_it_breaks({"prompt": "x", "cond_aug": -1})


async def stream_failing() -> object:
    return await until_it_breaks(FAILING)


async def start_timeout() -> object:
    running = await fal_client.submit_async(TURBO, arguments=SLOW)
    await wait_for(running, fal_client.InProgress)
    errors: list[object] = []
    for way in (fal_client.run_async, fal_client.subscribe_async):
        try:
            await way(TURBO, arguments=QUICK, start_timeout=1.1)
        except fal_client.FalClientHTTPError as error:
            errors.append({"status": error.status_code, "type": error.error_type})
    await running.cancel()
    return errors


async def main() -> None:
    for name in sys.argv[1:]:
        try:
            outcome = {"action": name, "value": await globals()[name]()}
        except fal_client.FalClientHTTPError as error:
            outcome = {
                "action": name,
                "error": {"status": error.status_code, "message": error.message, "type": error.error_type},
            }
        print(json.dumps(outcome), flush=True)


asyncio.run(main())

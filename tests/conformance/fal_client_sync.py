"""What a caller does with fal_client's plain functions; prints one JSON line per action named on argv.

The process is pointed at the server by FAL_RUN_HOST, FAL_QUEUE_RUN_HOST and SSL_CERT_FILE alone; they are
read when fal_client is imported, so every run is its own process.
"""

import json
import sys
import time
from dataclasses import asdict
from typing import Any

import fal_client
import httpx
import httpx_sse

TURBO = "fal-ai/fast-svd-lcm/text-to-video"
QUICK = {"prompt": "steps=1 pause=0", "seed": 7, "video_size": {"width": 320, "height": 256}}
SLOW = {"prompt": "steps=2000 pause=0.05"}


def wait_for(handle: fal_client.SyncRequestHandle, kind: type[fal_client.Status]) -> fal_client.Status:
    for event in handle.iter_events(with_logs=True, interval=0.05):
        if isinstance(event, kind):
            return event
    raise AssertionError(f"{handle.request_id} ended without being {kind.__name__}")


def subscribe() -> object:
    seen: list[dict[str, object]] = []
    output = fal_client.subscribe(
        TURBO,
        arguments=QUICK,
        with_logs=True,
        on_queue_update=lambda update: seen.append({"kind": type(update).__name__, **asdict(update)}),
    )
    return {"output": output, "seen": seen}


def submit() -> object:
    handle = fal_client.submit(TURBO, arguments=QUICK)
    last = wait_for(handle, fal_client.Completed)
    by_id = fal_client.status(TURBO, handle.request_id, with_logs=True)
    output = fal_client.result(TURBO, handle.request_id)
    urls = [handle.status_url, handle.response_url, handle.cancel_url]
    return {"last": asdict(last), "by_id": type(by_id).__name__, "output": output, "urls": urls}


def run() -> object:
    return fal_client.run(TURBO, arguments=QUICK)


def cancel() -> object:
    running = fal_client.submit(TURBO, arguments=SLOW)
    wait_for(running, fal_client.InProgress)
    queued = fal_client.submit(TURBO, arguments=SLOW)
    position = wait_for(queued, fal_client.Queued)
    ends: list[object] = []
    for handle in (queued, running):
        handle.cancel()
        last = wait_for(handle, fal_client.Completed)
        try:
            handle.get()
        except fal_client.FalClientHTTPError as error:
            ends.append({**asdict(last), "code": error.status_code, "type": error.error_type})
    return {"position": asdict(position), "ends": ends}


def bad_input() -> object:
    return fal_client.subscribe(TURBO, arguments={"prompt": "x", "cond_aug": -1})


def missing_input() -> object:
    return fal_client.run(TURBO, arguments={})


def wrong_key() -> object:
    return fal_client.SyncClient(key="0000:not-the-secret").run(TURBO, arguments=QUICK)


def client_timeout() -> object:
    began = time.monotonic()
    try:
        fal_client.subscribe(TURBO, arguments=SLOW, client_timeout=2)
    except fal_client.FalClientTimeoutError as error:
        return {"request_id": error.request_id, "seconds": time.monotonic() - began}
    raise AssertionError("a request of 100 s came back within 2 s")


STEPS = {**QUICK, "prompt": "steps=4 pause=0.3"}
FAILING = {"prompt": "steps=9 pause=0.3 refuse_at=4"}


def stream() -> object:
    return list(fal_client.stream(TURBO, arguments=STEPS))


def until_it_breaks(arguments: dict[str, Any]) -> object:
    events: list[object] = []
    try:
        for event in fal_client.stream(TURBO, arguments=arguments):
            events.append(event)
    except (httpx.HTTPError, httpx_sse.SSEError) as error:
        return {"error": type(error).__name__, "events": events}
    raise AssertionError(f"ended as if all were well: {events}")


def stream_bad_input() -> object:
    return until_it_breaks({"prompt": "x", "cond_aug": -1})


def stream_failing() -> object:
    return until_it_breaks(FAILING)


def start_timeout() -> object:
    running = fal_client.submit(TURBO, arguments=SLOW)
    wait_for(running, fal_client.InProgress)
    errors: list[object] = []
    for way in (fal_client.run, fal_client.subscribe):
        try:
            way(TURBO, arguments=QUICK, start_timeout=1.1)
        except fal_client.FalClientHTTPError as error:
            errors.append({"status": error.status_code, "type": error.error_type})
    running.cancel()
    return errors


for name in sys.argv[1:]:
    try:
        outcome = {"action": name, "value": globals()[name]()}
    except fal_client.FalClientHTTPError as error:
        outcome = {
            "action": name,
            "error": {"status": error.status_code, "message": error.message, "type": error.error_type},
        }
    print(json.dumps(outcome), flush=True)

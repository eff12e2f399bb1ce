"""Every action of the conformance matrix with curl alone; argv: a plan as JSON.

`bases` says where each of fal's hosts is reached, `options` is given to every curl, and with `proxyUrl` each
call names its target in a header, as fal's proxies do.
"""

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from matrix_inputs import HQ, INPUT, LARGE, LIMIT_S, SLOW, TURBO

PLAN = json.loads(sys.argv[1])
KEY = os.environ["FAL_KEY"]


class Refused(Exception):
    """An answer outside 2xx."""

    def __init__(self, status: int, body: Any) -> None:
        super().__init__(f"{status}: {body}")
        self.told = {"status": status, "body": body}


def curl(*words: str) -> bytes:
    """Return what curl wrote; the status is its last line."""
    command = ["curl", "-sS", "--max-time", str(LIMIT_S), *PLAN["options"], *words, "-w", "\n%{http_code}"]
    done = subprocess.run(command, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    body, _, status = done.stdout.rpartition(b"\n")
    if status[:1] != b"2":
        raise Refused(int(status), json.loads(body))
    return body


def call(plane: str, path: str, given: object = None, *words: str, key: str = KEY) -> Any:
    """Call one of fal's hosts; JSON in, JSON out."""
    return json.loads(raw(plane, path, given, *words, key=key))


def raw(plane: str, path: str, given: object = None, *words: str, key: str = KEY) -> bytes:
    url = f"{PLAN['bases'][plane]}{path}"
    body = [] if given is None else ["-H", "Content-Type: application/json", "-d", json.dumps(given)]
    target = [url]
    if "proxyUrl" in PLAN:
        target = ["-H", f"x-fal-target-url: {url}", PLAN["proxyUrl"]]
    return curl("-H", f"Authorization: Key {key}", *body, *words, *target)


def one(request_id: str, rest: str = "") -> str:
    return f"/{'/'.join(TURBO.split('/')[:2])}/requests/{request_id}{rest}"


def film(output: dict[str, Any], **more: object) -> dict[str, object]:
    url = output["video"]["url"]
    data = curl(url)
    whole = len(data) == output["video"]["file_size"]
    return {"url": url, "seed": output["seed"], "whole": whole, "box": data[4:8].decode(), **more}


def wait_for(request_id: str, wanted: str) -> Any:
    deadline = time.monotonic() + LIMIT_S
    while time.monotonic() < deadline:
        status = call("queue", one(request_id, "/status?logs=1"))
        if status["status"] == wanted:
            return status
        time.sleep(0.05)
    raise AssertionError(f"{request_id} is not {wanted} after {LIMIT_S} s")


def queued(given: object) -> str:
    return call("queue", f"/{TURBO}", given)["request_id"]


def stop(request_id: str) -> None:
    call("queue", one(request_id, "/cancel"), None, "-X", "PUT")


def cancelled(request_id: str) -> object:
    stop(request_id)
    last = wait_for(request_id, "COMPLETED")
    try:
        call("queue", one(request_id))
    except Refused as error:
        return {"kind": last["error_type"], "status": error.told["status"]}
    raise AssertionError("a cancelled request has a result")


def while_busy(work: Callable[[str], Any]) -> Any:
    """Do `work` while a slow request runs."""
    running = queued(SLOW)
    try:
        wait_for(running, "IN_PROGRESS")
        return work(running)
    finally:
        with suppress(Refused):
            stop(running)


def events(body: bytes) -> list[Any]:
    return [json.loads(line[6:]) for line in body.decode().splitlines() if line.startswith("data: ")]


def subscribe() -> object:
    request_id = queued(INPUT)
    last = wait_for(request_id, "COMPLETED")
    return film(call("queue", one(request_id)), last=last["status"], lines=len(last["logs"]))


def subscribe_streaming() -> object:
    request_id = queued(INPUT)
    told = events(raw("queue", one(request_id, "/status/stream?logs=1"), None, "-N"))
    lines = sum(len(event["logs"]) for event in told)
    return film(call("queue", one(request_id)), last=told[-1]["status"], lines=lines)


def run() -> object:
    return film(call("run", f"/{TURBO}", INPUT))


def stream() -> object:
    given = {**INPUT, "prompt": "steps=2 pause=0.1", "steps": 2}
    told = events(raw("run", f"/{TURBO}/stream", given, "-N"))
    return film(told[-1], events=len(told))


def submit() -> object:
    ticket = call("queue", f"/{TURBO}", INPUT)
    last = wait_for(ticket["request_id"], "COMPLETED")
    output = call("queue", one(ticket["request_id"]))
    return film(output, first=ticket["status"], last=last["status"], lines=len(last["logs"]))


def sent(path: Path, content_type: str) -> str:
    described = {"content_type": content_type, "file_name": path.name}
    where = call("rest", "/storage/upload/initiate?storage_type=fal-cdn-v3", described)
    curl("-T", str(path), "-H", f"Content-Type: {content_type}", where["upload_url"])
    return where["file_url"]


def upload() -> object:
    path = Path(PLAN["picture"])
    url = sent(path, "image/png")
    return film(call("run", f"/{HQ}", {"image_url": url, "seed": 7}), same=curl(url) == path.read_bytes())


def upload_large() -> object:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "large.bin"
        data = os.urandom(LARGE)
        path.write_bytes(data)
        back = curl(sent(path, "application/x-large"))
    return {"same": hashlib.sha256(back).digest() == hashlib.sha256(data).digest()}


def cancel_queued() -> object:
    return while_busy(lambda running: cancelled(queued(SLOW)))


def cancel_running() -> object:
    return while_busy(cancelled)


def invalid() -> object:
    return call("queue", f"/{TURBO}", {**INPUT, "fps": 0})


def missing() -> object:
    return call("queue", f"/{TURBO}", {})


def wrong_key() -> object:
    return call("run", f"/{TURBO}", INPUT, key="0000:not-the-secret")


def start_timeout() -> object:
    return while_busy(lambda running: call("run", f"/{TURBO}", INPUT, "-H", "X-Fal-Request-Timeout: 1.1"))


for action in PLAN["actions"]:
    try:
        outcome: dict[str, Any] = {"value": globals()[action]()}
    except Refused as error:
        outcome = {"error": error.told}
    except AssertionError as error:
        outcome = {"error": {"message": str(error)}}
    print(json.dumps({"action": action, **outcome}), flush=True)

"""What a caller uploads with fal_client; argv: sync or async, a picture, then actions. One JSON line each.

Uploads take no address from the environment: this process is led to the server by HTTPS_PROXY alone, so
every call goes to fal's own names.
"""

import asyncio
import hashlib
import inspect
import json
import os
import sys
from pathlib import Path
from typing import Any

import fal_client

mode, picture, *actions = sys.argv[1:]
#: Above 100 MiB the client sends parts; the last is a short one.
LARGE = 101 * 1024 * 1024 + 5
TURBO = "fal-ai/fast-svd-lcm"
HIDDEN = fal_client.StorageSettings(initial_acl=fal_client.StorageACL(default="hide"))


async def call(name: str, *args: Any, **options: Any) -> Any:
    answer = getattr(fal_client, f"{name}_async" if mode == "async" else name)(*args, **options)
    return await answer if inspect.isawaitable(answer) else answer


async def small() -> object:
    return {"url": await call("upload", b"Hello, World!", "text/plain", file_name="hello.txt")}


async def unnamed() -> object:
    return {"url": await call("upload", b"Hello, World!", "text/plain")}


async def by_initiate() -> object:
    url = await call("upload", b"Hello, World!", "text/plain", file_name="hello.txt", repository="fal")
    return {"url": url}


async def file() -> object:
    return {"url": await call("upload_file", picture)}


async def expiring() -> object:
    kept = fal_client.StorageSettings(expires_in="1h")
    return {"url": await call("upload", b"Hello, World!", "text/plain", lifecycle=kept)}


async def hidden() -> object:
    return {"url": await call("upload", b"Hello, World!", "text/plain", lifecycle=HIDDEN)}


async def large() -> object:
    data = os.urandom(LARGE)
    url = await call("upload", data, "application/x-large", file_name="large.bin", lifecycle=HIDDEN)
    return {"url": url, "digest": hashlib.sha256(data).hexdigest()}


async def film_of_upload() -> object:
    url = await call("upload_file", picture, lifecycle=HIDDEN)
    return await call("run", TURBO, {"image_url": url, "steps": 1})


async def film_of_encoded() -> object:
    uri = fal_client.encode(Path(picture).read_bytes(), "image/png")
    return await call("run", TURBO, {"image_url": uri, "steps": 1})


async def main() -> None:
    for name in actions:
        try:
            outcome = {"action": name, "value": await globals()[name]()}
        except fal_client.FalClientHTTPError as error:
            outcome = {"action": name, "error": {"status": error.status_code, "message": error.message}}
        print(json.dumps(outcome), flush=True)


asyncio.run(main())

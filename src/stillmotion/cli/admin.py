"""What an operator may do to the store, said once: run in-process or by the running server.

One process alone opens the database. A command therefore tries the lock: having it, it runs the operation
itself; otherwise the server that holds it runs the same operation, asked over DATA/admin.sock, which only
the owner of the data directory can reach.
"""

import asyncio
import json
import sqlite3
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection

from stillmotion import keys
from stillmotion.cli.datadir import ADMIN_SOCKET, Lock
from stillmotion.cli.listeners import socket_address
from stillmotion.clock import Clock, SystemClock
from stillmotion.errors import DataRefused, StillmotionError, StoreUnavailable, UserError
from stillmotion.http import wire
from stillmotion.http.admin import LISTED
from stillmotion.settings import Settings
from stillmotion.signatures import SigningKeys
from stillmotion.store import outbox
from stillmotion.store.open import Store, open_store

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

Arguments = Mapping[str, Any]
Answer = dict[str, Any]
ANSWER_TIMEOUT_S = 60


def create_key(conn: Connection, arguments: Arguments, now: float) -> Answer:
    credential = keys.create_key(
        conn,
        arguments["name"],
        now,
        admin=arguments.get("admin", False),
        concurrency=arguments.get("concurrency"),
        submits_per_minute=arguments.get("submits_per_minute"),
        upload_bytes_per_day=arguments.get("upload_bytes_per_day"),
        expires=arguments.get("expires"),
    )
    return {"key": credential}


def list_keys(conn: Connection, arguments: Arguments, now: float) -> Answer:
    return {"keys": [asdict(key) for key in keys.list_keys(conn)]}


def revoke_key(conn: Connection, arguments: Arguments, now: float) -> Answer:
    key_id: str = arguments["id"]
    if not keys.revoke_key(conn, key_id, now):
        raise _no_key(key_id)
    return {}


def rotate_key(conn: Connection, arguments: Arguments, now: float) -> Answer:
    key_id: str = arguments["id"]
    credential = keys.rotate_key(conn, key_id, now, overlap_s=arguments["overlap_s"])
    if credential is None:
        raise _no_key(key_id)
    return {"key": credential}


def _no_key(key_id: str) -> UserError:
    return UserError(f"No key in force has the id {key_id!r}; `stillmotion keys list` shows them all.")


def list_webhooks(conn: Connection, arguments: Arguments, now: float) -> Answer:
    undelivered = not arguments.get("all", False)
    found = outbox.list_deliveries(conn, LISTED, undelivered=undelivered)
    return {"webhooks": [wire.delivery(one, now) for one in found]}


def redeliver_webhook(conn: Connection, arguments: Arguments, now: float) -> Answer:
    request_id: str = arguments["id"]
    if not outbox.redeliver(conn, request_id, now):
        raise UserError(
            f"No finished request {request_id!r} has a webhook; `stillmotion webhooks list --all` shows the "
            f"newest {LISTED}."
        )
    return {}


def rotate_webhook_key(conn: Connection, arguments: Arguments, now: float) -> Answer:
    signing = SigningKeys(Path(arguments["data_dir"]), now)
    fresh = signing.rotate(now, at_once=arguments.get("at_once", False))
    return {"signs_from": fresh.signs_from, "published": len(signing.published())}


def back_up(store: Store, arguments: Arguments) -> Answer:
    target = Path(arguments["target"])
    try:
        store.backup(target)
    except (OSError, sqlite3.Error) as error:
        raise UserError(
            f"The database cannot be copied to {target}: {error}. A running server writes this file itself: "
            "choose a folder that its user, and its systemd unit if it has one, let it write to."
        ) from error
    return {}


OPERATIONS: dict[str, Callable[[Connection, Arguments, float], Answer]] = {
    "keys.create": create_key,
    "keys.list": list_keys,
    "keys.revoke": revoke_key,
    "keys.rotate": rotate_key,
    "webhooks.list": list_webhooks,
    "webhooks.redeliver": redeliver_webhook,
    "webhooks.rotate-key": rotate_webhook_key,
}


def perform(settings: Settings, operation: str, arguments: Arguments) -> Answer:
    """Run an operation here if the data directory is free, else have its server run it."""
    lock = Lock(settings.data_dir)
    if not lock.take():
        return _ask_server(settings.data_dir, lock, operation, arguments)
    try:
        store = open_store(settings.store_url)
        try:
            return _run(store, operation, arguments, SystemClock().now())
        finally:
            store.close_now()
    finally:
        lock.release()


def _run(store: Store, operation: str, arguments: Arguments, now: float) -> Answer:
    if operation == "backup":
        return back_up(store, arguments)
    if operation not in OPERATIONS:
        raise UserError(f"The running server knows no operation {operation!r}; restart it to update.")
    return store.write_now(lambda conn: OPERATIONS[operation](conn, arguments, now))


def build_admin(store: Store, clock: Clock) -> "Starlette":
    """Build the app behind DATA/admin.sock: POST /{operation} with a JSON object."""
    from starlette.applications import Starlette
    from starlette.responses import JSONResponse
    from starlette.routing import Route

    async def answer(request: "Request") -> "Response":
        operation: str = request.path_params["operation"]
        arguments = await request.json()
        try:
            return JSONResponse(await asyncio.to_thread(_run, store, operation, arguments, clock.now()))
        except StillmotionError as error:
            return JSONResponse({"error": str(error)}, status_code=400)

    return Starlette(routes=[Route("/{operation}", answer, methods=["POST"])])


def _ask_server(data_dir: Path, lock: Lock, operation: str, arguments: Arguments) -> Answer:
    import httpx

    path = data_dir.absolute() / ADMIN_SOCKET
    # A large database takes as long to copy as its disk takes to write it.
    timeout = httpx.Timeout(ANSWER_TIMEOUT_S, read=None if operation == "backup" else ANSWER_TIMEOUT_S)
    silent = (
        f"{lock.holder()} holds {data_dir} and does not answer on its admin socket. "
        "It may be starting: try again in a moment, or stop it."
    )
    if not path.exists():
        raise DataRefused(silent)
    try:
        with (
            socket_address(path) as address,
            httpx.Client(
                transport=httpx.HTTPTransport(uds=address), timeout=timeout, trust_env=False
            ) as client,
        ):
            reply = client.post(f"http://admin/{operation}", content=json.dumps(arguments))
    except httpx.TransportError as error:
        raise DataRefused(silent) from error
    if reply.status_code not in (200, 400):
        raise StoreUnavailable(f"The running server answered {reply.status_code}; its log says why.")
    answer: Answer = reply.json()
    if reply.status_code == 400:
        raise UserError(answer["error"])
    return answer

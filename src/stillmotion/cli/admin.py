"""What an operator may do to the store, said once: run in-process or by the running server.

One process alone opens the database. A command therefore tries the lock: having it, it runs the operation
itself; otherwise the server that holds it runs the same operation, asked over DATA/admin.sock, which only
the owner of the data directory can reach.
"""

import asyncio
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection

from stillmotion import keys
from stillmotion.cli.datadir import ADMIN_SOCKET, Lock
from stillmotion.cli.listeners import socket_address
from stillmotion.clock import Clock, SystemClock
from stillmotion.errors import DataRefused, StillmotionError, StoreUnavailable, UserError
from stillmotion.settings import DAY_S, Settings
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
#: Most webhooks in one list.
LISTED = 200


def create_key(conn: Connection, arguments: Arguments, now: float) -> Answer:
    days: float | None = arguments.get("days")
    expires = None if days is None else now + days * DAY_S
    credential = keys.create_key(
        conn, arguments["name"], now, concurrency=arguments.get("concurrency"), expires=expires
    )
    return {"key": credential}


def list_keys(conn: Connection, arguments: Arguments, now: float) -> Answer:
    return {
        "keys": [
            {
                "id": key.id,
                "name": key.name,
                "concurrency": key.concurrency,
                "created": key.created,
                "expires": key.expires,
                "revoked": key.revoked,
            }
            for key in keys.list_keys(conn)
        ]
    }


def revoke_key(conn: Connection, arguments: Arguments, now: float) -> Answer:
    key_id: str = arguments["id"]
    if not keys.revoke_key(conn, key_id, now):
        raise UserError(f"No key in force has the id {key_id!r}; `stillmotion keys list` shows them all.")
    return {}


def list_webhooks(conn: Connection, arguments: Arguments, now: float) -> Answer:
    undelivered = not arguments.get("all", False)
    return {
        "webhooks": [
            {
                "request": one.request_id,
                "url": one.url,
                "due": one.due,
                "tries": one.tries,
                "sending": one.lease_until is not None and one.lease_until > now,
                "last_error": one.last_error,
                "delivered": one.delivered,
                "parked": one.parked,
            }
            for one in outbox.list_deliveries(conn, LISTED, undelivered=undelivered)
        ]
    }


def redeliver_webhook(conn: Connection, arguments: Arguments, now: float) -> Answer:
    request_id: str = arguments["id"]
    if not outbox.redeliver(conn, request_id, now):
        raise UserError(
            f"No finished request {request_id!r} has a webhook; `stillmotion webhooks list --all` shows the "
            f"newest {LISTED}."
        )
    return {}


def rotate_webhook_key(conn: Connection, arguments: Arguments, now: float) -> Answer:
    keys = SigningKeys(Path(arguments["data_dir"]), now)
    fresh = keys.rotate(now, at_once=arguments.get("at_once", False))
    return {"signs_from": fresh.signs_from, "published": len(keys.published())}


OPERATIONS: dict[str, Callable[[Connection, Arguments, float], Answer]] = {
    "keys.create": create_key,
    "keys.list": list_keys,
    "keys.revoke": revoke_key,
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
            if operation == "backup":
                store.backup(Path(arguments["target"]))
                return {}
            now = SystemClock().now()
            return store.write_now(lambda conn: OPERATIONS[operation](conn, arguments, now))
        finally:
            asyncio.run(store.close())
    finally:
        lock.release()


def build_admin(store: Store, clock: Clock) -> "Starlette":
    """Build the app behind DATA/admin.sock: POST /{operation} with a JSON object."""
    from starlette.applications import Starlette
    from starlette.responses import JSONResponse
    from starlette.routing import Route

    async def answer(request: "Request") -> "Response":
        operation: str = request.path_params["operation"]
        arguments = await request.json()
        try:
            if operation == "backup":
                await asyncio.to_thread(store.backup, Path(arguments["target"]))
                return JSONResponse({})
            if operation not in OPERATIONS:
                raise UserError(f"The running server knows no operation {operation!r}; restart it to update.")
            work = OPERATIONS[operation]
            return JSONResponse(await store.write(lambda conn: work(conn, arguments, clock.now())))
        except StillmotionError as error:
            return JSONResponse({"error": str(error)}, status_code=400)

    return Starlette(routes=[Route("/{operation}", answer, methods=["POST"])])


def _ask_server(data_dir: Path, lock: Lock, operation: str, arguments: Arguments) -> Answer:
    import httpx

    path = data_dir.absolute() / ADMIN_SOCKET
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
                transport=httpx.HTTPTransport(uds=address), timeout=ANSWER_TIMEOUT_S, trust_env=False
            ) as client,
        ):
            reply = client.post(f"http://admin/{operation}", content=json.dumps(arguments))
    except httpx.TransportError as error:
        raise DataRefused(silent) from error
    answer: Answer = reply.json()
    if reply.status_code == 400:
        raise UserError(answer["error"])
    if reply.status_code != 200:
        raise StoreUnavailable(f"The running server answered {reply.status_code}; its log says why.")
    return answer

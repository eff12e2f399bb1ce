"""`stillmotion serve`: lock, store, runners and listeners in one process and one event loop.

Started in the order in which each relies on the one before, stopped in reverse. The first SIGTERM or SIGINT
drains: nothing new is claimed, running films are finished, polls are answered meanwhile. The second stops
at once: runners are killed and their requests go back to their places.
"""

import asyncio
import logging
import os
import shutil
import signal
import socket
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import uvloop

from stillmotion import __version__
from stillmotion.cli import devices
from stillmotion.cli.admin import build_admin
from stillmotion.cli.datadir import (
    ADMIN_SOCKET,
    ANNOUNCEMENT,
    FIRST_KEY,
    Announcement,
    Lock,
    announce,
    make_first_key,
    using,
)
from stillmotion.cli.housekeeping import keep_house
from stillmotion.cli.listeners import Listener, bind_tcp, bind_unix, quiet_uvicorn
from stillmotion.clock import SystemClock
from stillmotion.errors import DataRefused, UserError
from stillmotion.http import wire
from stillmotion.http.app import build_app
from stillmotion.http.site import Site
from stillmotion.http.ways.connect import TunnelConnection
from stillmotion.http.ways.doors import PLANES, is_loopback
from stillmotion.media.signing import UploadSigner, load_secret
from stillmotion.media.store import MediaStore, open_media
from stillmotion.net.guard import AllowList
from stillmotion.net.tls import LiveCertificate
from stillmotion.settings import Settings
from stillmotion.signatures import SigningKeys
from stillmotion.store import outbox
from stillmotion.store.open import Store, open_store
from stillmotion.store.position import waiting_elsewhere
from stillmotion.store.queue import cancel_abandoned, requeue_running
from stillmotion.tokens import TokenSigner
from stillmotion.wakeup import Wakeup
from stillmotion.webhooks import Sender, Spelling
from stillmotion.work.worker import Worker

#: How often the start block looks whether a runner is ready.
READY_LOOK_S = 0.05

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class House:
    """What the listeners and the worker share."""

    settings: Settings
    store: Store
    media: MediaStore
    worker: Worker
    sender: Sender
    clock: SystemClock
    app: Any
    #: Tells calls that still wait that nobody will finish their requests.
    stopping: asyncio.Event


@dataclass(frozen=True, slots=True, kw_only=True)
class Sockets:
    """Bound before anything is started, so that a port in use is told first."""

    http: socket.socket
    https: socket.socket | None
    admin: socket.socket

    def url(self, scheme: str, bound: socket.socket) -> str:
        host, port = bound.getsockname()[:2]
        shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)  # noqa: S104
        return f"{scheme}://{shown}:{port}"


def serve(settings: Settings, engine: str) -> int:
    """Run until told to stop; returns the exit status."""
    began = time.monotonic()
    settings = settings.model_copy(update={"data_dir": settings.data_dir.absolute()})
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("stillmotion").setLevel(logging.INFO)
    quiet_uvicorn()
    for words in (settings.fetch_allow, settings.webhook_allow):
        # Told now, not by the first request that needs it.
        AllowList.parse(words)
    _check_lent_key(settings)
    lock = Lock(settings.data_dir)
    if not lock.take():
        raise DataRefused(
            f"Data directory {settings.data_dir} is in use by {lock.holder()}. "
            "Stop that server, or start this one with another --data-dir."
        )
    # libuv lets half of its threads, two, look names up: two that are not answered would hold up all others.
    os.environ.setdefault("UV_THREADPOOL_SIZE", "64")
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(_serve(settings, engine, began))
    finally:
        # Before the lock is free: after it these may be another server's.
        for left in (ADMIN_SOCKET, ANNOUNCEMENT):
            (settings.data_dir / left).unlink(missing_ok=True)
        lock.release()


def _check_lent_key(settings: Settings) -> None:
    """Refuse to lend a key to a whole network unless the operator says to which pages."""
    lends = settings.proxy_key is not None and "proxy_origins" not in settings.model_fields_set
    if lends and not is_loopback(settings.host):
        raise UserError(
            f"STILLMOTION_PROXY_KEY would open this server to everyone who reaches {settings.host}, key or "
            "not: name the pages that may borrow it in STILLMOTION_PROXY_ORIGINS (programs can pretend to be "
            "such a page), unset it, or bind 127.0.0.1."
        )


async def _serve(settings: Settings, engine: str, began: float) -> int:
    profile, why, chosen = devices.choose(settings, engine)
    sockets = Sockets(
        http=bind_tcp(settings.host, settings.port),
        https=None if settings.tls_port is None else bind_tcp(settings.host, settings.tls_port),
        admin=bind_unix(settings.data_dir / ADMIN_SOCKET),
    )
    store = await asyncio.to_thread(open_store, settings.store_url)
    try:
        with using(settings.data_dir):
            house = await _open_house(settings, store, profile.name, chosen, engine)
        print(f"Stillmotion {__version__}")
        print(f"  URL      {sockets.url('http', sockets.http)}")
        if sockets.https is not None:
            print(
                f"  HTTPS    {sockets.url('https', sockets.https)}, CA {settings.data_dir / 'tls' / 'ca.pem'}"
            )
        print(f"  data     {settings.data_dir}")
        print(f"  profile  {profile.name} ({why})")
        print(f"  device   {', '.join(chosen)}")
        for other, waiting in (await store.read(lambda conn: waiting_elsewhere(conn, profile.name))).items():
            print(
                f"  note     requests that wait for profile {other}: {waiting}. They keep their places, and "
                f"their keys' limits count them, until a server runs with --profile {other}."
            )
        await _tell_first_key(house)
        if not is_loopback(settings.host):
            print(f"  note     keys and films travel in clear text on {settings.host}: use --tls-port.")
        sys.stdout.flush()
        await _run(house, sockets, began)
    finally:
        await store.close()
    return 0


async def _open_house(
    settings: Settings, store: Store, profile: str, chosen: list[str], engine: str
) -> House:
    clock = SystemClock()
    wakeup = Wakeup()
    # No runner outlives its server, so what lies here belongs to nobody.
    shutil.rmtree(settings.data_dir / "scratch", ignore_errors=True)
    if settings.database_url is None:
        # We hold the lock: whoever ran these is gone. A shared database may have other, living servers.
        requeued = await store.write(lambda conn: requeue_running(conn, clock.now()))
        for request_id in requeued:
            log.info("%s re-queued: its server went away", request_id)
        for request_id in await store.write(lambda conn: cancel_abandoned(conn, clock.now())):
            log.info("%s cancelled: its caller's connection went with the server", request_id)
        await store.write(outbox.free_claimed)
    media = open_media(settings.data_dir)
    signatures = SigningKeys(settings.data_dir, clock.now())
    worker = Worker(
        settings=settings,
        store=store,
        media=media,
        clock=clock,
        wakeup=wakeup,
        profile=profile,
        devices=chosen,
        engine=engine,
    )
    secret = load_secret(settings.data_dir)
    site = Site(
        settings=settings,
        store=store,
        media=media,
        signer=UploadSigner(secret),
        tokens=TokenSigner(secret),
        signatures=signatures,
        clock=clock,
        wakeup=wakeup,
        profile=profile,
        readiness=worker.readiness,
        version=__version__,
    )
    sender = Sender(
        settings=settings,
        store=store,
        keys=signatures,
        clock=clock,
        wakeup=wakeup,
        spelling=Spelling(body=wire.webhook, headers=wire.webhook_headers),
    )
    return House(
        settings=settings,
        store=store,
        media=media,
        worker=worker,
        sender=sender,
        clock=clock,
        app=build_app(site),
        stopping=site.stopping,
    )


async def _tell_first_key(house: House) -> None:
    """On the first start make a key: shown to a person, else left in a file only its owner reads."""
    now, data_dir = house.clock.now(), house.settings.data_dir
    key = await house.store.write(lambda conn: make_first_key(conn, data_dir, now))
    if key is None:
        return
    path = data_dir / FIRST_KEY
    if sys.stdout.isatty():
        print(f"  key      {key}  (made now, shown this once)", flush=True)
        path.unlink()
    else:
        print(f"  key      made now, in {path}")


async def _run(house: House, sockets: Sockets, began: float) -> None:
    """Answer and work until the worker has ended, which a signal brings about."""
    names = [*PLANES, *house.settings.tls_name]
    certificate = await asyncio.to_thread(LiveCertificate, house.settings.data_dir, names, house.clock)
    listeners = [
        Listener(house.app, sockets.http, http=partial(TunnelConnection, context=certificate.context)),
        Listener(build_admin(house.store, house.clock), sockets.admin),
    ]
    if sockets.https is not None:
        listeners.append(Listener(house.app, sockets.https, tls=certificate.context))
    serving = [asyncio.create_task(listener.run_until_told()) for listener in listeners]
    working = asyncio.create_task(house.worker.run())
    aside = [
        asyncio.create_task(house.sender.run()),
        asyncio.create_task(
            keep_house(house.settings, house.store, house.media, house.clock, certificate.renew)
        ),
        asyncio.create_task(_tell_when_up(house, sockets, listeners, began)),
    ]
    for task in aside:
        task.add_done_callback(_tell_failure)
    _obey_signals(house.worker)
    try:
        await asyncio.wait({working, *serving}, return_when=asyncio.FIRST_COMPLETED)
        # Ended by itself only after a signal; otherwise a listener failed and its error is raised below.
        if not working.done():
            house.worker.stop()
            await asyncio.wait({working})
    finally:
        for task in aside:
            task.cancel()
        house.stopping.set()
        for listener in listeners:
            listener.should_exit = True
        results = await asyncio.gather(working, *serving, *aside, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException) and not isinstance(result, asyncio.CancelledError):
            raise result


def _tell_failure(task: asyncio.Task[None]) -> None:
    """Log at once what ended a task nobody waits for; the server goes on, and exits with it in the end."""
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("a task beside the server ended", exc_info=error)


def _obey_signals(worker: Worker) -> None:
    told = 0

    def stop() -> None:
        nonlocal told
        told += 1
        if told == 1:
            print("Finishing what runs; once more stops at once.", file=sys.stderr, flush=True)
            worker.drain()
        else:
            worker.stop()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)


async def _tell_when_up(house: House, sockets: Sockets, listeners: list[Listener], began: float) -> None:
    """Announce the listeners to other processes, then the first ready runner to people."""
    for listener in listeners:
        await listener.listening()
    data_dir = house.settings.data_dir
    https = None if sockets.https is None else sockets.url("https", sockets.https)
    announce(
        data_dir,
        Announcement(
            pid=os.getpid(),
            http=sockets.url("http", sockets.http),
            https=https,
            ca=str(data_dir / "tls" / "ca.pem"),
            admin=str(data_dir / ADMIN_SOCKET),
        ),
    )
    while not house.worker.readiness().ready:
        await asyncio.sleep(READY_LOOK_S)
    with suppress(BrokenPipeError):
        print(f"  ready in {time.monotonic() - began:.1f} s", flush=True)

"""A real worker with a real store, media store and children, for tests that drive it from its own loop."""

import asyncio
import io
import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
from PIL import Image
from sqlalchemy import select

from stillmotion import ids
from stillmotion.clock import Clock, SystemClock
from stillmotion.endpoints import ENDPOINTS
from stillmotion.media.store import MediaStore, open_media
from stillmotion.settings import Settings
from stillmotion.store import queue
from stillmotion.store.files import add_file
from stillmotion.store.logs import read_logs
from stillmotion.store.open import Store
from stillmotion.store.rows import to_file
from stillmotion.store.tables import file
from stillmotion.types import Bases, CancelAnswer, FileRecord, Level, NewRequest, Request, State
from stillmotion.wakeup import Wakeup
from stillmotion.work.worker import Worker

TIMED = "tests.timed_engine:open"
PROMPT = "fal-ai/fast-svd-lcm/text-to-video"
PICTURE = "fal-ai/fast-svd-lcm"
#: Busy machines are slow; what works takes a hundredth of it.
PATIENCE_S = 30.0
BASES = Bases(queue="http://localhost/queue", files="http://localhost/cdn")
SMALL = {"width": 256, "height": 256}
QUICK: dict[str, Any] = {
    "heartbeat_s": 0.5,
    "lease_s": 5,
    "sweep_s": 0.2,
    "cancel_grace_s": 5,
    "log_flush_s": 0.02,
}


class House:
    def __init__(
        self, store: Store, media: MediaStore, settings: Settings, engine: str, devices: int, clock: Clock
    ) -> None:
        self.store = store
        self.media = media
        self.settings = settings
        self.clock = clock
        self.wakeup = Wakeup()
        self.worker = Worker(
            settings=settings,
            store=store,
            media=media,
            clock=self.clock,
            wakeup=self.wakeup,
            profile="pocket",
            devices=[f"cpu{n}" if n else "cpu" for n in range(devices)],
            engine=engine,
        )

    async def submit(
        self, prompt: str = "a rocket", *, picture: str | None = None, **changes: Any
    ) -> Request:
        endpoint = PROMPT if picture is None else PICTURE
        given = {"prompt": prompt, "video_size": SMALL} if picture is None else {"image_url": "http://x"}
        new = NewRequest(
            id=ids.request_id(self.clock.now()),
            profile="pocket",
            endpoint=endpoint,
            key_id="nobody",
            input={**ENDPOINTS[endpoint].settle(given).values, "seed": 7},
            picture=picture,
            bases=BASES,
            **changes,
        )
        request = await self.store.write(lambda conn: queue.submit(conn, new, self.clock.now()))
        self.wakeup.notify("queue")
        return request

    async def upload(self, data: bytes, **changes: Any) -> str:
        """Keep bytes as a complete file and name it as a request does."""
        file_id = ids.file_id()

        async def chunks() -> AsyncIterator[bytes]:
            yield data

        size, digest, _ = await self.media.receive(f"uploads/{file_id}", chunks(), 10_000_000)
        record = FileRecord(
            id=file_id,
            key_id="nobody",
            request_id=None,
            name="picture.png",
            content_type="image/png",
            media_key=f"uploads/{file_id}",
            size=size,
            digest=digest,
            created=self.clock.now(),
            expires=None,
            complete=True,
        )
        await self.store.write(lambda conn: add_file(conn, replace(record, **changes)))
        return f"file:{file_id}"

    async def cancel(self, request: Request) -> CancelAnswer:
        answer = await self.store.write(lambda conn: queue.cancel(conn, request.id, self.clock.now()))
        self.wakeup.notify("worker")
        return answer

    async def read(self, request: Request) -> Request:
        return await self.read_id(request.id)

    async def read_id(self, request_id: str) -> Request:
        found = await self.store.read(lambda conn: queue.get(conn, request_id))
        assert found is not None
        return found

    async def until(self, condition: Callable[[], Any], what: str, timeout_s: float = PATIENCE_S) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline, f"still waiting after {timeout_s:g} s: {what}"
            await asyncio.sleep(0.01)

    async def becomes(self, request: Request, holds: Callable[[Request], bool], what: str) -> Request:
        """Wait for a row to be as told."""
        deadline = time.monotonic() + PATIENCE_S
        while not holds(row := await self.read(request)):
            assert time.monotonic() < deadline, f"never {what}: {row} {await self.log(request)}"
            await self.wakeup.wait(f"request:{request.id}", 0.05)
        return row

    async def ended(self, request: Request) -> Request:
        return await self.becomes(request, lambda row: row.state is State.DONE, "done")

    async def at_step(self, request: Request, step: int = 1) -> Request:
        """Wait until the runner has told that a step is done."""
        return await self.becomes(
            request, lambda row: bool(row.progress and row.progress["step"] >= step), f"at step {step}"
        )

    async def log(self, request: Request) -> str:
        lines, _ = await self.store.read(lambda conn: read_logs(conn, request.id))
        return "\n".join(line.message for line in lines)

    async def printed(self, request: Request, level: Level) -> list[str]:
        lines, _ = await self.store.read(lambda conn: read_logs(conn, request.id))
        return [line.message for line in lines if line.level is level]

    async def films(self) -> list[FileRecord]:
        rows = await self.store.read(
            lambda conn: conn.execute(select(*file.c).where(file.c.request_id.is_not(None))).mappings().all()
        )
        return [to_file(row) for row in rows]

    def film_bytes(self) -> list[Path]:
        return sorted((self.settings.data_dir / "media" / "films").rglob("*.mp4"))

    def children(self) -> list[psutil.Process]:
        return runners_of(os.getpid())

    @property
    def child(self) -> psutil.Process:
        [child] = self.children()
        return child


def runners_of(pid: int) -> list[psutil.Process]:
    """The living runners started by a process."""
    found: list[psutil.Process] = []
    for process in psutil.Process(pid).children():
        try:
            if "stillmotion.runner" in process.cmdline() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return found


@asynccontextmanager
async def open_house(
    store: Store,
    folder: Path,
    *,
    engine: str = TIMED,
    devices: int = 1,
    ready: bool = True,
    clock: Clock | None = None,
    **changes: Any,
) -> AsyncIterator[House]:
    """Run a worker until the block ends; afterwards no child may be left."""
    settings = Settings(data_dir=folder, **(QUICK | changes))
    house = House(store, open_media(folder), settings, engine, devices, clock or SystemClock())
    working = asyncio.create_task(house.worker.run())
    try:
        if ready:
            await house.until(lambda: house.worker.readiness().ready, house.worker.readiness().reason)
        yield house
    finally:
        house.worker.stop()
        await asyncio.wait_for(working, PATIENCE_S)
        assert house.children() == []


def png(colour: tuple[int, int, int], side: int = 64) -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (side, side), colour).save(data, "PNG")
    return data.getvalue()

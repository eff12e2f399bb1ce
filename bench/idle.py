"""How long a device waits between two films while the queue is full, with the pocket weights.

    PYTHONPATH=src:. python -m bench.idle [--films 12] [--devices cpu] [--threads 1] [--only KIND …]

A worker of its own with its database, media store and runner, no HTTP. The first film is not counted. "Idle"
runs from one film's last decoded frame to the runner's beginning with the next one.
"""

import argparse
import asyncio
import os
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import uvloop

from bench.films import PROMPT, engine_s
from stillmotion import ids
from stillmotion.clock import SystemClock
from stillmotion.endpoints import ENDPOINTS
from stillmotion.media.store import open_media
from stillmotion.settings import Settings
from stillmotion.store.open import open_store
from stillmotion.store.queue import get, submit
from stillmotion.types import Bases, NewRequest, Request, State
from stillmotion.wakeup import Wakeup
from stillmotion.work.worker import Worker
from tests.worker.house import png

LOOPBACK = "127.0.0.1"
#: Endpoint and seconds after which the picture's host answers.
KINDS: dict[str, tuple[str, float]] = {
    "turbo from a prompt": ("fal-ai/fast-svd-lcm/text-to-video", 0),
    "turbo from a picture": ("fal-ai/fast-svd-lcm", 0),
    "turbo from a picture, host answers after 300 ms": ("fal-ai/fast-svd-lcm", 0.3),
    "HQ from a picture": ("fal-ai/stable-video", 0),
}


@asynccontextmanager
async def picture_host(delay_s: float) -> AsyncIterator[str]:
    picture = png((90, 140, 200), 768)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        await asyncio.sleep(delay_s)
        head = f"HTTP/1.1 200 OK\r\nContent-Type: image/png\r\nContent-Length: {len(picture)}\r\n\r\n"
        writer.write(head.encode() + picture)
        writer.close()

    async with await asyncio.start_server(answer, LOOPBACK, 0) as server:
        yield f"http://{LOOPBACK}:{server.sockets[0].getsockname()[1]}/picture.png"


async def measure(folder: Path, kind: str, films: int, devices: list[str], threads: int) -> list[Request]:
    """Make `films` films, all submitted at once; return their rows in the order they began."""
    (folder / "profiles").mkdir()
    (folder / "profiles" / "pocket.toml").write_text(f"threads = {threads}\n")
    settings = Settings(data_dir=folder, fetch_allow=[LOOPBACK])
    store, clock, wakeup = open_store(f"sqlite:///{folder / 'stillmotion.db'}"), SystemClock(), Wakeup()
    media = open_media(folder)
    worker = Worker(
        settings=settings,
        store=store,
        media=media,
        clock=clock,
        wakeup=wakeup,
        profile="pocket",
        devices=devices,
    )
    endpoint, delay_s = KINDS[kind]
    working = asyncio.create_task(worker.run())
    async with picture_host(delay_s) as url:
        while worker.readiness().reason.count("cpu") < len(devices) or not worker.readiness().ready:
            await asyncio.sleep(0.05)
        wanted: list[str] = []
        for seed in range(films):
            given: Mapping[str, Any] = {"prompt": PROMPT} if "prompt" in kind else {"image_url": url}
            new = NewRequest(
                id=ids.request_id(clock.now()),
                profile="pocket",
                endpoint=endpoint,
                key_id="nobody",
                input={**ENDPOINTS[endpoint].settle(given).values, "seed": seed},
                picture=None if "prompt" in kind else url,
                bases=Bases(queue="", files=""),
            )
            await store.write(lambda conn, new=new: submit(conn, new, clock.now()))
            wanted.append(new.id)
        wakeup.notify("queue")
        rows: list[Request] = []
        for request_id in wanted:
            while True:
                row = await store.read(lambda conn, request_id=request_id: get(conn, request_id))
                assert row is not None
                if row.state is State.DONE:
                    rows.append(row)
                    break
                await wakeup.wait(f"request:{request_id}", 1)
    worker.stop()
    await working
    await store.close()
    return sorted(rows, key=began)


def began(row: Request) -> float:
    return row.created + row.timings["queue"]


def show(kind: str, rows: list[Request], devices: int) -> None:
    """Print one line; the first film of each device, and what lies before its end, is not counted."""
    starts = [began(row) for row in rows]
    if devices == 1:
        each = [later - earlier for earlier, later in pairwise(starts[1:])]
        idle = [began(later) - began(earlier) - engine_s(earlier) for earlier, later in pairwise(rows[1:])]
        waits = f"idle {statistics.median(idle) * 1000:.0f} ms"
    else:
        ends = sorted(row.finished or 0 for row in rows)[devices - 1 : -devices + 1]
        each, waits = [(ends[-1] - ends[0]) / (len(ends) - 1)], ""
    mean = statistics.mean(each)
    stages = {name: statistics.median(row.timings[name] for row in rows[1:]) for name in rows[0].timings}
    print(
        f"{kind}: {60 / mean:.1f} films a minute, {mean * 1000:.0f} ms a film, {waits}; "
        + ", ".join(f"{name} {seconds * 1000:.0f}" for name, seconds in stages.items() if name != "queue"),
        flush=True,
    )


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    ask.add_argument("--films", type=int, default=12)
    ask.add_argument("--devices", default="cpu")
    ask.add_argument("--threads", type=int, default=1)
    ask.add_argument("--only", nargs="*", default=list(KINDS))
    told = ask.parse_args()
    devices = told.devices.split(",")
    load = os.getloadavg()[0]
    print(f"load {load:.1f}, {time.strftime('%H:%M:%S')}")
    for kind in told.only:
        with tempfile.TemporaryDirectory(prefix="stillmotion-") as folder:
            rows = uvloop.run(measure(Path(folder), kind, told.films, devices, told.threads))
        show(kind, rows, len(devices))


if __name__ == "__main__":
    main()

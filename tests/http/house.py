"""A whole site in this process: real store, real media, real app; the test plays the worker."""

import asyncio
import io
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from PIL import Image
from starlette.applications import Starlette

from stillmotion import ids, keys
from stillmotion.http.app import build_app
from stillmotion.http.site import Site
from stillmotion.media.signing import UploadSigner
from stillmotion.media.store import MediaStore, open_media
from stillmotion.settings import DAY_S, Settings
from stillmotion.signatures import SigningKeys
from stillmotion.store import queue
from stillmotion.store.files import add_file, get_file
from stillmotion.store.logs import append_logs
from stillmotion.store.open import Store
from stillmotion.tokens import TokenSigner
from stillmotion.types import Ending, Failure, FileRecord, Level, LogLine, Outcome, Readiness, Request
from stillmotion.wakeup import Wakeup
from tests.http.documented import check_documented
from tests.manual_clock import ManualClock

TEXT = "fal-ai/fast-svd-lcm/text-to-video"
TURBO = "fal-ai/fast-svd-lcm"
HQ = "fal-ai/stable-video"
ROCKET = {"prompt": "A rocket flying that is about to take off"}
FILM = b"\x00\x00\x00\x20ftypisom" + bytes(range(256)) * 4
BASE = "http://127.0.0.1:8000"


def png(width: int = 64, height: int = 48) -> bytes:
    held = io.BytesIO()
    Image.new("RGB", (width, height), (200, 40, 40)).save(held, "PNG")
    return held.getvalue()


@dataclass
class House:
    store: Store
    clock: ManualClock
    data_dir: Path
    settings: Settings = field(default_factory=Settings)
    ready: Readiness = field(default_factory=lambda: Readiness(ready=True, reason="a runner waits"))

    def __post_init__(self) -> None:
        self.media: MediaStore = open_media(self.data_dir)
        self.wakeup = Wakeup()
        self.signer = UploadSigner(b"s" * 32)
        self.tokens = TokenSigner(b"s" * 32)
        self.signatures = SigningKeys(self.data_dir, self.clock.now())
        self.key = self.new_key("first")
        self.stopping = asyncio.Event()
        self.app = self.build(self.settings)

    def build(self, settings: Settings) -> Starlette:
        return build_app(
            Site(
                settings=settings,
                store=self.store,
                media=self.media,
                signer=self.signer,
                tokens=self.tokens,
                signatures=self.signatures,
                clock=self.clock,
                wakeup=self.wakeup,
                profile="pocket",
                readiness=lambda: self.ready,
                version="0.1.0",
                stopping=self.stopping,
            )
        )

    def rebuild(self, **settings: Any) -> None:
        """Start anew with other settings over the same data."""
        self.settings = Settings(**settings)
        self.app = self.build(self.settings)

    def new_key(self, name: str) -> str:
        return self.store.write_now(lambda conn: keys.create_key(conn, name, self.clock.now()))

    def client(self, key: str | None = "", base: str = BASE, peer: str = "127.0.0.1") -> httpx.AsyncClient:
        """A client with the first key; `key=None` sends none."""
        used = self.key if key == "" else key
        return httpx.AsyncClient(
            transport=httpx.ASGITransport(self.app, client=(peer, 50000)),
            base_url=base,
            headers={} if used is None else {"Authorization": f"Key {used}"},
            event_hooks={"response": [check_documented]},
        )

    async def submit(self, endpoint: str = TEXT, *, query: str = "", **given: Any) -> dict[str, Any]:
        async with self.client() as client:
            answer = await client.post(f"/queue/{endpoint}{query}", json=given or ROCKET)
            assert answer.status_code == 200, answer.text
            return answer.json()

    def row(self, request_id: str) -> Request:
        row = self.store.read_now(lambda conn: queue.get(conn, request_id))
        assert row is not None
        return row

    def picture_of(self, row: Request) -> FileRecord:
        assert row.picture is not None
        file_id = row.picture.removeprefix("file:")
        record = self.store.read_now(lambda conn: get_file(conn, file_id))
        assert record is not None
        return record

    def claim(self) -> Request | None:
        now = self.clock.now()
        return self.store.write_now(
            lambda conn: queue.claim_next(
                conn, profile="pocket", owner="test", now=now, steady=now, lease_s=20
            )
        )

    def log(self, request: Request, *messages: str) -> None:
        lines = [LogLine(at=self.clock.now(), level=Level.INFO, message=message) for message in messages]
        assert self.store.write_now(lambda conn: append_logs(conn, request.id, request.attempt, lines))

    async def finish(
        self, request: Request, film: bytes = FILM, timings: Mapping[str, float] | None = None
    ) -> FileRecord:
        """End a claimed request well, as the worker does."""
        now = self.clock.now()
        media_key = f"films/{request.id}/{request.attempt}/lantern.mp4"
        size, digest, _ = await self.media.receive(media_key, one(film), 10**9)
        record = FileRecord(
            id=ids.file_id(),
            key_id=request.key_id,
            request_id=request.id,
            name="lantern.mp4",
            content_type="video/mp4",
            media_key=media_key,
            size=size,
            digest=digest,
            created=now,
            expires=now + 30 * DAY_S,
            complete=True,
        )
        result = {"file": record.id, "seed": request.input["seed"]}
        ending = Ending(outcome=Outcome.OK, result=result, fingerprint="timed-cpu", timings=timings or {})
        await self.store.write(lambda conn: add_file(conn, record))
        self.end(request, ending)
        return record

    def fail(self, request: Request, failure: Failure) -> None:
        self.end(request, Ending(outcome=Outcome.ERROR, failure=failure))

    def end(self, request: Request, ending: Ending) -> None:
        now = self.clock.now()
        assert self.store.write_now(
            lambda conn: queue.finish(conn, request.id, request.attempt, ending, [], now)
        )
        self.wakeup.notify(f"request:{request.id}")


async def one(data: bytes) -> AsyncIterator[bytes]:
    yield data

"""The clients of a soak: everyday calls without pause, and one call in a hundred that goes wrong.

A fault is a film whose runner dies, a client that leaves, a wrong key, a call that fits nothing. Everyday
calls hold the server to its answers; what a fault is answered is only held to be no 5xx of ours.
"""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any

import httpx

from tests.http.house import png

TEXT, TURBO, HQ = "fal-ai/fast-svd-lcm/text-to-video", "fal-ai/fast-svd-lcm", "fal-ai/stable-video"
APP = "/queue/fal-ai/fast-svd-lcm/requests"
QUICK = "a ball steps=2 pause=0"
SLOW = "a ball steps=200 pause=0.05"
#: Share of calls that go wrong.
FAULTS = 0.01
#: Share of queued requests that name a webhook.
WEBHOOKS = 0.2
#: What the timed engine is told to do wrong; a runner that dies on a request does so once.
WRONG_FILMS = (
    "crash_at=1 until=1", "exit_at=1 until=1", "garbage_at=1 until=1",
    "raise_at=1", "refuse_at=1", "print=flood",
)  # fmt: skip
POLL_S = 0.05
#: A film that takes longer is stuck.
LONGEST_S = 120

Call = Callable[[], Awaitable[object]]


class Load:
    """Clients of one server; `counts` says what they did."""

    def __init__(self, url: str, key: str, receiver: str, seed: int) -> None:
        self.counts: Counter[str] = Counter()
        self.ending = asyncio.Event()
        self._client = httpx.AsyncClient(
            base_url=url,
            headers={"Authorization": f"Key {key}"},
            timeout=LONGEST_S,
            trust_env=False,
            limits=httpx.Limits(max_connections=200),
        )
        self._receiver = receiver
        self._draw = random.Random(seed)
        self._picture = png()
        #: Weighted as drawn from: most films come from a prompt by the queue.
        self._everyday: list[Call] = [
            *[self.queued] * 12, *[self.sync] * 2, self.streamed, self.uploaded, self.cancelled,
        ]  # fmt: skip
        self._faults: list[Call] = [
            *(self.wrong_film(words) for words in WRONG_FILMS),
            self.leaves_run, self.leaves_stream, self.half_upload, self.abandoned_upload, self.wrong_key,
            self.bad_input, self.not_http,
        ]  # fmt: skip

    async def run(self, clients: int) -> None:
        """Call until told to end, then finish what is under way."""
        async with self._client, asyncio.TaskGroup() as group:
            for _ in range(clients):
                group.create_task(self._call_on())

    async def _call_on(self) -> None:
        while not self.ending.is_set():
            wrong = self._draw.random() < FAULTS
            await self._draw.choice(self._faults if wrong else self._everyday)()
            self.counts["faults" if wrong else "calls"] += 1

    async def queued(self, prompt: str = QUICK, expect: int | None = 200) -> None:
        """Submit, poll as clients do, fetch the result and, when there is one, the film."""
        hook = {"fal_webhook": self._receiver} if self._draw.random() < WEBHOOKS else {}
        await self._see_through(TEXT, {"prompt": prompt}, hook, expect)

    async def uploaded(self) -> None:
        described = {"content_type": "image/png", "file_name": "picture.png"}
        urls = (await self._ok("POST", "/rest/storage/upload/initiate", json=described)).json()
        sent = {"Content-Type": "image/png"}
        await self._ok("PUT", urls["upload_url"], content=self._picture, headers=sent)
        await self._see_through(HQ, {"image_url": urls["file_url"]}, {}, 200)

    async def sync(self) -> None:
        await self._ok("POST", f"/run/{TEXT}", json={"prompt": QUICK})

    async def streamed(self) -> None:
        ticket = (await self._ok("POST", f"/queue/{TEXT}", json={"prompt": QUICK})).json()
        path = f"{APP}/{ticket['request_id']}/status/stream"
        async with self._client.stream("GET", path, params={"logs": 1}) as answer:
            lines = [line async for line in answer.aiter_lines()]
        assert any('"COMPLETED"' in line for line in lines), lines[-3:]

    async def cancelled(self) -> None:
        ticket = (await self._ok("POST", f"/queue/{TEXT}", json={"prompt": SLOW})).json()
        answer = await self._client.put(f"{APP}/{ticket['request_id']}/cancel")
        assert answer.status_code in (202, 400), answer.text

    def wrong_film(self, words: str) -> Call:
        return lambda: self.queued(f"a ball steps=2 pause=0 {words}", None)

    async def leaves_run(self) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(0.2):
                await self._client.post(f"/run/{TEXT}", json={"prompt": SLOW})

    async def leaves_stream(self) -> None:
        with suppress(TimeoutError):
            async with (
                asyncio.timeout(0.3),
                self._client.stream("POST", f"/run/{TEXT}/stream", json={"prompt": SLOW}) as answer,
            ):
                await answer.aread()

    async def half_upload(self) -> None:
        async def half() -> AsyncIterator[bytes]:
            yield self._picture[:50]
            raise ConnectionError("the client leaves")

        urls = (await self._ok("POST", "/rest/storage/upload/initiate", json={})).json()
        with suppress(ConnectionError):
            await self._client.put(urls["upload_url"], content=half(), headers={"Content-Length": "9999"})

    async def abandoned_upload(self) -> None:
        urls = (await self._ok("POST", "/rest/storage/upload/initiate-multipart", json={})).json()
        part, _, query = urls["upload_url"].partition("?")
        await self._ok("PUT", f"{part}/1?{query}", content=self._picture)

    async def wrong_key(self) -> None:
        answer = await self._client.get(f"{APP}/x", headers={"Authorization": "Key wrong:key"})
        assert answer.status_code in (401, 429), answer.text

    async def bad_input(self) -> None:
        answer = await self._client.post(f"/queue/{HQ}", json={"image_url": "http://10.0.0.1/x", "fps": 9999})
        assert answer.status_code == 422, answer.text

    async def not_http(self) -> None:
        url = self._client.base_url
        reader, writer = await asyncio.open_connection(url.host, url.port)
        writer.write(b"\x16\x03\x01 nothing\r\n\r\n")
        with suppress(ConnectionError):
            await reader.read()
        writer.close()

    async def _see_through(
        self, endpoint: str, given: Mapping[str, Any], query: Mapping[str, str], expect: int | None
    ) -> None:
        ticket = (await self._ok("POST", f"/queue/{endpoint}", json=given, params=query)).json()
        path = httpx.URL(ticket["response_url"]).path
        async with asyncio.timeout(LONGEST_S):
            while (await self._ok("GET", f"{path}/status")).json()["status"] != "COMPLETED":
                await asyncio.sleep(POLL_S)
        answer = await self._client.get(path)
        assert expect is None or answer.status_code == expect, answer.text
        if answer.status_code == 200:
            film = await self._ok("GET", httpx.URL(answer.json()["video"]["url"]).path)
            assert len(film.content) == answer.json()["video"]["file_size"]
            self.counts["films"] += 1

    async def _ok(self, method: str, url: str, **options: Any) -> httpx.Response:
        answer = await self._client.request(method, url, **options)
        assert answer.status_code in (200, 202), f"{method} {url}: {answer.status_code} {answer.text}"
        return answer

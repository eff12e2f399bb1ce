"""Calls no client makes: whatever the path, query, headers and body, nothing here is a 500."""

import random
from typing import Any

import pytest

from tests.http.house import HQ, TEXT, TURBO, House

pytestmark = pytest.mark.anyio

CALLS = 400
PATHS = (
    f"/queue/{TEXT}",
    f"/run/{HQ}",
    f"/queue/{TURBO}/requests/01890000-0000-7000-8000-000000000000/status",
    f"/queue/{TURBO}/requests/x",
    "/rest/storage/upload/initiate",
    f"/cdn/uploads/{'0' * 32}",
    f"/cdn/files/{'0' * 32}/a.png",
    "/",
    "",
)
HOSTS = (b"localhost", b"queue.fal.run", b"fal.run:9", b"rest.fal.ai", b"v3.fal.media", b"[::1]:3", b"\xff")
HEADERS = (
    b"range",
    b"if-none-match",
    b"if-range",
    b"x-fal-request-timeout",
    b"x-fal-queue-priority",
    b"content-length",
    b"content-type",
)
VALUES = (b"bytes=0-3", b"-1", b"\xff\xfe", b"*", b"1e400", b"9" * 30, b"text/html", b"\xb2", b"")
QUERIES = (
    b"",
    b"logs=1",
    b"fal_max_queue_length=\xb2",
    b"prompt=%00%ff&steps=4",
    b"\xaf\xcf=1",
    b"%",
    b"a&&=",
)
BODIES = (b"", b"{}", b'{"image_url":"data:,"}', b"\xff\xfe", b'{"content_type":"a/b","file_name":"\\u0000"}')
JUNK = "\x00\r\né/%..?#&=:;\"'<>\\{}[]01aZ"


def odd_scope(draw: random.Random, key: str) -> dict[str, Any]:
    path = draw.choice(PATHS)
    if draw.random() < 0.3:
        at = draw.randrange(len(path) + 1)
        path = path[:at] + "".join(draw.choices(JUNK, k=draw.randrange(4))) + path[at:]
    headers = [(b"host", draw.choice(HOSTS)), (b"authorization", f"Key {key}".encode())]
    headers += [(name, draw.choice(VALUES)) for name in HEADERS if draw.random() < 0.2]
    return {
        "type": "http",
        "method": draw.choice(("GET", "POST", "PUT", "HEAD", "OPTIONS", "DELETE", "BREW")),
        "path": path,
        "query_string": draw.choice(QUERIES),
        "headers": headers,
        "scheme": "http",
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 8000),
    }


async def test_no_odd_call_makes_a_500(house: House) -> None:
    draw = random.Random(5)
    statuses: set[int] = set()
    for _ in range(CALLS):
        scope = odd_scope(draw, house.key)
        messages = [{"type": "http.request", "body": draw.choice(BODIES), "more_body": False}]
        sent: list[Any] = []

        async def receive(left: list[dict[str, Any]] = messages) -> dict[str, Any]:
            return left.pop() if left else {"type": "http.disconnect"}

        async def send(message: Any, into: list[Any] = sent) -> None:
            into.append(message)

        await house.app(scope, receive, send)
        assert sent[0]["status"] < 500, scope
        assert any(name == b"x-fal-request-id" for name, _ in sent[0]["headers"])
        statuses.add(sent[0]["status"])
    assert {200, 400, 404, 405, 422} <= statuses

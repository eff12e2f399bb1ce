"""What never reaches the app: bytes that are no HTTP, and heads without end."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import suppress

import pytest

from stillmotion.cli import listeners
from stillmotion.cli.listeners import Listener, bind_tcp
from stillmotion.http.ways.connection import HEAD_BYTES
from tests.http.house import House

pytestmark = pytest.mark.anyio

ENDLESS = b"a" * 2 * HEAD_BYTES
CHUNKED = b"POST /healthz HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
GET = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n"


@pytest.fixture
async def port(house: House) -> AsyncIterator[int]:
    bound = bind_tcp("127.0.0.1", 0)
    listener = Listener(house.app, bound)
    serving = asyncio.create_task(listener.run_until_told())
    await listener.listening()
    yield bound.getsockname()[1]
    listener.should_exit = True
    await serving


@pytest.fixture
def short_keep_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listeners, "KEEP_ALIVE_S", 0.1)


async def test_a_connection_that_never_speaks_is_closed(short_keep_alive: None, port: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    assert await asyncio.wait_for(reader.read(), 10) == b""
    writer.close()


async def answer_to(port: int, *parts: bytes) -> tuple[int, dict[str, str], bytes]:
    """Send the parts one by one and read until the server closes the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        for part in parts:
            writer.write(part)
            await writer.drain()
    except ConnectionError:
        # It answered and closed before all was sent.
        pass
    answer = await asyncio.wait_for(reader.read(), 10)
    writer.close()
    head, _, body = answer.partition(b"\r\n\r\n")
    status, *lines = head.decode("latin-1").split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines)
    return int(status.split()[1]), headers, body


@pytest.mark.parametrize(
    "sent",
    [
        b"BREW / HTTP/1.1\r\n\r\n",
        b"GET relative HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ],
)
async def test_what_is_no_http_is_a_400_in_fals_shape_with_an_id(port: int, sent: bytes) -> None:
    status, headers, body = await answer_to(port, sent)
    assert status == 400
    assert headers["content-type"] == "application/json"
    assert headers["x-fal-request-id"] and headers["access-control-allow-origin"] == "*"
    assert json.loads(body)["error_type"] == "bad_request"


@pytest.mark.parametrize(
    "head",
    [
        (GET + b"X: ", ENDLESS),
        (GET, *[b"X: a\r\n" * 1000] * 30),
        (CHUNKED + b"0\r\nX: ", ENDLESS, ENDLESS, ENDLESS, ENDLESS),
        (b"GET /", ENDLESS),
    ],
    ids=["a header", "headers", "a trailer", "a request line"],
)
async def test_a_head_without_end_is_cut_off(port: int, head: tuple[bytes, ...]) -> None:
    # What was still under way makes the system reset the connection, which may overtake the answer.
    with suppress(ConnectionResetError):
        status, headers, _ = await answer_to(port, *head)
        assert status in (400, 405, 431)
        assert headers["x-fal-request-id"]


async def test_a_head_within_the_bound_and_a_body_beyond_it_are_taken(port: int) -> None:
    status, _, _ = await answer_to(
        port, GET + b"X: " + b"a" * (HEAD_BYTES - 500), b"\r\nConnection: close\r\n\r\n"
    )
    assert status == 200
    body = b" " * 4 * HEAD_BYTES
    post = b"POST /run/x HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body)
    assert (await answer_to(port, post, body, GET + b"Connection: close\r\n\r\n"))[0] == 401


async def test_an_offer_to_upgrade_is_answered_as_it_is(port: int, caplog: pytest.LogCaptureFixture) -> None:
    offer = b"Connection: close, Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\r\n"
    assert (await answer_to(port, GET + offer))[0] == 200
    assert not [record for record in caplog.records if record.name == "uvicorn.error"]

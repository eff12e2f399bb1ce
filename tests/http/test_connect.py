"""Tunnels on the plain port: for fal's names, ended here, and in nobody else's way."""

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography import x509

from stillmotion.cli.listeners import Listener, bind_tcp
from stillmotion.clock import SystemClock
from stillmotion.http.ways.connect import HEAD_BYTES, TunnelConnection
from stillmotion.http.ways.doors import FAL_HOSTS
from stillmotion.net.tls import LiveCertificate
from stillmotion.settings import DAY_S
from tests.http.house import HQ, ROCKET, TEXT, House, png
from tests.manual_clock import ManualClock

pytestmark = pytest.mark.anyio
DEADLINE_S = 20


@pytest.fixture(params=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, bool]]:
    return "asyncio", {"use_uvloop": request.param == "uvloop"}


@pytest.fixture
async def listen(tmp_path: Path) -> AsyncIterator[Callable[..., Awaitable[int]]]:
    """Give what opens the app's listener and returns its port."""
    running: list[tuple[Listener, asyncio.Task[None]]] = []

    async def start(app: Any, certificate: LiveCertificate) -> int:
        bound = bind_tcp("127.0.0.1", 0)
        listener = Listener(app, bound, http=partial(TunnelConnection, context=certificate.context))
        running.append((listener, asyncio.create_task(listener.run_until_told())))
        await listener.listening()
        return bound.getsockname()[1]

    yield start
    for listener, task in running:
        listener.should_exit = True
        await asyncio.wait_for(task, DEADLINE_S)


@pytest.fixture
def certificate(tmp_path: Path) -> LiveCertificate:
    return LiveCertificate(tmp_path, list(FAL_HOSTS), SystemClock())


def trust(tmp_path: Path) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=tmp_path / "tls" / "bundle.pem")


def led_here(port: int, tmp_path: Path, **options: Any) -> httpx.AsyncClient:
    """A client whose every HTTPS call goes through the server's port, as HTTPS_PROXY leads it."""
    proxy = httpx.Proxy(f"http://127.0.0.1:{port}")
    return httpx.AsyncClient(proxy=proxy, verify=trust(tmp_path), timeout=DEADLINE_S, **options)


async def ask(port: int, sent: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(sent)
    async with asyncio.timeout(DEADLINE_S):
        answer = await reader.read()
    writer.close()
    return answer


async def test_every_name_of_fals_is_answered_here_through_the_tunnel(
    house: House, listen: Callable[..., Awaitable[int]], certificate: LiveCertificate, tmp_path: Path
) -> None:
    port = await listen(house.app, certificate)
    key = {"Authorization": f"Key {house.key}"}
    async with led_here(port, tmp_path, headers=key) as client:
        for name in FAL_HOSTS:
            assert (await client.get(f"https://{name}/nothing/here")).status_code in (404, 422), name
        told = await client.post(
            "https://rest.fal.ai/storage/upload/initiate", json={"content_type": "image/png"}
        )
        picture = png(900, 700)
        assert (await client.put(told.json()["upload_url"], content=picture)).status_code == 200
        assert (await client.get(told.json()["file_url"])).content == picture
        made = await client.post(f"https://queue.fal.run/{HQ}", json={"image_url": told.json()["file_url"]})
        status = await client.get(made.json()["status_url"])
        assert (status.status_code, status.json()["status"]) == (202, "IN_QUEUE")


async def test_bodies_of_megabytes_pass_both_ways(
    house: House, listen: Callable[..., Awaitable[int]], certificate: LiveCertificate, tmp_path: Path
) -> None:
    port = await listen(house.app, certificate)
    key = {"Authorization": f"Key {house.key}"}
    body = bytes(range(256)) * 40_000
    async with led_here(port, tmp_path, headers=key) as client:
        told = (await client.post("https://rest.fal.ai/storage/upload/initiate", json={})).json()
        assert (await client.put(told["upload_url"], content=body)).status_code == 200
        assert (await client.get(told["file_url"])).content == body


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"CONNECT example.com:443 HTTP/1.1\r\nHost: example.com:443\r\n\r\n", 403),
        (b"CONNECT queue.fal.run.example.com:443 HTTP/1.1\r\n\r\n", 403),
        (b"CONNECT 127.0.0.1:22 HTTP/1.1\r\n\r\n", 403),
        (b"CONNECT [::1]:443 HTTP/1.1\r\n\r\n", 403),
        (b"CONNECT queue.fal.run HTTP/1.1\r\n\r\n", 400),
        (b"CONNECT queue.fal.run:443\r\n\r\n", 400),
        (b"CONNECT https://queue.fal.run:443/ HTTP/1.1\r\n\r\n", 400),
        (b"CONNECT queue.fal.run:443 HTTP/1.1\r\n\r\n\x16\x03\x01", 400),
        (b"CONNECT queue.fal.run:443 HTTP/1.1\r\nX: " + b"x" * HEAD_BYTES, 400),
    ],
)
async def test_any_other_tunnel_is_refused_with_the_reason(
    house: House,
    listen: Callable[..., Awaitable[int]],
    certificate: LiveCertificate,
    head: bytes,
    status: int,
) -> None:
    port = await listen(house.app, certificate)
    first, _, rest = (await ask(port, head)).partition(b"\r\n")
    assert first.split()[1] == str(status).encode()
    assert json.loads(rest.partition(b"\r\n\r\n")[2])["error_type"] in ("forbidden", "bad_request")


@pytest.mark.parametrize("pieces", [1, 7])
async def test_a_head_that_comes_in_pieces_opens_the_tunnel(
    house: House,
    listen: Callable[..., Awaitable[int]],
    certificate: LiveCertificate,
    tmp_path: Path,
    pieces: int,
) -> None:
    port = await listen(house.app, certificate)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = b"CONNECT FAL.run:443 HTTP/1.0\nHost: fal.run\n\n"
    for start in range(0, len(head), pieces):
        writer.write(head[start : start + pieces])
        await writer.drain()
    async with asyncio.timeout(DEADLINE_S):
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
        await writer.start_tls(trust(tmp_path), server_hostname="fal.run")
        writer.write(b"GET /x/y HTTP/1.1\r\nHost: fal.run\r\nConnection: close\r\n\r\n")
        assert (await reader.read()).startswith(b"HTTP/1.1 401 ")
    writer.close()


async def test_plain_calls_on_the_same_port_are_as_ever(
    house: House, listen: Callable[..., Awaitable[int]], certificate: LiveCertificate
) -> None:
    port = await listen(house.app, certificate)
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
        key = {"Authorization": f"Key {house.key}"}
        assert (await client.get("/healthz")).status_code == 200
        assert (await client.post(f"/queue/{TEXT}", json=ROCKET, headers=key)).status_code == 200
    # A method that begins like CONNECT, and bytes that are no HTTP at all.
    copied = await ask(port, b"COPY /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    assert copied.startswith(b"HTTP/1.1 405 ")
    assert (await ask(port, b"CONNEXION\r\n\r\n")).startswith(b"HTTP/1.1 400 ")


async def test_a_client_that_leaves_or_trusts_nobody_leaves_nothing_behind(
    house: House, listen: Callable[..., Awaitable[int]], certificate: LiveCertificate, tmp_path: Path
) -> None:
    port = await listen(house.app, certificate)
    for sent in (b"", b"CONN", b"CONNECT queue.fal.run:443 HTTP/1.1\r\n\r\n"):
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(sent)
        await writer.drain()
        writer.close()
    async with httpx.AsyncClient(proxy=f"http://127.0.0.1:{port}", trust_env=False) as stranger:
        with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            await stranger.get("https://queue.fal.run/")
    async with led_here(port, tmp_path) as client:
        assert (await client.get("https://queue.fal.run/")).status_code == 404


async def test_idle_and_half_open_tunnels_do_not_hold_up_a_server_that_stops(
    house: House, certificate: LiveCertificate, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bound = bind_tcp("127.0.0.1", 0)
    listener = Listener(house.app, bound, http=partial(TunnelConnection, context=certificate.context))
    serving = asyncio.create_task(listener.run_until_told())
    await listener.listening()
    port = bound.getsockname()[1]
    async with led_here(port, tmp_path) as idle:
        await idle.get("https://queue.fal.run/")
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"CONNECT fal.run:443 HTTP/1.1\r\n\r\n")
        await reader.readuntil(b"\r\n\r\n")
        _, undecided = await asyncio.open_connection("127.0.0.1", port)
        undecided.write(b"CONN")
        await undecided.drain()
        listener.should_exit = True
        await asyncio.wait_for(serving, DEADLINE_S)
        writer.close()
        undecided.close()
    assert "graceful shutdown exceeded" not in caplog.text


async def test_the_certificate_is_renewed_under_a_running_server(
    house: House, listen: Callable[..., Awaitable[int]], tmp_path: Path
) -> None:
    now = SystemClock().now()
    # Made 340 days ago: valid for 25 more, so due.
    clock = ManualClock(now - 340 * DAY_S)
    certificate = LiveCertificate(tmp_path, list(FAL_HOSTS), clock)
    port = await listen(house.app, certificate)

    async def serial() -> int:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"CONNECT fal.run:443 HTTP/1.1\r\n\r\n")
        await reader.readuntil(b"\r\n\r\n")
        await writer.start_tls(trust(tmp_path), server_hostname="fal.run")
        shown = writer.get_extra_info("ssl_object").getpeercert(True)
        writer.close()
        return x509.load_der_x509_certificate(shown).serial_number

    first = await serial()
    certificate.renew()
    assert await serial() == first
    authority = (tmp_path / "tls" / "ca.pem").read_bytes()
    async with led_here(port, tmp_path) as client:
        assert (await client.get("https://fal.run/")).status_code == 404
        clock.advance(340 * DAY_S)
        certificate.renew()
        assert await serial() != first
        # The open connection goes on, and who trusted the authority still does.
        assert (await client.get("https://fal.run/")).status_code == 404
    assert (tmp_path / "tls" / "ca.pem").read_bytes() == authority

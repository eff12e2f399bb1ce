"""Downloads against real sockets on loopback: what arrives, what is refused, and who stays untouched."""

import asyncio
import contextlib
import gzip
import socket
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from stillmotion.errors import InputRefused
from stillmotion.net.fetch import fetch
from stillmotion.net.guard import AllowList
from stillmotion.net.tls import ensure_certificates

pytestmark = pytest.mark.anyio

LOOPBACK = AllowList.parse(["127.0.0.0/8"])
NOBODY = AllowList()
Page = Callable[[asyncio.StreamWriter], Awaitable[None]]


class Web:
    """A raw HTTP server: path to bytes or to a coroutine that writes; keeps what it was asked."""

    def __init__(self) -> None:
        self.pages: dict[str, bytes | Page] = {}
        self.requests: list[str] = []
        self.url = ""
        self.port = 0
        self.tasks: set[asyncio.Task[None]] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        self.tasks.add(task)
        with contextlib.suppress(
            ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError, ssl.SSLError
        ):
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            self.requests.append(head)
            page = self.pages[head.split(" ")[1]]
            if isinstance(page, bytes):
                writer.write(page)
                await writer.drain()
            else:
                await page(writer)
            writer.close()
            await writer.wait_closed()
        writer.transport.abort()


@asynccontextmanager
async def web(tls: ssl.SSLContext | None = None, host: str = "127.0.0.1") -> AsyncIterator[Web]:
    site = Web()
    server = await asyncio.start_server(site.serve, host, 0, ssl=tls)
    site.port = server.sockets[0].getsockname()[1]
    site.url = f"{'https' if tls else 'http'}://{host}:{site.port}"
    try:
        yield site
    finally:
        server.close()
        for task in site.tasks:
            task.cancel()
        await asyncio.gather(*site.tasks)


@pytest.fixture
def trap() -> Iterator[socket.socket]:
    """A listener nobody may connect to; a connection to it fails the test."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        yield listener
        with pytest.raises(BlockingIOError):
            listener.accept()


def answer(body: bytes = b"picture", status: str = "200 OK", **fields: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", *(f"{name.replace('_', '-')}: {value}" for name, value in fields.items())]
    if not {"Content_Length", "Transfer_Encoding"} & fields.keys():
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def moved(location: str) -> bytes:
    return answer(b"", "302 Found", Location=location)


async def refusal(
    url: str, allow: AllowList = LOOPBACK, timeout_s: float = 5, max_bytes: int = 1000
) -> InputRefused:
    with pytest.raises(InputRefused) as caught:
        await fetch(url, allow=allow, max_bytes=max_bytes, timeout_s=timeout_s)
    failure = caught.value.failure
    assert (failure.status, failure.field) == (422, None)
    assert "127.0" not in failure.message and "secret" not in failure.message
    return caught.value


async def test_picture_arrives_with_plain_headers_and_the_url_as_given() -> None:
    async with web() as site:
        site.pages["/a%20b?x=1"] = answer(b"\x89PNG" * 9)
        got = await fetch(f"{site.url}/a%20b?x=1#f", allow=LOOPBACK, max_bytes=36, timeout_s=5)
        assert got == b"\x89PNG" * 9
        head = site.requests[0]
        assert f"Host: 127.0.0.1:{site.port}\r\n" in head
        assert "Accept-Encoding: identity\r\n" in head
        assert "cookie" not in head.lower() and "authorization" not in head.lower()


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1", "localhost", "0x7f.1", "2130706433", "0177.0.0.1", "127.1", "[::ffff:127.0.0.1]",
        "127。0。0。1", "good@127.0.0.1", "0.0.0.0", "localhost.",
    ],
)  # fmt: skip
async def test_d01_refused_address_gets_no_packet(trap: socket.socket, host: str) -> None:
    failure = (await refusal(f"http://{host}:{trap.getsockname()[1]}/x", NOBODY)).failure
    assert failure.kind == "file_download_error"


@pytest.mark.parametrize(
    "url",
    [
        "http://[::1]/", "http://[::ffff:10.0.0.1]/", "http://169.254.169.254/latest/meta-data",
        "http://100.64.0.1/", "http://[64:ff9b::a00:1]/", "http://[2002:a00:1::]/", "http://10.0.0.1/",
        "http:\\\\evil\\", "http:\\evil",
        "ftp://example.org/x", "file:///etc/passwd",
    ],
)  # fmt: skip
async def test_d01_private_and_malformed_urls_are_refused_at_once(url: str) -> None:
    assert (await refusal(url, NOBODY, timeout_s=1)).failure.kind == "file_download_error"


async def test_d02_name_with_one_private_address_is_refused_whole(
    trap: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = trap.getsockname()[1]
    lookups: list[str] = []

    async def mixed(host: str, port: int, **_: object) -> list[tuple[object, ...]]:
        lookups.append(host)
        return [
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("8.8.8.8", port)),
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port)),
        ]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", mixed)
    assert "private" in (await refusal(f"http://mixed.example:{port}/", NOBODY)).failure.message
    assert lookups == ["mixed.example"]


async def test_d02_connection_goes_to_the_address_that_was_checked(
    trap: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The first answer is allowed, every later one is the trap, as in DNS rebinding.
    async with web(host="127.0.0.2") as site:
        site.pages["/"] = answer()
        lookups: list[str] = []

        async def rebinding(host: str, port: int, **_: object) -> list[tuple[object, ...]]:
            lookups.append(host)
            address = "127.0.0.2" if len(lookups) == 1 else "127.0.0.1"
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))]

        monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", rebinding)
        allow = AllowList.parse(["127.0.0.2"])
        assert (
            await fetch(f"http://rebind.example:{site.port}/", allow=allow, max_bytes=99, timeout_s=5)
            == b"picture"
        )
        assert lookups == ["rebind.example"]
        assert f"Host: rebind.example:{site.port}" in site.requests[0]


async def test_proxies_of_the_environment_are_ignored(
    trap: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{trap.getsockname()[1]}")
    async with web() as site:
        site.pages["/"] = answer()
        assert await fetch(site.url, allow=LOOPBACK, max_bytes=99, timeout_s=5) == b"picture"


@pytest.mark.parametrize("status", ["301 Moved", "302 Found", "303 See", "307 Temp", "308 Perm"])
async def test_redirects_are_followed_relative_and_absolute(status: str) -> None:
    async with web() as site:
        site.pages["/a/b"] = answer(b"", status, Location="../c?d=1#e")
        site.pages["/c?d=1"] = moved(f"{site.url}/end")
        site.pages["/end"] = answer()
        assert await fetch(f"{site.url}/a/b", allow=LOOPBACK, max_bytes=99, timeout_s=5) == b"picture"


async def test_d03_five_redirects_pass_and_six_do_not() -> None:
    async with web() as site:
        for hop in range(6):
            site.pages[f"/{hop}"] = moved(f"/{hop + 1}")
        site.pages["/6"] = answer()
        assert await fetch(f"{site.url}/1", allow=LOOPBACK, max_bytes=99, timeout_s=5) == b"picture"
        assert "more than 5 times" in (await refusal(f"{site.url}/0")).failure.message


async def test_d03_redirect_to_a_private_address_gets_no_packet(trap: socket.socket) -> None:
    async with web(host="127.0.0.2") as site:
        allow = AllowList.parse([f"127.0.0.2:{site.port}"])
        targets = [
            f"http://127.0.0.1:{trap.getsockname()[1]}/", f"//127.0.0.1:{trap.getsockname()[1]}/", "file:///etc/passwd",
            "http://x@127.0.0.2/", "http:\\\\127.0.0.1\\", "http://[", "http://127.0.0.2:1/", "/a b",
        ]  # fmt: skip
        site.pages["/a%20b"] = answer()
        for target in targets:
            site.pages["/"] = moved(target)
            assert (await refusal(site.url, allow)).failure.kind == "file_download_error"


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    files = ensure_certificates(tmp_path_factory.mktemp("tls"), ["pictures.example"], time.time())
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server.load_cert_chain(files.cert, files.key)
    client = ssl.create_default_context(cafile=files.ca)
    return server, client


async def test_https_checks_the_certificate_and_keeps_the_name(
    certificates: tuple[ssl.SSLContext, ssl.SSLContext], monkeypatch: pytest.MonkeyPatch
) -> None:
    server, client = certificates
    names: list[str | None] = []
    server.sni_callback = lambda _socket, name, _context: names.append(name)  # type: ignore[assignment]
    async with web(server) as site:
        site.pages["/"] = answer()
        loop = asyncio.get_running_loop()

        async def local(host: str, port: int, **_: object) -> list[tuple[object, ...]]:
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]

        monkeypatch.setattr(loop, "getaddrinfo", local)
        url = f"https://pictures.example:{site.port}/"
        assert await fetch(url, allow=LOOPBACK, max_bytes=99, timeout_s=5, roots=client) == b"picture"
        assert names == ["pictures.example"]
        assert "connection" in (await refusal(url)).failure.message.lower()


async def test_d03_redirect_from_https_to_http_is_refused(
    certificates: tuple[ssl.SSLContext, ssl.SSLContext], trap: socket.socket
) -> None:
    server, client = certificates
    async with web(server) as site:
        site.pages["/"] = moved(f"http://127.0.0.1:{trap.getsockname()[1]}/")
        with pytest.raises(InputRefused, match="https to http"):
            await fetch(site.url, allow=LOOPBACK, max_bytes=99, timeout_s=5, roots=client)


async def endless(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    while True:
        writer.write(b"400\r\n" + bytes(1024) + b"\r\n")
        await writer.drain()


async def drip(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\n")
    while True:
        writer.write(b"x")
        await writer.drain()
        await asyncio.sleep(0.01)


async def silent(writer: asyncio.StreamWriter) -> None:
    await asyncio.Event().wait()


async def test_d04_size_is_held_by_header_and_by_count() -> None:
    async with web() as site:
        site.pages["/claims"] = answer(b"", Content_Length="10000000000")
        site.pages["/absurd"] = answer(b"", Content_Length="9" * 400)
        site.pages["/endless"] = endless
        site.pages["/open"] = b"HTTP/1.1 200 OK\r\n\r\n" + bytes(5000)
        site.pages["/exact"] = answer(bytes(1000))
        for page in ("claims", "endless", "open"):
            failure = (await refusal(f"{site.url}/{page}")).failure
            assert (failure.kind, failure.context) == ("file_too_large", {"max_size": 1000}), page
        assert (await refusal(f"{site.url}/absurd")).failure.kind in {"file_too_large", "file_download_error"}
        assert len(await fetch(f"{site.url}/exact", allow=LOOPBACK, max_bytes=1000, timeout_s=5)) == 1000


async def test_d04_body_shorter_than_promised_is_an_error() -> None:
    async with web() as site:
        site.pages["/"] = answer(b"short", Content_Length="500")
        assert (await refusal(site.url)).failure.kind == "file_download_error"


async def test_d04_compressed_answers_are_refused() -> None:
    async with web() as site:
        site.pages["/"] = answer(gzip.compress(bytes(10_000_000)), Content_Encoding="gzip")
        assert "compressed" in (await refusal(site.url, max_bytes=100_000)).failure.message


@pytest.mark.parametrize("page", [drip, silent], ids=["drip", "silent"])
async def test_d05_slow_servers_meet_the_total_time_limit(
    page: Page,
) -> None:
    async with web() as site:
        site.pages["/"] = page
        assert "0.3 s" in (await refusal(site.url, timeout_s=0.3)).failure.message


@pytest.mark.parametrize(
    "status", ["404 Not Found", "500 Oops", "401 Unauthorized", "206 Partial Content", "204 None"]
)
async def test_d08_other_statuses_say_the_number_and_no_body(status: str) -> None:
    async with web() as site:
        site.pages["/"] = answer(b"secret" if status[0] != "2" else b"", status)
        failure = (await refusal(site.url)).failure
        assert failure.kind == "file_download_error"
        assert status[:3] in failure.message


@pytest.mark.parametrize("noise", [b"", b"secret nonsense\r\n\r\n", b"HTTP/1.1 200 OK\r\nA" * 20_000])
async def test_broken_http_is_one_class_of_error(noise: bytes) -> None:
    async with web() as site:
        site.pages["/"] = noise
        assert "no valid HTTP" in (await refusal(site.url)).failure.message


async def test_unknown_host_and_closed_port_are_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    assert "could not be found" in (await refusal("http://no-such-host.invalid/")).failure.message
    assert "No connection" in (await refusal(f"http://127.0.0.1:{port}/")).failure.message


async def test_second_address_is_tried_when_the_first_is_silent() -> None:
    async with web() as site:
        site.pages["/"] = answer()
        # localhost is ::1 and 127.0.0.1 on most machines; the server listens on the latter alone.
        allow = AllowList.parse(["localhost"])
        url = f"http://localhost:{site.port}/"
        assert await fetch(url, allow=allow, max_bytes=99, timeout_s=5) == b"picture"


async def test_cancelling_a_download_ends_at_once(tmp_path: Path) -> None:
    async with web() as site:
        site.pages["/"] = silent
        download = asyncio.create_task(fetch(site.url, allow=LOOPBACK, max_bytes=99, timeout_s=60))
        while not site.requests:
            await asyncio.sleep(0.001)
        download.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(download, 1)

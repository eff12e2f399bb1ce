"""A trap on every address of this machine: whatever a stranger names, nobody ever connects to it.

The server may reach one address alone, where a web site of the test's answers with redirects into the trap.
"""

import asyncio
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, quote, urlsplit

import httpx
import psutil
import pytest

from stillmotion.errors import InputRefused
from stillmotion.net.fetch import fetch
from stillmotion.net.guard import AllowList
from tests.http.house import HQ, TEXT
from tests.security.conftest import ALLOWED
from tests.server import Server, wait_until

#: Loopback and its aliases in every spelling a resolver or a parser may take for an address.
SPELLINGS = (
    "127.0.0.1", "127.0.0.3", "localhost", "LOCALHOST.", "0.0.0.0", "0", "127.1", "2130706433", "0x7f000001",
    "0x7f.1", "0177.0.0.1", "[::1]", "[::]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[::127.0.0.1]",
    "[64:ff9b::7f00:1]", "[2002:7f00:1::]", "127。0。0。1", "①②⑦.0.0.1", "good@127.0.0.1",
    "127.0.0.1:80@127.0.0.1", "example.com\\@127.0.0.1", "[fe80::1%25lo]", "ip6-localhost",
)  # fmt: skip


class Trap:
    """Listens on every address there is; `caught` counts who came to any but the allowed one."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True)
        self._listener.setblocking(False)
        self.port: int = self._listener.getsockname()[1]

    def caught(self) -> int:
        count = 0
        while True:
            try:
                came, _ = self._listener.accept()
            except BlockingIOError:
                return count
            with came:
                count += came.getsockname()[0] != f"::ffff:{ALLOWED}"

    def close(self) -> None:
        self._listener.close()

    def urls(self) -> list[str]:
        own = [
            address.address
            for addresses in psutil.net_if_addrs().values()
            for address in addresses
            if address.family == socket.AF_INET
        ]
        return [f"http://{host}:{self.port}/x.png" for host in (*SPELLINGS, *own)]


@pytest.fixture
def trap() -> Iterator[Trap]:
    trap = Trap()
    with socket.create_connection(("127.0.0.1", trap.port)):
        # It springs when someone does come.
        assert wait_until(trap.caught, "the trap to spring") == 1
    yield trap
    try:
        assert trap.caught() == 0
    finally:
        trap.close()


@pytest.fixture
def redirector() -> Iterator[str]:
    """A web site at the allowed address that sends every caller to the URL in its query."""

    class Redirect(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(302)
            self.send_header(
                "Location", parse_qs(urlsplit(self.path).query)["to"][0].encode().decode("latin-1")
            )
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    asked: list[str] = []
    with ThreadingHTTPServer((ALLOWED, 0), Redirect) as site:
        threading.Thread(target=site.serve_forever, args=(0.05,), daemon=True).start()
        yield f"http://{ALLOWED}:{site.server_port}/go?to="
        site.shutdown()
    assert asked, "no redirect was tried at all"


def test_d01_d03_no_picture_is_fetched_from_a_forbidden_address(
    server: Server, trap: Trap, redirector: str
) -> None:
    urls = [*trap.urls(), *(redirector + quote(url, safe="") for url in trap.urls())]
    with server.client() as client:
        kept: list[str] = []
        for url in urls:
            told = client.post(f"/queue/{HQ}", json={"image_url": url})
            if told.status_code == 200:
                kept.append(httpx.URL(told.json()["response_url"]).path)
            else:
                assert told.status_code == 422, f"{url}: {told.text}"
        assert len(kept) >= len(trap.urls()), "redirects are followed by the worker, not at the door"
        for path in kept:
            wait_until(lambda p=path: client.get(f"{p}/status").json()["status"] == "COMPLETED", path)
            told = client.get(path)
            assert told.status_code == 422, told.text
            [problem] = told.json()["detail"]
            assert problem["loc"] == ["body", "image_url"]
            assert problem["type"] == "file_download_error"
            assert "127.0.0" not in problem["msg"], "an error tells no address"


def test_w05_no_webhook_goes_to_a_forbidden_address(server: Server, trap: Trap) -> None:
    with server.client() as client:
        for url in trap.urls():
            answer = client.post(f"/queue/{TEXT}", json={"prompt": "a ball"}, params={"fal_webhook": url})
            if answer.status_code == 200:
                # A name without an address now is looked up, and checked, again when it is sent to.
                with pytest.raises(OSError):
                    socket.getaddrinfo(url.split("/")[2].rpartition(":")[0], trap.port)
            else:
                assert answer.status_code == 422, f"{url}: {answer.text}"
                assert answer.json()["detail"][0]["loc"] == ["query", "fal_webhook"]


def test_k06_neither_proxy_nor_tunnel_nor_host_header_leads_out(server: Server, trap: Trap) -> None:
    there = urlsplit(server.url)
    assert there.hostname is not None and there.port is not None
    with server.client() as client:
        for url in trap.urls():
            target = {b"x-fal-target-url": url.encode()}
            assert client.get("/api/fal/proxy", headers=target).status_code == 400
            host = url.split("/")[2].encode()
            assert client.get("/healthz", headers={b"host": host}).status_code in (200, 400, 421)
            line = socket.create_connection((there.hostname, there.port), timeout=10)
            with line:
                line.sendall(b"CONNECT %s HTTP/1.1\r\nHost: %s\r\n\r\n" % (host, host))
                assert line.recv(100).split(b" ")[1] in (b"400", b"403")


@pytest.mark.anyio
async def test_d02_a_name_that_changes_its_address_never_leads_into_the_trap(
    trap: Trap, redirector: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every second answer is the trap's; some hold both addresses."""
    answers = ([ALLOWED], ["127.0.0.1"], [ALLOWED, "127.0.0.1"], ["::ffff:127.0.0.1"], [ALLOWED, "::1"])
    lookups = 0

    async def rebinding(host: str, port: int, **_: object) -> list[tuple[object, ...]]:
        nonlocal lookups
        lookups += 1
        return [(0, 0, 6, "", (address, port)) for address in answers[lookups % len(answers)]]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", rebinding)
    site = urlsplit(redirector)
    inward = quote(f"http://rebinds.example:{trap.port}/", safe="")
    allow = AllowList.parse([ALLOWED])
    for url in (
        f"http://rebinds.example:{trap.port}/",
        f"http://rebinds.example:{site.port}/go?to={inward}",
        f"{redirector}{inward}",
    ):
        for _ in range(2 * len(answers)):
            with pytest.raises(InputRefused) as refused:
                await fetch(url, allow=allow, max_bytes=1000, timeout_s=1)
            assert refused.value.failure.kind == "file_download_error"
    assert lookups >= 30

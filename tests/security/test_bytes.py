"""Odd bytes at every parser of ours: nothing is a 5xx, nothing hangs, and what is damaged opens no door.

Most examples are a well-formed value with a few bytes changed: they get further in than pure noise. Every
run tries the same ones.
"""

import asyncio
import base64
import json
import re
import socket
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, quote_from_bytes, urlsplit

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stillmotion.errors import InputRefused
from stillmotion.images import decode_data_uri
from stillmotion.net.guard import AddressRefused, parse_url
from tests.http.house import HQ, TEXT, TURBO, House, png
from tests.server import Server

pytestmark = pytest.mark.anyio

#: Longest any single call may take.
CALL_S = 10
bounded = settings(
    max_examples=150,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
BYTES = bytes(range(256))


Edit = tuple[str, int, int, bytes]
#: Up to four changes: a byte replaced, some added, some doubled, some gone.
edits = st.lists(
    st.tuples(
        st.sampled_from(("replace", "add", "double", "drop")),
        st.integers(0, 400),
        st.integers(1, 30),
        st.binary(min_size=1, max_size=6),
    ),
    max_size=4,
)


def damage(whole: bytes, changes: list[Edit]) -> bytes:
    data = bytearray(whole)
    for change, where, length, fresh in changes:
        at = where % (len(data) + 1)
        if change == "replace":
            data[at : at + 1] = fresh[:1]
        elif change == "add":
            data[at:at] = fresh
        elif change == "double":
            data[at:at] = data[at : at + 8] * length
        else:
            del data[at : at + length]
    return bytes(data)


def odd(*whole: bytes) -> st.SearchStrategy[bytes]:
    return st.builds(damage, st.sampled_from(whole), edits) | st.binary(max_size=60)


class Answer(NamedTuple):
    status: int
    headers: dict[bytes, bytes]
    body: bytes


async def call(
    house: House,
    method: str,
    path: str,
    *,
    query: bytes = b"",
    headers: dict[bytes, bytes] | None = None,
    body: bytes = b"",
    key: bool = True,
) -> Answer:
    """Call the app with exactly these bytes: clients would put most of them in order first."""
    known = {b"authorization": f"Key {house.key}".encode()} if key else {}
    given = {b"host": b"localhost", **known, **(headers or {})}
    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "query_string": query,
        "headers": list(given.items()),
        "scheme": "http",
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 8000),
    }
    messages = [{"type": "http.request", "body": body, "more_body": False}]
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return messages.pop() if messages else {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    async with asyncio.timeout(CALL_S):
        await house.app(scope, receive, send)
    told = Answer(
        sent[0]["status"], dict(sent[0]["headers"]), b"".join(part.get("body", b"") for part in sent[1:])
    )
    assert told.status < 500, told
    assert b"Traceback" not in told.body
    for name, value in told.headers.items():
        assert not set(name + value) & set(b"\r\n\0"), "a header an answer's reader would split"
    return told


PICTURE = base64.b64encode(png(8, 8))


@bounded
@given(uri=odd(b"data:image/png;base64," + PICTURE, b"data:image/gif;charset=utf-8;base64,R0lGODlhCAAIAIA="))
async def test_d07_data_uris(house: House, uri: bytes) -> None:
    body = json.dumps({"image_url": uri.decode("latin-1")}).encode()
    told = await call(house, "POST", f"/queue/{HQ}", body=body)
    assert told.status in (200, 422)
    if told.status == 422:
        assert json.loads(told.body)["detail"][0]["loc"][-1] == "image_url"


@bounded
@given(uri=odd(b"data:image/png;base64," + PICTURE), most=st.integers(len(png(8, 8)) - 6, len(png(8, 8))))
def test_d07_data_uris_never_give_more_than_allowed(uri: bytes, most: int) -> None:
    try:
        assert len(decode_data_uri(uri.decode("latin-1"), most)) <= most
    except InputRefused as refused:
        assert refused.failure.status == 422


@bounded
@given(
    wish=odd(b"bytes=0-3", b"bytes=-5", b"bytes=5-", b"bytes=0-1,4-5", b"bytes=99999999999999999999-"),
    condition=st.none() | odd(b'"x"', b"Wed, 21 Oct 2015 07:28:00 GMT"),
)
async def test_u06_ranges(house: House, wish: bytes, condition: bytes | None) -> None:
    data = BYTES
    path = await stored(house, data)
    headers = {b"range": wish} | ({} if condition is None else {b"if-range": condition})
    told = await call(house, "GET", path, headers=headers)
    assert told.status in (200, 206, 416)
    if told.status == 200:
        assert told.body == data
    elif told.status == 206:
        span = told.headers[b"content-range"].decode().removeprefix("bytes ").partition("/")[0]
        first, last = map(int, span.split("-"))
        assert told.body == data[first : last + 1] and len(told.body) == int(told.headers[b"content-length"])


@bounded
@given(
    body=odd(
        b'{"parts":[{"partNumber":1,"etag":"x"},{"partNumber":2,"etag":"y"}]}',
        b'{"parts":[]}',
        b'{"parts":[{"partNumber":10000,"etag":"W/\\"x\\""}]}',
    )
)
async def test_u04_lists_of_parts(house: House, body: bytes) -> None:
    begun = await call(house, "POST", "/rest/storage/upload/initiate-multipart", body=b"{}")
    target = urlsplit(json.loads(begun.body)["upload_url"])
    query = target.query.encode()
    assert (await call(house, "PUT", f"{target.path}/1", query=query, body=b"bytes")).status == 200
    told = await call(house, "POST", f"{target.path}/complete", query=query, body=body)
    assert told.status in (400, 422), "no such list fits what was sent"


@bounded
@given(changes=edits)
async def test_u01_a_damaged_upload_query_opens_nothing(house: House, changes: list[Edit]) -> None:
    begun = json.loads((await call(house, "POST", "/rest/storage/upload/initiate", body=b"{}")).body)
    target = urlsplit(begun["upload_url"])
    query = damage(target.query.encode(), changes)
    told = await call(house, "PUT", target.path, query=query, body=b"bytes")
    meant = parse_qsl(target.query), parse_qsl(query.decode("latin-1"), keep_blank_values=True)
    assert told.status == (200 if sorted(meant[0]) == sorted(meant[1]) else 403)


URLS = (
    b"https://user@good.example:443/a/../b?x=1#f",
    b"http://127.0.0.1/",
    b"http://[::ffff:7f00:1]:80/",
    b"https://queue.fal.run/fal-ai/stable-video",
    "http://ｅxample。com/".encode(),
)  # fmt: skip


@bounded
@given(url=odd(*URLS))
def test_d01_a_url_is_read_one_way_or_refused(url: bytes) -> None:
    for text in (url.decode("latin-1"), url.decode("utf-8", "replace")):
        try:
            target = parse_url(text)
        except AddressRefused:
            continue
        again = parse_url(str(target.url))
        assert (again.scheme, again.host, again.port) == (target.scheme, target.host, target.port)
        assert not set(target.host) & set("@/\\?#% ") and target.host.isascii()
        if text.isascii():
            # Another reader of URLs, as a proxy between might be, finds the same place.
            assert urlsplit(text).hostname == target.host.lower()


@bounded
@given(url=odd(*URLS))
async def test_urls_in_every_place_that_takes_one(
    house: House, url: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def public(host: str, port: int, **_: object) -> list[tuple[object, ...]]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("8.8.8.8", port))]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", public)
    body = json.dumps({"image_url": url.decode("latin-1")}).encode()
    assert (await call(house, "POST", f"/queue/{HQ}", body=body)).status in (200, 422)
    hook = b"fal_webhook=" + url
    told = await call(house, "POST", f"/queue/{TEXT}", query=hook, body=b'{"prompt":"a ball"}')
    assert told.status in (200, 422)
    told = await call(house, "GET", "/api/fal/proxy", headers={b"x-fal-target-url": url})
    assert told.status in (200, 400, 404, 405, 422)


INPUTS = (
    b'{"prompt":"a","steps":4,"fps":10.5,"seed":1e2,"video_size":{"width":512,"height":512}}',
    b'{"content_type":"image/png","file_name":"a.png","x":[[[[1]]]]}',
    b'{"allowed_apps":["fast-svd-lcm"],"token_expiration":60}',
    b'{"prompt":"\\ud83d\\ude80\\u0000"}',
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
FIELDS = ("prompt", "image_url", "steps", "seed", "video_size", "content_type", "file_name", "allowed_apps")


@bounded
@given(
    body=odd(*INPUTS)
    | st.builds(lambda value: json.dumps(value).encode(), VALUES)
    | st.builds(
        lambda value: json.dumps(value).encode(), st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=4)
    )
)
async def test_q10_json_bodies(house: House, body: bytes) -> None:
    for path in (f"/queue/{TEXT}", f"/queue/{HQ}", "/rest/storage/upload/initiate", "/rest/tokens"):
        assert (await call(house, "POST", path, body=body)).status in (200, 201, 413, 422)


@bounded
@given(host=odd(b"localhost:8000", b"[::1]:8000", b"queue.fal.run", b"v3.fal.media:443", b"127.0.0.1."))
async def test_k07_host_headers(house: House, host: bytes) -> None:
    told = await call(house, "POST", f"/queue/{TEXT}", headers={b"host": host}, body=b'{"prompt":"a"}')
    assert told.status in (200, 400, 404, 405, 421)
    if told.status == 200:
        named = urlsplit(json.loads(told.body)["status_url"])
        assert named.hostname in ("localhost", "127.0.0.1", "127.0.0.1.", "::1", "queue.fal.run")


@bounded
@given(changes=edits)
async def test_k01_damaged_keys_and_tokens_open_nothing(house: House, changes: list[Edit]) -> None:
    header = damage(f"Key {house.key}".encode(), changes)
    told = await call(house, "GET", f"/queue/{TURBO}/requests/x/status", headers={b"authorization": header})
    scheme, _, credential = header.decode("latin-1").partition(" ")
    good = scheme.lower() in ("key", "bearer") and credential.strip() == house.key
    assert told.status in ((404,) if good else (401, 429))
    key_id = house.key.partition(":")[0]
    whole = house.tokens.sign(key_id, ["fal-ai/fast-svd-lcm"], 0, 10**12).encode()
    token = damage(whole, changes)
    path = f"/queue/{TURBO}/requests/x/status/stream"
    told = await call(
        house, "GET", path, query=b"fal_jwt_token=" + quote_from_bytes(token).encode(), key=False
    )
    assert told.status in ((404,) if token == whole else (401, 429))


HEADS = (
    b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"POST /queue/x HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\n\r\n{}\n",
    b"POST /queue/x HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    b"CONNECT queue.fal.run:443 HTTP/1.1\r\nHost: queue.fal.run:443\r\n\r\n",
)


@settings(bounded, max_examples=60)
@given(data=odd(*HEADS))
def test_bytes_on_the_wire(server: Server, data: bytes) -> None:
    parts = urlsplit(server.url)
    assert parts.hostname is not None
    with socket.create_connection((parts.hostname, parts.port or 0), timeout=CALL_S) as line:
        try:
            line.sendall(data)
            line.shutdown(socket.SHUT_WR)
            told = b"".join(iter(lambda: line.recv(65536), b""))
        except ConnectionError:
            # It answered and closed before it had read everything.
            told = b""
    assert all(int(status) < 500 for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", told)), told


def test_the_server_lived_through_all_of_it(server: Server) -> None:
    with server.client() as client:
        assert client.get("/readyz").status_code == 200
    assert "Traceback" not in server.output()


async def stored(house: House, data: bytes) -> str:
    """Upload a file, once per test; returns its path."""
    folder = house.data_dir / "stored"
    if not folder.exists():
        headers = {b"content-type": b"application/pdf"}
        told = await call(house, "POST", "/cdn/files/upload", headers=headers, body=data)
        folder.write_text(urlsplit(json.loads(told.body)["access_url"]).path)
    return folder.read_text()

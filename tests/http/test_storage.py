"""Uploads and downloads."""

import asyncio
from typing import Any

import httpx
import pytest

from stillmotion.http.storage.downloads import read_range
from stillmotion.store.files import get_file
from tests.http.house import BASE, House

pytestmark = pytest.mark.anyio

HELLO = b"Hello, World!"


async def initiate(house: House, **given: Any) -> dict[str, str]:
    async with house.client() as client:
        answer = await client.post("/rest/storage/upload/initiate", json=given)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def put(house: House, url: str, data: Any = HELLO, **headers: str) -> httpx.Response:
    """PUT as JS does: without a key."""
    async with house.client(None) as client:
        return await client.put(url, content=data, headers=headers)


async def hosted(house: House, data: bytes = HELLO, content_type: str = "text/plain") -> str:
    urls = await initiate(house, content_type=content_type, file_name="hello.txt")
    assert (await put(house, urls["upload_url"], data)).status_code == 200
    return urls["file_url"]


def media_files(house: House) -> list[str]:
    return [path.name for path in (house.data_dir / "media").rglob("*") if path.is_file()]


async def test_trap_13_a_file_goes_up_without_a_key_and_comes_back_byte_equal(house: House) -> None:
    urls = await initiate(house, content_type="text/plain", file_name="hello.txt")
    assert set(urls) == {"upload_url", "file_url"}
    assert urls["file_url"].startswith(f"{BASE}/cdn/files/")
    async with house.client(None) as client:
        assert (await client.get(urls["file_url"])).status_code == 404
        # fal_client sends its key to whatever the upload URL names.
        sent = await client.put(
            urls["upload_url"],
            content=HELLO,
            headers={"Content-Type": "text/plain", "Authorization": "Key any:thing"},
        )
        assert sent.status_code == 200
        got = await client.get(urls["file_url"])
    assert got.content == HELLO
    assert got.headers["content-type"] == "text/plain"
    assert got.headers["content-length"] == str(len(HELLO))
    assert got.headers["accept-ranges"] == "bytes"
    assert got.headers["etag"] == sent.headers["etag"]
    assert got.headers["expires"] == "Tue, 21 Nov 2023 22:13:20 GMT"
    assert got.headers["access-control-allow-origin"] == "*"
    assert "x-fal-request-id" in got.headers


async def test_what_a_browser_recorded_comes_back_with_its_type(house: House) -> None:
    recorded = "video/webm;codecs=vp8,opus"
    urls = await initiate(house, content_type=recorded, file_name="take.webm")
    async with house.client(None) as client:
        sent = await client.put(urls["upload_url"], content=HELLO, headers={"Content-Type": recorded})
        assert sent.status_code == 200
        assert (await client.get(urls["file_url"])).headers["content-type"] == recorded


async def test_an_upload_url_works_once(house: House) -> None:
    urls = await initiate(house, content_type="text/plain", file_name="a.txt")
    assert (await put(house, urls["upload_url"])).status_code == 200
    again = await put(house, urls["upload_url"], b"other")
    assert again.status_code == 403
    async with house.client(None) as client:
        assert (await client.get(urls["file_url"])).content == HELLO
    assert len(media_files(house)) == 1


async def test_of_two_puts_at_once_one_wins_and_its_bytes_stay(house: House) -> None:
    urls = await initiate(house, content_type="text/plain", file_name="a.txt")
    go = asyncio.Event()

    async def slow(data: bytes) -> Any:
        yield data[:1]
        await go.wait()
        yield data[1:]

    first = asyncio.create_task(put(house, urls["upload_url"], slow(b"first")))
    second = asyncio.create_task(put(house, urls["upload_url"], slow(b"second")))
    go.set()
    codes = sorted([(await first).status_code, (await second).status_code])
    assert codes == [200, 403]
    winner = b"first" if (await first).status_code == 200 else b"second"
    async with house.client(None) as client:
        assert (await client.get(urls["file_url"])).content == winner
    assert len(media_files(house)) == 1


async def test_an_altered_expired_or_foreign_upload_url_is_refused_and_nothing_written(house: House) -> None:
    url = (await initiate(house, content_type="image/png", file_name="a.png"))["upload_url"]
    other = (await initiate(house, content_type="image/png", file_name="b.png"))["upload_url"]
    path, _, query = url.partition("?")
    altered = [
        path,
        f"{path}?",
        f"{path}?{query.replace('image%2Fpng', 'text%2Fhtml')}",
        f"{path}?{query.replace('max=', 'max=9')}",
        f"{path}?{query.replace('expires=', 'expires=9')}",
        f"{path}?{query}0",
        f"{path}?{query}&x=1",
        f"{path}?{other.partition('?')[2]}",
        f"{BASE}/cdn/uploads/{'0' * 32}?{query}",
        f"{BASE}/cdn/uploads/..%2fsecret?{query}",
    ]
    for wrong in altered:
        answer = await put(house, wrong)
        assert answer.status_code in (403, 404), wrong
        assert set(answer.json()) == {"detail", "error_type"}
    assert (await put(house, url, **{"Content-Type": "text/html"})).status_code == 403
    house.clock.advance(3601)
    assert (await put(house, url)).status_code == 403
    assert media_files(house) == []


@pytest.mark.parametrize("declared", [True, False])
async def test_an_upload_past_its_size_is_refused_and_nothing_kept(house: House, declared: bool) -> None:
    house.rebuild(upload_bytes=10)
    url = (await initiate(house, content_type="text/plain", file_name="a"))["upload_url"]

    async def chunks() -> Any:
        for _ in range(4):
            yield b"12345"

    answer = await put(house, url, b"1" * 20 if declared else chunks())
    assert answer.status_code == 413
    assert media_files(house) == []
    assert (await put(house, url, b"short")).status_code == 200


@pytest.mark.parametrize(("used", "length", "code"), [(True, "5", 403), (False, "11", 413)])
async def test_what_is_bound_to_be_refused_is_refused_unread(
    house: House, used: bool, length: str, code: int
) -> None:
    house.rebuild(upload_bytes=10)
    url = (await initiate(house, content_type="text/plain", file_name="a"))["upload_url"]
    if used:
        assert (await put(house, url, b"short")).status_code == 200

    async def unread() -> Any:
        raise AssertionError("the body was read")
        yield b""

    assert (await put(house, url, unread(), **{"Content-Length": length})).status_code == code


async def test_a_client_that_stops_midway_leaves_nothing_and_may_try_again(house: House) -> None:
    url = (await initiate(house, content_type="text/plain", file_name="a"))["upload_url"]
    messages = [
        {"type": "http.disconnect"},
        {"type": "http.request", "body": b"half", "more_body": True},
    ]
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return messages.pop()

    async def send(message: Any) -> None:
        sent.append(message)

    target = httpx.URL(url)
    scope = {
        "type": "http",
        "method": "PUT",
        "path": target.path,
        "query_string": target.query,
        "headers": [(b"host", b"localhost")],
        "scheme": "http",
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 8000),
    }
    await house.app(scope, receive, send)
    assert media_files(house) == []
    assert (await put(house, url)).status_code == 200


async def test_initiate_needs_a_key_and_a_sane_description(house: House) -> None:
    async with house.client(None) as client:
        assert (await client.post("/rest/storage/upload/initiate", json={})).status_code == 401
    async with house.client() as client:
        for given in (
            {"content_type": "text/html\r\nSet-Cookie: a=b"},
            {"content_type": 'image/png;\r\n\r\na="<script>"'},
            {"content_type": "image/png;\u2028a=b"},
            {"content_type": 'text/plain; name="\U0001f600"'},
            {"content_type": "html"},
            {"content_type": 3},
            {"file_name": 3},
            [],
        ):
            answer = await client.post("/rest/storage/upload/initiate", json=given)
            assert answer.status_code == 422, given
        assert (await client.post("/rest/storage/upload/initiate/")).status_code == 200
        assert (await client.get("/rest/storage/upload/initiate")).status_code == 405
        assert (await client.post("/rest/storage/nowhere")).status_code == 404


@pytest.mark.parametrize(
    "name", ["../../x", "con", "a" * 4000, "a\x00b", "a\r\nSet-Cookie: a=b", '"', "", "été 🚀.png", "\ud83d"]
)
async def test_a_file_name_never_leaves_its_field(house: House, name: str) -> None:
    if name == "\ud83d":
        async with house.client() as client:
            answer = await client.post("/rest/storage/upload/initiate", content=b'{"file_name": "\\ud83d"}')
        assert answer.status_code == 422
        return
    urls = await initiate(house, content_type="text/plain", file_name=name)
    assert (await put(house, urls["upload_url"])).status_code == 200
    async with house.client(None) as client:
        answer = await client.get(urls["file_url"])
    assert answer.content == HELLO
    assert "set-cookie" not in answer.headers
    disposition = answer.headers["content-disposition"]
    assert disposition.startswith("attachment; filename*=UTF-8''") and disposition.isascii()
    assert [path.parent.parent.name for path in (house.data_dir / "media").rglob("*") if path.is_file()] == [
        "uploads"
    ]


@pytest.mark.parametrize("content_type", ["text/html", "image/svg+xml", "application/octet-stream"])
async def test_an_upload_opened_in_a_browser_runs_no_script(house: House, content_type: str) -> None:
    url = await hosted(house, b"<svg><script>alert(1)</script></svg>", content_type)
    async with house.client(None) as client:
        answer = await client.get(url)
    assert answer.headers["content-disposition"].startswith("attachment")
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["content-security-policy"] == "sandbox; default-src 'none'"


async def test_an_untyped_upload_gets_the_type_its_bytes_show(house: House) -> None:
    url = await hosted(house, b"\x89PNG\r\n\x1a\n" + b"0" * 100, "application/octet-stream")
    async with house.client(None) as client:
        answer = await client.head(url)
    assert answer.headers["content-type"] == "image/png"
    assert answer.headers["content-disposition"].startswith("inline")
    assert "sandbox" in answer.headers["content-security-policy"]


#: Range header, status, body of a 10-byte file.
RANGES = [
    ("bytes=0-0", 206, b"0"),
    ("bytes=-1", 206, b"9"),
    ("bytes=-99", 206, b"0123456789"),
    ("bytes=5-", 206, b"56789"),
    ("bytes=2-4", 206, b"234"),
    ("bytes=2-99", 206, b"23456789"),
    ("bytes=10-", 416, None),
    ("bytes=99-100", 416, None),
    ("bytes=-0", 416, None),
    ("bytes=0-1,4-5", 200, b"0123456789"),
    ("bytes=4-2", 200, b"0123456789"),
    ("bytes=-", 200, b"0123456789"),
    ("lines=1-2", 200, b"0123456789"),
    ("garbage", 200, b"0123456789"),
    ("bytes=" + "9" * 400 + "-", 200, b"0123456789"),
]


async def test_ranges_give_the_exact_bytes(house: House) -> None:
    url = await hosted(house, b"0123456789")
    async with house.client(None) as client:
        for header, status, body in RANGES:
            answer = await client.get(url, headers={"Range": header})
            assert answer.status_code == status, header
            if body is None:
                assert answer.headers["content-range"] == "bytes */10"
                assert answer.json()["error_type"] == "range_not_satisfiable"
                continue
            assert answer.content == body, header
            assert answer.headers["content-length"] == str(len(body))
            if status == 206:
                start = b"0123456789".index(body)
                assert answer.headers["content-range"] == f"bytes {start}-{start + len(body) - 1}/10"
            else:
                assert "content-range" not in answer.headers


def test_an_empty_file_has_no_range() -> None:
    assert read_range("", 0) is None


async def test_head_etag_and_if_range(house: House) -> None:
    url = await hosted(house, b"0123456789")
    async with house.client(None) as client:
        head = await client.head(url)
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["content-length"] == "10"
        etag = head.headers["etag"]
        for known in (etag, f"W/{etag}", f'"x", {etag}', "*"):
            answer = await client.get(url, headers={"If-None-Match": known})
            assert (answer.status_code, answer.content) == (304, b"")
        assert (await client.get(url, headers={"If-None-Match": '"x"'})).status_code == 200
        same = await client.get(url, headers={"Range": "bytes=1-1", "If-Range": etag})
        assert (same.status_code, same.content) == (206, b"1")
        changed = await client.get(url, headers={"Range": "bytes=1-1", "If-Range": '"x"'})
        assert (changed.status_code, changed.content) == (200, b"0123456789")


async def test_unknown_expired_and_lost_files_answer_alike(house: House) -> None:
    url = await hosted(house)
    file_id = url.split("/")[-2]
    lost = await hosted(house)
    record = house.store.read_now(lambda conn: get_file(conn, lost.split("/")[-2]))
    assert record is not None
    await house.media.delete([record.media_key])
    async with house.client(None) as client:
        bodies = {
            (await client.get(f"{BASE}/cdn/files/{unknown}/a.png")).content
            for unknown in ("0" * 32, file_id.upper(), "x", "x%00")
        }
        answer = await client.get(lost)
        assert answer.status_code == 404
        bodies.add(answer.content)
        house.clock.jump(7 * 86_400)
        answer = await client.get(url)
        assert answer.status_code == 404
        bodies.add(answer.content)
    assert len(bodies) == 1, bodies

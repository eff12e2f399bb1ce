"""Files sent straight to the file host, by the tokens that open it."""

from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime, timedelta

import httpx
import pytest

from stillmotion import keys
from tests.http.house import BASE, ROCKET, TEXT, TURBO, House
from tests.http.test_storage_parts import stored, token_of

pytestmark = pytest.mark.anyio

HELLO = b"Hello, World!"


async def send(
    house: House, credential: str, data: bytes = HELLO, headers: Mapping[str, str] | None = None
) -> httpx.Response:
    async with house.client(None) as client:
        return await client.post(
            "/cdn/files/upload", content=data, headers={"Authorization": credential, **(headers or {})}
        )


async def test_trap_14_a_token_tells_where_and_until_when(house: House) -> None:
    token = await token_of(house)
    assert token["token_type"] == "Bearer"
    assert token["base_url"] == f"{BASE}/cdn"
    assert token["expires_at"].endswith("+00:00")
    expires = datetime.fromisoformat(token["expires_at"])
    assert expires - datetime.fromtimestamp(house.clock.now(), UTC) == timedelta(hours=1)
    async with house.client(None) as client:
        assert (await client.post("/rest/storage/auth/token", json={})).status_code == 401


async def test_a_file_sent_with_a_token_comes_back_byte_equal(house: House) -> None:
    token = (await token_of(house))["token"]
    described = {"Content-Type": "text/plain", "X-Fal-File-Name": "hello.txt"}
    sent = await send(house, f"Bearer {token}", headers=described)
    assert sent.status_code == 200, sent.text
    assert set(sent.json()) == {"access_url"}
    assert sent.json()["access_url"].startswith(f"{BASE}/cdn/files/")
    async with house.client(None) as client:
        got = await client.get(sent.json()["access_url"])
    assert (got.content, got.headers["content-type"]) == (HELLO, "text/plain")
    assert got.headers["content-disposition"].endswith("hello.txt")


@pytest.mark.parametrize(
    ("content_type", "name"),
    [("image/png", "upload.png"), ("application/x-odd", "upload.bin"), (None, "upload.bin")],
)
async def test_a_file_without_a_name_gets_one_by_its_type(
    house: House, content_type: str | None, name: str
) -> None:
    headers = {} if content_type is None else {"Content-Type": content_type}
    sent = await send(house, f"Key {house.key}", b"\x00\x01", headers)
    assert sent.json()["access_url"].endswith(f"/{name}")
    async with house.client(None) as client:
        got = await client.get(sent.json()["access_url"])
    assert got.headers["content-type"] == (content_type or "application/octet-stream")


async def test_u05_a_name_in_a_header_never_leaves_its_field(house: House) -> None:
    for name, shown in (
        ("../../x", "x"),
        ("été.png".encode(), "%C3%A9t%C3%A9.png"),
        (b"\xff", "%EF%BF%BD"),
        ("a" * 9000, "a" * 100),
        ("con", "_con"),
    ):
        async with house.client() as client:
            raw = name if isinstance(name, bytes) else name.encode()
            sent = await client.post("/cdn/files/upload", content=b"x", headers={b"X-Fal-File-Name": raw})
        assert sent.json()["access_url"].endswith(f"/{shown}"), name


async def test_by_fals_own_names_the_answer_names_fals_hosts(house: House) -> None:
    async with house.client(base="https://rest.fal.ai") as client:
        token = (await client.post("/storage/auth/token?storage_type=fal-cdn-v3", json={})).json()
    assert token["base_url"] == "https://v3.fal.media"
    async with house.client(None, base="https://v3.fal.media") as client:
        sent = await client.post(
            "/files/upload", content=HELLO, headers={"Authorization": f"Bearer {token['token']}"}
        )
        assert sent.json()["access_url"].startswith("https://v3.fal.media/files/")
        assert (await client.get(sent.json()["access_url"])).content == HELLO


async def test_a_token_opens_the_file_host_for_uploads_and_nothing_else(house: House) -> None:
    token = (await token_of(house))["token"]
    bearer = {"Authorization": f"Bearer {token}"}
    async with house.client(None) as client:
        assert (await client.post(f"/queue/{TEXT}", json=ROCKET, headers=bearer)).status_code == 401
        assert (await client.post(f"/run/{TEXT}", json=ROCKET, headers=bearer)).status_code == 401
        for path in ("/rest/storage/upload/initiate", "/rest/storage/auth/token", "/rest/tokens"):
            assert (await client.post(path, json={}, headers=bearer)).status_code == 401, path
        as_stream = await client.post(f"/run/{TURBO}/stream", params={"fal_jwt_token": token}, json={})
        assert as_stream.status_code in (401, 403)
        hidden = await client.post(
            "/cdn/files/upload",
            content=HELLO,
            headers={**bearer, "X-Fal-Object-Lifecycle": '{"initial_acl": {"default": "hide"}}'},
        )
        assert (await client.get(hidden.json()["access_url"], headers=bearer)).status_code == 404
    async with house.client() as client:
        stream = (await client.post("/rest/tokens", json={"allowed_apps": ["fast-svd-lcm"]})).json()
    assert (await send(house, f"Bearer {stream}")).status_code == 401


async def test_an_altered_expired_or_revoked_token_is_refused_and_nothing_kept(house: House) -> None:
    token = (await token_of(house))["token"]
    for wrong in (f"{token}0", token[:-1], "x", "", "a.b.c", "é"):
        async with house.client(None) as client:
            headers = {b"Authorization": f"Bearer {wrong}".encode("latin-1")}
            answer = await client.post("/cdn/files/upload", content=HELLO, headers=headers)
        assert answer.status_code == 401, wrong
    other = house.new_key("other")
    theirs = (await token_of(house, other))["token"]
    house.store.write_now(lambda conn: keys.revoke_key(conn, other.partition(":")[0], house.clock.now()))
    house.clock.advance(6)
    assert (await send(house, f"Bearer {theirs}")).status_code == 401
    assert (await send(house, f"Bearer {token}")).status_code == 200
    house.clock.advance(3600)
    assert (await send(house, f"Bearer {token}")).status_code == 401
    assert len(stored(house)) == 1


async def test_an_upload_past_its_size_or_its_keys_day_is_refused_and_nothing_kept(house: House) -> None:
    house.rebuild(upload_bytes=20)
    limited = house.store.write_now(
        lambda conn: keys.create_key(conn, "limited", house.clock.now(), upload_bytes_per_day=15)
    )
    too_large = await send(house, f"Key {house.key}", b"x" * 21)
    assert (too_large.status_code, too_large.json()["error_type"]) == (413, "payload_too_large")
    assert (await send(house, f"Key {limited}", b"x" * 10)).status_code == 200
    over = await send(house, f"Key {limited}", b"x" * 6)
    assert (over.status_code, over.json()["error_type"]) == (403, "upload_limit")
    assert int(over.headers["retry-after"]) > 0

    async def undeclared() -> AsyncIterator[bytes]:
        yield b"x" * 6

    async with house.client(limited) as client:
        assert (await client.post("/cdn/files/upload", content=undeclared())).status_code == 403
        urls = (await client.post("/rest/storage/upload/initiate", json={})).json()
        assert (await client.put(urls["upload_url"], content=b"x" * 6)).status_code == 403
        assert (await client.put(urls["upload_url"], content=b"x" * 5)).status_code == 200
    assert sorted(len(data) for data in stored(house)) == [5, 10]


async def test_a_bad_content_type_is_named(house: House) -> None:
    answer = await send(house, f"Key {house.key}", headers={"Content-Type": "html"})
    assert answer.status_code == 422
    [problem] = answer.json()["detail"]
    assert problem["loc"] == ["body", "content_type"]
    assert problem["msg"] == "Input should be a media type such as image/png"
    assert stored(house) == []

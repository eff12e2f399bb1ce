"""How long files live and who may read them."""

import json
from collections.abc import Mapping
from typing import Any

import httpx
import pytest

from stillmotion.cli.housekeeping import drop_expired_files
from stillmotion.http.storage.lifecycle import MAX_RULES
from stillmotion.settings import DAY_S, MOST_DAYS
from stillmotion.store.files import get_file
from stillmotion.types import Access, Acl, Lifecycle
from tests.http.house import ROCKET, TEXT, TURBO, House, png

pytestmark = pytest.mark.anyio

UPLOAD = "X-Fal-Object-Lifecycle"
PREFERENCE = "X-Fal-Object-Lifecycle-Preference"


async def upload(house: House, preference: Any = None, name: str = UPLOAD, data: bytes = b"hello") -> str:
    """Initiate and PUT; return the file's URL."""
    headers = {} if preference is None else {name: json.dumps(preference)}
    async with house.client() as client:
        answer = await client.post(
            "/rest/storage/upload/initiate", json={"content_type": "image/png"}, headers=headers
        )
        assert answer.status_code == 200, answer.text
        sent = await client.put(answer.json()["upload_url"], content=data)
        assert sent.status_code == 200, sent.text
        return answer.json()["file_url"]


async def get(house: House, url: str, key: str | None = None) -> httpx.Response:
    async with house.client(key) as client:
        return await client.get(url)


def key_id(key: str) -> str:
    return key.partition(":")[0]


@pytest.mark.parametrize("name", [UPLOAD, PREFERENCE])
async def test_an_upload_lives_as_long_as_asked_and_goes_with_its_bytes(house: House, name: str) -> None:
    url = await upload(house, {"expiration_duration_seconds": 60}, name)
    assert (await get(house, url)).headers["expires"] == "Tue, 14 Nov 2023 22:14:20 GMT"
    house.clock.advance(59)
    assert await drop_expired_files(house.store, house.media, house.clock.now()) == 0
    assert (await get(house, url)).status_code == 200
    house.clock.advance(1)
    assert (await get(house, url)).status_code == 404
    assert await drop_expired_files(house.store, house.media, house.clock.now()) == 1
    assert house.store.read_now(lambda conn: get_file(conn, url.split("/")[-2])) is None
    assert [path for path in (house.data_dir / "media").rglob("*") if path.is_file()] == []


async def test_a_life_is_counted_from_the_last_byte(house: House) -> None:
    async with house.client() as client:
        headers = {UPLOAD: '{"expiration_duration_seconds": 60}'}
        urls = (await client.post("/rest/storage/upload/initiate", json={}, headers=headers)).json()
        house.clock.advance(3000)
        assert (await client.put(urls["upload_url"], content=b"x")).status_code == 200
        house.clock.advance(59)
        assert (await client.get(urls["file_url"])).status_code == 200
        house.clock.advance(1)
        assert (await client.get(urls["file_url"])).status_code == 404


@pytest.mark.parametrize("preference", [None, {}, {"expiration_duration_seconds": 0}, {"initial_acl": {}}])
async def test_without_a_wish_the_server_decides(house: House, preference: Any) -> None:
    url = await upload(house, preference)
    answer = await get(house, url)
    assert answer.headers["expires"] == "Tue, 21 Nov 2023 22:13:20 GMT"
    assert "cache-control" not in answer.headers


MALFORMED = {
    "not json": "Invalid JSON",
    "[]": "Input should be an object",
    '{"expiration_duration_seconds": -1}': "expiration_duration_seconds: Input should be greater",
    '{"expiration_duration_seconds": "soon"}': "expiration_duration_seconds: Input should be a valid integer",
    json.dumps(
        {"expiration_duration_seconds": MOST_DAYS * DAY_S + 1}
    ): "expiration_duration_seconds: Input should be",
    '{"initial_acl": {"default": "maybe"}}': "initial_acl.default: Input should be 'allow', 'forbid'",
    '{"initial_acl": {"rules": [{"user": "x"}]}}': "initial_acl.rules.0.decision: Field required",
    json.dumps({"initial_acl": {"rules": [{"user": "x", "decision": "hide"}] * (MAX_RULES + 1)}}): (
        "initial_acl.rules: List should have at most"
    ),
}


@pytest.mark.parametrize("text", MALFORMED)
async def test_a_malformed_wish_is_refused_by_name(house: House, text: str) -> None:
    async with house.client() as client:
        for path, name, given in (
            ("/rest/storage/upload/initiate", UPLOAD, {}),
            ("/rest/storage/upload/initiate-multipart", UPLOAD, {}),
            ("/cdn/files/upload", UPLOAD, {}),
            (f"/queue/{TEXT}", PREFERENCE, ROCKET),
        ):
            answer = await client.post(path, json=given, headers={name: text})
            assert (answer.status_code, answer.json()["error_type"]) == (400, "bad_request"), path
            assert f"Header {name.lower()}: {MALFORMED[text]}" in answer.json()["detail"]


ACLS: list[tuple[Mapping[str, Any], dict[str, int]]] = [
    ({"default": "allow"}, {"owner": 200, "friend": 200, "other": 200, "nobody": 200}),
    ({"default": "forbid"}, {"owner": 200, "friend": 403, "other": 403, "nobody": 403}),
    ({"default": "hide"}, {"owner": 200, "friend": 404, "other": 404, "nobody": 404}),
    (
        {"default": "hide", "rules": [{"user": "FRIEND", "decision": "allow"}]},
        {"owner": 200, "friend": 200, "other": 404, "nobody": 404},
    ),
    (
        {"rules": [{"user": "FRIEND", "decision": "forbid"}, {"user": "OTHER", "decision": "hide"}]},
        {"owner": 200, "friend": 403, "other": 404, "nobody": 200},
    ),
]


@pytest.mark.parametrize(("acl", "expected"), ACLS)
async def test_who_may_read_a_file_is_the_owners_choice(
    house: House, acl: Mapping[str, Any], expected: dict[str, int]
) -> None:
    readers = {"owner": house.key, "friend": house.new_key("friend"), "other": house.new_key("other")}
    asked = json.loads(
        json.dumps({"initial_acl": acl})
        .replace("FRIEND", key_id(readers["friend"]))
        .replace("OTHER", key_id(readers["other"]))
    )
    url = await upload(house, asked)
    got = {name: (await get(house, url, key)).status_code for name, key in readers.items()}
    assert got | {"nobody": (await get(house, url)).status_code} == expected
    async with house.client(None) as client:
        assert (await client.head(url)).status_code == expected["nobody"]


async def test_a_hidden_file_answers_like_none_even_to_a_wrong_key(house: House) -> None:
    url = await upload(house, {"initial_acl": {"default": "hide"}})
    nowhere = f"{url.rpartition('/files/')[0]}/files/{'0' * 32}/x.png"
    for key in (None, "0000:wrong", house.new_key("other")):
        hidden, unknown = await get(house, url, key), await get(house, nowhere, key)
        assert (hidden.status_code, hidden.content) == (unknown.status_code, unknown.content)
    mine = await get(house, url, house.key)
    assert (mine.content, mine.headers["cache-control"]) == (b"hello", "private")


async def test_a_picture_of_another_key_is_read_only_if_its_owner_lets(house: House) -> None:
    friend = house.new_key("friend")
    rules = [{"user": key_id(friend), "decision": "allow"}]
    hidden = await upload(house, {"initial_acl": {"default": "hide", "rules": rules}}, data=png())
    forbidden = await upload(house, {"initial_acl": {"default": "forbid"}}, data=png())

    async def submit(url: str, key: str) -> httpx.Response:
        async with house.client(key) as client:
            return await client.post(f"/queue/{TURBO}", json={"image_url": url})

    assert (await submit(hidden, house.key)).status_code == 200
    assert (await submit(hidden, friend)).status_code == 200
    other = house.new_key("other")
    unknown = await submit(hidden.replace(hidden.split("/")[-2], "0" * 32), other)
    refused = await submit(hidden, other)
    assert (refused.status_code, refused.json()["detail"]) == (422, unknown.json()["detail"])
    refused = await submit(forbidden, other)
    assert refused.status_code == 422
    assert "does not let this key" in refused.json()["detail"][0]["msg"]
    assert (await submit(forbidden, house.key)).status_code == 200


async def test_a_wish_for_the_film_is_kept_with_the_request(house: House) -> None:
    asked = {"expiration_duration_seconds": 3600, "initial_acl": {"default": "forbid"}}
    async with house.client() as client:
        answer = await client.post(f"/queue/{TEXT}", json=ROCKET, headers={PREFERENCE: json.dumps(asked)})
    row = house.row(answer.json()["request_id"])
    assert row.lifecycle == Lifecycle(keep_s=3600, acl=Acl(default=Access.FORBID))
    plain = await house.submit()
    assert house.row(plain["request_id"]).lifecycle == Lifecycle()

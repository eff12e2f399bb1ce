"""Temporary tokens: issued to keys, bound to apps and time, taken by streams alone."""

import base64
import hmac
import json
import logging
from typing import Any

import pytest

from stillmotion import keys
from tests.http.house import HQ, ROCKET, TEXT, TURBO, House
from tests.http.sse import OpenStream

pytestmark = pytest.mark.anyio

ALIAS = "fast-svd-lcm"


async def issue(house: House, path: str = "/rest/tokens/", **asked: Any) -> str:
    async with house.client() as client:
        answer = await client.post(path, json=asked or {"allowed_apps": [ALIAS], "token_expiration": 120})
    assert answer.status_code == 201, answer.text
    token = answer.json()
    assert isinstance(token, str)
    return token


def part(claims: dict[str, Any]) -> str:
    return base64.urlsafe_b64encode(json.dumps(claims).encode()).rstrip(b"=").decode()


def claims_of(token: str) -> dict[str, Any]:
    middle = token.split(".")[1]
    return json.loads(base64.urlsafe_b64decode(middle + "=" * (-len(middle) % 4)))


async def opens(house: House, token: str, endpoint: str = TEXT) -> tuple[int, str]:
    """Open a sync stream with the token alone; return the status, and the error text if it is one."""
    given = ROCKET if endpoint == TEXT else {"image_url": "https://example.com/a.png"}
    address = f"/run/{endpoint}/stream?fal_jwt_token={token}"
    async with OpenStream(house, address, method="POST", given=given, key=None) as stream:
        await begin(house, stream)
        text = "" if stream.status == 200 else json.loads(await stream.chunk())["detail"]
        return stream.status, text


async def begin(house: House, stream: OpenStream) -> None:
    """Let a stream begin: a request that has one is made at once."""
    await house.wakeup.wait("queue", 0.2)
    if (request := house.claim()) is not None:
        await house.finish(request)
    await stream.begin()


async def test_a_token_opens_a_sync_stream_in_the_name_of_its_key(house: House) -> None:
    token = await issue(house)
    address = f"/run/{TEXT}/stream?fal_jwt_token={token}"
    async with OpenStream(house, address, method="POST", given=ROCKET, key=None) as stream:
        await house.wakeup.wait("queue", 5)
        request = house.claim()
        assert request is not None
        assert request.key_id == house.key.partition(":")[0]
        assert "fal_jwt_token" not in request.input
        await house.finish(request)
        await stream.begin()
        assert "video" in (await stream.rest())[-1]


async def test_a_token_opens_the_status_stream_of_its_keys_requests_only(house: House) -> None:
    request_id = (await house.submit())["request_id"]
    path = f"/queue/{TURBO}/requests/{request_id}/status/stream"
    token = await issue(house)
    async with OpenStream(house, f"{path}?logs=1&fal_jwt_token={token}", key=None) as stream:
        await stream.begin()
        assert (await stream.event())["request_id"] == request_id
    other = house.tokens.sign("stranger", [ALIAS], house.clock.now(), house.clock.now() + 60)
    async with OpenStream(house, f"{path}?fal_jwt_token={other}", key=None) as refused:
        await refused.begin()
        assert refused.status == 401


@pytest.mark.parametrize("app", [ALIAS, TURBO, TEXT])
async def test_apps_may_be_named_by_alias_app_or_endpoint(house: House, app: str) -> None:
    token = await issue(house, allowed_apps=["other", app])
    assert (await opens(house, token))[0] == 200
    status, text = await opens(house, token, HQ)
    assert status == 403
    assert "fal-ai/stable-video" in text


async def test_a_token_names_its_key_apps_and_time_and_nothing_secret(house: House) -> None:
    now = int(house.clock.now())
    usual = await issue(house, allowed_apps=[ALIAS])
    key_id, _, secret = house.key.partition(":")
    assert claims_of(usual) == {"sub": key_id, "apps": [ALIAS], "iat": now, "exp": now + 120}
    assert secret not in usual
    longer = await issue(house, "/rest/tokens/realtime", allowed_apps=[ALIAS], duration=300)
    assert claims_of(longer)["exp"] == now + 300


async def test_an_expired_token_opens_nothing(house: House) -> None:
    token = await issue(house, allowed_apps=[ALIAS], token_expiration=60)
    house.clock.advance(59)
    assert (await opens(house, token))[0] == 200
    house.clock.advance(1)
    assert await opens(house, token) == (401, "The token is altered or expired; ask /tokens/ for another")


async def test_a_token_dies_with_its_key(house: House) -> None:
    token = await issue(house, allowed_apps=[ALIAS], token_expiration=3600)
    assert (await opens(house, token))[0] == 200
    key_id, now = house.key.partition(":")[0], house.clock.now()
    assert house.store.write_now(lambda conn: keys.revoke_key(conn, key_id, now))
    house.clock.advance(house.settings.key_cache_s)
    assert (await opens(house, token))[0] == 401


async def test_an_altered_token_opens_nothing(house: House) -> None:
    token = await issue(house)
    header, claims, mark = token.split(".")
    wider = part({**claims_of(token), "apps": ["stable-video"]})
    # The secret of the server itself signs other things, and no token.
    other = hmac.digest(b"s" * 32, f"{header}.{wider}".encode(), "sha256")
    for forged in (
        f"{header}.{wider}.{mark}",
        f"{header}.{wider}.{base64.urlsafe_b64encode(other).rstrip(b'=').decode()}",
        f"{part({'alg': 'none', 'typ': 'JWT'})}.{claims}.",
        f"{part({'alg': 'none', 'typ': 'JWT'})}.{claims}.{mark}",
        f"{part({'alg': 'HS256', 'typ': 'JWT', 'kid': '../../dev/null'})}.{claims}.{mark}",
        f"{token}=",
        f"{header}.{claims}",
        "%00%ff.%E2%80%A8.x",
        house.key,
        "",
    ):
        status, _ = await opens(house, forged)
        assert status == 401, forged
    assert house.claim() is None


async def test_a_token_is_no_key_anywhere_else(house: House) -> None:
    token = await issue(house)
    request_id = (await house.submit())["request_id"]
    one = f"/queue/{TURBO}/requests/{request_id}"
    async with house.client(None) as client:
        for method, path in (
            ("POST", f"/run/{TEXT}"),
            ("POST", f"/queue/{TEXT}"),
            ("GET", f"{one}/status"),
            ("GET", one),
            ("PUT", f"{one}/cancel"),
            ("POST", "/rest/tokens/"),
            ("POST", "/rest/storage/upload/initiate"),
        ):
            for query, headers in (
                ({"fal_jwt_token": token}, {}),
                ({}, {"Authorization": f"Bearer {token}"}),
            ):
                answer = await client.request(method, path, json=ROCKET, params=query, headers=headers)
                assert answer.status_code == 401, (method, path)
    assert house.row(request_id).cancel_at is None


async def test_a_key_in_the_header_comes_before_a_token(house: House) -> None:
    async with OpenStream(
        house, f"/run/{TEXT}/stream?fal_jwt_token=stale", method="POST", given=ROCKET
    ) as stream:
        await begin(house, stream)
        assert stream.status == 200


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        ({}, "allowed_apps"),
        ({"allowed_apps": []}, "allowed_apps"),
        ({"allowed_apps": ALIAS}, "allowed_apps"),
        ({"allowed_apps": [ALIAS], "token_expiration": 0}, "token_expiration"),
        ({"allowed_apps": [ALIAS], "token_expiration": 86_400}, "token_expiration"),
        ({"allowed_apps": [ALIAS], "token_expiration": "soon"}, "token_expiration"),
    ],
)
async def test_a_wrong_wish_is_refused_naming_its_field(
    house: House, asked: dict[str, Any], field: str
) -> None:
    async with house.client() as client:
        answer = await client.post("/rest/tokens/", json=asked)
    assert answer.status_code == 422
    assert answer.json()["detail"][0]["loc"][:2] == ["body", field]


async def test_no_token_is_issued_without_a_key_and_none_is_cached(house: House) -> None:
    async with house.client(None, base="https://rest.fal.ai") as client:
        assert (await client.post("/tokens/", json={"allowed_apps": [ALIAS]})).status_code == 401
    async with house.client(base="https://rest.alpha.fal.ai") as client:
        answer = await client.post("/tokens/", json={"allowed_apps": [ALIAS]})
    assert answer.status_code == 201
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["cache-control"] == "no-store"


async def test_tokens_are_never_logged(house: House, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="stillmotion")
    token = await issue(house)
    assert (await opens(house, token))[0] == 200
    assert (await opens(house, token + "x"))[0] == 401
    assert "/stream" in caplog.text
    assert token not in caplog.text and "fal_jwt_token" not in caplog.text

"""A page of any origin may call: every route, every way in, every answer, good or bad."""

import re
from collections.abc import Iterator

import httpx
import pytest
from starlette.routing import Route

from stillmotion.errors import StoreUnavailable
from stillmotion.http.ways.doors import FAL_HOSTS
from tests.http.house import ROCKET, TEXT, House

pytestmark = pytest.mark.anyio

ORIGIN = {"Origin": "https://app.example"}
#: What the clients and a video player in a page read; all others are hidden from scripts.
READ = {
    "x-fal-request-id",
    "x-fal-error-type",
    "x-fal-request-timeout-type",
    "x-fal-billable-units",
    "retry-after",
    "etag",
    "content-range",
    "content-length",
    "accept-ranges",
}
#: What the clients and a video player in a page send.
SENT = {
    "authorization",
    "content-type",
    "accept",
    "range",
    "idempotency-key",
    "x-fal-target-url",
    "x-fal-queue-priority",
    "x-fal-request-timeout",
    "x-fal-runner-hint",
    "x-fal-object-lifecycle",
    "x-fal-object-lifecycle-preference",
    "x-fal-store-io",
    "x-fal-no-retry",
    "x-fal-file-name",
}
FILLED = {
    "path": TEXT,
    "request_id": "01890000-0000-7000-8000-000000000000",
    "file_id": "0" * 32,
    "upload_id": "0" * 32,
    "number": "1",
    "name": "a.png",
}


def words(answer: httpx.Response, header: str) -> set[str]:
    return {word.strip().lower() for word in answer.headers[header].split(",")}


def check_shared(answer: httpx.Response) -> None:
    assert answer.headers["access-control-allow-origin"] == "*", answer.request.url
    assert words(answer, "access-control-expose-headers") >= READ
    assert "access-control-allow-credentials" not in answer.headers


def check_preflight(answer: httpx.Response, method: str, asked: str | None) -> None:
    assert answer.status_code == 204, answer.request.url
    check_shared(answer)
    assert method in answer.headers["access-control-allow-methods"]
    if asked is None:
        assert words(answer, "access-control-allow-headers") >= SENT
    else:
        assert words(answer, "access-control-allow-headers") == {asked}
    assert int(answer.headers["access-control-max-age"]) > 0
    assert "access-control-request-headers" in words(answer, "vary")


def routes_of(house: House) -> Iterator[tuple[str, str]]:
    for route in house.app.routes:
        assert isinstance(route, Route), route
        path = re.sub(r"\{(\w+)(:path)?\}", lambda match: FILLED[match[1]], route.path)
        # PATCH is routed only to be refused.
        for method in sorted((route.methods or {"GET"}) - {"HEAD", "PATCH"}):
            yield method, path


async def preflight(client: httpx.AsyncClient, method: str, path: str, asked: str | None) -> httpx.Response:
    headers = {**ORIGIN, "Access-Control-Request-Method": method}
    if asked is not None:
        headers["Access-Control-Request-Headers"] = asked
    return await client.options(path, headers=headers)


async def test_every_route_is_shared_with_any_page_and_answers_preflights_without_a_key(house: House) -> None:
    walked = list(routes_of(house))
    assert len(walked) > 15
    seen: set[int] = set()
    async with house.client() as known, house.client(None) as stranger:
        for method, path in walked:
            for asked in (None, "x-something-new"):
                check_preflight(await preflight(stranger, method, path, asked), method, asked)
            for client in (known, stranger):
                answer = await client.request(method, path, headers=ORIGIN)
                check_shared(answer)
                seen.add(answer.status_code)
    assert {200, 401, 403, 404, 405, 422} <= seen


@pytest.mark.parametrize("host", FAL_HOSTS)
async def test_every_name_of_fals_is_shared(house: House, host: str) -> None:
    async with house.client(None, base=f"https://{host}") as client:
        path = "/files/upload" if host.endswith("media") else f"/{TEXT}"
        check_preflight(await preflight(client, "POST", path, None), "POST", None)
        check_shared(await client.post(path, json=ROCKET, headers=ORIGIN))


async def test_uploads_and_films_are_shared_whole_and_by_range(house: House) -> None:
    async with house.client() as client:
        urls = (await client.post("/rest/storage/upload/initiate", json={}, headers=ORIGIN)).json()
        check_preflight(await preflight(client, "PUT", urls["upload_url"], None), "PUT", None)
        sent = await client.put(urls["upload_url"], content=b"0123456789", headers=ORIGIN)
        assert sent.status_code == 200
        check_shared(sent)
        for headers, status in (
            ({}, 200),
            ({"Range": "bytes=2-3"}, 206),
            ({"Range": "bytes=99-"}, 416),
            ({"If-None-Match": sent.headers["etag"]}, 304),
        ):
            got = await client.get(urls["file_url"], headers={**ORIGIN, **headers})
            assert got.status_code == status
            check_shared(got)
        assert got.headers["cross-origin-resource-policy"] == "cross-origin"


async def test_what_breaks_is_shared_too(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    house.rebuild(body_bytes=1024, bad_keys_per_minute=1)
    async with house.client() as client:
        calls: list[tuple[dict[str, str], dict[str, str], int]] = [
            ({"prompt": "a" * 2000}, {}, 413),
            ({}, {}, 422),
            (ROCKET, {"Authorization": "Key a:b"}, 401),
            (ROCKET, {"Authorization": "Key a:b"}, 429),
            (ROCKET, {"Host": "evil.example"}, 421),
            (ROCKET, {"Host": "a b"}, 400),
        ]
        for given, headers, status in calls:
            answer = await client.post(f"/queue/{TEXT}", json=given, headers=headers)
            assert answer.status_code == status
            check_shared(answer)
        for error, status in ((StoreUnavailable("away"), 503), (RuntimeError("a bug"), 500)):

            async def fail(operation: object, error: Exception = error) -> object:
                raise error

            monkeypatch.setattr(house.store, "write", fail)
            answer = await client.post(f"/queue/{TEXT}", json=ROCKET)
            assert answer.status_code == status
            check_shared(answer)

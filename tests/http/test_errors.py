"""Every error a caller can meet, in one table: status, type, shape and headers; at the call or later."""

import ast
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any

import httpx
import pytest

import stillmotion
from stillmotion import keys
from stillmotion.errors import StoreUnavailable
from stillmotion.http.wire import ERROR_PAGES
from stillmotion.store.queue import cancel
from stillmotion.types import Failure
from tests.http.house import HQ, ROCKET, TEXT, TURBO, House

pytestmark = pytest.mark.anyio

Call = Callable[[House, httpx.AsyncClient], Awaitable[httpx.Response]]

NOBODY = "01890000-0000-7000-8000-000000000000"
PICTURE = {"image_url": "https://example.com/a.png"}
#: Kinds that come from a connection or a server that ends, which no answered call here can have.
ELSEWHERE = {"client_disconnected", "server_stopping", "insufficient_storage"}


@dataclass(frozen=True)
class Expected:
    status: int
    kind: str
    #: Where a `detail` list points; None: a text and `error_type`.
    at: tuple[str, ...] | None = None
    retryable: str = "false"
    headers: tuple[str, ...] = ()


def submit(given: object = ROCKET, endpoint: str = TEXT, query: str = "", **headers: str) -> Call:
    async def call(house: House, client: httpx.AsyncClient) -> httpx.Response:
        return await client.post(f"/queue/{endpoint}{query}", json=given, headers=headers)

    return call


def ask(method: str, path: str, **options: Any) -> Call:
    async def call(house: House, client: httpx.AsyncClient) -> httpx.Response:
        return await client.request(method, path, **options)

    return call


async def hurried(house: House, client: httpx.AsyncClient) -> httpx.Response:
    key = house.store.write_now(
        lambda conn: keys.create_key(conn, "slow", house.clock.now(), submits_per_minute=1)
    )
    authorization = f"Key {key}"
    await submit(Authorization=authorization)(house, client)
    return await submit(Authorization=authorization)(house, client)


async def guessing(house: House, client: httpx.AsyncClient) -> httpx.Response:
    guess = ask("GET", "/queue/a/b/requests/x", headers={"Authorization": "Key a:b"})
    for _ in range(house.settings.bad_keys_per_minute):
        await guess(house, client)
    return await guess(house, client)


async def crowded(house: House, client: httpx.AsyncClient) -> httpx.Response:
    await house.submit()
    return await submit(query="?fal_max_queue_length=0")(house, client)


async def reused(house: House, client: httpx.AsyncClient) -> httpx.Response:
    await submit({"prompt": "a"}, **{"Idempotency-Key": "n"})(house, client)
    return await submit({"prompt": "b"}, **{"Idempotency-Key": "n"})(house, client)


async def unfinished(house: House, client: httpx.AsyncClient) -> httpx.Response:
    return await client.get(f"/queue/{TURBO}/requests/{(await house.submit())['request_id']}")


async def expired(house: House, client: httpx.AsyncClient) -> httpx.Response:
    request_id = (await house.submit())["request_id"]
    claimed = house.claim()
    assert claimed is not None
    await house.finish(claimed)
    house.clock.advance(31 * 86_400)
    return await client.get(f"/queue/{TURBO}/requests/{request_id}")


async def outside(house: House, client: httpx.AsyncClient) -> httpx.Response:
    urls = (await client.post("/rest/storage/upload/initiate", json={})).json()
    await client.put(urls["upload_url"], content=b"12345")
    return await client.get(urls["file_url"], headers={"Range": "bytes=9-"})


async def full(house: House, client: httpx.AsyncClient) -> httpx.Response:
    key = house.store.write_now(
        lambda conn: keys.create_key(conn, "small", house.clock.now(), upload_bytes_per_day=1)
    )
    described = await client.post(
        "/rest/storage/upload/initiate", json={}, headers={"Authorization": f"Key {key}"}
    )
    return await client.put(described.json()["upload_url"], content=b"12345")


async def unwritten(house: House, client: httpx.AsyncClient) -> httpx.Response:
    async def refuse(operation: object) -> object:
        raise StoreUnavailable("disk full")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(house.store, "write", refuse)
        return await submit()(house, client)


async def broken(house: House, client: httpx.AsyncClient) -> httpx.Response:
    async def explode(operation: object) -> object:
        raise RuntimeError("a bug")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(house.store, "read", explode)
        return await client.get("/queue/a/b/requests/x/status")


AT_THE_CALL: dict[str, tuple[Call, Expected]] = {
    "malformed host": (ask("GET", "/", headers={"Host": "a b"}), Expected(400, "bad_request")),
    "another's host": (
        ask("GET", "/", headers={"Host": "evil.example"}),
        Expected(421, "misdirected_request"),
    ),
    "malformed deadline": (
        submit(**{"X-Fal-Request-Timeout": "soon"}),
        Expected(400, "bad_request"),
    ),
    "malformed part of the query": (submit(query="?fal_max_queue_length=x"), Expected(400, "bad_request")),
    "no key": (
        ask("GET", "/queue/a/b/requests/x", headers={"Authorization": ""}),
        Expected(401, "unauthorized"),
    ),
    "too many wrong keys": (
        guessing,
        Expected(429, "rate_limited", None, "true", ("retry-after", "x-fal-needs-retry")),
    ),
    "too many submits": (
        hurried,
        Expected(429, "rate_limited", None, "true", ("retry-after", "x-fal-needs-retry")),
    ),
    "queue too long": (
        crowded,
        Expected(429, "queue_full", None, "true", ("retry-after", "x-fal-needs-retry")),
    ),
    "altered upload URL": (ask("PUT", f"/cdn/uploads/{'0' * 32}", content=b""), Expected(403, "forbidden")),
    "too many bytes a day": (full, Expected(403, "upload_limit", None, "false", ("retry-after",))),
    "unknown path": (ask("GET", "/nowhere"), Expected(404, "not_found")),
    "unknown app": (submit(endpoint="fal-ai/nope"), Expected(404, "not_found")),
    "unknown sub-path": (submit(endpoint=f"{TURBO}/nope"), Expected(404, "not_found")),
    "unknown file": (ask("GET", f"/cdn/files/{'0' * 32}/a.png"), Expected(404, "not_found")),
    "wrong method": (
        ask("DELETE", f"/queue/{HQ}"),
        Expected(405, "method_not_allowed", None, "false", ("allow",)),
    ),
    "body too large": (submit({"prompt": "a" * 2000}), Expected(413, "payload_too_large")),
    "outside the file": (outside, Expected(416, "range_not_satisfiable", None, "false", ("content-range",))),
    "no JSON": (
        ask("POST", f"/queue/{TEXT}", content=b"{"),
        Expected(422, "json_invalid", ("body",)),
    ),
    "no input": (submit({}), Expected(422, "missing", ("body", "prompt"))),
    "below its range": (
        submit({**ROCKET, "steps": 0}),
        Expected(422, "greater_than_equal", ("body", "steps")),
    ),
    "above its range": (submit({**ROCKET, "fps": 26}), Expected(422, "less_than_equal", ("body", "fps"))),
    "wrong type": (submit({**ROCKET, "seed": "x"}), Expected(422, "int_parsing", ("body", "seed"))),
    "not an object": (submit([]), Expected(422, "dict_type", ("body",))),
    "no picture": (
        submit({"image_url": "data:,"}, HQ),
        Expected(422, "image_load_error", ("body", "image_url")),
    ),
    "private webhook": (
        submit(query="?fal_webhook=http://127.0.0.1/"),
        Expected(422, "value_error", ("query", "fal_webhook")),
    ),
    "idempotency key used otherwise": (reused, Expected(422, "value_error", ("header", "idempotency-key"))),
    "not finished": (unfinished, Expected(400, "request_in_progress")),
    "film expired": (expired, Expected(410, "output_expired")),
    "bug": (broken, Expected(500, "internal_error")),
    "database away": (unwritten, Expected(503, "store_unavailable", None, "true", ("retry-after",))),
}

#: What a worker writes as the ending, and what result and sync run then answer.
AS_A_RESULT: dict[str, tuple[Failure, Expected]] = {
    kind: (
        Failure(status=status, kind=kind, message="what and why", field=field, context=context),
        Expected(status, kind, ("body", *([field] if field else [])) if listed else None, "false", headers),
    )
    for status, kind, field, listed, headers, context in (
        (422, "content_policy_violation", "prompt", True, (), {}),
        (422, "image_load_error", "image_url", True, (), {}),
        (422, "file_download_error", "image_url", True, (), {}),
        (422, "file_too_large", "image_url", True, (), {"max_size": 25_000_000}),
        (422, "image_too_large", "image_url", True, (), {"max_height": 9, "max_width": 9}),
        (422, "image_too_small", "image_url", True, (), {"min_height": 9, "min_width": 9}),
        (422, "unsupported_image_format", "image_url", True, (), {"supported_formats": ["png"]}),
        (500, "internal_server_error", None, True, (), {}),
        (500, "runner_disconnected", None, False, (), {}),
        (504, "request_timeout", None, False, ("x-fal-request-timeout-type",), {}),
        (404, "not_found", None, False, (), {}),
    )
}


def check(answer: httpx.Response, expected: Expected) -> None:
    assert answer.status_code == expected.status, answer.text
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-fal-error-type"] == expected.kind
    assert answer.headers["x-fal-retryable"] == expected.retryable
    assert answer.headers["x-fal-billable-units"] == "0"
    assert answer.headers["access-control-allow-origin"] == "*"
    for name in ("x-fal-request-id", *expected.headers):
        assert answer.headers[name], name
    body = answer.json()
    if expected.at is None:
        assert set(body) == {"detail", "error_type"}
        assert body["error_type"] == expected.kind
        assert isinstance(body["detail"], str) and body["detail"]
        return
    assert set(body) == {"detail"}
    first = body["detail"][0]
    assert tuple(first["loc"]) == expected.at
    assert first["type"] == expected.kind
    assert first["url"] == ERROR_PAGES + expected.kind
    assert isinstance(first["msg"], str) and first["msg"]
    assert set(first) <= {"loc", "msg", "type", "url", "ctx", "input"}


@pytest.mark.parametrize("case", AT_THE_CALL)
async def test_a_call_that_is_refused(house: House, case: str) -> None:
    house.rebuild(body_bytes=1024)
    call, expected = AT_THE_CALL[case]
    async with house.client() as client:
        check(await call(house, client), expected)


@pytest.mark.parametrize("kind", AS_A_RESULT)
async def test_a_failed_request_replays_its_failure_at_every_reading(house: House, kind: str) -> None:
    failure, expected = AS_A_RESULT[kind]
    request_id = (await house.submit(HQ, **PICTURE))["request_id"]
    claimed = house.claim()
    assert claimed is not None
    house.fail(claimed, failure)
    path = f"/queue/{HQ}/requests/{request_id}"
    async with house.client() as client:
        status = await client.get(f"{path}/status")
        assert status.status_code == 200
        assert status.json()["status"] == "COMPLETED"
        assert (status.json()["error"], status.json()["error_type"]) == (failure.message, kind)
        answers = [await client.get(one) for one in (path, f"{path}/response", path)]
    for answer in answers:
        check(answer, expected)
        assert answer.headers["x-fal-request-id"] == request_id
        assert answer.content == answers[0].content
    if failure.context:
        assert answers[0].json()["detail"][0]["ctx"] == failure.context


async def test_a_cancelled_request_is_a_499_at_every_reading(house: House) -> None:
    request_id = (await house.submit())["request_id"]
    now = house.clock.now()
    house.store.write_now(lambda conn: cancel(conn, request_id, now))
    async with house.client() as client:
        for _ in range(2):
            check(
                await client.get(f"/queue/{TURBO}/requests/{request_id}"), Expected(499, "client_cancelled")
            )


async def test_an_unknown_request_is_a_404_in_fals_own_shape(house: House) -> None:
    async with house.client() as client:
        for ending in ("", "/status", "/response"):
            answer = await client.get(f"/queue/{TURBO}/requests/{NOBODY}{ending}")
            assert (answer.status_code, answer.json()) == (404, {"status": "NOT_FOUND"})
            assert answer.headers["x-fal-error-type"] == "not_found"
            assert answer.headers["x-fal-retryable"] == "false"


def test_the_table_names_every_error_of_the_source() -> None:
    """Kinds are literals wherever a failure is made, so the source itself says which there are."""
    spelled: set[str] = set()
    statuses: set[int] = set()
    for path in Path(stillmotion.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)):
                continue
            if node.func.id not in ("Failure", "InputRefused", "Refusal"):
                continue
            given = {word.arg: word.value for word in node.keywords}
            kind = given.get("kind") or (node.args[1] if node.func.id == "Refusal" else None)
            status = given.get("status") or (node.args[0] if node.func.id == "Refusal" else None)
            if isinstance(kind, ast.Constant):
                spelled.add(str(kind.value))
            if isinstance(status, ast.Constant) and isinstance(status.value, int):
                statuses.add(status.value)
    told = {expected.kind for _, expected in (*AT_THE_CALL.values(), *AS_A_RESULT.values())}
    assert spelled - told - ELSEWHERE == {"client_cancelled"}
    # JavaScript shows the reason phrase as the message, so each status needs one.
    assert statuses - {status.value for status in HTTPStatus} == {499}

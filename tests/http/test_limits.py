"""Limits of a key, replays, payloads that are not kept, and addresses that send wrong keys."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from sqlalchemy import select
from starlette.requests import Request

from stillmotion import keys
from stillmotion.http.ways.edge import Notes
from stillmotion.http.ways.strangers import ADDRESSES, Strangers
from stillmotion.store.position import queue_length
from stillmotion.store.retention import drop_old_requests
from stillmotion.store.tables import request as requests
from tests.commits import lost_answer
from tests.http.house import HQ, ROCKET, TEXT, TURBO, House

pytestmark = pytest.mark.anyio

GIF = "data:image/gif;base64,R0lGODlhCAAIAIAAAP///wAAACwAAAAACAAIAAACB4SPqcvtXQA7"
STATUS = f"/queue/{TURBO}/requests/01890000-0000-7000-8000-000000000000/status"


def new_key(house: House, **limits: Any) -> str:
    return house.store.write_now(lambda conn: keys.create_key(conn, "limited", house.clock.now(), **limits))


async def submit(
    house: House, name: str, given: object = ROCKET, endpoint: str = TEXT, key: str | None = ""
) -> httpx.Response:
    async with house.client(key) as client:
        return await client.post(f"/queue/{endpoint}", json=given, headers={"Idempotency-Key": name})


async def test_submits_beyond_the_minute_are_a_429_that_says_when(house: House) -> None:
    key = new_key(house, submits_per_minute=2)
    async with house.client(key) as client:
        assert (await client.post(f"/queue/{TEXT}", json={})).status_code == 422
        for _ in range(2):
            assert (await client.post(f"/queue/{TEXT}", json=ROCKET)).status_code == 200
        house.clock.advance(20)
        for path in (f"/queue/{TEXT}", f"/run/{TEXT}"):
            refused = await client.post(path, json=ROCKET)
            assert refused.status_code == 429
            assert refused.json()["error_type"] == refused.headers["x-fal-error-type"] == "rate_limited"
            assert "2 requests a minute" in refused.json()["detail"]
            assert refused.headers["retry-after"] == "40"
            assert refused.headers["x-fal-needs-retry"] == "1"
            assert refused.headers["x-fal-retryable"] == "true"
        # Polling is no submit, and other keys are not concerned.
        assert (await client.get(STATUS)).status_code == 404
        await house.submit()
        house.clock.advance(40)
        assert (await client.post(f"/queue/{TEXT}", json=ROCKET)).status_code == 200


async def test_a_refused_submit_leaves_no_picture(house: House) -> None:
    key = new_key(house, submits_per_minute=1)
    async with house.client(key) as client:
        assert (await client.post(f"/queue/{TEXT}", json=ROCKET)).status_code == 200
        assert (await client.post(f"/queue/{HQ}", json={"image_url": GIF})).status_code == 429
    assert [path for path in (house.data_dir / "media").rglob("*") if path.is_file()] == []


async def test_a_submit_that_was_kept_without_an_answer_keeps_its_picture_for_the_replay(
    house: House,
) -> None:
    with lost_answer(select(requests.c.id)) as kept:
        unanswered = await submit(house, "a-1", {"image_url": GIF}, HQ)
    assert (unanswered.status_code, unanswered.headers["x-fal-retryable"]) == (503, "true")
    # It was kept, so the answer may not say that it was not.
    assert "nothing of it was kept" not in unanswered.json()["detail"]
    assert "Idempotency-Key" in unanswered.json()["detail"]
    again = await submit(house, "a-1", {"image_url": GIF}, HQ)
    assert again.json()["request_id"] == kept[0]
    picture = house.picture_of(house.row(kept[0]))
    assert len(await house.media.read(picture.media_key)) == picture.size


async def test_uploads_beyond_the_day_are_refused_and_nothing_is_kept(house: House) -> None:
    key = new_key(house, upload_bytes_per_day=10)
    async with house.client(key) as client:

        async def put(data: Any) -> httpx.Response:
            urls = (await client.post("/rest/storage/upload/initiate", json={})).json()
            return await client.put(urls["upload_url"], content=data)

        async def unannounced() -> Any:
            yield b"12345"
            yield b"678"
            raise AssertionError("more was read than is left")

        assert (await put(b"123")).status_code == 200
        house.clock.advance(3600)
        for data in (b"12345678", unannounced()):
            refused = await put(data)
            assert refused.status_code == 403
            assert refused.json()["error_type"] == "upload_limit"
            assert "10 bytes a day and has 7 left" in refused.json()["detail"]
            assert refused.headers["retry-after"] == str(23 * 3600)
        assert (await put(b"1234567")).status_code == 200
        assert (await put(b"1")).status_code == 403
        house.clock.advance(23 * 3600)
        assert (await put(b"1")).status_code == 200
    assert len([path for path in (house.data_dir / "media").rglob("*") if path.is_file()]) == 3


async def test_of_two_uploads_at_once_that_pass_the_day_together_one_is_refused_and_leaves_nothing(
    house: House,
) -> None:
    both = asyncio.Barrier(2)

    async def slow() -> AsyncIterator[bytes]:
        yield b"123"
        await both.wait()
        yield b"456"

    async with house.client(new_key(house, upload_bytes_per_day=10)) as client:
        urls = [(await client.post("/rest/storage/upload/initiate", json={})).json() for _ in range(2)]
        puts = [client.put(url["upload_url"], content=slow()) for url in urls]
        async with asyncio.timeout(10):
            answers = await asyncio.gather(*puts)
    assert sorted(answer.status_code for answer in answers) == [200, 403]
    assert len([path for path in (house.data_dir / "media").rglob("*") if path.is_file()]) == 1


async def test_q05_the_same_idempotency_key_and_body_is_the_same_request(house: House) -> None:
    first = await submit(house, "a-1")
    again = await submit(house, "a-1")
    assert (first.status_code, again.status_code) == (200, 200)
    assert again.json() == first.json()
    assert again.headers["x-fal-request-id"] == first.json()["request_id"]
    # Spelled otherwise it is the same body still.
    spelled = {"steps": 4, "prompt": "a boat"}, {"prompt": "a boat", "steps": 4}
    answers = [await submit(house, "a-2", given) for given in spelled]
    assert len({answer.json()["request_id"] for answer in answers}) == 1
    claimed = house.claim()
    assert claimed is not None and claimed.id == first.json()["request_id"]
    await house.finish(claimed)
    assert (await submit(house, "a-1")).json()["request_id"] == claimed.id
    # Without the header a replay is a new request.
    assert (await house.submit())["request_id"] != (await house.submit())["request_id"]


async def test_q05_an_idempotency_key_beside_another_body_is_a_422_naming_the_header(house: House) -> None:
    first = (await submit(house, "a-1")).json()["request_id"]
    for given, endpoint in (({"prompt": "a boat"}, TEXT), ({"image_url": GIF}, HQ)):
        refused = await submit(house, "a-1", given, endpoint)
        assert refused.status_code == 422
        (problem,) = refused.json()["detail"]
        assert problem["loc"] == ["header", "idempotency-key"]
        assert "another body or endpoint" in problem["msg"]
    codes = [(await submit(house, "a-2", {"image_url": GIF}, each)).status_code for each in (TURBO, HQ)]
    assert codes == [200, 422]
    stranger = await submit(house, "a-1", {"prompt": "a boat"}, key=house.new_key("stranger"))
    assert stranger.status_code == 200
    claimed = house.claim()
    assert claimed is not None and claimed.id == first
    await house.finish(claimed)
    now = house.clock.now() + 1
    assert house.store.write_now(lambda conn: drop_old_requests(conn, now, 10)) == 1
    assert (await submit(house, "a-1", {"prompt": "a boat"})).status_code == 200


async def test_replays_at_once_make_one_request_one_picture_and_count_once(house: House) -> None:
    key = new_key(house, submits_per_minute=1)
    answers = await asyncio.gather(*(submit(house, "a-1", {"image_url": GIF}, HQ, key=key) for _ in range(8)))
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.json()["request_id"] for answer in answers}) == 1
    assert house.store.read_now(lambda conn: queue_length(conn, "pocket")) == 1
    assert len([path for path in (house.data_dir / "media").rglob("*") if path.is_file()]) == 1


@pytest.mark.parametrize("name", ["", " ", "a b", "é", "a" * 256])
async def test_a_malformed_idempotency_key_is_refused(house: House, name: str) -> None:
    async with house.client() as client:
        answer = await client.post(
            f"/queue/{TEXT}", json=ROCKET, headers=[(b"Idempotency-Key", name.encode())]
        )
    assert (answer.status_code, answer.json()["error_type"]) == (400, "bad_request")


async def test_a_payload_that_is_not_to_be_kept_is_gone_with_the_ending(house: House) -> None:
    async with house.client() as client:
        ids: list[str] = []
        for value in ("0", "1"):
            answer = await client.post(
                f"/queue/{HQ}", json={"image_url": GIF, "seed": 5}, headers={"X-Fal-Store-IO": value}
            )
            ids.append(answer.json()["request_id"])
        for request_id in ids:
            claimed = house.claim()
            assert claimed is not None and claimed.input["seed"] == 5
            await house.finish(claimed)
            result = await client.get(f"/queue/{HQ}/requests/{request_id}")
            assert (result.status_code, result.json()["seed"]) == (200, 5)
    rows = [house.row(request_id) for request_id in ids]
    assert [row.input != {} for row in rows] == [False, True]
    # The picture of the first goes with it, that of the second has a life of its own.
    assert [house.picture_of(row).request_id for row in rows] == [ids[0], None]


async def test_a_request_not_to_be_retried_is_kept_as_such(house: House) -> None:
    async with house.client() as client:
        for value, retried in (("1", False), ("true", False), ("Yes", False), ("0", True), ("", True)):
            headers = {"X-Fal-No-Retry": value}
            answer = await client.post(f"/queue/{TEXT}", json=ROCKET, headers=headers)
            assert house.row(answer.json()["request_id"]).retry is retried


async def test_k05_wrong_keys_are_slowed_by_address_and_good_ones_never(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    house.rebuild(bad_keys_per_minute=5)
    wrong = f"{house.key.partition(':')[0]}:{house.new_key('other').partition(':')[2]}"
    malformed = "nobody:nothing"
    async with house.client(wrong) as client, house.client(malformed) as other, house.client() as good:
        codes = [(await caller.get(STATUS)).status_code for caller in (client, other) * 3]
        assert codes == [401] * 5 + [429]
        refused = await client.get(STATUS)
        assert refused.json()["error_type"] == refused.headers["x-fal-error-type"] == "rate_limited"
        assert refused.headers["retry-after"] == "60"
        assert (await good.get(STATUS)).status_code == 404
        # Not known to be good before, and still taken from the same address.
        async with house.client(house.new_key("fresh")) as fresh:
            assert (await fresh.get(STATUS)).status_code == 404
        async with house.client(wrong, peer="10.0.0.9") as elsewhere:
            assert (await elsewhere.get(STATUS)).status_code == 401
        # No key at all is no guess.
        async with house.client(None) as nobody:
            assert (await nobody.get(STATUS)).status_code == 401
        house.clock.advance(60)
        assert (await client.get(STATUS)).status_code == 401
    told = [record for record in caplog.records if "wrong keys" in record.getMessage()]
    assert len(told) == 1


async def test_k05_one_ipv6_line_is_one_address_and_a_trusted_proxy_is_none(house: House) -> None:
    house.rebuild(bad_keys_per_minute=1, trusted_proxies=["10.0.0.0/8"])

    async def code(peer: str, forwarded: str | None = None) -> int:
        headers = {} if forwarded is None else {"X-Forwarded-For": forwarded}
        async with house.client("nobody:nothing", peer=peer) as client:
            return (await client.get(STATUS, headers=headers)).status_code

    assert [await code(f"2001:db8:1:2::{n}") for n in (1, 2)] == [401, 429]
    assert await code("2001:db8:1:3::1") == 401
    assert [await code("10.0.0.1", f"1.1.1.1, 9.9.9.{n}") for n in (1, 2, 2)] == [401, 401, 429]
    assert [await code("192.0.2.1", f"9.9.9.{n}") for n in (5, 6)] == [401, 429]


async def test_k05_memory_of_strangers_is_bounded(house: House) -> None:
    strangers = Strangers(house.clock, 5)

    def count(address: str) -> int | None:
        scope = {"type": "http", "client": (address, 1), "headers": []}
        return strangers.count(Request({**scope, "stillmotion.notes": Notes()}))

    persistent: list[int | None] = []
    for n in range(ADDRESSES * 2):
        count(f"10.{n >> 16}.{n >> 8 & 255}.{n & 255}")
        if n % 1000 == 0:
            persistent.append(count("192.0.2.1"))
    # One that goes on is not forgotten over those that come and go.
    assert persistent[-1] is not None
    assert len(strangers._seen) == ADDRESSES  # pyright: ignore[reportPrivateUsage]

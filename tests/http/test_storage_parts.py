"""Uploads in parts, by a signed address as JavaScript sends them and by a token as Python does."""

import asyncio
import hashlib
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from sqlalchemy import Connection, func, select

from stillmotion import keys
from stillmotion.cli.housekeeping import drop_expired_files
from stillmotion.errors import StoreUnavailable
from stillmotion.http.storage import multipart
from stillmotion.store.files import get_file
from stillmotion.store.tables import upload_part
from tests.http.house import BASE, House

pytestmark = pytest.mark.anyio

PIECES = [bytes([65 + n]) * (1000 + n) for n in range(5)]
TOKEN = "/rest/storage/auth/token?storage_type=fal-cdn-v3"


@dataclass
class Upload:
    """An upload in parts, by whichever way it was begun."""

    house: House
    file_url: str
    address: str
    query: str = ""
    token: str | None = None

    def _headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}"} if self.token else {}

    async def put(self, number: object, data: Any) -> httpx.Response:
        async with self.house.client(None) as client:
            url = f"{self.address}/{number}{self.query}"
            return await client.put(url, content=data, headers=self._headers())

    async def complete(self, *parts: tuple[int, str], body: Any = None) -> httpx.Response:
        listed = {"parts": [{"partNumber": number, "etag": etag} for number, etag in parts]}
        async with self.house.client(None) as client:
            return await client.post(
                f"{self.address}/complete{self.query}",
                json=listed if body is None else body,
                headers=self._headers(),
            )

    async def download(self) -> httpx.Response:
        async with self.house.client(None) as client:
            return await client.get(self.file_url)

    @property
    def file_id(self) -> str:
        return self.file_url.split("/")[-2]


async def token_of(house: House, key: str | None = "") -> dict[str, str]:
    async with house.client(key) as client:
        answer = await client.post(TOKEN, json={})
    assert answer.status_code == 200, answer.text
    return answer.json()


async def begin(house: House, way: str, content_type: str = "text/plain") -> Upload:
    if way == "signed":
        async with house.client() as client:
            answer = await client.post(
                "/rest/storage/upload/initiate-multipart?storage_type=fal-cdn-v3",
                json={"content_type": content_type, "file_name": "hello.txt"},
            )
        assert answer.status_code == 200, answer.text
        path, _, query = answer.json()["upload_url"].partition("?")
        return Upload(house, answer.json()["file_url"], path, f"?{query}")
    token = (await token_of(house))["token"]
    async with house.client(None) as client:
        answer = await client.post(
            "/cdn/files/upload/multipart",
            headers={
                "Authorization": f"Bearer {token}",
                "Content-Type": content_type,
                "X-Fal-File-Name": "hello.txt",
            },
        )
    assert answer.status_code == 200, answer.text
    url, upload_id = answer.json()["access_url"], answer.json()["uploadId"]
    return Upload(house, url, f"{url}/multipart/{upload_id}", token=token)


@pytest.fixture(params=["signed", "token"])
async def upload(request: pytest.FixtureRequest, house: House) -> Upload:
    return await begin(house, request.param)


async def sent(upload: Upload, numbers: list[int] | None = None) -> list[tuple[int, str]]:
    listed: list[tuple[int, str]] = []
    for number in numbers or range(1, len(PIECES) + 1):
        answer = await upload.put(number, PIECES[number - 1])
        assert answer.status_code == 200, answer.text
        etag = answer.headers["etag"]
        assert answer.json() == {"partNumber": number, "etag": etag}
        listed.append((number, etag))
    return listed


def stored(house: House) -> list[bytes]:
    return [path.read_bytes() for path in (house.data_dir / "media").rglob("*") if path.is_file()]


async def test_trap_15_parts_in_any_order_and_at_once_make_the_file(upload: Upload, house: House) -> None:
    numbers = [1, 2, 3, 4, 5]
    random.Random(3).shuffle(numbers)
    answers = await asyncio.gather(*(upload.put(number, PIECES[number - 1]) for number in numbers))
    listed = [(number, answer.headers["etag"]) for number, answer in zip(numbers, answers, strict=True)]
    assert (await upload.download()).status_code == 404
    done = await upload.complete(*listed)
    assert done.status_code == 200, done.text
    got = await upload.download()
    whole = b"".join(PIECES)
    assert got.content == whole
    assert got.headers["content-type"] == "text/plain"
    assert got.headers["etag"] == f'"{hashlib.sha256(whole).hexdigest()}"'
    assert got.headers["content-disposition"].endswith("hello.txt")
    assert stored(house) == [whole], "the parts are gone"
    assert house.store.read_now(lambda conn: conn.scalar(select(func.count()).select_from(upload_part))) == 0


async def test_a_part_sent_again_replaces_the_first_try(upload: Upload, house: House) -> None:
    first = await upload.put(1, b"first try, longer")
    again = await upload.put(1, b"again")
    assert stored(house) == [b"again"]
    stale = await upload.complete((1, first.headers["etag"]))
    assert stale.status_code == 400
    assert stale.json()["detail"].startswith("Part 1 has another ETag")
    assert (await upload.complete((1, again.headers["etag"]))).status_code == 200
    assert (await upload.download()).content == b"again"


async def test_complete_asked_twice_or_at_once_answers_the_same(upload: Upload, house: House) -> None:
    listed = await sent(upload)
    first, second = await asyncio.gather(upload.complete(*listed), upload.complete(*listed))
    third = await upload.complete(*listed)
    assert [answer.status_code for answer in (first, second, third)] == [200] * 3
    assert first.json() == second.json() == third.json() == {"access_url": upload.file_url}
    assert stored(house) == [b"".join(PIECES)]
    late = await upload.put(1, b"late")
    assert (late.status_code, stored(house)) == (404, [b"".join(PIECES)])


async def test_u04_a_file_that_would_not_be_whole_is_refused_with_the_part_number(upload: Upload) -> None:
    nothing = await upload.complete((1, "x"))
    assert (nothing.status_code, nothing.json()["detail"][:15]) == (400, "Part 1 is missi")
    listed = await sent(upload, [1, 2, 4, 5])
    wrong: dict[str, list[tuple[int, str]]] = {
        "Part 3 is missing": listed,
        "Part 1 was sent but is not listed": listed[1:],
        "Part 2 is listed with two ETags": [*listed, (2, "another")],
    }
    for problem, parts in wrong.items():
        answer = await upload.complete(*parts)
        assert answer.status_code == 400, problem
        assert answer.json()["detail"].startswith(problem), answer.text
        assert answer.json()["error_type"] == "bad_request"
    empty = await upload.put(3, b"")
    answer = await upload.complete(*listed, (3, empty.headers["etag"]))
    assert answer.json()["detail"].startswith("Part 3 is empty")
    third = await sent(upload, [3])
    answer = await upload.complete(*listed, (3, "0" * 64))
    assert answer.json()["detail"].startswith("Part 3 has another ETag")
    # Repeated word for word is not wrong, nor is an ETag without its quotes.
    bare = [(number, etag.strip('"')) for number, etag in listed]
    assert (await upload.complete(*listed, *bare, *third)).status_code == 200
    assert (await upload.download()).content == b"".join(PIECES)


async def test_odd_part_numbers_and_lists_are_the_callers_mistake(upload: Upload) -> None:
    for number in ("0", "10001", "-1", "1.5", "x", "01", "99999999999999999999"):
        answer = await upload.put(number, b"x")
        assert answer.status_code == 400, number
        assert "between 1 and 10000" in answer.json()["detail"]
    assert (await upload.put(10_000, b"x")).status_code == 200
    too_many = [{"partNumber": n, "etag": "x"} for n in range(10_001)]
    for body in ({}, {"parts": []}, {"parts": [{}]}, {"parts": [{"partNumber": 1}]}, [], {"parts": too_many}):
        assert (await upload.complete(body=body)).status_code == 422
    gap = await upload.complete((10_000, "x"))
    assert gap.json()["detail"].startswith("Part 1 is missing")


async def test_parts_past_the_size_of_a_file_are_refused_and_nothing_kept(house: House) -> None:
    house.rebuild(upload_bytes=2500)
    for way in ("signed", "token"):
        upload = await begin(house, way)
        await sent(upload, [1, 2])
        kept = len(stored(house))
        over = await upload.put(3, PIECES[2])
        assert (over.status_code, over.json()["error_type"]) == (413, "payload_too_large")
        assert (await upload.put(3, b"x" * 3000)).status_code == 413
        assert len(stored(house)) == kept
        # A shorter try at an earlier part makes room.
        assert (await upload.put(1, b"short")).status_code == 200
        assert (await upload.put(3, PIECES[2])).status_code == 200


async def test_a_part_larger_than_a_part_may_be_is_refused(
    upload: Upload, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(multipart, "PART_BYTES", 100)
    assert (await upload.put(1, b"x" * 101)).status_code == 413
    assert (await upload.put(1, b"x" * 100)).status_code == 200


async def test_parts_count_towards_the_bytes_a_key_may_upload(house: House) -> None:
    limited = house.store.write_now(
        lambda conn: keys.create_key(conn, "limited", house.clock.now(), upload_bytes_per_day=2500)
    )
    house.key = limited
    upload = await begin(house, "token")
    listed = await sent(upload, [1, 2])
    refused = await upload.put(3, PIECES[2])
    assert (refused.status_code, refused.json()["error_type"]) == (403, "upload_limit")
    assert len(stored(house)) == 2
    assert (await upload.complete(*listed)).status_code == 200, "what was counted once is not counted again"


async def test_u03_an_abandoned_upload_goes_with_its_parts(upload: Upload, house: House) -> None:
    await sent(upload, [1, 3])
    assert len(stored(house)) == 2
    house.clock.advance(86_400)
    assert (await upload.put(2, PIECES[1])).status_code in (401, 403, 404)
    assert len(stored(house)) == 2
    assert await drop_expired_files(house.store, house.media, house.clock.now()) == 1
    assert stored(house) == []
    assert house.store.read_now(lambda conn: get_file(conn, upload.file_id)) is None
    assert house.store.read_now(lambda conn: conn.scalar(select(func.count()).select_from(upload_part))) == 0


async def test_a_file_that_is_whole_is_no_503_when_its_parts_cannot_be_removed(
    upload: Upload, house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = house.store.write

    async def unsteady(operation: Callable[[Connection], Any]) -> Any:
        if operation.__qualname__.startswith("remove_parts"):
            raise StoreUnavailable("disk full")
        return await write(operation)

    listed = await sent(upload)
    monkeypatch.setattr(house.store, "write", unsteady)
    assert (await upload.complete(*listed)).status_code == 200
    assert (await upload.download()).content == b"".join(PIECES)
    house.clock.advance(8 * 86_400)
    monkeypatch.undo()
    assert await drop_expired_files(house.store, house.media, house.clock.now()) == 1
    assert house.store.read_now(lambda conn: conn.scalar(select(func.count()).select_from(upload_part))) == 0


async def test_parts_whose_bytes_are_lost_make_no_file(upload: Upload, house: House) -> None:
    listed = await sent(upload)
    await house.media.delete_folder(f"uploads/{upload.file_id}")
    assert (await upload.complete(*listed)).status_code == 404
    assert (await upload.download()).status_code == 404
    assert stored(house) == []


async def test_a_part_that_arrives_after_complete_leaves_nothing(upload: Upload, house: House) -> None:
    listed = await sent(upload)
    reached, go = asyncio.Event(), asyncio.Event()

    async def slow() -> Any:
        yield b"x"
        reached.set()
        await go.wait()
        yield b"y"

    late = asyncio.create_task(upload.put(1, slow()))
    await reached.wait()
    assert (await upload.complete(*listed)).status_code == 200
    go.set()
    assert (await late).status_code == 404
    assert stored(house) == [b"".join(PIECES)]


async def test_an_address_for_parts_takes_no_whole_file_and_the_other_way_round(house: House) -> None:
    parts = await begin(house, "signed")
    async with house.client() as client:
        assert (await client.put(parts.address + parts.query, content=b"x")).status_code == 403
        urls = (await client.post("/rest/storage/upload/initiate", json={"file_name": "a"})).json()
        path, _, query = urls["upload_url"].partition("?")
        assert (await client.put(f"{path}/1?{query}", content=b"x")).status_code == 403
        assert (await client.post(f"{path}/complete?{query}", json={})).status_code == 403
        assert (await client.put(f"{parts.address}/1{parts.query}0", content=b"x")).status_code == 403
    assert stored(house) == []


async def test_k02_an_upload_of_another_key_answers_like_an_unknown_one(house: House) -> None:
    upload = await begin(house, "token")
    unknown = Upload(house, "", f"{BASE}/cdn/files/{'0' * 32}/a/multipart/{'0' * 32}", token=upload.token)
    other = Upload(house, "", upload.address, token=(await token_of(house, house.new_key("other")))["token"])
    wrong_id = Upload(house, "", f"{upload.file_url}/multipart/{'0' * 32}", token=upload.token)
    bodies = {(await each.put(1, b"x")).content for each in (unknown, other, wrong_id)}
    bodies |= {(await each.complete((1, "x"))).content for each in (unknown, other, wrong_id)}
    assert len(bodies) == 1
    assert stored(house) == []


async def test_a_film_is_no_upload_to_go_on_with(house: House) -> None:
    await house.submit()
    row = house.claim()
    assert row is not None
    film = await house.finish(row)
    token = (await token_of(house))["token"]
    address = f"{BASE}/cdn/files/{film.id}/a/multipart/{film.id}"
    upload = Upload(house, "", address, token=token)
    assert (await upload.put(1, b"x")).status_code == 404
    assert (await upload.complete((1, film.digest))).status_code == 404

"""Everything wrong a caller can send: told with field and bound, never a 500, nothing kept."""

import base64
import itertools
import json
import random
from collections.abc import AsyncIterator
from typing import Any

import pytest

from stillmotion.settings import Settings
from tests.http.house import BASE, HQ, ROCKET, TEXT, TURBO, House, png

pytestmark = pytest.mark.anyio


def data_uri(data: bytes, media_type: str = "image/png") -> str:
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"


#: Body bytes, and the `loc` of the refusal.
BROKEN = [
    (b"{", ["body"], "json_invalid"),
    (b'{"prompt": NaN}', ["body"], "json_invalid"),
    (b'{"prompt": "x", "seed": Infinity}', ["body"], "json_invalid"),
    (b'{"prompt": "\\ud800"}', ["body"], "json_invalid"),
    (b'{"prompt": "\xff\xfe"}', ["body"], "json_invalid"),
    ('{"prompt": "x"}'.encode("utf-16"), ["body"], "json_invalid"),
    (b"[" * 10_000, ["body"], "json_invalid"),
    (b'{"a":' * 10_000, ["body"], "json_invalid"),
    (b'{"prompt": "x", "seed": ' + b"9" * 5000 + b"}", ["body"], "json_invalid"),
    (b'{"prompt": "x", "a": [' + b"[]," * 100_001 + b"[]]}", ["body"], "json_invalid"),
    (b"[]", ["body"], "dict_type"),
    (b'["prompt"]', ["body"], "dict_type"),
    (b"null", ["body"], "dict_type"),
    (b'"prompt"', ["body"], "dict_type"),
    (b"3", ["body"], "dict_type"),
    (b'{"prompt": "x", "cond_aug": 1e999}', ["body", "cond_aug"], "finite_number"),
    (b'{"prompt": "x", "steps": 1e999}', ["body", "steps"], "finite_number"),
]


async def test_broken_json_is_a_422_list(house: House) -> None:
    async with house.client() as client:
        for body, loc, kind in BROKEN:
            for plane in ("queue", "run"):
                answer = await client.post(f"/{plane}/{TEXT}", content=body)
                assert answer.status_code == 422, body[:50]
                detail = answer.json()["detail"][0]
                assert (detail["loc"], detail["type"]) == (loc, kind), body[:50]
                assert detail["url"] == f"https://docs.fal.ai/errors/#{kind}"
                assert answer.headers["content-type"] == "application/json"
    assert house.claim() is None


#: Input, location and type of the refusal, and the bound it must name.
REFUSED: list[tuple[dict[str, Any], list[str | int], str, Any]] = [
    ({}, ["prompt"], "missing", None),
    ({"prompt": ""}, ["prompt"], "sequence_too_short", 1),
    ({"prompt": " \r\n"}, ["prompt"], "sequence_too_short", 1),
    ({"prompt": "a" * 100_000}, ["prompt"], "sequence_too_long", 4096),
    ({"prompt": "a\x00b"}, ["prompt"], "value_error", None),
    ({"prompt": 3}, ["prompt"], "string_type", None),
    ({"prompt": ["x"]}, ["prompt"], "string_type", None),
    ({"prompt": None}, ["prompt"], "string_type", None),
    ({"motion_bucket_id": 0}, ["motion_bucket_id"], "greater_than_equal", 1),
    ({"motion_bucket_id": 256}, ["motion_bucket_id"], "less_than_equal", 255),
    ({"motion_bucket_id": "many"}, ["motion_bucket_id"], "int_parsing", None),
    ({"motion_bucket_id": True}, ["motion_bucket_id"], "int_type", None),
    ({"motion_bucket_id": 1.5}, ["motion_bucket_id"], "int_from_float", None),
    ({"cond_aug": -1}, ["cond_aug"], "greater_than_equal", 0),
    ({"cond_aug": 11}, ["cond_aug"], "less_than_equal", 10),
    ({"cond_aug": "nan"}, ["cond_aug"], "finite_number", None),
    ({"cond_aug": False}, ["cond_aug"], "float_type", None),
    ({"seed": -1}, ["seed"], "greater_than_equal", 0),
    ({"seed": 2**63}, ["seed"], "less_than_equal", 2**63 - 1),
    ({"steps": 0}, ["steps"], "greater_than_equal", 1),
    ({"steps": 21}, ["steps"], "less_than_equal", 20),
    ({"steps": None}, ["steps"], "int_type", None),
    ({"fps": 0}, ["fps"], "greater_than_equal", 1),
    ({"fps": 26}, ["fps"], "less_than_equal", 25),
    ({"video_size": "huge"}, ["video_size"], "one_of", None),
    ({"video_size": 512}, ["video_size"], "dict_type", None),
    ({"video_size": {"width": 0}}, ["video_size", "width"], "greater_than_equal", 256),
    ({"video_size": {"height": 1282}}, ["video_size", "height"], "less_than_equal", 1280),
    ({"video_size": {"width": 511}}, ["video_size", "width"], "multiple_of", 2),
    ({"video_size": {"width": True}}, ["video_size", "width"], "int_type", None),
]


async def test_a_wrong_value_is_refused_with_field_and_bound(house: House) -> None:
    async with house.client() as client:
        for given, loc, kind, bound in REFUSED:
            answer = await client.post(f"/queue/{TEXT}", json={**ROCKET, **given} if given else {})
            assert answer.status_code == 422, given
            detail = answer.json()["detail"][0]
            assert (detail["loc"], detail["type"]) == (["body", *loc], kind)
            if bound is not None:
                assert bound in detail["ctx"].values(), given
            assert len(answer.content) < 1000, "a huge input is not echoed"
    assert house.claim() is None


async def test_a_wrong_value_is_echoed_unless_it_is_an_address(house: House) -> None:
    echoed: list[bool] = []
    async with house.client() as client:
        for value in ("many", "https://bucket.example/a.png?signature=secret"):
            answer = await client.post(f"/queue/{TEXT}", json={**ROCKET, "steps": value})
            echoed.append("input" in answer.json()["detail"][0])
    assert echoed == [True, False]


#: Odd, but harmless; and what becomes of it.
TAKEN: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"steps": "4", "seed": 4.0, "cond_aug": "0.5"}, {"steps": 4, "seed": 4, "cond_aug": 0.5}),
    ({"seed": None}, {}),
    ({"seed": 2**63 - 1}, {"seed": 2**63 - 1}),
    ({"video_size": {}}, {"video_size": {"width": 512, "height": 512}}),
    ({"video_size": {"width": 256, "height": 1280}}, {"video_size": {"width": 256, "height": 1280}}),
    ({"unknown_field": [1, 2]}, {}),
    ({"prompt": "שָׁלוֹם 🚀 \r\nGET / HTTP/1.1"}, {"prompt": "שָׁלוֹם 🚀 \r\nGET / HTTP/1.1"}),
]


async def test_lax_numbers_and_odd_but_harmless_values_are_taken(house: House) -> None:
    for given, kept in TAKEN:
        values = house.row((await house.submit(**{**ROCKET, **given}))["request_id"]).input
        assert kept.items() <= values.items()
        assert isinstance(values["seed"], int) and "unknown_field" not in values


async def test_the_last_of_duplicate_keys_counts(house: House) -> None:
    async with house.client() as client:
        answer = await client.post(f"/queue/{TEXT}", content=b'{"prompt":"a","steps":2,"steps":3}')
    assert house.row(answer.json()["request_id"]).input["steps"] == 3


async def test_trap_18_an_empty_body_names_the_missing_field(house: House) -> None:
    async with house.client() as client:
        for endpoint, name in ((TEXT, "prompt"), (TURBO, "image_url"), (HQ, "image_url")):
            for body in (b"", b" \n"):
                answer = await client.post(
                    f"/queue/{endpoint}", content=body, headers={"Content-Type": "application/json"}
                )
                assert answer.status_code == 422
                assert answer.json()["detail"][0]["loc"] == ["body", name]
                assert answer.json()["detail"][0]["type"] == "missing"


@pytest.mark.parametrize("declared", [True, False])
async def test_a_body_past_the_cap_is_a_413(house: House, declared: bool) -> None:
    house.rebuild(body_bytes=2048)

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(5):
            yield b" " * 1000

    async def unread() -> AsyncIterator[bytes]:
        raise AssertionError("the body was read")
        yield b""

    async with house.client() as client:
        length = {"Content-Length": "5000"} if declared else {}
        body = unread() if declared else chunks()
        answer = await client.post(f"/queue/{TEXT}", content=body, headers=length)
    assert answer.status_code == 413
    assert answer.json()["error_type"] == "payload_too_large"


NOT_OFFERED = [
    "fal-ai/%2e%2e/fal-ai/stable-video",
    "fal-ai//stable-video",
    "Fal-AI/Stable-Video",
    "fal-ai/nope",
    "fal-ai/stable-video/nope",
    "fal-ai/stable-video//",
    "fal-ai",
    "workflows/fal-ai/stable-video",
    "fal-ai/stable-video%00",
    "fal-ai/stable-video%0d%0aSet-Cookie:x",
]


async def test_an_unknown_endpoint_is_a_404_in_fals_shape(house: House) -> None:
    async with house.client() as client:
        for plane, endpoint in itertools.product(("queue", "run"), NOT_OFFERED):
            request = client.build_request("POST", f"/{plane}/", json=ROCKET)
            # Set as is: the client would resolve the dots itself.
            request.url = request.url.copy_with(raw_path=f"/{plane}/{endpoint}".encode())
            answer = await client.send(request)
            assert answer.status_code == 404, answer.text
            assert set(answer.json()) == {"detail", "error_type"}
            assert answer.headers["x-fal-error-type"] == "not_found"


NO_PICTURES: list[Any] = [
    "",
    "rocket.png",
    "ftp://example.com/a.png",
    "file:///etc/passwd",
    "http://good@bad.example/a.png",
    "http:\\\\evil.example",
    "http://[::1/a.png",
    "https:///a.png",
    "https://example.com/a b.png",
    "https://example.com/" + "a" * 9000,
    "javascript:alert(1)",
    "data:",
    "data:image/png;base64",
    "data:image/png;base64,%%%",
    "data:text/html;base64,PGh0bWw+",
    "data:image/png,rawbytes",
    "data:image/png;base64," + base64.b64encode(b"<html>").decode(),
    3,
    None,
    {"url": "x"},
    ["https://example.com"],
    "a\x00",
]


async def test_trap_20_an_image_url_of_another_kind_is_a_422_naming_it(house: House) -> None:
    async with house.client() as client:
        for value in NO_PICTURES:
            answer = await client.post(f"/queue/{HQ}", json={"image_url": value})
            assert answer.status_code == 422, value
            assert answer.json()["detail"][0]["loc"] == ["body", "image_url"]
            assert len(answer.content) < 1000


async def test_a_picture_past_the_limits_is_refused_at_the_door(house: House) -> None:
    house.rebuild(picture_pixels=1000, picture_bytes=100_000)
    async with house.client() as client:
        wide = await client.post(f"/queue/{HQ}", json={"image_url": data_uri(png(64, 64))})
        assert wide.json()["detail"][0]["type"] == "image_too_large"
        noise = data_uri(random.Random(1).randbytes(200_000))
        large = await client.post(f"/queue/{HQ}", json={"image_url": noise})
        assert large.json()["detail"][0]["type"] == "file_too_large"
        assert large.json()["detail"][0]["ctx"] == {"max_size": 100_000}
        assert len(large.content) < 1000


async def test_a_data_uri_becomes_a_stored_file(house: House) -> None:
    picture = png()
    row = house.row((await house.submit(HQ, image_url=data_uri(picture)))["request_id"])
    record = house.picture_of(row)
    assert (record.content_type, record.size, record.complete) == ("image/png", len(picture), True)
    assert await house.media.read(record.media_key) == picture
    assert record.expires == house.clock.now() + Settings().upload_days * 86_400


@pytest.mark.parametrize(
    "origin",
    [
        f"{BASE}/cdn",
        "http://localhost:8000/cdn",
        "https://films.example/prefix/cdn",
        "https://v3.fal.media",
        "https://v3b.fal.media:8443",
        "https://rebound.example/cdn",
        "http://192.168.7.7:8000/cdn",
    ],
)
async def test_our_own_url_by_any_doors_name_becomes_its_file(house: House, origin: str) -> None:
    file_id = await uploaded(house, png())
    house.rebuild(public_url="https://films.example/prefix", allowed_hosts="rebound.example")
    row = house.row((await house.submit(HQ, image_url=f"{origin}/files/{file_id}/a.png"))["request_id"])
    assert row.picture == f"file:{file_id}"


async def test_our_own_url_without_a_file_is_refused_at_the_door(house: House) -> None:
    file_id = await uploaded(house, png())
    async with house.client() as client:
        given = {"content_type": "image/png", "file_name": "b.png"}
        pending = (await client.post("/rest/storage/upload/initiate", json=given)).json()["file_url"]
        unknown = f"{BASE}/cdn/files/{'0' * 32}/a.png"
        for url in (pending, unknown):
            answer = await client.post(f"/queue/{HQ}", json={"image_url": url})
            assert answer.status_code == 422
            assert answer.json()["detail"][0]["loc"] == ["body", "image_url"]
        house.clock.jump(8 * 86_400)
        answer = await client.post(
            f"/queue/{HQ}", json={"image_url": f"{BASE}/cdn/files/{file_id}/picture.png"}
        )
        assert answer.json()["detail"][0]["type"] == "file_download_error"


async def test_fals_own_files_elsewhere_are_left_to_the_worker(house: House) -> None:
    url = "https://v3.fal.media/files/elephant/8kkhB12hEZI2kkbU8pZPA_test.jpeg"
    assert house.row((await house.submit(HQ, image_url=url))["request_id"]).picture == url


async def test_an_error_in_a_get_body_or_a_put_body_is_nobodys_business(house: House) -> None:
    request_id = (await house.submit())["request_id"]
    async with house.client() as client:
        path = f"/queue/{TURBO}/requests/{request_id}"
        answer = await client.request("GET", f"{path}/status", content=b"{not json")
        assert answer.status_code == 202
        assert (await client.put(f"{path}/cancel", content=b"{not json")).status_code == 202


async def test_no_random_bytes_make_a_500(house: House) -> None:
    draw = random.Random(7)
    valid = json.dumps({"prompt": "x", "video_size": {"width": 300}, "seed": 3}).encode()
    async with house.client() as client:
        for _ in range(150):
            body = bytearray(valid)
            for _ in range(draw.randint(1, 4)):
                body[draw.randrange(len(body))] = draw.randrange(256)
            answer = await client.post(f"/queue/{TEXT}", content=bytes(body))
            assert answer.status_code in (200, 422), bytes(body)


async def uploaded(house: House, data: bytes) -> str:
    async with house.client() as client:
        given = {"content_type": "image/png", "file_name": "picture.png"}
        answer = (await client.post("/rest/storage/upload/initiate", json=given)).json()
        put = await client.put(answer["upload_url"], content=data, headers={"Content-Type": "image/png"})
        assert put.status_code == 200
    return str(answer["file_url"]).split("/")[-2]

"""The proxy route: the same answers as by any other door, for pages whose client can name a target only."""

from typing import Any

import httpx
import pytest

from tests.http.house import BASE, FILM, HQ, ROCKET, TEXT, TURBO, House, png

pytestmark = pytest.mark.anyio

PROXY = "/api/fal/proxy"
#: What a page on the server's own address sends with a POST.
OWN = {"Origin": BASE}


async def call(
    client: httpx.AsyncClient, method: str, target: str, headers: dict[str, str] | None = None, **options: Any
) -> httpx.Response:
    return await client.request(
        method, PROXY, headers={"X-Fal-Target-Url": target, **(headers or {})}, **options
    )


@pytest.mark.parametrize(
    "host", ["queue.fal.run", "queue.falrun.com", "QUEUE.fal.run.", "queue.fal.run:8443"]
)
async def test_a_request_is_followed_and_cancelled_by_its_targets(house: House, host: str) -> None:
    async with house.client() as client:
        made = await call(client, "POST", f"https://{host}/{TEXT}/?fal_webhook=https://8.8.8.8/", json=ROCKET)
        assert made.status_code == 200, made.text
        root = f"https://{host.lower()}/{TURBO}/requests/{made.json()['request_id']}"
        assert made.json()["response_url"] == root
        assert made.headers["x-fal-request-id"] == made.json()["request_id"]
        assert house.row(made.json()["request_id"]).webhook == "https://8.8.8.8/"
        claimed = house.claim()
        assert claimed is not None
        house.log(claimed, "step 1/4")
        status = await call(client, "GET", f"{root}/status?logs=1")
        assert (status.status_code, status.json()["logs"][0]["message"]) == (202, "step 1/4")
        cancelled = await call(client, "PUT", made.json()["cancel_url"])
        assert (cancelled.status_code, cancelled.json()) == (202, {"status": "CANCELLATION_REQUESTED"})


async def test_files_get_addresses_at_the_servers_own_origin(house: House) -> None:
    async with house.client() as client:
        told = await call(
            client,
            "POST",
            "https://rest.alpha.fal.ai/storage/upload/initiate",
            json={"content_type": "image/png", "file_name": "start.png"},
        )
        addresses = told.json()
        assert all(url.startswith(f"{BASE}/cdn/") for url in addresses.values())
        assert (await client.put(addresses["upload_url"], content=png())).status_code == 200
        given = {"image_url": addresses["file_url"]}
        made = await call(client, "POST", f"https://queue.fal.run/{HQ}", json=given)
        claimed = house.claim()
        assert claimed is not None
        await house.finish(claimed)
        result = await call(client, "GET", made.json()["response_url"])
        url = result.json()["video"]["url"]
        assert url.startswith(f"{BASE}/cdn/files/")
        assert (await client.get(url)).content == FILM
        by_target = url.replace(f"{BASE}/cdn", "https://v3.fal.media")
        part = await call(client, "GET", by_target, {"Range": "bytes=4-7"})
        assert (part.status_code, part.content) == (206, b"ftyp")


async def test_run_is_validated_as_at_its_own_door_and_says_so_to_any_origin(house: House) -> None:
    async with house.client() as client:
        answer = await call(client, "POST", f"https://fal.run/{TEXT}", json={})
    assert answer.status_code == 422
    assert answer.json()["detail"][0]["loc"] == ["body", "prompt"]
    assert answer.headers["access-control-allow-origin"] == "*"
    assert "x-fal-request-id" in answer.headers["access-control-expose-headers"]


@pytest.mark.parametrize(
    "target",
    [
        "https://example.com/fal-ai/stable-video",
        "https://queue.fal.run.example.com/fal-ai/stable-video",
        "https://example.com/https://queue.fal.run/fal-ai/stable-video",
        "https://queue.fal.run@example.com/fal-ai/stable-video",
        "https://me:secret@queue.fal.run/fal-ai/stable-video",
        "http://queue.fal.run/fal-ai/stable-video",
        "wss://fal.run/fal-ai/stable-video/realtime",
        "https://127.0.0.1:8000/queue/fal-ai/stable-video",
        "https://auth.fal.ai/oauth/token",
        "https://rest.fal.ai/users/current",
        "https://rest.fal.ai/../queue/fal-ai/stable-video",
        "https://v3.fal.media/",
        "/queue/fal-ai/stable-video",
        "queue.fal.run/fal-ai/stable-video",
        "https://queue.fal.run\\@example.com/",
        "https://[::1/",
        "https://queue.fal.run:99999/",
        "https://" + "a" * 9000,
        "",
    ],
)
async def test_any_other_target_is_refused_and_nothing_is_fetched(house: House, target: str) -> None:
    async with house.client() as client:
        for method in ("GET", "POST", "PUT", "DELETE"):
            answer = await call(client, method, target, json=ROCKET)
            assert answer.status_code == 400, answer.text
            assert answer.json()["error_type"] == "bad_request"
            assert "forwards nothing" in answer.json()["detail"]


async def test_a_call_without_target_and_other_methods_are_refused(house: House) -> None:
    async with house.client() as client:
        assert (await client.post(PROXY, json=ROCKET)).status_code == 400
        refused = await call(client, "PATCH", f"https://queue.fal.run/{TEXT}", json=ROCKET)
        assert refused.status_code == 405
        wrong = await call(client, "DELETE", f"https://queue.fal.run/{TEXT}")
        assert (wrong.status_code, wrong.headers["allow"]) == (405, "POST")
        assert (await client.options(PROXY)).status_code == 204


async def test_a_page_without_key_is_refused_unless_one_is_lent(house: House) -> None:
    target = f"https://queue.fal.run/{TEXT}"
    async with house.client(key=None) as page:
        assert (await call(page, "POST", target, OWN, json=ROCKET)).status_code == 401
        house.rebuild(proxy_key=house.key)
    async with house.client(key=None) as page:
        made = await call(page, "POST", target, OWN, json=ROCKET)
        assert made.status_code == 200
        assert house.row(made.json()["request_id"]).key_id == house.key.partition(":")[0]
        # The other doors lend nothing.
        assert (await page.post(f"/queue/{TEXT}", json=ROCKET, headers=OWN)).status_code == 401


@pytest.mark.parametrize(
    ("status", "headers"),
    [
        (202, {"Origin": BASE}),
        # A browser sends no Origin with a GET to the page's own.
        (202, {"Sec-Fetch-Site": "same-origin"}),
        (202, {"Referer": f"{BASE}/gallery?of=films"}),
        (401, {}),
        (401, {"Origin": "null"}),
        (401, {"Origin": "self"}),
        (401, {"Origin": ""}),
        (401, {"Origin": "https://evil.example", "Referer": f"{BASE}/"}),
        (401, {"Origin": "https://evil.example", "Sec-Fetch-Site": "same-origin"}),
        (401, {"Origin": f"{BASE}0"}),
        (401, {"Sec-Fetch-Site": "cross-site"}),
        (401, {"Referer": f"https://evil.example/{BASE}/"}),
        (401, {"Referer": "https://[/"}),
        (401, {"Origin": BASE, "Authorization": "Key 0000:wrong"}),
    ],
)
async def test_a_key_is_lent_to_the_servers_own_pages_alone(
    house: House, status: int, headers: dict[str, str]
) -> None:
    ticket = await house.submit()
    house.rebuild(proxy_key=house.key)
    async with house.client(key=None) as page:
        target = f"https://queue.fal.run/{TURBO}/requests/{ticket['request_id']}/status"
        assert (await call(page, "GET", target, headers)).status_code == status


async def test_listed_origins_replace_the_servers_own(house: House) -> None:
    target = f"https://queue.fal.run/{TEXT}"
    house.rebuild(proxy_key=house.key, proxy_origins="https://app.example/, http://other.example:3000")
    async with house.client(key=None) as page:
        for origin, status in (
            ("https://app.example", 200),
            ("http://other.example:3000", 200),
            ("http://app.example", 401),
            (BASE, 401),
        ):
            answer = await call(page, "POST", target, {"Origin": origin}, json=ROCKET)
            assert answer.status_code == status, origin


async def test_a_page_that_points_its_own_name_here_is_lent_no_key(house: House) -> None:
    target = f"https://queue.fal.run/{TEXT}"
    for settings, origin, status in (
        ({}, "http://rebound.example:8000", 401),
        ({}, "http://192.168.1.5:8000", 200),
        ({"tls_name": "films.example"}, "https://films.example:8443", 200),
        ({"public_url": "https://films.example/video"}, "https://films.example", 200),
    ):
        house.rebuild(host="0.0.0.0", proxy_key=house.key, **settings)
        async with house.client(key=None, base=origin) as page:
            answer = await call(page, "POST", target, {"Origin": origin}, json=ROCKET)
            assert answer.status_code == status, origin


async def test_pages_at_the_public_url_are_our_own_whatever_name_the_proxy_asks_by(house: House) -> None:
    house.rebuild(proxy_key=house.key, public_url="https://films.example/video")
    async with house.client(key=None) as page:
        for origin, status in (("https://films.example", 200), ("http://films.example", 401)):
            headers = {"Origin": origin}
            answer = await call(page, "POST", f"https://queue.fal.run/{TEXT}", headers, json=ROCKET)
            assert answer.status_code == status, origin


async def test_by_one_of_fals_names_there_is_no_proxy_route(house: House) -> None:
    async with house.client(base="https://fal.run") as client:
        answer = await call(client, "POST", f"https://queue.fal.run/{TEXT}", json=ROCKET)
    assert answer.status_code == 404

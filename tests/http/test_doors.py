"""Planes by path and by Host header, and the names each door's answers use."""

import pytest

from tests.http.house import BASE, ROCKET, TEXT, TURBO, House

pytestmark = pytest.mark.anyio


async def submitted_by(house: House, base: str, path: str, **headers: str) -> str:
    async with house.client(base=base) as client:
        answer = await client.post(path, json=ROCKET, headers=headers)
    assert answer.status_code == 200, answer.text
    body = answer.json()
    root = str(body["status_url"]).removesuffix(f"/{TURBO}/requests/{body['request_id']}/status")
    assert body["response_url"].startswith(root) and body["cancel_url"].startswith(root)
    return root


@pytest.mark.parametrize("host", ["queue.fal.run", "queue.falrun.com", "QUEUE.fal.run."])
@pytest.mark.parametrize("port", ["", ":8443"])
async def test_fals_queue_names_reach_the_queue(house: House, host: str, port: str) -> None:
    root = await submitted_by(house, f"https://{host}{port}", f"/{TEXT}/")
    assert root == f"https://queue.fal.run{port}"


@pytest.mark.parametrize("host", ["fal.run", "falrun.com", "ws.fal.run", "gateway.shark.fal.ai"])
async def test_trap_1_fals_run_names_never_reach_the_queue(house: House, host: str) -> None:
    async with house.client(base=f"https://{host}") as client:
        # A queue ticket would be a 200; the sync door validates and would then wait.
        assert (await client.post(f"/{TEXT}", json={})).status_code == 422
        assert (await client.get(f"/{TURBO}/requests/x/status")).status_code == 404
        assert (await client.get("/healthz")).status_code == 404


@pytest.mark.parametrize("host", ["rest.fal.ai", "rest.alpha.fal.ai"])
async def test_fals_rest_names_reach_storage(house: House, host: str) -> None:
    async with house.client(base=f"https://{host}:8443") as client:
        answer = await client.post(
            "/storage/upload/initiate?storage_type=fal-cdn-v3", json={"content_type": "image/png"}
        )
    assert answer.json()["file_url"].startswith("https://v3.fal.media:8443/files/")
    assert answer.json()["upload_url"].startswith("https://v3.fal.media:8443/uploads/")


@pytest.mark.parametrize(
    ("base", "root"),
    [
        (BASE, f"{BASE}/queue"),
        ("http://localhost:1234", "http://localhost:1234/queue"),
        ("https://[::1]:8443", "https://[::1]:8443/queue"),
    ],
)
async def test_path_callers_get_the_address_they_used(house: House, base: str, root: str) -> None:
    assert await submitted_by(house, base, f"/queue/{TEXT}") == root


async def test_a_public_url_names_path_callers_urls_and_leaves_host_callers_alone(house: House) -> None:
    house.rebuild(public_url="https://films.example/")
    assert await submitted_by(house, BASE, f"/queue/{TEXT}") == "https://films.example/queue"
    assert await submitted_by(house, "https://queue.fal.run", f"/{TEXT}") == "https://queue.fal.run"


async def test_forwarded_headers_count_from_trusted_proxies_only(house: House) -> None:
    forwarded = {"X-Forwarded-Host": "films.example", "X-Forwarded-Proto": "https"}
    assert await submitted_by(house, BASE, f"/queue/{TEXT}", **forwarded) == f"{BASE}/queue"
    house.rebuild(trusted_proxies="127.0.0.0/8,::1")
    assert await submitted_by(house, BASE, f"/queue/{TEXT}", **forwarded) == "https://films.example/queue"
    mapped = {"X-Forwarded-Host": "evil.example, queue.fal.run"}
    assert await submitted_by(house, BASE, f"/{TEXT}", **mapped) == "https://queue.fal.run"
    async with house.client() as client:
        assert (await client.get("/healthz", headers={"X-Forwarded-Proto": "gopher"})).status_code == 400
        # HAProxy leaves the caller's own line and adds another behind it.
        lines = [("X-Forwarded-Host", "evil.example"), *forwarded.items()]
        answer = await client.post(f"/queue/{TEXT}", json=ROCKET, headers=lines)
        assert answer.json()["status_url"].startswith("https://films.example/queue")
    async with house.client(peer="10.0.0.9") as client:
        answer = await client.post(f"/queue/{TEXT}", json=ROCKET, headers=forwarded)
    assert answer.json()["status_url"].startswith(BASE)


async def test_a_loopback_server_refuses_a_strangers_host_name(house: House) -> None:
    async with house.client(base="http://rebound.example:8000") as client:
        answer = await client.post(f"/queue/{TEXT}", json=ROCKET, headers={"X-Forwarded-Host": "localhost"})
        assert answer.status_code == 421
        assert answer.json()["error_type"] == "misdirected_request"
        assert answer.headers["access-control-allow-origin"] == "*"
        house.rebuild(allowed_hosts="rebound.example")
    async with house.client(base="http://rebound.example:8000") as client:
        assert (await client.get("/healthz")).status_code == 200
    house.rebuild(host="0.0.0.0")
    async with house.client(base="http://anything.example") as client:
        assert (await client.get("/healthz")).status_code == 200


async def test_two_host_headers_are_refused(house: House) -> None:
    twice = [("Host", "localhost"), ("Host", "rebound.example")]
    async with house.client() as client:
        assert (await client.get("/healthz", headers=twice)).status_code == 400


@pytest.mark.parametrize("host", ["a b", 'x"y', "a/b", "a@b", "x:port", ""])
async def test_a_host_header_that_is_no_name_is_refused(house: House, host: str) -> None:
    house.rebuild(host="0.0.0.0")
    async with house.client() as client:
        answer = await client.get("/healthz", headers={"Host": host})
    assert answer.status_code == 400
    assert answer.json()["error_type"] == "bad_request"


QUEUE_DOORS = [
    (BASE, "/queue"),
    ("https://queue.fal.run", ""),
    ("https://queue.falrun.com:8443", ""),
]


@pytest.mark.parametrize(("base", "root"), QUEUE_DOORS)
@pytest.mark.parametrize("sub_path", ["", "/text-to-video"])
@pytest.mark.parametrize("slash", ["", "/"])
async def test_every_spelling_of_an_address_is_served_without_redirect(
    house: House, base: str, root: str, sub_path: str, slash: str
) -> None:
    async with house.client(base=base) as client:
        made = await client.post(f"{root}/{TEXT}{slash}", json=ROCKET)
        one = f"{root}/{TURBO}{sub_path}/requests/{made.json()['request_id']}"
        assert (await client.get(f"{one}/status{slash}")).status_code == 202
        for ending in ("", "/response"):
            pending = await client.get(f"{one}{ending}{slash}")
            assert (pending.status_code, pending.json()["detail"]) == (400, "Request is still in progress")
        assert (await client.put(f"{one}/cancel{slash}")).status_code == 202
        assert (await client.get(f"{one}/status{slash}")).status_code == 200


@pytest.mark.parametrize(("base", "root"), [*QUEUE_DOORS, (BASE, "/run"), ("https://falrun.com", "")])
@pytest.mark.parametrize(
    ("endpoint", "named"),
    [
        ("workflows/fal-ai/fast-svd-lcm", "workflows/fal-ai/fast-svd-lcm"),
        ("comfy/fal-ai/fast-svd-lcm/text-to-video", "comfy/fal-ai/fast-svd-lcm"),
        ("fal-ai/nothing/like-it", "fal-ai/nothing"),
        ("fal-ai", "fal-ai"),
    ],
)
async def test_a_namespaced_app_is_another_app_and_unknown(
    house: House, base: str, root: str, endpoint: str, named: str
) -> None:
    async with house.client(base=base) as client:
        answer = await client.post(f"{root}/{endpoint}/", json=ROCKET)
        assert (answer.status_code, answer.json()["detail"]) == (404, f'Application "{named}" not found')
        request_id = (await house.submit())["request_id"]
        assert (await client.get(f"{root}/{endpoint}/requests/{request_id}/status")).status_code == 404

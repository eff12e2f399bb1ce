"""No door stands open: every route asks who calls, and a server on a public address is no exception."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.routing import Route

from stillmotion.keys import revoke_key
from tests.http.house import House
from tests.server import TIMED_ENGINE, Server, run_cli

pytestmark = pytest.mark.anyio

#: What anyone may read, or what an unguessable or signed address alone opens, each with the reason.
OPEN = {
    "/healthz": "tells that the process is up",
    "/readyz": "tells that it takes work",
    "/": "tells what runs here and how to call it",
    "/rest/.well-known/jwks.json": "public keys, for receivers of webhooks",
    "/cdn/files/{file_id}/{name}": "128 random bits are the permission, unless the owner set another",
    "/cdn/uploads/{file_id}": "signed",
    "/cdn/uploads/{file_id}/{number}": "signed",
    "/cdn/uploads/{file_id}/complete": "signed",
    "/api/fal/proxy": "leads to the routes here, which ask",
}
#: What programs and language models read of the contract; nothing of anyone's.
DOCUMENTS = re.compile(r"/openapi\.json$|/llms\.txt$")
FILLED = {"file_id": "0" * 32, "upload_id": "0" * 32, "number": "1", "name": "a.png", "request_id": "x"}


def calls(house: House) -> Iterator[tuple[str, str]]:
    for route in house.app.routes:
        assert isinstance(route, Route)
        for method in (route.methods or {"GET", "POST", "PUT"}) - {"HEAD", "OPTIONS"}:
            yield method, route.path


def fill(path: str) -> str:
    return re.sub(r"\{(\w+)(?::\w+)?\}", lambda found: FILLED.get(found[1], "fal-ai/stable-video"), path)


async def test_k01_every_route_asks_for_a_key_on_a_public_address_too(house: House) -> None:
    house.rebuild(host="0.0.0.0")
    asked: set[str] = set()
    async with house.client(key=None, base="http://films.example", peer="203.0.113.9") as client:
        for method, path in calls(house):
            answer = await client.request(method, fill(path))
            if path in OPEN:
                assert answer.status_code in (200, 400, 403, 404, 405), (method, path, answer.status_code)
            elif not DOCUMENTS.search(path):
                assert answer.status_code in (401, 404, 405), (method, path, answer.status_code)
                if answer.status_code == 401:
                    asked.add(path)
        closed = {path for _, path in calls(house) if path not in OPEN and not DOCUMENTS.search(path)}
    assert asked == closed


async def test_a_server_without_any_key_in_force_lets_no_one_in(house: House) -> None:
    house.rebuild(host="0.0.0.0", key_cache_s=0)
    async with house.client(base="http://films.example") as client:
        path = "/queue/fal-ai/stable-video/requests/x/status"
        assert (await client.get(path)).status_code == 404
        house.clock.advance(1)
        key_id = house.key.partition(":")[0]
        assert house.store.write_now(lambda conn: revoke_key(conn, key_id, house.clock.now()))
        assert (await client.get(path)).status_code == 401


def test_a_lent_key_is_refused_on_a_public_address_unless_its_pages_are_named(tmp_path: Path) -> None:
    env = {"STILLMOTION_PROXY_KEY": "id:secret", "STILLMOTION_DATA_DIR": str(tmp_path / "data")}
    told = run_cli("serve", "--host", "0.0.0.0", "--port", "0", env=env)
    assert told.returncode != 0
    assert "STILLMOTION_PROXY_ORIGINS" in told.stderr and "secret" not in told.stderr
    assert not (tmp_path / "data").exists()


def test_a_server_on_every_network_has_a_key_from_its_first_start_and_keeps_it_to_its_owner(
    tmp_path: Path,
) -> None:
    env = {"STILLMOTION_PROXY_KEY": "id:secret", "STILLMOTION_PROXY_ORIGINS": "https://pages.example"}
    with Server(tmp_path / "d", engine=TIMED_ENGINE, env=env, options=["--host", "0.0.0.0"]) as server:
        assert server.key.partition(":")[2] not in server.output()
        assert "travel in clear text" in server.output()
        with server.client() as client:
            path = "/queue/fal-ai/stable-video/requests/x/status"
            assert client.get(path, headers={"Host": "films.example"}).status_code == 404
            assert client.get(path, headers={"Authorization": ""}).status_code == 401

"""Files of all sizes through the real clients: byte-equal, with the type, name and life they were given."""

import hashlib
import json
import shutil
import ssl
import sys
from collections.abc import Callable, Iterator
from email.utils import parsedate_to_datetime
from pathlib import Path

import httpx
import pytest

from tests.conformance.conftest import JS
from tests.conformance.programs import Outcome, outcomes, run
from tests.server import PATIENCE_S, Server

HELLO = b"Hello, World!"
PYTHON = (
    "small",
    "unnamed",
    "by_initiate",
    "file",
    "expiring",
    "hidden",
    "large",
    "film_of_upload",
    "film_of_encoded",
)
JAVASCRIPT = {
    "@fal-ai/client": ("small", "unnamed", "untyped", "expiring", "hidden", "film_expiring"),
    # Neither knows lifecycles.
    "@fal-ai/serverless-client": ("small", "unnamed", "untyped"),
    "serverless-client-0.9": ("small", "unnamed"),
}
CLIENTS = ["fal_client sync", "fal_client async", *JAVASCRIPT]


#: What a client's actions came to, by the client's name.
Uploads = Callable[[str], dict[str, Outcome]]
Fetch = Callable[..., httpx.Response]


@pytest.fixture(scope="module")
def server(timed_server: Server) -> Iterator[Server]:
    yield timed_server
    shutil.rmtree(timed_server.data_dir / "media" / "uploads")


@pytest.fixture(scope="module")
def bundle(server: Server) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(server.ca_bundle))


@pytest.fixture(scope="module")
def uploads(node: Path, server: Server, picture: Path) -> Uploads:
    """Everything one client uploads; each client runs once."""
    done: dict[str, dict[str, Outcome]] = {}

    def perform(client: str) -> dict[str, Outcome]:
        if client not in done:
            if client in JAVASCRIPT:
                plan = {"package": client, "server": server.url, "actions": JAVASCRIPT[client]}
                command = [node, JS / "uploads.mjs", json.dumps(plan)]
                env = {}
            else:
                program = Path(__file__).parent / "uploads.py"
                command = [sys.executable, program, client.split()[1], picture, *PYTHON]
                env = {"HTTPS_PROXY": server.url, "SSL_CERT_FILE": str(server.ca_bundle)}
            done[client] = outcomes(run(command, {"FAL_KEY": server.key, **env}, timeout_s=600))
        return done[client]

    return perform


@pytest.fixture
def fetch(server: Server, bundle: ssl.SSLContext) -> Fetch:
    """GET a file where its URL says, fal's names included."""

    def get(url: str, key: str | None = None) -> httpx.Response:
        headers = {} if key is None else {"Authorization": f"Key {key}"}
        proxies = {"https://": httpx.HTTPTransport(proxy=server.url, verify=bundle)}
        with httpx.Client(mounts=proxies, trust_env=False, timeout=PATIENCE_S) as client:
            return client.get(url, headers=headers)

    return get


@pytest.mark.parametrize("client", CLIENTS)
def test_a_small_file_comes_back_byte_equal_with_its_type_and_name(
    client: str,
    uploads: Uploads,
    fetch: Fetch,
    server: Server,
) -> None:
    url = uploads(client)["small"].film()["url"]
    base = "https://v3.fal.media" if client.startswith("fal_client") else f"{server.url}/cdn"
    assert url.startswith(f"{base}/files/")
    assert url.endswith("/hello.txt")
    got = fetch(url)
    assert (got.content, got.headers["content-type"]) == (HELLO, "text/plain")
    unnamed = fetch(uploads(client)["unnamed"].film()["url"])
    assert (unnamed.content, unnamed.headers["content-type"]) == (HELLO, "text/plain")


@pytest.mark.parametrize("client", CLIENTS[:2])
def test_parts_keep_the_type_and_the_life_that_the_whole_was_given(
    client: str,
    uploads: Uploads,
    fetch: Fetch,
    server: Server,
) -> None:
    value = uploads(client)["large"].film()
    assert fetch(value["url"]).status_code == 404
    got = fetch(value["url"], server.key)
    assert hashlib.sha256(got.content).hexdigest() == value["digest"]
    assert got.headers["content-type"] == "application/x-large"


@pytest.mark.parametrize("client", [*CLIENTS[:2], "@fal-ai/client"])
def test_lifecycles_are_obeyed(
    client: str,
    uploads: Uploads,
    fetch: Fetch,
    server: Server,
) -> None:
    expiring = fetch(uploads(client)["expiring"].film()["url"])
    seconds = parsedate_to_datetime(expiring.headers["expires"]).timestamp()
    sent = parsedate_to_datetime(expiring.headers["last-modified"]).timestamp()
    assert 3600 <= seconds - sent < 3600 + PATIENCE_S
    hidden = uploads(client)["hidden"].film()["url"]
    assert fetch(hidden).status_code == 404
    assert fetch(hidden, server.key).content == HELLO


@pytest.mark.parametrize("client", CLIENTS[:2])
def test_every_python_way_to_hand_over_a_picture_works(
    client: str,
    uploads: Uploads,
    fetch: Fetch,
    picture: Path,
) -> None:
    did = uploads(client)
    assert fetch(did["file"].film()["url"]).content == picture.read_bytes()
    assert fetch(did["by_initiate"].film()["url"]).content == HELLO
    for action in ("film_of_upload", "film_of_encoded"):
        film = fetch(did[action].film()["video"]["url"])
        assert film.headers["content-type"] == "video/mp4"


@pytest.mark.parametrize("client", ["@fal-ai/client", "@fal-ai/serverless-client"])
def test_a_file_without_a_type_gets_the_one_its_bytes_show(
    client: str, uploads: Uploads, fetch: Fetch
) -> None:
    assert fetch(uploads(client)["untyped"].film()["url"]).headers["content-type"] == "image/png"


def test_a_film_lives_as_long_and_for_whom_its_caller_asked(
    uploads: Uploads, fetch: Fetch, server: Server
) -> None:
    url = uploads("@fal-ai/client")["film_expiring"].film()["data"]["video"]["url"]
    assert fetch(url).status_code == 403
    film = fetch(url, server.key)
    assert film.headers["content-type"] == "video/mp4"
    left = parsedate_to_datetime(film.headers["expires"]) - parsedate_to_datetime(film.headers["date"])
    assert 3600 - PATIENCE_S < left.total_seconds() <= 3600

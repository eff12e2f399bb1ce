"""The JavaScript clients in a real browser, through the proxy route: same-origin and across origins."""

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from stillmotion.cli.datadir import FIRST_KEY
from tests.conformance.chromium import Chromium, find_chromium
from tests.conformance.conftest import JS
from tests.server import TIMED_ENGINE, Server, run_cli

CHROMIUM = find_chromium()
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium here; `apt install chromium` brings one, then run this again"
)
PACKAGES = {"client": "@fal-ai/client", "serverless-client-0.15": "@fal-ai/serverless-client"}
ACTIONS = ("subscribe", "stream", "picture", "bad_input")
Did = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that lends a key to its own pages."""
    data_dir = tmp_path_factory.mktemp("lending")
    made = run_cli("keys", "create", "pages", "--data-dir", str(data_dir))
    assert made.returncode == 0, made.stderr
    key = made.stdout.splitlines()[-1]
    (data_dir / FIRST_KEY).write_text(key)
    env = {"STILLMOTION_PROXY_KEY": key}
    with Server(data_dir, engine=TIMED_ENGINE, env=env) as running:
        yield running


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    assert CHROMIUM is not None
    with closing(Chromium(CHROMIUM, tmp_path_factory.mktemp("profile"))) as running:
        yield running


@pytest.fixture(scope="module")
def bundle(node: Path) -> Callable[[str], str]:
    """Give a page's script with one client in it, as a bundler makes it."""

    def build(client: str) -> str:
        words = [JS / "node_modules/.bin/esbuild", JS / "page.mjs", "--bundle", "--format=iife"]
        words.append(f"--alias:CLIENT={PACKAGES[client]}")
        # esbuild's own launcher is a node program.
        env = {**os.environ, "PATH": os.pathsep.join([str(node.parent), os.environ["PATH"]])}
        return subprocess.run(words, capture_output=True, text=True, check=True, cwd=JS, env=env).stdout

    return build


def perform(browser: Chromium, page: str, script: str, config: dict[str, Any], *actions: str) -> Did:
    session = browser.open(page)
    browser.run(session, script)
    return browser.run(session, f"perform({json.dumps(config)}, {json.dumps(actions)})")


def assert_all_done(did: Did, server: Server) -> None:
    for name in ("subscribe", "stream", "picture"):
        film = did[name].get("value")
        assert film is not None, did[name]
        assert film["url"].startswith(f"{server.url}/cdn/files/")
        assert (film["whole"], film["type"]) == (True, "video/mp4")
    # Milliseconds between first and last event: nothing between them and the page holds them back.
    assert did["stream"]["value"]["spread"] > 100
    assert did["subscribe"]["value"]["messages"]
    assert (did["bad_input"]["error"]["name"], did["bad_input"]["error"]["status"]) == (
        "ValidationError",
        422,
    )


@pytest.mark.parametrize("client", PACKAGES)
def test_a_page_of_the_servers_own_needs_no_key(
    browser: Chromium, server: Server, bundle: Callable[[str], str], client: str
) -> None:
    page = f"{server.url}/healthz"
    assert_all_done(perform(browser, page, bundle(client), {"proxyUrl": "/api/fal/proxy"}, *ACTIONS), server)


def test_a_page_elsewhere_uses_its_own_key_and_reads_request_ids(
    browser: Chromium, server: Server, bundle: Callable[[str], str], picture_url: str
) -> None:
    config = {"proxyUrl": f"{server.url}/api/fal/proxy", "credentials": server.key}
    did = perform(browser, picture_url, bundle("client"), config, *ACTIONS)
    assert_all_done(did, server)
    assert did["subscribe"]["value"]["requestId"]
    assert did["bad_input"]["error"]["requestId"]
    assert did["bad_input"]["error"]["body"]["detail"][0]["loc"] == ["body", "fps"]


def test_a_page_elsewhere_is_lent_no_key(
    browser: Chromium, server: Server, bundle: Callable[[str], str], picture_url: str
) -> None:
    config = {"proxyUrl": f"{server.url}/api/fal/proxy"}
    did = perform(browser, picture_url, bundle("client"), config, "subscribe")
    assert did["subscribe"]["error"]["status"] == 401

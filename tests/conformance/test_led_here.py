"""Programs that know nothing of this server, led to it whole by `stillmotion run` or by a proxyUrl."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conformance.conftest import JS
from tests.conformance.programs import Outcome, outcomes, run
from tests.conformance.test_fal_client import ACTIONS, HERE
from tests.server import Server, command

PACKAGES = {
    "client": "@fal-ai/client",
    "serverless-client-0.15": "@fal-ai/serverless-client",
    "serverless-client-0.9": "serverless-client-0.9",
}
#: 0.9 knows no status stream.
JS_ACTIONS = ("subscribe", "run", "stream", "uploaded_file", "bad_input", "streaming")


def led(server: Server, *words: str | Path) -> list[str | Path]:
    return [*command("run", "--data-dir", str(server.data_dir), "--"), *words]


def js(node: Path, plan: dict[str, Any]) -> list[str | Path]:
    return [node, JS / "unmodified.mjs", json.dumps(plan)]


def assert_filmed(did: dict[str, Outcome], *names: str) -> None:
    for name in names:
        film = did[name].film()
        assert (film["whole"], film["box"]) == (True, "ftyp"), name


@pytest.mark.parametrize("program", ["fal_client_sync.py", "fal_client_async.py"])
def test_a_python_program_needs_no_setting_at_all(timed_server: Server, program: str) -> None:
    did = outcomes(run(led(timed_server, sys.executable, HERE / program, *ACTIONS), {}))
    for name in ("subscribe", "submit", "run"):
        assert did[name].film()["video"]["url"].startswith("https://v3.fal.media/files/")
    assert all(url.startswith("https://queue.fal.run/") for url in did["submit"].value["urls"])
    assert [end["error_type"] for end in did["cancel"].value["ends"]] == ["client_cancelled"] * 2
    assert did["bad_input"].refusal()["status"] == did["missing_input"].refusal()["status"] == 422
    assert did["wrong_key"].refusal()["status"] == 401


def test_python_uploads_reach_this_server_by_their_fixed_hosts(timed_server: Server, picture: Path) -> None:
    actions = ("upload_file", "upload_async", "upload_large")
    words = (sys.executable, HERE / "fal_client_uploads.py", picture, *actions)
    did = outcomes(run(led(timed_server, *words), {}))
    for name in actions:
        assert did[name].value["url"].startswith("https://v3.fal.media/files/")
        assert did[name].value["same"], name
    for name in actions[:2]:
        assert did[name].value["film"] == {"whole": True, "box": "ftyp"}


@pytest.mark.parametrize("client", PACKAGES)
def test_a_node_program_needs_no_setting_at_all(
    node: Path, timed_server: Server, picture: Path, client: str
) -> None:
    actions = JS_ACTIONS[:5] if client == "serverless-client-0.9" else JS_ACTIONS
    plan = {"package": PACKAGES[client], "picture": str(picture), "actions": actions}
    did = outcomes(run(led(timed_server, *js(node, plan)), {}))
    assert_filmed(did, *(name for name in actions if name != "bad_input"))
    assert did["stream"].value["events"] >= 2
    assert did["uploaded_file"].value["same"]
    error = did["bad_input"].refusal()
    assert (error["name"], error["status"]) == ("ValidationError", 422)


def test_a_node_program_with_proxy_url_always(node: Path, timed_server: Server, picture: Path) -> None:
    proxy = f"{timed_server.url}/api/fal/proxy"
    plan = {"package": "@fal-ai/client", "proxyUrl": proxy, "picture": str(picture), "actions": JS_ACTIONS}
    did = outcomes(run(js(node, plan), {"FAL_KEY": timed_server.key}))
    assert_filmed(did, "subscribe", "streaming", "run", "stream", "uploaded_file")
    assert did["uploaded_file"].value["same"]
    url = did["subscribe"].value["video"]["url"]
    assert url.startswith(f"{timed_server.url}/cdn/files/")
    assert [field["loc"] for field in did["bad_input"].refusal()["fieldErrors"]] == [["body", "fps"]]
    refused = outcomes(run(js(node, {**plan, "actions": ["run"]}), {}))["run"].refusal()
    assert refused["status"] == 401, "a program is no page, and is lent no key"


@pytest.fixture
def backend(node: Path, timed_server: Server) -> Iterator[str]:
    """An app's own backend, which adds the key to what its pages ask, and thinks it calls fal."""
    words = led(timed_server, node, JS / "server_proxy.mjs")
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{int(process.stdout.readline())}/api/fal/proxy"
        # `run` became the program, so this reaches node itself.
        process.terminate()


def test_fals_server_proxy_in_an_apps_backend(
    node: Path, timed_server: Server, picture: Path, backend: str
) -> None:
    plan = {"package": "@fal-ai/client", "proxyUrl": backend, "picture": str(picture), "actions": JS_ACTIONS}
    # The client holds no key; it is led here too, for the addresses in answers are fal's.
    words = ["env", "-u", "FAL_KEY", *js(node, plan)]
    did = outcomes(run(led(timed_server, *words), {}))
    assert_filmed(did, "subscribe", "streaming", "run", "stream", "uploaded_file")
    assert did["uploaded_file"].value["same"]
    assert did["bad_input"].refusal()["status"] == 422

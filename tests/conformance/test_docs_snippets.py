"""README.md, docs/clients.md and what the server shows, run: snippets as printed, but with its addresses."""

import json
import os
import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from stillmotion.endpoints import ENDPOINTS
from stillmotion.profiles import load_profile
from tests.conformance.conftest import JS
from tests.conformance.programs import run
from tests.server import Server

PAGES = ("README.md", "docs/clients.md")
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PROGRAMS = {
    "js": ("snippet.mjs", "node"),
    "python": ("snippet.py", "python"),
    "sh": ("snippet.sh", "bash -eu"),
}
#: How the served pages name the same.
LANGUAGES = {"bash": "sh", "javascript": "js"}


@dataclass(frozen=True)
class Snippet:
    place: str
    language: str
    text: str
    #: The `export` lines above it, without the one that makes a key.
    exports: str


def page_of(path: str) -> str:
    return (Path(__file__).parents[2] / path).read_text()


def read_page(path: str) -> tuple[str, list[Snippet]]:
    """Split a page into the line that makes a key and the snippets that use it."""
    found: list[Snippet] = []
    making_a_key, exports = "", ""
    page = page_of(path)
    for match in FENCE.finditer(page):
        language, text = match.groups()
        if text.startswith("export FAL_KEY="):
            making_a_key = text
        elif text.startswith("export "):
            exports += text
        else:
            place = f"{path}:{page.count(chr(10), 0, match.start()) + 1}"
            found.append(Snippet(place, language, text, exports))
    return making_a_key, found


(_, README), (MAKING_A_KEY, CLIENTS) = map(read_page, PAGES)


def for_server(text: str, server: Server) -> str:
    text = text.replace("http://127.0.0.1:8000", server.url)
    text = text.replace("localhost:8443", f"localhost:{server.tls_port}")
    # Its own port is 0 here: only who names one finds it on the page.
    text = text.replace("127.0.0.1:TLS_PORT", f"127.0.0.1:{server.tls_port}")
    return text.replace("stillmotion-data", str(server.data_dir))


@pytest.fixture(scope="module")
def search_path(node: Path) -> str:
    return os.pathsep.join([str(node.parent), str(Path(sys.executable).parent), os.environ["PATH"]])


@pytest.fixture(scope="module")
def documented_key(search_path: str, timed_server: Server) -> str:
    script = for_server(MAKING_A_KEY, timed_server) + 'echo "$FAL_KEY"'
    return run(["bash", "-euc", script], {"PATH": search_path}).strip()


def test_the_page_makes_a_key_while_the_server_runs(documented_key: str, timed_server: Server) -> None:
    assert re.fullmatch(r"[^:\s]+:[^:\s]+", documented_key)
    assert documented_key != timed_server.key


@pytest.mark.parametrize("snippet", [*README, *CLIENTS], ids=lambda snippet: snippet.place)
def test_snippet_runs_as_printed(
    snippet: Snippet,
    search_path: str,
    documented_key: str,
    timed_server: Server,
    picture: Path,
    tmp_path: Path,
) -> None:
    shutil.copy(picture, tmp_path / "rocket.png")
    env = {
        "PATH": search_path,
        "FAL_KEY": documented_key,
        "STILLMOTION_DATA_DIR": str(timed_server.data_dir),
    }
    printed = run_snippet(snippet, timed_server, env, tmp_path)
    refused = '"fps": 5' in snippet.text
    assert ("greater_than_equal" if refused else "/files/") in printed, printed
    for film in tmp_path.glob("*.mp4"):
        assert film.read_bytes()[4:8] == b"ftyp"


@pytest.mark.parametrize("path", PAGES)
def test_every_prompt_of_a_sample_is_of_something_the_shipped_weights_can_draw(path: str) -> None:
    weights = load_profile("pocket").weights_dir(Path())
    (vocabulary,) = weights.rglob("vocabulary.json")
    objects = json.loads(vocabulary.read_text())["objects"]
    prompts = re.findall(r'prompt"?: "([^"]+)"', page_of(path))
    assert prompts
    for prompt in prompts:
        assert objects.keys() & set(prompt.lower().split()), prompt


@pytest.mark.parametrize("language", PROGRAMS)
def test_snippet_of_the_servers_own_page_runs_as_served(
    language: str, search_path: str, documented_key: str, timed_server: Server, tmp_path: Path
) -> None:
    endpoint = next(iter(ENDPOINTS))
    served = httpx.get(f"{timed_server.url}/models/{endpoint}/llms.txt", trust_env=False).text
    texts = {LANGUAGES.get(name, name): text for name, text in FENCE.findall(served)}
    snippet = Snippet("llms.txt", language, texts[language], "")
    bundle = timed_server.data_dir / "tls" / "bundle.pem"
    env = {"PATH": search_path, "FAL_KEY": documented_key, "SSL_CERT_FILE": str(bundle)}
    assert "/files/" in run_snippet(snippet, timed_server, env, tmp_path)


def run_snippet(snippet: Snippet, server: Server, env: dict[str, str], folder: Path) -> str:
    (folder / "node_modules").symlink_to(JS / "node_modules")
    name, program = PROGRAMS[snippet.language]
    (folder / name).write_text(for_server(snippet.text, server))
    script = f"{for_server(snippet.exports, server)}\nexec {program} {name}\n"
    return run(["bash", "-euc", script], env, cwd=folder)

"""docs/clients.md, run: every snippet as printed, but with the addresses of the test's own server."""

import os
import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conformance.conftest import JS
from tests.conformance.programs import run
from tests.server import Server

PAGE = Path(__file__).parents[2] / "docs" / "clients.md"


@dataclass(frozen=True)
class Snippet:
    line: int
    language: str
    text: str
    #: The `export` lines above it, without the one that makes a key.
    exports: str


def read_page() -> tuple[str, list[Snippet]]:
    """Split the page into the line that makes a key and the snippets that use it."""
    found: list[Snippet] = []
    making_a_key, exports = "", ""
    page = PAGE.read_text()
    for match in re.finditer(r"^```(\w+)\n(.*?)^```$", page, re.MULTILINE | re.DOTALL):
        language, text = match.groups()
        if text.startswith("export FAL_KEY="):
            making_a_key = text
        elif text.startswith("export "):
            exports += text
        else:
            found.append(Snippet(page.count("\n", 0, match.start()) + 1, language, text, exports))
    return making_a_key, found


MAKING_A_KEY, SNIPPETS = read_page()


def for_server(text: str, server: Server) -> str:
    text = text.replace("http://127.0.0.1:8000", server.url)
    text = text.replace("localhost:8443", f"localhost:{server.tls_port}")
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


@pytest.mark.parametrize("snippet", SNIPPETS, ids=lambda snippet: f"{snippet.language}-line{snippet.line}")
def test_snippet_runs_as_printed(
    snippet: Snippet,
    search_path: str,
    documented_key: str,
    timed_server: Server,
    picture: Path,
    tmp_path: Path,
) -> None:
    shutil.copy(picture, tmp_path / "rocket.png")
    (tmp_path / "node_modules").symlink_to(JS / "node_modules")
    name, program = {
        "js": ("snippet.mjs", "node"),
        "python": ("snippet.py", "python"),
        "sh": ("snippet.sh", "bash -eu"),
    }[snippet.language]
    (tmp_path / name).write_text(for_server(snippet.text, timed_server))
    script = f"{for_server(snippet.exports, timed_server)}\nexec {program} {name}\n"
    env = {"PATH": search_path, "FAL_KEY": documented_key}
    printed = run(["bash", "-euc", script], env, cwd=tmp_path)
    refused = '"fps": 5' in snippet.text
    assert ("greater_than_equal" if refused else "/files/") in printed, printed
    for film in tmp_path.glob("*.mp4"):
        assert film.read_bytes()[4:8] == b"ftyp"

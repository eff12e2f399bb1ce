"""Real server processes, shared by all tests here: one with the timed engine, one with the pocket weights."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from tests.conformance.matrix import as_table
from tests.server import TIMED_ENGINE, Server

JS = Path(__file__).parent.parent / "js"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the conformance matrix, if any of its cells ran."""
    found = {
        dict(report.user_properties)["cell"]: word
        for outcome, word in (("passed", "ok"), ("failed", "FAILED"), ("error", "FAILED"))
        for report in terminalreporter.stats.get(outcome, [])
        if "cell" in dict(report.user_properties)
    }
    if found:
        terminalreporter.section("conformance matrix")
        terminalreporter.write_line(as_table({tuple(cell): word for cell, word in found.items()}))


@pytest.fixture(scope="session")
def node() -> Path:
    """Install the JavaScript clients and return the node that runs them."""
    done = subprocess.run([sys.executable, JS / "setup"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.splitlines()[-1])


@pytest.fixture(scope="session")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A 640x360 drawing of a rocket; its shape asks for the 1024x576 bucket."""
    path = tmp_path_factory.mktemp("pictures") / "rocket.png"
    image = Image.new("RGB", (640, 360), (24, 32, 72))
    draw = ImageDraw.Draw(image)
    draw.rectangle((290, 120, 350, 280), fill=(220, 220, 230))
    draw.polygon([(290, 120), (350, 120), (320, 60)], fill=(200, 40, 40))
    draw.polygon([(300, 280), (340, 280), (320, 340)], fill=(250, 180, 40))
    image.save(path)
    return path


@pytest.fixture(scope="session")
def picture_url(picture: Path) -> Iterator[str]:
    """The drawing on a web server of its own, which the Stillmotion servers here may fetch from."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

    host = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(picture.parent)))
    threading.Thread(target=host.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{host.server_port}/{picture.name}"
    host.shutdown()
    host.server_close()


@pytest.fixture(scope="session")
def timed_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose films come by the timetable in the prompt: quick, or slow enough to be cancelled."""
    data_dir = tmp_path_factory.mktemp("timed")
    env = {
        "STILLMOTION_FETCH_ALLOW": "127.0.0.1",
        "STILLMOTION_WEBHOOK_ALLOW": "127.0.0.1",
        # A start deadline that has passed is noticed by the sweep.
        "STILLMOTION_SWEEP_S": "0.1",
    }
    with Server(data_dir, engine=TIMED_ENGINE, tls=True, env=env) as server:
        yield server
        secret = server.key.partition(":")[2]
    log = server.output()
    assert "Traceback" not in log, "a caller's mistake is one line in the log"
    assert secret not in log


@pytest.fixture(scope="session")
def pocket_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server as a user starts it, with the pocket weights."""
    data_dir = tmp_path_factory.mktemp("pocket")
    with Server(data_dir, env={"STILLMOTION_FETCH_ALLOW": "127.0.0.1"}) as server:
        yield server

"""The conformance matrix in a headless Chromium: @fal-ai/client in a page; argv: a plan as JSON, node's path.

With `proxyUrl` the page is one of the server's own; else it comes from another origin, so that every call
is one that CORS must allow.
"""

import json
import os
import subprocess
import sys
import threading
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.conformance.chromium import Chromium, find_chromium

JS = Path(__file__).parent.parent / "js"


class Page(BaseHTTPRequestHandler):
    """A page of another origin, with nothing on it."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


def bundled(node: str) -> str:
    esbuild = JS / "node_modules/.bin/esbuild"
    words = [esbuild, JS / "matrix_page.mjs", "--bundle", "--format=iife", "--log-level=error"]
    env = {**os.environ, "PATH": os.pathsep.join([str(Path(node).parent), os.environ["PATH"]])}
    return subprocess.run(words, capture_output=True, text=True, check=True, env=env).stdout


def main() -> None:
    plan = {**json.loads(sys.argv[1]), "credentials": os.environ["FAL_KEY"]}
    program = find_chromium()
    assert program is not None
    other = ThreadingHTTPServer(("127.0.0.1", 0), Page)
    threading.Thread(target=other.serve_forever, daemon=True).start()
    address = plan.get("page") or f"http://127.0.0.1:{other.server_port}/"
    with TemporaryDirectory() as profile, closing(Chromium(program, Path(profile))) as browser:
        session = browser.open(address)
        browser.run(session, bundled(sys.argv[2]))
        for outcome in browser.run(session, f"performMatrix({json.dumps(plan)})"):
            print(json.dumps(outcome))
    other.shutdown()


main()

"""A headless Chromium driven through its DevTools pipe: pages are opened, scripts run in them."""

import json
import os
import shutil
import subprocess
from itertools import count
from pathlib import Path
from typing import Any

from tests.server import wait_until

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--no-first-run",
    "--remote-debugging-pipe",
)


def find_chromium() -> str | None:
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Chromium:
    """One browser process with a profile of its own; `close` ends it."""

    def __init__(self, program: str, profile: Path) -> None:
        theirs_in, self._out = os.pipe()
        answers, theirs_out = os.pipe()
        # The pipe is file descriptors 3 and 4, whatever their numbers are here.
        script = f'exec "$@" 3<&{theirs_in} 4>&{theirs_out}'
        words = [program, *FLAGS, f"--user-data-dir={profile}", "about:blank"]
        self._process = subprocess.Popen(
            ["bash", "-c", script, "bash", *words],
            pass_fds=(theirs_in, theirs_out),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self._answers = os.fdopen(answers, "rb")
        self._numbers = count(1)

    def open(self, url: str) -> str:
        """Open a page and return what later calls name it by."""
        target = self._send("Target.createTarget", {"url": url})["result"]["targetId"]
        attached = self._send("Target.attachToTarget", {"targetId": target, "flatten": True})
        session: str = attached["result"]["sessionId"]

        def loaded() -> bool:
            # Until the page is there, scripts run in about:blank or in nothing.
            asked = {"expression": "`${location.href} ${document.readyState}`"}
            answer = self._send("Runtime.evaluate", asked, session)
            return answer.get("result", {}).get("result", {}).get("value") == f"{url} complete"

        wait_until(loaded, url)
        return session

    def run(self, session: str, script: str) -> Any:
        """Return the value of a script, awaited if it is a promise."""
        wanted = {"expression": script, "awaitPromise": True, "returnByValue": True}
        answer = self._send("Runtime.evaluate", wanted, session)
        assert "exceptionDetails" not in answer.get("result", {"exceptionDetails": ""}), answer
        return answer["result"]["result"].get("value")

    def _send(self, method: str, params: dict[str, Any], session: str | None = None) -> dict[str, Any]:
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": params}
        if session is not None:
            message["sessionId"] = session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self._out, data) :]
        while True:
            told = json.loads(self._read())
            if told.get("id") == number:
                return told

    def _read(self) -> bytes:
        read = bytearray()
        while (byte := self._answers.read(1)) != b"\0":
            assert byte, f"the browser ended, exit status {self._process.wait()}"
            read += byte
        return bytes(read)

    def close(self) -> None:
        os.close(self._out)
        try:
            # Without its pipe a browser ends by itself.
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._answers.close()

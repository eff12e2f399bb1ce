"""A real `stillmotion serve` process for tests: free ports, its own data directory, ended with certainty."""

import os
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

from stillmotion.cli.datadir import ANNOUNCEMENT, FIRST_KEY, Announcement, read_announcement

ROOT = Path(__file__).parent.parent
TIMED_ENGINE = "tests.timed_engine:open"
#: Machines that run tests are slow and busy; a healthy server needs a tenth of it.
PATIENCE_S = 120
#: For plain HTTP: without it each client reads this machine's roots, which takes longer than its calls.
NO_ROOTS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


def wait_until(condition: Callable[[], Any], what: str, timeout_s: float = PATIENCE_S) -> Any:
    """Return the first truthy answer of `condition`; fail with `what` at the deadline."""
    deadline = time.monotonic() + timeout_s
    while True:
        if answer := condition():
            return answer
        if time.monotonic() > deadline:
            raise AssertionError(f"still waiting after {timeout_s:g} s: {what}")
        time.sleep(0.02)


def ask_readiness(url: str, timeout_s: float = PATIENCE_S) -> httpx.Response:
    return httpx.get(f"{url}/readyz", timeout=timeout_s, trust_env=False, verify=NO_ROOTS)


def environment(settings: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment a server is started with: this one's, less its settings."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("STILLMOTION_")}
    return {**kept, "PYTHONUNBUFFERED": "1", **(settings or {})}


def command(*words: str, program: str = "stillmotion") -> list[str]:
    return [sys.executable, "-m", program, *words]


def run_cli(
    *words: str, env: Mapping[str, str] | None = None, timeout_s: float = PATIENCE_S
) -> subprocess.CompletedProcess[str]:
    """Run the command line to its end."""
    return subprocess.run(
        command(*words),
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
        env=environment(env),
        cwd=ROOT,
    )


class Server:
    """Starts on construction; as a context manager it is also stopped.

    Without `engine` it runs the pocket weights; TIMED_ENGINE is quick and does as the prompt says. `env`
    takes `STILLMOTION_…` settings, `options` further words for the command line, `program` the module that
    is run.
    """

    def __init__(
        self,
        data_dir: Path,
        *,
        engine: str | None = None,
        tls: bool = False,
        env: Mapping[str, str] | None = None,
        options: Sequence[str] = (),
        program: str = "stillmotion",
        wait: bool = True,
    ) -> None:
        self.data_dir = data_dir
        self.log = data_dir.with_name(data_dir.name + ".log")
        self._engine = engine
        self._program = program
        self._env = env
        self._options = [*(["--tls-port", "0"] if tls else []), *options]
        self.process = self._start()
        if wait:
            try:
                self.wait_ready()
            except BaseException:
                self.stop()
                raise

    def _start(self) -> subprocess.Popen[bytes]:
        # A killed server leaves its announcement behind; the next one's must not be mistaken for it.
        (self.data_dir / ANNOUNCEMENT).unlink(missing_ok=True)
        words = ["serve", "--port", "0", "--data-dir", str(self.data_dir), "--profile", "pocket"]
        if self._engine is not None:
            words += ["--engine", self._engine]
        with self.log.open("ab") as log:
            return subprocess.Popen(
                command(*words, *self._options, program=self._program),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment(self._env),
                cwd=ROOT,
            )

    def wait_listening(self) -> None:
        def listening() -> bool:
            assert self.process.poll() is None, f"the server ended: {self.output()}"
            return (self.data_dir / ANNOUNCEMENT).exists()

        wait_until(listening, "server.json")

    def wait_ready(self) -> None:
        """Wait until a runner can take work."""
        self.wait_listening()

        def ready() -> bool:
            assert self.process.poll() is None, f"the server ended: {self.output()}"
            return ask_readiness(self.url).status_code == 200

        wait_until(ready, f"/readyz of {self.url}")

    @property
    def announcement(self) -> Announcement:
        announcement = read_announcement(self.data_dir)
        assert announcement is not None, "the server is not listening"
        return announcement

    @property
    def url(self) -> str:
        return self.announcement.http

    @property
    def tls_url(self) -> str:
        url = self.announcement.https
        assert url is not None, "start it with tls=True"
        return url

    @property
    def tls_port(self) -> int:
        port = httpx.URL(self.tls_url).port
        assert port is not None
        return port

    @property
    def ca_bundle(self) -> Path:
        """System roots and the server's CA, for SSL_CERT_FILE."""
        return self.data_dir / "tls" / "bundle.pem"

    @property
    def key(self) -> str:
        """The key made at the first start, `id:secret`."""
        return (self.data_dir / FIRST_KEY).read_text().strip()

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Key {self.key}"}

    def client(self) -> httpx.Client:
        """A client that sends the first key."""
        return httpx.Client(
            base_url=self.url, headers=self.headers, timeout=PATIENCE_S, trust_env=False, verify=NO_ROOTS
        )

    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def terminate(self) -> None:
        """Send SIGTERM and return at once."""
        self.process.send_signal(signal.SIGTERM)

    def wait(self, timeout_s: float = PATIENCE_S) -> int:
        return self.process.wait(timeout_s)

    def kill(self) -> None:
        """SIGKILL the server alone, as the system does when memory is short."""
        self.process.kill()
        self.process.wait(PATIENCE_S)

    def restart(self) -> None:
        """Start again on the same data directory, after the process has ended, and wait until ready."""
        self.start_again()
        self.wait_ready()

    def start_again(self) -> None:
        """Start again and return at once."""
        assert self.process.poll() is not None, "stop it first"
        self.process = self._start()

    def stop(self) -> None:
        """End it, gently if it lets us."""
        if self.process.poll() is not None:
            return
        self.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.kill()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

"""The conformance matrix as one table: every client, every door it can come by, every action.

A row is a client and a door; the programs (`tests/js/matrix.mjs` and its likes) do all the actions of a row
in one process and print the same facts whatever the client. Without BASE the rows run against a server of the
test's own; with it, against that URL, or against fal itself when the URL is one of fal's.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from stillmotion.http.ways.doors import FAL_HOSTS
from tests.conformance.chromium import find_chromium
from tests.conformance.programs import KEPT, Outcome, outcomes
from tests.server import ROOT, Server, command

HERE = Path(__file__).parent
JS = HERE.parent / "js"
ACTIONS = (
    "subscribe",
    "subscribe_streaming",
    "run",
    "stream",
    "submit",
    "upload",
    "upload_large",
    "blob",
    "cancel_queued",
    "cancel_running",
    "invalid",
    "missing",
    "wrong_key",
    "start_timeout",
)
#: A row that takes longer hangs; a large upload on a busy machine takes a minute.
ROW_S = 600

#: What is tested when it is not a server of our own, and the key for it.
BASE = os.environ.get("CONFORMANCE_BASE", "").rstrip("/")
KEY = os.environ.get("CONFORMANCE_KEY", "")


@dataclass(frozen=True, kw_only=True)
class Site:
    """Where the programs find what they need."""

    base: str
    key: str
    #: None: someone else's server.
    server: Server | None
    node: Path
    picture: Path
    #: Address of an app's own backend with fal's proxy in it; started when first asked for.
    backend: Callable[[], str]

    def led(self, words: Sequence[str | Path]) -> list[str | Path]:
        """Return the command that runs a program which is told nothing of where to call."""
        if self.server is None:
            return list(words)
        return [*command("run", "--data-dir", str(self.server.data_dir), "--"), *words]

    def js(self, program: str, **plan: Any) -> list[str | Path]:
        return [self.node, JS / program, json.dumps({"picture": str(self.picture), **plan})]


@dataclass(frozen=True)
class Start:
    command: Sequence[str | Path]
    env: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True, kw_only=True)
class Row:
    client: str
    door: str
    start: Callable[[Site, Sequence[str]], Start]
    #: By action: why this client cannot do it by this door.
    cannot: Mapping[str, str]

    @property
    def name(self) -> str:
        return f"{self.client} by {self.door}"

    def files(self, site: Site) -> str:
        """Return how the address of a file begins that was asked for by this door of our own server."""
        if self.door in ("no setting", "names", "server-proxy"):
            return "https://v3.fal.media/files/"
        if self.door == "environment" and site.server is not None:
            return f"https://localhost:{site.server.tls_port}/cdn/files/"
        return f"{site.base}/cdn/files/"

    def barrier(self) -> str | None:
        """Say why this row cannot run against BASE."""
        if self.client.startswith("Chromium") and find_chromium() is None:
            return "there is no Chromium on this machine; `apt install chromium` brings one"
        if not BASE:
            return None
        fal = urlsplit(BASE).hostname in FAL_HOSTS
        if fal:
            return None if self.door == "no setting" else "fal itself is called without any setting"
        if self.door in ("no setting", "server-proxy", "names"):
            return "needs the server's own data directory, where its authority and its lead are"
        if self.door == "environment" and not BASE.startswith("https:"):
            return "fal_client speaks HTTPS alone, and BASE does not"
        return None

    def perform(self, site: Site) -> dict[str, Outcome]:
        """Do every action the row can; what the program left out failed with how it ended."""
        actions = [action for action in ACTIONS if action not in self.cannot]
        start = self.start(site, actions)
        kept = {name: os.environ[name] for name in KEPT if name in os.environ}
        done = subprocess.run(
            start.command,
            env={**kept, "FAL_KEY": site.key, **start.env},
            capture_output=True,
            text=True,
            timeout=ROW_S,
            check=False,
            cwd=ROOT,
        )
        ending = f"exit {done.returncode}: {done.stderr[-2000:]}"
        return {action: Outcome(error={"message": ending}) for action in actions} | outcomes(done.stdout)


def mapped(server: Server) -> dict[str, str]:
    """Return what the two programs that stand for a line in /etc/hosts want to know, and whom to trust."""
    return {
        "MAPPED_NAMES": " ".join(FAL_HOSTS),
        "MAPPED_PORT": str(server.tls_port),
        "SSL_CERT_FILE": str(server.ca_bundle),
        "NODE_EXTRA_CA_CERTS": server.announcement.ca,
    }


def by_js(package: str, door: str) -> Callable[[Site, Sequence[str]], Start]:
    def start(site: Site, actions: Sequence[str]) -> Start:
        plan: dict[str, Any] = {"package": package, "actions": actions}
        if door == "middleware":
            return Start(site.js("matrix.mjs", **plan, server=site.base))
        if door == "proxyUrl":
            return Start(site.js("matrix.mjs", **plan, proxyUrl=f"{site.base}/api/fal/proxy"))
        if door == "server-proxy":
            # The client holds no key; it is led here too, for the addresses in answers are fal's.
            words = ["env", "-u", "FAL_KEY", *site.js("matrix.mjs", **plan, proxyUrl=site.backend())]
            return Start(site.led(words))
        program = site.js("matrix.mjs", **plan)
        if door == "names" and site.server is not None:
            return Start([site.node, "--import", JS / "names.mjs", *program[1:]], mapped(site.server))
        return Start(site.led(program))

    return start


def by_python(which: str, door: str) -> Callable[[Site, Sequence[str]], Start]:
    def start(site: Site, actions: Sequence[str]) -> Start:
        words = [sys.executable, HERE / "matrix_python.py", which, site.picture, *actions]
        if door == "no setting":
            return Start(site.led(words))
        if door == "names" and site.server is not None:
            return Start(words, {**mapped(site.server), "PYTHONPATH": str(HERE / "names")})
        env = {}
        host = urlsplit(site.base).netloc
        if site.server is not None:
            host = f"localhost:{site.server.tls_port}"
            env["SSL_CERT_FILE"] = str(site.server.ca_bundle)
        return Start(words, {"FAL_RUN_HOST": f"{host}/run", "FAL_QUEUE_RUN_HOST": f"{host}/queue", **env})

    return start


def by_curl(door: str) -> Callable[[Site, Sequence[str]], Start]:
    names = {"run": "https://fal.run", "queue": "https://queue.fal.run", "rest": "https://rest.fal.ai"}

    def start(site: Site, actions: Sequence[str]) -> Start:
        plan: dict[str, Any] = {
            "actions": actions,
            "picture": str(site.picture),
            "bases": names,
            "options": [],
        }
        if door == "path":
            plan["bases"] = {plane: f"{site.base}/{plane}" for plane in names}
        elif door == "proxyUrl":
            plan["proxyUrl"] = f"{site.base}/api/fal/proxy"
        elif site.server is not None:
            here = f"localhost:{site.server.tls_port}"
            plan["options"] = ["--cacert", str(site.server.ca_bundle)]
            plan["options"] += [word for name in FAL_HOSTS for word in ("--connect-to", f"{name}:443:{here}")]
        return Start([sys.executable, HERE / "matrix_curl.py", json.dumps(plan)])

    return start


def by_browser(door: str) -> Callable[[Site, Sequence[str]], Start]:
    def start(site: Site, actions: Sequence[str]) -> Start:
        plan: dict[str, Any] = {"actions": actions, "server": site.base}
        if door == "proxyUrl":
            plan |= {"proxyUrl": "/api/fal/proxy", "page": f"{site.base}/healthz"}
        words = [sys.executable, "-m", "tests.conformance.matrix_browser", json.dumps(plan), site.node]
        return Start(words)

    return start


def by_app(words: Callable[[Site], Sequence[str | Path]]) -> Callable[[Site, Sequence[str]], Start]:
    return lambda site, actions: Start(site.led([*words(site), *actions]))


_NO_DEADLINE = {"start_timeout": "it has no option for a start deadline"}
_OLD = {
    **_NO_DEADLINE,
    "subscribe_streaming": "0.9 knows no status stream",
    "cancel_queued": "0.9 knows no cancel",
    "cancel_running": "0.9 knows no cancel",
}
_PAST = {"stream": "0.9 opens its streams past the middleware"}
_NO_STREAMED_SUBSCRIBE = {"subscribe_streaming": "fal_client's subscribe always polls"}
_NO_BLOB = {"blob": "fal_client uploads only when told to"}
_FIXED: dict[str, str] = dict.fromkeys(
    ("upload", "upload_large"), "fal_client's upload hosts are fixed, whatever the environment"
)
_CURL = {"blob": "curl has no objects to put into an input"}
_BACKEND = {
    "wrong_key": "the backend holds the key, the page sends none",
    "upload_large": "server-proxy 1.2.1 itself refuses to begin an upload in parts",
}
_APP = {
    action: "the library has no such call"
    for action in ACTIONS
    if action not in ("subscribe", "blob", "invalid", "wrong_key")
}

_JS: dict[str, tuple[str, dict[str, str]]] = {
    "@fal-ai/client 1.10.1": ("@fal-ai/client", {}),
    "serverless-client 0.15.0": ("@fal-ai/serverless-client", _NO_DEADLINE),
    "serverless-client 0.9.3": ("serverless-client-0.9", _OLD),
}
ROWS = [
    *(
        Row(
            client=client,
            door=door,
            start=by_js(package, door),
            cannot={**cannot, **(_PAST if door == "middleware" and package.endswith("0.9") else {})},
        )
        for client, (package, cannot) in _JS.items()
        for door in ("middleware", "no setting", "names")
    ),
    Row(
        client="@fal-ai/client 1.10.1", door="proxyUrl", start=by_js("@fal-ai/client", "proxyUrl"), cannot={}
    ),
    Row(
        client="@fal-ai/client 1.10.1",
        door="server-proxy",
        start=by_js("@fal-ai/client", "server-proxy"),
        cannot=_BACKEND,
    ),
    *(
        Row(client="Chromium, @fal-ai/client 1.10.1", door=door, start=by_browser(door), cannot={})
        for door in ("proxyUrl", "middleware")
    ),
    *(
        Row(
            client=f"fal_client 1.0.3 {which}",
            door=door,
            start=by_python(which, door),
            cannot={**_NO_STREAMED_SUBSCRIBE, **_NO_BLOB, **(_FIXED if door == "environment" else {})},
        )
        for which in ("sync", "async")
        for door in ("environment", "no setting", "names")
    ),
    *(
        Row(client="curl", door=door, start=by_curl(door), cannot=_CURL)
        for door in ("path", "names", "proxyUrl")
    ),
    Row(
        client="ai 7 with @ai-sdk/fal 3",
        door="no setting",
        start=by_app(lambda site: [*site.js("ai_sdk.mjs")]),
        cannot=_APP,
    ),
    Row(
        client="huggingface_hub",
        door="no setting",
        start=by_app(lambda site: [sys.executable, HERE / "matrix_hub.py", site.picture]),
        cannot=_APP,
    ),
]


def as_table(found: Mapping[tuple[str, str], str]) -> str:
    """Draw every cell; `found` says ok, FAILED or nothing by row and action."""
    reasons: dict[str, str] = {}

    def cell(row: Row, action: str) -> str:
        why = row.barrier()
        if why is not None:
            why = f"cannot run here: {why}"
        elif action in row.cannot:
            why = f"the client cannot: {row.cannot[action]}"
        else:
            return found.get((row.name, action), "·")
        return reasons.setdefault(why, f"({chr(ord('a') + len(reasons))})")

    columns = [str(number) for number in range(1, len(ROWS) + 1)]
    lines = [" " * 20 + "".join(f"{column:>8}" for column in columns)]
    for action in ACTIONS:
        lines.append(f"{action:<20}" + "".join(f"{cell(row, action):>8}" for row in ROWS))
    named = [f"{column:>3}  {row.name}" for column, row in zip(columns, ROWS, strict=True)]
    noted = [f"{mark}  {why}" for why, mark in reasons.items()]
    return "\n".join([*named, "", *lines, "", *noted])

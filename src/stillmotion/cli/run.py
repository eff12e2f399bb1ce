"""`stillmotion run -- COMMAND`: one command whose calls to fal's names all end at the running server.

The command takes this process's place, so its exit status and the signals meant for it need no passing on.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from stillmotion.cli.env import Lead, find_server, tell_keyless
from stillmotion.errors import UserError
from stillmotion.http.ways.doors import FAL_HOSTS
from stillmotion.settings import Settings

#: Node reads HTTPS_PROXY from these on, the second for its older line.
NODE_READS_PROXY = ((24, 0), (22, 21))
#: Programs that start the Node of the PATH.
_BY_NODE = ("npm", "npx", "pnpm", "pnpx", "yarn", "tsx")
_HOSTS = ("FAL_RUN_HOST", "FAL_QUEUE_RUN_HOST")
_LOCAL = ("localhost", "127.0.0.1", "::1")


def run(settings: Settings, command: list[str], environ: Mapping[str, str]) -> int:
    """Become the command; returns the exit status shells give when it cannot be started."""
    lead = find_server(settings, environ)
    if lead.key is None:
        tell_keyless()
    program = Path(command[0]).name
    if program == "node" or program in _BY_NODE:
        check_node(command[0] if program == "node" else "node")
    sys.stdout.flush()
    try:
        os.execvpe(command[0], command, led_here(lead, environ))  # noqa: S606
    except OSError as error:
        print(f"stillmotion: {command[0]} cannot be started: {error.strerror}.", file=sys.stderr)
        return 127 if isinstance(error, FileNotFoundError) else 126


def led_here(lead: Lead, environ: Mapping[str, str]) -> dict[str, str]:
    """Return the environment in which every call to fal's names goes through the server's CONNECT proxy."""
    # Hosts set for another server would be asked past the proxy.
    env = {name: value for name, value in environ.items() if name not in _HOSTS}
    if lead.key is not None:
        env["FAL_KEY"] = lead.key
    env["SSL_CERT_FILE"] = env["REQUESTS_CA_BUNDLE"] = env["CURL_CA_BUNDLE"] = str(lead.bundle)
    env["NODE_EXTRA_CA_CERTS"] = str(lead.ca)
    env["NODE_USE_ENV_PROXY"] = "1"
    # Either spelling counts for one program or another.
    env["HTTPS_PROXY"] = env["https_proxy"] = lead.told.http
    spared = [*_LOCAL, *re.split(r"[,\s]+", environ.get("NO_PROXY", environ.get("no_proxy", "")))]
    env["NO_PROXY"] = env["no_proxy"] = ",".join(
        word for word in dict.fromkeys(spared) if not _spares_fal(word)
    )
    return env


def _spares_fal(word: str) -> bool:
    """Tell whether an entry of NO_PROXY would let a call to one of fal's names past us, or is empty."""
    suffix = re.sub(r":\d+$", "", word.lower()).lstrip("*").lstrip(".")
    return not suffix or any(name == suffix or name.endswith(f".{suffix}") for name in FAL_HOSTS)


def check_node(name: str) -> None:
    """Refuse a Node that ignores HTTPS_PROXY: its calls would reach fal."""
    node = shutil.which(name)
    if node is None:
        return
    version = subprocess.run([node, "--version"], capture_output=True, text=True, check=False).stdout.strip()
    match = re.match(r"v(\d+)\.(\d+)", version)
    if match is None:
        return
    newest, older = NODE_READS_PROXY
    found = int(match[1]), int(match[2])
    if found < newest and not (found[0] == older[0] and found >= older):
        raise UserError(
            f"Node {version} ignores HTTPS_PROXY, so its calls would go to fal itself. Use Node 24, or 22.21 "
            "and newer, or a client's requestMiddleware (docs/clients.md)."
        )

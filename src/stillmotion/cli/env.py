"""`stillmotion env`: the lines that lead fal's clients to a running server, and what they do not reach."""

import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import httpx

from stillmotion.cli.datadir import FIRST_KEY, Announcement, read_announcement
from stillmotion.errors import UserError
from stillmotion.http.ways.doors import FAL_HOSTS
from stillmotion.settings import Settings

#: Asked about with a key; the server answers 404 to its own keys and 401 to all others.
_NO_REQUEST = "/queue/fal-ai/stable-video/requests/00000000-0000-0000-0000-000000000000/status"
_ANSWER_S = 10

_LEFT = """\
# Not reached by these lines; such a call goes to fal itself, with its prompt and its picture:
#   fal_client (Python): upload, upload_file, upload_image and realtime, whose hosts are fixed
#   fal_client 0.5: every call, it reads FAL_RUN_HOST alone and puts queue. before it
#   @fal-ai/client, @fal-ai/serverless-client (Node): every call of a program that sets no requestMiddleware,
#     nor, in @fal-ai/client, proxyUrl with when: "always"; whatever is set: realtime, stream with
#     connectionMode: "client", and in serverless-client 0.9 every stream
#   the same two in a browser: every call of a page without proxyUrl; whatever is set: the same
#   fal's clients for Swift, Java and Dart: every call without their proxy option
# Reached whatever the program says: every call of  stillmotion run -- COMMAND  (Python, curl, Go, Node 24)
# or of this whole machine, with the server on port 443 and this line in /etc/hosts:"""


@dataclass(frozen=True, slots=True)
class Lead:
    """What a client needs to know of the running server."""

    told: Announcement
    #: A key of this server, if one is known here.
    key: str | None
    #: Our certificate authority alone, and with the system's roots.
    ca: Path
    bundle: Path


def find_server(settings: Settings, environ: Mapping[str, str]) -> Lead:
    """Read where the server of the data directory answers; raises UserError when it does not."""
    data_dir = settings.data_dir.absolute()
    told = read_announcement(data_dir)
    if told is None:
        raise UserError(
            f"No server runs on {data_dir}. Start one with `stillmotion serve`, or name its directory with "
            "--data-dir."
        )
    first = data_dir / FIRST_KEY
    candidates = [environ.get("FAL_KEY", ""), first.read_text().strip() if first.exists() else ""]
    key = next((key for key in candidates if key and _is_ours(told, key)), None)
    return Lead(told, key, data_dir / "tls" / "ca.pem", data_dir / "tls" / "bundle.pem")


def _is_ours(told: Announcement, key: str) -> bool:
    try:
        answer = httpx.get(
            told.http + _NO_REQUEST,
            headers={"Authorization": f"Key {key}"},
            timeout=_ANSWER_S,
            trust_env=False,
        )
    except httpx.HTTPError as error:
        raise UserError(f"The server at {told.http} does not answer ({error}). Start it again.") from None
    return answer.status_code == 404


def show(settings: Settings, environ: Mapping[str, str]) -> None:
    lead = find_server(settings, environ)
    print(f'# Stillmotion at {lead.told.http}. In a shell: eval "$(stillmotion env)"')
    if lead.key is None:
        tell_keyless()
    else:
        _export("FAL_KEY", lead.key)
    if lead.told.https is None:
        _tell(
            "fal_client (Python) speaks HTTPS alone, and calls fal itself without its hosts; for them start "
            "the server with --tls-port 8443."
        )
    else:
        netloc = urlsplit(lead.told.https).netloc
        _export("FAL_RUN_HOST", f"{netloc}/run")
        _export("FAL_QUEUE_RUN_HOST", f"{netloc}/queue")
    _export("SSL_CERT_FILE", str(lead.bundle))
    _export("NODE_EXTRA_CA_CERTS", str(lead.ca))
    print(_LEFT)
    print(f"# {_address(lead.told)} {' '.join(FAL_HOSTS)}")


def tell_keyless() -> None:
    _tell(
        "no key of this server is known here, so calls will be refused; set FAL_KEY to one made by "
        "`stillmotion keys create NAME`."
    )


def _tell(text: str) -> None:
    """Say it on stderr: of stdout `eval` shows nothing."""
    print(f"stillmotion: {text}", file=sys.stderr)


def _export(name: str, value: str) -> None:
    print(f"export {name}={shlex.quote(value)}")


def _address(told: Announcement) -> str:
    """Return what stands first in a line of /etc/hosts."""
    host = urlsplit(told.http).hostname or ""
    return "127.0.0.1" if host == "localhost" else host

"""The main job, start to end: a prompt becomes a film, the film's first frame a high-quality film.

Starts a server of its own on a free port, then is a plain HTTP client, as any program would be. Leaves
demo/rocket.mp4, demo/rocket-hq.mp4 and demo/contact-sheet.png. Run by `make demo`; add `--engine` and the
like behind it to hand them to the server.
"""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from PIL import Image

from stillmotion.video import contact_sheet, read_frames

PROMPT = "A rocket flying that is about to take off"
FOLDER = Path(__file__).parent.parent / "demo"
DATA = FOLDER / "data"
LOG = FOLDER / "server.log"
STILLMOTION = [sys.executable, "-m", "stillmotion"]
START_TIMEOUT_S = 300
POLL_S = 0.2


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    with server() as url, httpx.Client(timeout=60, trust_env=False) as client:
        client.base_url = url
        client.headers["Authorization"] = f"Key {make_key()}"
        turbo, quality = FOLDER / "rocket.mp4", FOLDER / "rocket-hq.mp4"
        print(f'\n1. "{PROMPT}"')
        make_film(client, "fal-ai/fast-svd-lcm/text-to-video", {"prompt": PROMPT, "seed": 7}, turbo)
        print("\n2. its first frame, in high quality")
        picture = upload(client, first_frame(turbo, FOLDER / "rocket.png"))
        make_film(client, "fal-ai/stable-video", {"image_url": picture, "seed": 7, "fps": 10}, quality)
    sheet = FOLDER / "contact-sheet.png"
    contact_sheet([turbo, quality], sheet, 5)
    print("\nLook at these:")
    for path in (turbo, quality, sheet):
        print(f"  {path}")
    print("\nTo keep a server running: .venv/bin/stillmotion serve --tls-port 8443 (README.md goes on there)")


@contextmanager
def server() -> Iterator[str]:
    """Run `stillmotion serve` and give its URL once it can take work."""
    told = DATA / "server.json"
    told.unlink(missing_ok=True)
    words = ["serve", "--port", "0", "--data-dir", str(DATA), "--profile", "pocket", *sys.argv[1:]]
    with LOG.open("wb") as log:
        process = subprocess.Popen([*STILLMOTION, *words], stderr=log)
    try:
        yield wait_ready(process, told)
    finally:
        process.terminate()
        process.wait()


def wait_ready(process: subprocess.Popen[bytes], told: Path) -> str:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            sys.exit(f"The server ended:\n{LOG.read_text()}")
        if told.exists():
            url: str = json.loads(told.read_text())["http"]
            if httpx.get(f"{url}/readyz", trust_env=False).status_code == 200:
                return url
        time.sleep(POLL_S)
    sys.exit(f"The server was not ready within {START_TIMEOUT_S} s; {LOG} says why.")


def make_key() -> str:
    words = [*STILLMOTION, "keys", "create", "demo", "--data-dir", str(DATA)]
    made = subprocess.run(words, capture_output=True, text=True, check=True)
    return made.stdout.splitlines()[-1]


def make_film(client: httpx.Client, endpoint: str, given: dict[str, Any], target: Path) -> None:
    """Submit, follow, download."""
    begun = time.monotonic()
    ticket = checked(client.post(f"/queue/{endpoint}", json=given)).json()
    follow(client, ticket["status_url"])
    result = checked(client.get(ticket["response_url"])).json()
    target.write_bytes(checked(client.get(result["video"]["url"])).content)
    print(f"   {target.name}: {target.stat().st_size // 1024} KB after {time.monotonic() - begun:.1f} s")


def follow(client: httpx.Client, status_url: str) -> None:
    """Print queue position and log lines as they come, until the request has ended."""
    position, seen = None, 0
    while True:
        status = checked(client.get(status_url, params={"logs": 1})).json()
        if status.get("queue_position") not in (None, position):
            position = status["queue_position"]
            print(f"   queue position {position}")
        logs = status.get("logs") or []
        for line in logs[seen:]:
            print(f"   {line['message']}")
        seen = len(logs)
        if status["status"] == "COMPLETED":
            return
        time.sleep(POLL_S)


def upload(client: httpx.Client, path: Path) -> str:
    """Store a picture on the server; returns the URL it can be used by."""
    about = {"file_name": path.name, "content_type": "image/png"}
    place = checked(client.post("/rest/storage/upload/initiate", json=about)).json()
    checked(client.put(place["upload_url"], content=path.read_bytes(), headers={"Content-Type": "image/png"}))
    url: str = place["file_url"]
    return url


def first_frame(film: Path, target: Path) -> Path:
    Image.fromarray(read_frames(film)[0]).save(target)
    return target


def checked(answer: httpx.Response) -> httpx.Response:
    if answer.is_error:
        sys.exit(f"{answer.request.method} {answer.url} answered {answer.status_code}: {answer.text}")
    return answer


if __name__ == "__main__":
    main()

"""Films over HTTP, one after the other on an idle server, and the three stopwatches of each.

Every film is one sync call, so that no polling disturbs it and its end is known to the millisecond: the
call is answered when the finished request can be read. What the server's processes measured themselves is
read from its database after it has ended.
"""

import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from PIL import Image

from bench.figures import Row, p50_p99_ms, peak_mib, runner_pid
from stillmotion.store.open import open_store
from stillmotion.store.queue import get
from stillmotion.types import Request
from stillmotion.video import read_frames
from tests.server import TIMED_ENGINE, Server

PROMPT = "A rocket flying that is about to take off"
TURBO, QUALITY = "fal-ai/fast-svd-lcm/text-to-video", "fal-ai/stable-video"
#: Spent in the runner from the first tensor operation to the last frame decoded.
ENGINE_STAGES = ("first_frame", "encode", "denoise", "decode")
#: An idle worker has gone back to waiting well within this.
IDLE_S = 0.2


@dataclass(frozen=True, slots=True)
class Made:
    """One film as its client saw it, in Unix seconds."""

    request_id: str
    sent: float
    answered: float
    url: str

    @property
    def seconds(self) -> float:
        return self.answered - self.sent


def make(client: httpx.Client, endpoint: str, given: Mapping[str, Any]) -> Made:
    """Have one film made by a sync call, on a server that was left idle for a moment."""
    time.sleep(IDLE_S)
    sent = time.time()
    answer = client.post(f"/run/{endpoint}", json=given)
    answered = time.time()
    answer.raise_for_status()
    return Made(answer.headers["x-fal-request-id"], sent, answered, answer.json()["video"]["url"])


def read_rows(data_dir: Path, made: Iterable[Made]) -> list[Request]:
    """Read finished requests from the database of a server that has ended."""
    store = open_store(f"sqlite:///{data_dir / 'stillmotion.db'}")
    try:
        rows = [store.read_now(lambda conn, film=film: get(conn, film.request_id)) for film in made]
    finally:
        store.close_now()
    return [row for row in rows if row is not None]


def measure_films(folder: Path, films: int) -> list[Row]:
    """Make turbo and high-quality films with the pocket weights, after one of each to warm up."""
    with Server(folder / "films") as server, server.client() as client:
        picture = warm_up(client, folder)
        turbo = [make(client, TURBO, {"prompt": PROMPT, "seed": seed}) for seed in range(films)]
        quality = [make(client, QUALITY, {"image_url": picture, "seed": seed}) for seed in range(films)]
        peaks = peak_mib(server.process.pid), peak_mib(runner_pid(server.process.pid))
    turbo_rows, quality_rows = read_rows(server.data_dir, turbo), read_rows(server.data_dir, quality)
    said = f"{2 * films + 2} films one after the other"
    return [
        *film_rows("turbo from a prompt, 4 steps", turbo, turbo_rows),
        *film_rows("stable-video from a picture, 25 steps", quality, quality_rows),
        publish_row([*turbo, *quality], [*turbo_rows, *quality_rows]),
        Row(
            "peak memory, server", f"{peaks[0]:.0f} MiB", f"VmHWM of the HTTP and queue process after {said}"
        ),
        Row(
            "peak memory, runner", f"{peaks[1]:.0f} MiB", f"VmHWM of the child that holds torch, after {said}"
        ),
    ]


def warm_up(client: httpx.Client, folder: Path) -> str:
    """Make one film of each kind; returns the URL of a picture, the first one's first frame."""
    first = make(client, TURBO, {"prompt": PROMPT})
    picture = upload(client, first_frame(client, first.url, folder))
    make(client, QUALITY, {"image_url": picture})
    return picture


def first_frame(client: httpx.Client, url: str, folder: Path) -> Path:
    film, picture = folder / "first.mp4", folder / "first.png"
    film.write_bytes(client.get(url).raise_for_status().content)
    Image.fromarray(read_frames(film)[0]).save(picture)
    return picture


def upload(client: httpx.Client, path: Path) -> str:
    """Store a picture on the server; returns the URL it can be used by."""
    about = {"file_name": path.name, "content_type": "image/png"}
    place = client.post("/rest/storage/upload/initiate", json=about).raise_for_status().json()
    sent = client.put(place["upload_url"], content=path.read_bytes(), headers={"Content-Type": "image/png"})
    sent.raise_for_status()
    return place["file_url"]


def film_rows(what: str, made: Sequence[Made], rows: Sequence[Request]) -> list[Row]:
    """Seconds of one kind of film, whole and by stage."""
    whole = [film.seconds for film in made]
    stages = {stage: statistics.median(row.timings[stage] for row in rows) for stage in rows[0].timings}
    engine = [engine_s(row) for row in rows]
    return [
        Row(
            f"{what}, end to end",
            f"{statistics.median(whole):.2f} s",
            f"median of {len(whole)} ({min(whole):.2f} to {max(whole):.2f}): sync call sent to answer "
            "received, 25 frames at 1024×576, warm; without the download",
        ),
        Row(
            f"{what}, *engine*",
            f"{statistics.median(engine):.2f} s",
            "median: first tensor operation to last frame decoded, H.264 of earlier chunks beside it; "
            "medians by stage: " + ", ".join(f"{stage} {seconds:.3f}" for stage, seconds in stages.items()),
        ),
    ]


def engine_s(row: Request) -> float:
    return sum(row.timings[stage] for stage in ENGINE_STAGES)


def publish_row(made: Sequence[Made], rows: Sequence[Request]) -> Row:
    """From the last decoded frame, handed to the encoder at once, to the client's answer."""
    after = [
        film.answered - (row.created + row.timings["queue"] + engine_s(row))
        for film, row in zip(made, rows, strict=True)
    ]
    close, media = (
        statistics.median(row.timings[stage] for row in rows) * 1000 for stage in ("close", "publish")
    )
    return Row(
        "*publish*, 1024×576",
        p50_p99_ms(after),
        f"p50 / p99 of {len(after)} films: last frame given to the encoder to the client having its answer, "
        f"small gaps between the stages counted in; of it {close:.0f} ms until the MP4 was closed and "
        f"{media:.0f} ms until it lay in the media store (medians)",
    )


def measure_queue(folder: Path, samples: int) -> list[Row]:
    """Time the way to the runner alone: an engine that makes a tiny film at once."""
    tiny = {
        "prompt": "steps=1 pause=0 frames=1",
        "video_size": {"width": 256, "height": 256},
    }
    with Server(folder / "queue", engine=TIMED_ENGINE) as server, server.client() as client:
        make(client, TURBO, tiny)
        made = [make(client, TURBO, tiny) for _ in range(samples)]
    rows = read_rows(server.data_dir, made)
    kept = [row.timings["queue"] for row in rows]
    seen = [row.created + row.timings["queue"] - film.sent for film, row in zip(made, rows, strict=True)]
    return [
        Row(
            "*queue*, idle server",
            p50_p99_ms(seen),
            f"p50 / p99 of {samples}: client sends the submit to the runner saying that it has the job; "
            "with the client's own sending, validation, the durable row and the durable claim",
        ),
        Row(
            "*queue*, the server's own view",
            p50_p99_ms(kept),
            "the same from the moment the input is validated (the row's `created`), timings key `queue`",
        ),
    ]

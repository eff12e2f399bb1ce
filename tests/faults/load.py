"""Clients that never stop asking: they submit, cancel and poll through every kill, and keep their own books.

What the books say is what the server promised: an id is written down when, and only when, its submit was
answered 200. A call whose connection broke promised nothing and is simply made again.
"""

import hashlib
import random
import threading
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from stillmotion.cli.datadir import read_announcement
from tests.receiver import Call, Receiver
from tests.server import NO_ROOTS, wait_until

ENDPOINT = "fal-ai/fast-svd-lcm/text-to-video"
APP = "fal-ai/fast-svd-lcm"
SUBMITTERS = 3
#: Films asked for at once: enough for a queue at every kill, few enough to be finished soon after.
WINDOW = 24
#: A call that takes longer was lost with its server, or the server hangs.
CALL_S = 20
#: Pause between two tries to reach a server that is down, and between two rounds of anything.
TRY_AGAIN_S = 0.02
#: What the requests still open at the end may take together.
LAST_S = 120

#: The films that are asked for, over and over; `pause` and `steps` are read by the timed engine.
INPUTS: list[dict[str, Any]] = [
    {
        "prompt": f"{words} steps={steps} pause={pause}",
        "seed": seed,
        "steps": 1,
        "video_size": {"width": 256, "height": 256},
    }
    for words, steps, pause, seed in (
        ("a red rocket", 1, 0.01, 1),
        ("a blue ball", 4, 0.02, 2),
        ("a green square", 10, 0.03, 3),
        ("a yellow star", 3, 0.1, 4),
    )
]


@dataclass(frozen=True)
class Ending:
    """What a finished request says of itself, by its status and its result."""

    status: dict[str, Any]
    code: int
    result: dict[str, Any]

    @property
    def kind(self) -> str:
        return self.status.get("error_type", "ok")


@dataclass
class Asked:
    """One request whose submit was answered 200."""

    id: str
    which: int
    webhook: bool
    #: Counts in the window; the others are cancelled at once.
    stays: bool = True
    #: Sent at least once; the server may or may not have got it.
    cancel_sent: bool = False
    #: The answer to the cancel: 202 or, when it came too late, 400.
    cancel_code: int | None = None
    ending: Ending | None = None


@dataclass
class Load:
    """The clients of one data directory; `asked` is their book."""

    data_dir: Path
    headers: dict[str, str]
    receiver: str
    rng: random.Random
    asked: dict[str, Asked] = field(default_factory=dict[str, Asked])
    #: Submits without an answer: no server listened, or it has them or not.
    unanswered: int = 0
    #: Calls answered 503, which promises that nothing was kept.
    refused: int = 0
    looks: int = 0

    def __post_init__(self) -> None:
        self.ending = threading.Event()
        self._lock = threading.Condition()
        self._ended = self._made = 0
        self._places = threading.Semaphore(WINDOW)
        self._local = threading.local()
        self._clients = ExitStack()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Ask without pause; at the end stop submitting and wait until every request has ended."""
        with ThreadPoolExecutor(SUBMITTERS + 1) as threads:
            seeds = [self.rng.getrandbits(32) for _ in range(SUBMITTERS + 1)]
            submitters = [threads.submit(self._submit_on, random.Random(seed)) for seed in seeds[1:]]
            watcher = threads.submit(self._watch, random.Random(seeds[0]), submitters)
            try:
                yield
            finally:
                self.ending.set()
            for thread in (*submitters, watcher):
                thread.result()

    def close(self) -> None:
        self._clients.close()

    def wait_for_film(self, after: int, timeout_s: float) -> bool:
        """Wait until more than `after` films are known to be made."""
        with self._lock:
            return self._lock.wait_for(lambda: self._made > after or self.ending.is_set(), timeout_s)

    @property
    def made(self) -> int:
        with self._lock:
            return self._made

    def call(self, method: str, path: str, **options: Any) -> httpx.Response:
        """Call until a server takes the call; it may have another port each time."""
        deadline = time.monotonic() + 6 * CALL_S
        while time.monotonic() < deadline:
            with suppress(httpx.TransportError):
                answer = self._client().request(method, path, **options)
                if not self._is_refused(answer):
                    return answer
            threading.Event().wait(TRY_AGAIN_S)
        raise AssertionError(f"no answer to {method} {path}")

    def submit(self, which: int, *, webhook: bool) -> Asked | None:
        """Submit once; None when no answer came."""
        params = {"fal_webhook": self.receiver} if webhook else {}
        try:
            answer = self._client().post(f"/queue/{ENDPOINT}", json=INPUTS[which], params=params)
        except httpx.TransportError:
            return None
        if self._is_refused(answer):
            return None
        assert answer.status_code == 200, answer.text
        return Asked(answer.json()["request_id"], which, webhook)

    def _is_refused(self, answer: httpx.Response) -> bool:
        if answer.status_code != 503:
            return False
        assert int(answer.headers["Retry-After"]) > 0, answer.text
        with self._lock:
            self.refused += 1
        return True

    def look(self, request_id: str) -> Ending | None:
        """Ask how a request ended; None while it has not."""
        path = f"/queue/{APP}/requests/{request_id}"
        told = self.call("GET", f"{path}/status")
        assert told.status_code in (200, 202), f"{request_id} is lost: {told.status_code} {told.text}"
        if told.json()["status"] != "COMPLETED":
            return None
        result = self.call("GET", path)
        status = {name: value for name, value in told.json().items() if not name.endswith("_url")}
        return Ending(status, result.status_code, result.json())

    def film(self, ending: Ending) -> bytes:
        film = self.call("GET", httpx.URL(ending.result["video"]["url"]).path)
        assert film.status_code == 200, film.text
        assert len(film.content) == ending.result["video"]["file_size"]
        return film.content

    def film_digest(self, ending: Ending) -> str:
        return hashlib.sha256(self.film(ending)).hexdigest()

    def make_film(self, which: int) -> Ending:
        asked = wait_until(lambda: self.submit(which, webhook=False), "a submit")
        ending: Ending = wait_until(lambda: self.look(asked.id), f"{asked.id} to end")
        assert ending.kind == "ok", ending
        return ending

    def film_digests(self) -> dict[str, str]:
        """Fetch every film that was made, by request."""
        return {
            asked.id: self.film_digest(asked.ending)
            for asked in self.asked.values()
            if asked.ending is not None and asked.ending.kind == "ok"
        }

    def collect(self, receiver: Receiver) -> list[Call]:
        """Take what the receiver got, until it has heard of each request that asked for it."""
        wanted = {asked.id for asked in self.asked.values() if asked.webhook}
        calls: list[Call] = []

        def all_told() -> bool:
            while not receiver.got.empty():
                calls.append(receiver.got.get())
            return wanted <= {call.headers["X-Fal-Webhook-Request-Id"] for call in calls}

        wait_until(all_told, "the webhooks", 60)
        return calls

    def _client(self) -> httpx.Client:
        """This thread's client for the server that listens now."""
        announced = read_announcement(self.data_dir)
        if announced is None:
            raise httpx.ConnectError("no server listens")
        mine = self._local.__dict__
        if mine.get("url") != announced.http:
            client = httpx.Client(
                base_url=announced.http,
                headers=self.headers,
                timeout=CALL_S,
                trust_env=False,
                verify=NO_ROOTS,
            )
            self._clients.callback(client.close)
            mine |= {"url": announced.http, "client": client}
        return mine["client"]

    def _submit_on(self, rng: random.Random) -> None:
        try:
            while not self.ending.is_set():
                # With the window full it asks for what it then cancels: some submit is always under way.
                stays = self._places.acquire(blocking=False)
                asked = self.submit(rng.randrange(len(INPUTS)), webhook=rng.random() < 0.3)
                if asked is None:
                    self.unanswered += 1
                    if stays:
                        self._places.release()
                    self.ending.wait(TRY_AGAIN_S)
                    continue
                asked.stays = stays
                self.asked[asked.id] = asked
                if not stays or rng.random() < 0.1:
                    self._cancel(asked)
                if not stays:
                    self.ending.wait(TRY_AGAIN_S)
        except BaseException:
            self.ending.set()
            raise

    def _cancel(self, asked: Asked) -> None:
        asked.cancel_sent = True
        answer = self.call("PUT", f"/queue/{APP}/requests/{asked.id}/cancel")
        assert answer.status_code in (202, 400), answer.text
        asked.cancel_code = answer.status_code

    def _watch(self, rng: random.Random, submitters: list[Future[None]]) -> None:
        """Poll what is open; look again, at random, at what has ended: it must stay as it was."""
        recent: deque[Asked] = deque(maxlen=500)
        deadline = None
        try:
            while not (all(one.done() for one in submitters) and self._ended == len(self.asked)):
                if deadline is None and self.ending.is_set():
                    deadline = time.monotonic() + LAST_S
                open_ids = [asked.id for asked in list(self.asked.values()) if asked.ending is None]
                assert deadline is None or time.monotonic() < deadline, f"these never ended: {open_ids}"
                for asked in [self.asked[one] for one in open_ids]:
                    if (ending := self.look(asked.id)) is not None:
                        asked.ending = ending
                        recent.append(asked)
                        if asked.stays:
                            self._places.release()
                        with self._lock:
                            self._ended += 1
                            self._made += ending.kind == "ok"
                            self._lock.notify_all()
                if recent:
                    self.check_unchanged(rng.choice(recent))
                threading.Event().wait(TRY_AGAIN_S)
        except BaseException:
            self.ending.set()
            raise

    def check_unchanged(self, asked: Asked) -> None:
        self.looks += 1
        again = self.look(asked.id)
        assert again == asked.ending, f"{asked.id} ended as {asked.ending} and now says {again}"

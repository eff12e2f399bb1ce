"""The runner: a child process that holds one device, loads an engine and makes one film after the other.

Started by the worker as `python -m stillmotion.runner --engine MODULE:FUNCTION --fd N --parent PID`.
It speaks newline JSON over the inherited socket N, at most LINE_LIMIT bytes a line:

    in   open {settings}   run {assignment}   cancel {request_id, attempt}
    out  ready {fingerprint, device, summary, load_s}   warming {warm, sizes}   fatal {message}
         alive {still_s}
         started {}   log {message, level}   progress {stage, step, steps}   off_device {}
         done {film}   failed {failure, trace}   cancelled {}         each with request_id, attempt

The next film may be sent from `off_device` on; until `done` the last one is still written beside it.

Promises: it never outlives its parent (PR_SET_PDEATHSIG, and its socket closing); an exception in the
engine fails that request alone, but for DeviceLost, which ends the process; what it prints is the worker's
to read, on plain pipes. It opens no database and no network connection.
"""

import argparse
import contextlib
import ctypes
import errno
import importlib
import json
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol, TypeVar

from stillmotion.errors import DeviceLost, InputRefused, RequestCancelled, StillmotionError
from stillmotion.reporting import Report
from stillmotion.types import Assignment, Failure, FinishFilm, Level

LINE_LIMIT = 1024 * 1024  # bytes
TEXT_LIMIT = 32 * 1024  # characters of one log message or traceback
ALIVE_S = 1.0
#: A worker that has work hands it over sooner than this; only then is there time to warm a size.
IDLE_S = 0.5
#: How the system says that no more fits: on the disk, in the user's share of it, in one file.
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
PR_SET_PDEATHSIG = 1  # linux/prctl.h


class Engine(Protocol):
    """What `--engine` opens."""

    @property
    def fingerprint(self) -> str: ...

    device: str
    #: One line for people: which weights, where.
    summary: str

    def render(self, assignment: Assignment, report: Report) -> FinishFilm:
        """Do all that needs the device; what is returned is called once, beside the next film's rendering."""
        ...

    def warm_up(self) -> Iterator[tuple[int, int]]:
        """Yield how many sizes are warm and how many there are: at once, and after each further one."""
        ...


OpenEngine = Callable[[Mapping[str, Any]], Engine]
#: How an attempt ended: the message's type and its fields.
Answer = tuple[str, dict[str, Any]]
Made = TypeVar("Made", FinishFilm, Answer)


def key_of(assignment: Assignment) -> tuple[str, int]:
    return assignment.request_id, assignment.attempt


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when its parent ends."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    # The parent may have ended before the call above; then nobody would ever send the signal.
    if os.getppid() != parent:
        os._exit(1)


def find_engine(name: str) -> OpenEngine:
    """Import `module:function`; the working directory is searched last, so it shadows nothing."""
    sys.path.append(str(Path.cwd()))
    module, _, function = name.partition(":")
    return getattr(importlib.import_module(module), function)


class Link:
    """The socket to the worker; threads may send at the same time."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._turn = threading.Lock()
        self._lines = connection.makefile("rb")

    def receive(self) -> dict[str, Any]:
        line = self._lines.readline(LINE_LIMIT + 1)
        if not line.endswith(b"\n"):
            os._exit(0)  # the worker is gone: nobody wants this film, another runner may want the device
        return json.loads(line)

    def send(self, kind: str, **fields: Any) -> None:
        line = json.dumps({"type": kind, **fields}).encode() + b"\n"
        try:
            with self._turn:
                self._connection.sendall(line)
        except OSError:
            os._exit(0)


class Telling(Report):
    """The report of one attempt."""

    def __init__(self, link: Link, assignment: Assignment, cancelled: set[tuple[str, int]]) -> None:
        self._link = link
        self._cancelled = cancelled
        self.assignment = assignment
        self.key = key_of(assignment)
        self.moved = time.monotonic()

    def send(self, kind: str, **fields: Any) -> None:
        self._link.send(kind, request_id=self.key[0], attempt=self.key[1], **fields)

    def log(self, message: str, level: Level = Level.INFO) -> None:
        self.moved = time.monotonic()
        self.send("log", message=message[:TEXT_LIMIT], level=level)

    def progress(self, stage: str, step: int, steps: int) -> None:
        self.moved = time.monotonic()
        self.send("progress", stage=stage, step=step, steps=steps)

    def check_cancelled(self) -> None:
        self.moved = time.monotonic()
        if self.key in self._cancelled:
            raise RequestCancelled(f"Request {self.key[0]} was cancelled.")


class Runner:
    """The life of the process: the main thread works, one thread listens, one says it is alive.

    A film that is off the device is finished by a thread of its own, one film after the other. While no job
    waits, the engine warms one size after another; so a job waits for one at most.
    """

    def __init__(self, link: Link) -> None:
        self._link = link
        #: The job that was handed over and has not begun.
        self._job: Assignment | None = None
        self._jobs = threading.Condition()
        self._cancelled: set[tuple[str, int]] = set()
        #: Attempts that have begun and not ended: one on the device, one being finished.
        self._under_way: list[Telling] = []
        self._finishing: threading.Thread | None = None
        #: When the size that is being warmed was begun.
        self._warming: float | None = None

    def serve(self, open_engine: OpenEngine, settings: Mapping[str, Any]) -> int:
        threading.Thread(target=self._listen, daemon=True).start()
        threading.Thread(target=self._stay_alive, daemon=True).start()
        begun = time.monotonic()
        try:
            engine = open_engine(settings)
        except StillmotionError as error:
            self._link.send("fatal", message=str(error))
            return 1
        sizes = engine.warm_up()
        self._warm(sizes)
        self._link.send(
            "ready",
            fingerprint=engine.fingerprint,
            device=engine.device,
            summary=engine.summary,
            load_s=round(time.monotonic() - begun, 3),
        )
        try:
            while True:
                self._make(engine, self._next_job(sizes))
        except DeviceLost as lost:
            # Every later request would fail of it, too; this one may run again in a fresh process.
            self._link.send("fatal", message=str(lost))
            return 1

    def _warm(self, sizes: Iterator[tuple[int, int]]) -> bool:
        """Have one further size warmed; False when there is none."""
        self._warming = time.monotonic()
        state = next(sizes, None)
        self._warming = None
        if state is not None:
            self._link.send("warming", warm=state[0], sizes=state[1])
        return state is not None

    def _next_job(self, sizes: Iterator[tuple[int, int]]) -> Assignment:
        """Wait for a job, and warm what is left to be warmed meanwhile."""
        idle_s: float | None = IDLE_S
        while True:
            with self._jobs:
                self._jobs.wait_for(lambda: self._job is not None, idle_s)
                if (job := self._job) is not None:
                    self._job = None
                    return job
            if not self._warm(sizes):
                idle_s = None

    def _listen(self) -> None:
        try:
            while True:
                message = self._link.receive()
                if message["type"] == "run":
                    with self._jobs:
                        self._job = Assignment.from_json(message["assignment"])
                        self._jobs.notify()
                elif message["type"] == "cancel":
                    self._cancel((message["request_id"], message["attempt"]))
        finally:
            # A deaf runner would go on saying that it is alive, and keep its request for ever.
            traceback.print_exc()
            os._exit(1)

    def _cancel(self, key: tuple[str, int]) -> None:
        with self._jobs:
            if self._job is None or key_of(self._job) != key:
                self._cancelled.add(key)
                return
            self._job = None
        # It waits for a size to be warmed, and has nothing to stop.
        self._link.send("cancelled", request_id=key[0], attempt=key[1])

    def _stay_alive(self) -> None:
        while True:
            moved = [telling.moved for telling in list(self._under_way)]
            if (warming := self._warming) is not None:
                moved.append(warming)
            still_s = max((time.monotonic() - at for at in moved), default=0.0)
            self._link.send("alive", still_s=round(still_s, 1))
            time.sleep(ALIVE_S)

    def _make(self, engine: Engine, assignment: Assignment) -> None:
        telling = Telling(self._link, assignment, self._cancelled)
        self._under_way.append(telling)
        telling.send("started")
        finish = _attempt(telling, lambda: _render(engine, telling))
        if not callable(finish):
            self._end(telling, finish)
            return
        # No third film is begun while two are not ended: an encoder that is slower than its device slows it.
        if self._finishing is not None:
            self._finishing.join()
        telling.moved = time.monotonic()
        self._finishing = threading.Thread(target=self._finish, args=(telling, finish), name="finish")
        telling.send("off_device")
        self._finishing.start()

    def _finish(self, telling: Telling, finish: FinishFilm) -> None:
        self._end(telling, _attempt(telling, lambda: ("done", {"film": asdict(finish())})))

    def _end(self, telling: Telling, answer: Answer) -> None:
        self._under_way.remove(telling)
        self._cancelled.discard(telling.key)
        telling.send(answer[0], **answer[1])


def _render(engine: Engine, telling: Telling) -> FinishFilm:
    telling.check_cancelled()
    return engine.render(telling.assignment, telling)


def _attempt(telling: Telling, work: Callable[[], Made]) -> Made | Answer:
    """Do a part of an attempt's work; what is returned instead is how it ended."""
    try:
        return work()
    except RequestCancelled:
        return "cancelled", {}
    except InputRefused as refused:
        return "failed", {"failure": asdict(refused.failure)}
    except DeviceLost:
        raise
    # The job border: whatever a model raises is that request's failure, and the runner lives on.
    except Exception as error:  # noqa: BLE001
        failure = Failure(
            status=500,
            kind="internal_server_error",
            message=f"{_reason(error)} The server's log says more, under request {telling.key[0]}.",
        )
        return "failed", {"failure": asdict(failure), "trace": traceback.format_exc()[-TEXT_LIMIT:]}


def _reason(error: Exception) -> str:
    if isinstance(error, MemoryError):
        return (
            "The device has too little memory for this video; a smaller video_size may need less, and so may "
            "a smaller memory preset of the server (STILLMOTION_MEMORY_PRESET)."
        )
    if isinstance(error, OSError) and error.errno in FULL:
        return "The server's disk is full."
    return "The model failed while making this video."


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Run one device for a Stillmotion worker.")
    parser.add_argument("--engine", required=True, help="module:function that opens the engine")
    parser.add_argument("--fd", type=int, required=True, help="inherited socket to the worker")
    parser.add_argument("--parent", type=int, required=True, help="process id of the worker")
    options = parser.parse_args(arguments)
    die_with_parent(options.parent)
    # The worker decides when a runner ends; a signal meant for the server must not cut a film short.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with contextlib.suppress(OSError):
        # Short of memory, the kernel shall take the runner, which is replaced, and not the server.
        Path("/proc/self/oom_score_adj").write_text("500")
    os.set_inheritable(options.fd, False)
    link = Link(socket.socket(fileno=options.fd))
    settings = link.receive()
    return Runner(link).serve(find_engine(options.engine), settings)


if __name__ == "__main__":
    sys.exit(main())

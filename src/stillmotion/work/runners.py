"""The worker's end of one runner: start the child, speak its protocol, collect what it prints, end it.

A `Runner` lives as long as its process. Whatever ends it (exit, signal, garbage, silence, our SIGKILL) ends
as RunnerGone with the reason, for the call that waits and for all later ones. The child gets its own
process group, so that Ctrl-C reaches the worker alone, and the group is killed as one.
"""

import asyncio
import codecs
import json
import logging
import os
import re
import signal
import socket
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any

from stillmotion.clock import Clock
from stillmotion.errors import RunnerGone
from stillmotion.reporting import DENOISE
from stillmotion.runner import LINE_LIMIT
from stillmotion.settings import Settings, shell_environment
from stillmotion.types import Assignment, Failure, Film, Level, LogLine

#: How long a child that has ended may still have messages in its socket.
LAST_WORDS_S = 1.0
#: How long a child that closed its socket may take to exit by itself.
EXIT_S = 0.5
#: Log text one attempt may hold before it is written; the store caps the whole.
PENDING_LINES = 2000
PENDING_CHARS = 1024 * 1024
PRINTED_LINE_CHARS = 4096
READ_BYTES = 65536
#: Reads of one pipe before others get their turn.
READS = 16

#: glibc hands large freed blocks back to the system at once, and each new tensor faults its pages in again:
#: a feed-forward over 12,800 tokens takes 20 ms of CPU instead of 6 (docs/performance.md).
KEEP_FREED_MEMORY = {"MALLOC_TRIM_THRESHOLD_": str(4 << 30), "MALLOC_MMAP_THRESHOLD_": str(32 << 20)}

log = logging.getLogger("stillmotion.worker")


class Cancelled:
    """The runner's answer that it stopped because it was asked to."""


Reply = Film | Failure | Cancelled


class Notes:
    """What one attempt has told; the worker writes what is waiting and then says that it is written.

    `on_step` is called when `denoised` or `off_device` becomes true.
    """

    def __init__(self, clock: Clock, news: asyncio.Event, on_step: Callable[[], None] = lambda: None) -> None:
        self.lines: list[LogLine] = []
        self.progress: Mapping[str, Any] | None = None
        #: Unix seconds at which the runner took the job; None while it has not.
        self.began: float | None = None
        #: True once the device has only the decoding left to do.
        self.denoised = False
        #: True once the device may take the next film.
        self.off_device = False
        self._clock = clock
        self._news = news
        self._on_step = on_step
        self._chars = 0
        self._dropped = 0

    def log(self, message: str, level: Level = Level.INFO) -> None:
        if len(self.lines) < PENDING_LINES and self._chars < PENDING_CHARS:
            self._chars += len(message)
            self.lines.append(LogLine(at=self._clock.now(), level=level, message=message))
        else:
            self._dropped += 1
        self._news.set()

    def begin(self) -> None:
        self.began = self._clock.now()

    def tell_progress(self, progress: Mapping[str, Any]) -> None:
        self.progress = progress
        self._news.set()
        if progress["stage"] == DENOISE and progress["step"] == progress["steps"]:
            self.denoised = True
            self._on_step()

    def leave_device(self) -> None:
        self.off_device = True
        self._on_step()

    def written(self, lines: int, progress: Mapping[str, Any] | None) -> None:
        """Forget the first `lines` lines, and the progress unless a newer one came."""
        del self.lines[:lines]
        self._chars = sum(len(line.message) for line in self.lines)
        if self.progress is progress:
            self.progress = None
        if self._dropped:
            dropped, self._dropped = self._dropped, 0
            self.log(f"truncated: {dropped} lines came faster than they could be kept", Level.WARN)


class Printed:
    """One of the child's output pipes, cut into lines; takes over the descriptor."""

    def __init__(self, pipe: int, say: Callable[[str, Level], None], level: Level) -> None:
        self._pipe = pipe
        self._say = say
        self._level = level
        self._rest = ""
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        os.set_blocking(pipe, False)
        asyncio.get_running_loop().add_reader(pipe, self.drain)

    def drain(self) -> None:
        """Take what the pipe holds now."""
        for _ in range(READS):
            try:
                data = os.read(self._pipe, READ_BYTES)
            except BlockingIOError:
                return
            if not data:
                asyncio.get_running_loop().remove_reader(self._pipe)
                return
            self._cut(self._decoder.decode(data))

    def _cut(self, text: str) -> None:
        # Progress bars end their lines with a carriage return.
        *lines, self._rest = re.split(r"[\r\n]+", self._rest + text)
        if len(self._rest) > PRINTED_LINE_CHARS:
            lines.append(self._rest)
            self._rest = ""
        for line in lines:
            if line.strip():
                self._say(line[:PRINTED_LINE_CHARS], self._level)

    def flush(self) -> None:
        """Drain, and take an unfinished line as one."""
        self.drain()
        self._cut("\n")

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self._pipe)
        os.close(self._pipe)


@dataclass
class UnderWay:
    """A film that the child was given and has not answered for."""

    notes: Notes
    answer: asyncio.Future[Reply]

    def reply(self, reply: Reply) -> None:
        if not self.answer.done():
            self.answer.set_result(reply)


class Runner:
    """One child process; make it with `start_runner`.

    It may be given the next film while the last one is off the device and not answered for.
    """

    def __init__(self, device: str, on_gone: Callable[[], None]) -> None:
        self.device = device
        self.fingerprint = ""
        #: Seconds since the engine last gave a sign, as the child's heartbeat tells it.
        self._still_s = 0.0
        #: Seconds since the child last said anything, counted by `watch`.
        self._quiet_s = 0.0
        self.ready = False
        #: Sizes it has warmed, of all that films are expected in.
        self.warm = self.sizes = 0
        self._began = asyncio.get_running_loop().time()
        self._why: str | None = None
        self._gone: str | None = None
        self._on_gone = on_gone
        self._under_way: dict[tuple[str, int], UnderWay] = {}
        #: How many films it worked on when it ended; of two nobody knows which it died of.
        self.died_of = 0
        #: Whose what it prints is.
        self._on_device: Notes | None = None
        self._last_line = ""
        self._opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._printed: tuple[Printed, ...] = ()

    async def start(self, engine: str, opening: Mapping[str, Any]) -> None:
        """Start the child; raises OSError with nothing left open."""
        with ExitStack() as given, ExitStack() as kept:
            pipes: list[tuple[int, int]] = []
            for _ in range(2):
                pipes.append(os.pipe())
                kept.callback(os.close, pipes[-1][0])
                given.callback(os.close, pipes[-1][1])
            here, there = socket.socketpair()
            kept.enter_context(here)
            given.enter_context(there)
            self._process = await asyncio.create_subprocess_exec(
                # -u: what a model printed is in the pipes before its answer is in the socket.
                *(sys.executable, "-P", "-u", "-m", "stillmotion.runner", "--engine", engine),
                *("--fd", str(there.fileno()), "--parent", str(os.getpid())),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=pipes[0][1],
                stderr=pipes[1][1],
                pass_fds=(there.fileno(),),
                start_new_session=True,
                env=shell_environment() | KEEP_FREED_MEMORY,
            )
            kept.pop_all()
        levels = (Level.STDOUT, Level.STDERR)
        self._printed = tuple(
            Printed(ours, self._say, level) for (ours, _), level in zip(pipes, levels, strict=True)
        )
        self._lines, self._socket = await asyncio.open_unix_connection(sock=here, limit=LINE_LIMIT)
        self._life = asyncio.create_task(self._live())
        self._send({"type": "open", **opening})

    async def opened(self, timeout_s: float) -> None:
        """Wait until the engine is loaded; raises RunnerGone."""
        done, _ = await asyncio.wait({self._opened}, timeout=timeout_s)
        if not done:
            self.kill(f"not ready after {timeout_s:g} s")
        await self._opened

    async def run(self, assignment: Assignment, notes: Notes) -> Reply:
        """Have one film made; raises RunnerGone."""
        if self._gone is not None:
            raise RunnerGone(self._gone)
        key = (assignment.request_id, assignment.attempt)
        self._on_device = notes
        film = self._under_way[key] = UnderWay(notes, asyncio.get_running_loop().create_future())
        self._still_s = 0.0
        self._send({"type": "run", "assignment": assignment.to_json()})
        try:
            return await film.answer
        finally:
            self._clear_device(notes)
            del self._under_way[key]

    def _clear_device(self, notes: Notes) -> None:
        if self._on_device is notes:
            if self._gone is None:
                for pipe in self._printed:
                    pipe.flush()
            self._on_device = None

    def cancel(self, request_id: str, attempt: int) -> None:
        """Ask for an attempt to stop at its next step."""
        self._send({"type": "cancel", "request_id": request_id, "attempt": attempt})

    def kill(self, why: str) -> None:
        """End the process group at once; `why` is what RunnerGone will say."""
        if self._gone is None and self._why is None:
            self._why = why
        if self._process.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)

    async def gone(self) -> None:
        """Wait until the process is reaped."""
        await asyncio.wait({self._life})

    @property
    def is_gone(self) -> bool:
        return self._gone is not None

    def watch(self, tick_s: float, quiet_limit_s: float, still_limit_s: float) -> None:
        """Kill a child that says nothing, or whose engine does nothing.

        Silence is counted in ticks, so that a worker that was itself stopped blames no runner.
        """
        self._quiet_s += tick_s
        if self._quiet_s > quiet_limit_s:
            self.kill(f"said nothing for {quiet_limit_s:g} s")
        elif self._still_s > still_limit_s:
            self.kill(f"made no step for {still_limit_s:g} s")

    def _send(self, message: Mapping[str, Any]) -> None:
        if self._gone is None:
            self._socket.write(json.dumps(message).encode() + b"\n")

    async def _live(self) -> None:
        listening = asyncio.create_task(self._listen())
        ending = asyncio.create_task(self._process.wait())
        await asyncio.wait({listening, ending}, return_when=asyncio.FIRST_COMPLETED)
        if listening.done():
            # A child that exits closes its socket first: let it say how it ended.
            await asyncio.wait({ending}, timeout=0 if listening.result() else EXIT_S)
            if not ending.done():
                self.kill(listening.result() or "closed its socket")
        status = await ending
        # What it sent before it ended still counts.
        await asyncio.wait({listening}, timeout=LAST_WORDS_S)
        listening.cancel()
        self._socket.close()
        for pipe in self._printed:
            pipe.flush()
            pipe.close()
        self._end(status)

    def _end(self, status: int) -> None:
        self.ready = False
        gone = self._why or (f"signal {-status}" if status < 0 else f"exit status {status}")
        if not self._opened.done() and self._last_line and self._why is None:
            gone += f": {self._last_line}"
        self._gone = gone
        films = self._under_way.values()
        self.died_of = sum(film.notes.began is not None and not film.answer.done() for film in films)
        for waiting in (self._opened, *(film.answer for film in films)):
            if not waiting.done():
                waiting.set_exception(RunnerGone(gone))
                waiting.exception()  # marks it as seen: nobody may be waiting
        self._on_gone()

    async def _listen(self) -> str | None:
        """Take messages until the socket ends; return how the child broke the protocol, if it did."""
        try:
            while line := await self._lines.readline():
                self._quiet_s = 0.0
                if not line.endswith(b"\n"):
                    break  # killed in the middle of a line
                self._take(json.loads(line))
        except OSError:
            pass
        except (ValueError, KeyError, TypeError, ArithmeticError, RecursionError) as error:
            return f"broke the protocol: {error}"
        return None

    def _take(self, message: dict[str, Any]) -> None:
        kind = message["type"]
        if kind == "alive":
            self._still_s = float(message["still_s"])
        elif kind == "ready":
            self.fingerprint = str(message["fingerprint"])
            self.ready = True
            log.info(
                "runner ready device=%s load_s=%s: %s", self.device, message["load_s"], message["summary"]
            )
            if not self._opened.done():
                self._opened.set_result(None)
        elif kind == "warming":
            self.warm, self.sizes = int(message["warm"]), int(message["sizes"])
            if self.warm == self.sizes > 1:
                took_s = asyncio.get_running_loop().time() - self._began
                log.info("runner warm device=%s sizes=%d after_s=%.1f", self.device, self.sizes, took_s)
        elif kind == "fatal":
            self._why = str(message["message"])
        elif (film := self._under_way.get((message["request_id"], message["attempt"]))) is not None:
            self._hear(film, kind, message)

    def _hear(self, film: UnderWay, kind: str, message: dict[str, Any]) -> None:
        """Take a message about an attempt under way."""
        if kind == "started":
            film.notes.begin()
        elif kind == "log":
            film.notes.log(str(message["message"]), Level(message["level"]))
        elif kind == "progress":
            told = {
                "stage": str(message["stage"]),
                "step": int(message["step"]),
                "steps": int(message["steps"]),
            }
            film.notes.tell_progress(told)
        elif kind == "off_device":
            self._clear_device(film.notes)
            film.notes.leave_device()
        elif kind == "done":
            film.reply(Film(**message["film"]))
        elif kind == "cancelled":
            film.reply(Cancelled())
        elif kind == "failed":
            if trace := message.get("trace"):
                log.error("%s failed in the model device=%s\n%s", message["request_id"], self.device, trace)
            film.reply(Failure(**message["failure"]))
        else:
            raise ValueError(f"unknown message {kind!r}")

    def _say(self, line: str, level: Level) -> None:
        if self._on_device is not None:
            self._on_device.log(line, level)
            return
        self._last_line = line
        log.info("runner printed device=%s level=%s: %s", self.device, level, line)


def opening_for(settings: Settings, profile: str, device: str) -> dict[str, Any]:
    """Return what a runner's engine is told when it is opened."""
    return {
        "profile": profile,
        "device": device,
        "data_dir": str(settings.data_dir.absolute()),
        "memory_preset": settings.memory_preset,
        "compile": settings.compile,
    }


async def start_runner(
    engine: str, device: str, opening: Mapping[str, Any], on_gone: Callable[[], None]
) -> Runner:
    """Start a child and tell it what to open; await `opened` before giving it work. Raises RunnerGone."""
    runner = Runner(device, on_gone)
    try:
        await runner.start(engine, opening)
    except OSError as error:
        raise RunnerGone(f"could not be started: {error}") from error
    return runner

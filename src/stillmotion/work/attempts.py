"""One attempt at one request, from its claim to the transaction that ends it."""

import asyncio
import secrets
from collections.abc import Coroutine
from enum import Enum, auto
from pathlib import Path
from typing import Any

from sqlalchemy import Connection

from stillmotion import ids
from stillmotion.endpoints import ENDPOINTS
from stillmotion.errors import InputRefused, StoreUnavailable
from stillmotion.media.store import MediaStore
from stillmotion.store import queue
from stillmotion.store.endings import CANCELLED
from stillmotion.store.files import add_file
from stillmotion.store.logs import append_logs
from stillmotion.types import Assignment, Ending, Failure, FileRecord, Film, Level, Outcome, Request
from stillmotion.work.runners import Notes, Reply, Runner

#: Names in an attempt's scratch folder.
PICTURE, FILM = "picture.png", "film.mp4"


class Stop(Enum):
    """Why the worker, not the runner, ends an attempt."""

    #: The caller asked.
    CANCELLED = auto()
    #: The lease is lost or could not be renewed; another worker may have the request.
    LOST = auto()
    #: Its worker ends, or its runner has ended before it began.
    ENDING = auto()


class Stopped(Exception):
    """Raised inside an attempt that was stopped before its runner had it."""


class Unprepared(Exception):
    """Nobody foresaw why this attempt cannot begin; the cause tells."""


#: What may keep an attempt from beginning, and is told apart.
FORESEEN = (InputRefused, StoreUnavailable, OSError)


def film_key(request_id: str, attempt: int) -> str:
    return f"films/{request_id}/{attempt}/{FILM}"


class Attempt:
    """What the worker holds while a request is its own."""

    def __init__(
        self,
        request: Request,
        runner: Runner,
        notes: Notes,
        scratch: Path,
        held_until: float,
        claimed: float,
    ) -> None:
        self.request = request
        self.key = (request.id, request.attempt)
        # No part of it is another attempt's: the next one may begin elsewhere before this one is cleared.
        self.folder = scratch / f"{request.id}-{request.attempt}"
        self.runner = runner
        self.notes = notes
        #: Steady second by which the lease must be renewed, else the work is dropped.
        self.held_until = held_until
        #: Monotonic second of the claim.
        self.claimed = claimed
        self.stop: Stop | None = None
        #: Steady second at which a cancelled runner is killed.
        self.kill_at: float | None = None
        #: True once its turn on the device came.
        self.had_device = False
        #: True while the runner works on it.
        self.running = False
        #: How the runner died on it, if it did.
        self.crash: str | None = None
        #: Seconds the finished film took to reach the media store.
        self.publish_s = 0.0
        self._preparing: asyncio.Task[Assignment] | None = None

    @property
    def may_share(self) -> bool:
        """Whether a runner may have another film under way beside it.

        Not when it has failed to end before: should the runner die, it must be known of which.
        """
        return self.request.attempt == 1 and self.request.retry

    async def prepare(self, work: Coroutine[Any, Any, Assignment]) -> Assignment:
        """Do `work` before the runner gets the job; raises Stopped as soon as the attempt is stopped.

        A fault of ours ends this attempt as Unprepared, and no other.
        """
        self._preparing = asyncio.create_task(work)
        if self.stop is not None:
            self._preparing.cancel()
        [made] = await asyncio.gather(self._preparing, return_exceptions=True)
        if self.stop is not None:
            raise Stopped
        if isinstance(made, Assignment):
            return made
        if isinstance(made, Exception) and not isinstance(made, FORESEEN):
            raise Unprepared from made
        raise made

    def cancel(self, kill_at: float) -> None:
        """Ask the runner to stop, and remember when asking is over."""
        if self.stop is not None:
            return
        self.stop = Stop.CANCELLED
        self.kill_at = kill_at
        if self.running:
            self.runner.cancel(*self.key)
        self._stop_preparing()

    def drop(self, why: Stop) -> None:
        """Stop at once; what the runner holds is thrown away."""
        self.stop = why
        if self.running:
            self.runner.kill("was stopped by its worker")
        self._stop_preparing()

    def _stop_preparing(self) -> None:
        if self._preparing is not None:
            self._preparing.cancel()

    def assignment(self) -> Assignment:
        endpoint = ENDPOINTS.get(self.request.endpoint)
        if endpoint is None:
            raise InputRefused(
                f"This server no longer offers {self.request.endpoint}.", kind="not_found", status=404
            )
        picture = self.folder / PICTURE if self.request.picture is not None else None
        return endpoint.assignment(self.request, picture, self.folder / FILM)

    async def publish_film(self, media: MediaStore, now: float, keep_s: float) -> FileRecord:
        """Move the finished film into the media store; its record is written with the ending.

        It is kept for `keep_s` unless its request said otherwise.
        """
        key = film_key(*self.key)
        size, digest = await media.publish(self.folder / FILM, key)
        return FileRecord(
            id=ids.file_id(),
            key_id=self.request.key_id,
            request_id=self.request.id,
            name=f"{secrets.token_hex(8)}.mp4",
            content_type="video/mp4",
            media_key=key,
            size=size,
            digest=digest,
            created=now,
            expires=now + (self.request.lifecycle.keep_s or keep_s),
            complete=True,
            acl=self.request.lifecycle.acl,
        )

    def leftovers(self) -> list[str]:
        """Name the films of earlier attempts whose server died between publishing and writing the end."""
        return [film_key(self.key[0], attempt) for attempt in range(1, self.key[1])]

    def tell_crash(self, max_crashes: int) -> None:
        """Tell the caller's log that the runner died, and what follows."""
        again = self.request.retry and self.request.crashes + 1 < max_crashes
        after, level = ("runs again", Level.WARN) if again else ("fails", Level.ERROR)
        self.notes.log(f"runner died ({self.crash}), the request {after}", level)

    def write_end(
        self, conn: Connection, reply: Reply | None, film: FileRecord | None, now: float, max_crashes: int
    ) -> bool:
        """Write how the attempt ended, in one transaction; False when it is no longer this worker's."""
        if reply is not None:
            ended = queue.finish(conn, *self.key, self._ending(reply, film), self.notes.lines, now)
            if ended and film is not None:
                add_file(conn, film)
            return ended
        if self.notes.lines and not append_logs(conn, *self.key, self.notes.lines):
            return False
        if self.crash is None:
            return queue.give_back(conn, *self.key, now)
        return queue.crashed(conn, *self.key, now=now, max_crashes=max_crashes) is not None

    def _ending(self, reply: Reply, film: FileRecord | None) -> Ending:
        fingerprint = self.runner.fingerprint
        if isinstance(reply, Film):
            assert film is not None and self.notes.began is not None
            return Ending(
                outcome=Outcome.OK,
                result={"file": film.id, "seed": self.request.input["seed"]},
                fingerprint=reply.fingerprint or fingerprint,
                timings={
                    **reply.timings,
                    "queue": self.notes.began - self.request.created,
                    "publish": self.publish_s,
                },
            )
        if isinstance(reply, Failure):
            return Ending(outcome=Outcome.ERROR, failure=reply, fingerprint=fingerprint)
        return CANCELLED

    def outcome(self, reply: Reply | None) -> str:
        """One word or two for the server's own log."""
        if self.crash is not None:
            return f"crashed ({self.crash})"
        if isinstance(reply, Film):
            return "made"
        if isinstance(reply, Failure):
            return f"failed kind={reply.kind}"
        return "given back" if reply is None else "cancelled"

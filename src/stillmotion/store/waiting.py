"""Operations on their way to a database thread and back: results return to the event loop by the batch.

Waking the loop costs more than a short statement, so a thread hands back all it has settled in one call.
A caller that was cancelled meanwhile, or whose loop is gone, disturbs nobody.
"""

import asyncio
import threading
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, TypeGuard

from sqlalchemy import Connection
from sqlalchemy.exc import DatabaseError, DBAPIError, InternalError, OperationalError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from stillmotion.errors import CommitUnanswered, StoreUnavailable

Loop = asyncio.AbstractEventLoop


class Waiting:
    """One operation; filled in by the thread that runs it, then released to its caller."""

    def __init__(
        self,
        operation: Callable[[Connection], Any],
        future: "asyncio.Future[Any] | Future[Any]",
        loop: Loop | None,
    ) -> None:
        self.operation = operation
        self.future = future
        self.loop = loop
        self.result: Any = None
        self.error: Exception | None = None
        self.deadlocks = 0

    def fail(self, error: Exception) -> None:
        """Note an error as its caller shall hear of it."""
        self.error = unavailable(error) if is_unavailable(error) else error

    def release(self) -> None:
        if self.future.done():
            return
        if isinstance(self.error, StopIteration):
            # A future refuses it, and the rest of the batch would go unreleased.
            self.error = RuntimeError("the operation raised StopIteration")
        if self.error is not None:
            self.future.set_exception(self.error)
        else:
            self.future.set_result(self.result)


class Line:
    """Operations that wait for a database thread, first come, first served."""

    def __init__(self) -> None:
        self._waiting: deque[Waiting] = deque()
        self._wake = threading.Condition()
        self._closed = False

    def put(self, waiting: Waiting) -> None:
        with self._wake:
            if self._closed:
                raise closed()
            self._waiting.append(waiting)
            self._wake.notify()

    def put_back(self, again: Sequence[Waiting]) -> None:
        with self._wake:
            self._waiting.extendleft(reversed(again))

    def take(self, most: int) -> list[Waiting]:
        """Wait for operations and take the first ones; none once the line is closed."""
        with self._wake:
            while not self._waiting and not self._closed:
                self._wake.wait()
            if self._closed:
                return []
            return [self._waiting.popleft() for _ in range(min(most, len(self._waiting)))]

    def close(self) -> None:
        """Take nothing more, and fail what waits."""
        with self._wake:
            self._closed = True
            left = list(self._waiting)
            self._waiting.clear()
            self._wake.notify_all()
        for waiting in left:
            waiting.error = closed()
        release(left)


def release(settled: Sequence[Waiting]) -> None:
    """Give every caller its result or error; each event loop is woken once."""
    by_loop: defaultdict[Loop, list[Waiting]] = defaultdict(list)
    for waiting in settled:
        if waiting.loop is None:
            waiting.release()
        else:
            by_loop[waiting.loop].append(waiting)
    for loop, group in by_loop.items():
        # A closed loop has nobody left who waits.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(_release_here, group)


def _release_here(group: Sequence[Waiting]) -> None:
    for waiting in group:
        waiting.release()


def is_unavailable(error: Exception) -> TypeGuard[SQLAlchemyError]:
    """Tell the database's trouble from the operation's."""
    # A PostgreSQL that became a standby answers InternalError, a damaged SQLite file DatabaseError itself.
    return isinstance(error, OperationalError | InternalError | PoolTimeout) or type(error) is DatabaseError


def unavailable(error: SQLAlchemyError, *, committing: bool = False) -> StoreUnavailable:
    """Say that the database did not do it; the driver's words stay, the statement and its values do not."""
    cause = error.orig if isinstance(error, DBAPIError) else error
    if committing and isinstance(error, DBAPIError) and error.connection_invalidated:
        failure = CommitUnanswered(
            f"The database did not answer: {cause}. It may have kept this; look first."
        )
    else:
        failure = StoreUnavailable(f"The database is not available: {cause}. Nothing was kept; try again.")
    failure.__cause__ = cause
    return failure


def closed() -> StoreUnavailable:
    return StoreUnavailable("The server is shutting down and takes no more work; nothing was kept.")

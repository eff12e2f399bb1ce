"""The writing thread: operations that wait while a COMMIT is under way share the next one.

What it promises:
- an operation runs in its own SAVEPOINT; its exception goes to its caller and harms no other;
- a result is released only after the COMMIT that keeps it; when that fails, every caller of the batch gets
  StoreUnavailable and nothing was acknowledged. Should PostgreSQL vanish during COMMIT itself, the batch
  may yet have been kept, and the error is CommitUnanswered: what the write refers to must then stay.
- a caller that was cancelled meanwhile, or whose loop is gone, disturbs nobody; its operation still counts;
- after `close` nothing more is taken, and what still waits fails with StoreUnavailable.
"""

import asyncio
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from types import TracebackType
from typing import TypeVar

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import SQLAlchemyError

from stillmotion.store.waiting import Line, Waiting, release, unavailable

T = TypeVar("T")

#: Most operations that share one COMMIT.
BATCH = 256
#: Times an operation may meet a deadlock with another PostgreSQL client before its caller is told.
DEADLOCK_TRIES = 3
_DEADLOCK = "40P01"


class _Savepoint:
    """Keeps one operation's failure from its neighbours; the error stays with the operation."""

    def __init__(self, conn: Connection, waiting: Waiting) -> None:
        self._conn = conn
        self._waiting = waiting

    def __enter__(self) -> None:
        self._conn.exec_driver_sql("SAVEPOINT operation")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if error is None:
            self._conn.exec_driver_sql("RELEASE SAVEPOINT operation")
            return False
        if not isinstance(error, Exception):
            return False
        try:
            self._conn.exec_driver_sql("ROLLBACK TO SAVEPOINT operation")
            self._conn.exec_driver_sql("RELEASE SAVEPOINT operation")
        except SQLAlchemyError:
            # The database gave up the whole transaction (disk full, connection lost), and with it the
            # batch; the first error tells why.
            if isinstance(error, SQLAlchemyError):
                return False
            raise
        self._waiting.fail(error)
        return True


class Writer:
    """Owns the writing connection and the thread that uses it."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._line = Line()
        self._thread = threading.Thread(target=self._run, name="store-writer", daemon=True)
        self._thread.start()

    async def write(self, operation: Callable[[Connection], T]) -> T:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        self._line.put(Waiting(operation, future, loop))
        return await future

    def write_now(self, operation: Callable[[Connection], T]) -> T:
        future: Future[T] = Future()
        self._line.put(Waiting(operation, future, None))
        return future.result()

    def stop(self) -> None:
        """Take nothing more, and fail what waits behind the batch under way."""
        self._line.close()

    def close(self) -> None:
        """Stop, finish the batch under way, and give the connection back."""
        self.stop()
        self._thread.join()
        self._engine.dispose()

    def _run(self) -> None:
        while batch := self._line.take(BATCH):
            again = self._commit(batch)
            self._line.put_back(again)
            release([waiting for waiting in batch if waiting not in again])
        # What was put back after the line was closed.
        self._line.close()

    def _commit(self, batch: Sequence[Waiting]) -> list[Waiting]:
        """Run a batch in one transaction; return the operations to be tried again."""
        committing = False
        try:
            with self._engine.connect() as conn, conn.begin():
                for waiting in batch:
                    with _Savepoint(conn, waiting):
                        waiting.result = waiting.operation(conn)
                committing = True
        except SQLAlchemyError as error:
            for waiting in batch:
                waiting.error = unavailable(error, committing=committing)
            return []
        return [waiting for waiting in batch if _may_try_again(waiting)]


def _may_try_again(waiting: Waiting) -> bool:
    cause = waiting.error.__cause__ if waiting.error is not None else None
    if cause is None or getattr(cause, "sqlstate", None) != _DEADLOCK or waiting.deadlocks == DEADLOCK_TRIES:
        return False
    waiting.deadlocks += 1
    waiting.error = None
    return True

"""The reading threads: reads that wait while a thread is busy share its next transaction and its way back.

What they promise:
- a transaction begins after the last read it serves was asked for, so every read sees all writes that were
  acknowledged before it; reads of one batch see one snapshot;
- an operation's exception goes to its caller alone; after a database error the rest of the batch goes on in
  a fresh transaction;
- no transaction stays open between batches: an open one would keep SQLite's log from being checkpointed;
- after `close` nothing more is taken, and what still waits fails with StoreUnavailable.
"""

import asyncio
import threading
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TypeVar

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import SQLAlchemyError

from stillmotion.store.databases import READERS
from stillmotion.store.marks import take_deep
from stillmotion.store.waiting import Line, Waiting, release, unavailable

T = TypeVar("T")

#: Most reads that share one transaction: past some dozens nothing is gained, and the first ones wait longer.
BATCH = 64


class _Kept:
    """Keeps one read's failure with the read; `broken` tells that the transaction is of no more use."""

    def __init__(self, waiting: Waiting) -> None:
        self._waiting = waiting
        self.broken = False

    def __enter__(self) -> "_Kept":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if not isinstance(error, Exception):
            return False
        self.broken = isinstance(error, SQLAlchemyError)
        self._waiting.fail(error)
        return True


class Readers:
    """Owns the reading threads.

    `deep` is called by a thread, once the results of a batch are out, for each queue whose marks they used.
    """

    def __init__(self, engine: Engine, deep: Callable[[str], None]) -> None:
        self._engine = engine
        self._deep = deep
        self._line = Line()
        self._threads = [
            threading.Thread(target=self._run, name=f"store-reader-{n}", daemon=True) for n in range(READERS)
        ]
        for thread in self._threads:
            thread.start()

    async def read(self, operation: Callable[[Connection], T]) -> T:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        self._line.put(Waiting(operation, future, loop))
        return await future

    def stop(self) -> None:
        """Take nothing more, and fail what waits behind the batches under way."""
        self._line.close()

    def close(self) -> None:
        """Stop, finish the batches under way, and give the connections back."""
        self.stop()
        for thread in self._threads:
            thread.join()
        self._engine.dispose()

    def _run(self) -> None:
        while batch := self._line.take(BATCH):
            deep = self._serve(batch)
            release(batch)
            for profile in deep:
                self._deep(profile)

    def _serve(self, batch: Sequence[Waiting]) -> set[str]:
        deep: set[str] = set()
        served = 0
        while served < len(batch):
            first = served
            try:
                with self._engine.connect() as conn, conn.begin():
                    for waiting in batch[first:]:
                        served += 1
                        with _Kept(waiting) as kept:
                            waiting.result = waiting.operation(conn)
                        if kept.broken:
                            break
                    else:
                        deep |= take_deep(conn)
            except SQLAlchemyError as error:
                # A read that has its result needs no COMMIT; only a transaction that never began fails all.
                if served == first:
                    for waiting in batch[first:]:
                        waiting.error = unavailable(error)
                    break
        return deep

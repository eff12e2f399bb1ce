"""Opening the store: brings the schema up to date, then serves writes and reads.

    store = open_store("sqlite:////var/lib/stillmotion/stillmotion.db")
    await store.write(lambda conn: submit(conn, new, now))
    await store.read(lambda conn: get(conn, request_id))

Writes of one process go through one thread and share COMMITs (`writer.py`), reads through a few that share
snapshots (`readers.py`); they see every write that was acknowledged before them.
"""

import asyncio
import sqlite3
from collections.abc import Callable, Generator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TypeVar

from sqlalchemy import URL, Connection, make_url, text
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, SQLAlchemyError

from stillmotion.clock import Clock, SystemClock
from stillmotion.errors import DataRefused, UserError
from stillmotion.store.databases import is_sqlite, open_readers, open_writer, sqlite_path
from stillmotion.store.marks import Marks
from stillmotion.store.migrate import bring_up_to_date
from stillmotion.store.readers import Readers
from stillmotion.store.waiting import is_unavailable, unavailable
from stillmotion.store.writer import Writer

T = TypeVar("T")


class Store:
    """One open database; made by `open_store`."""

    def __init__(self, url: URL, clock: Clock) -> None:
        self._url = url
        writer = open_writer(url)
        # After a kill the first connection replays SQLite's log; a reading one is not the one to do that.
        writer.connect().close()
        self._writer = Writer(writer)
        self._reading = open_readers(url)
        self._marks = Marks(self.read_now, self.write_now, clock)
        self._readers = Readers(self._reading, self._marks.refresh)
        self.closed = False

    async def write(self, operation: Callable[[Connection], T]) -> T:
        """Run an operation on the writing connection; return once its COMMIT is on disk."""
        return await self._writer.write(operation)

    async def read(self, operation: Callable[[Connection], T]) -> T:
        """Run an operation on a reading connection, in one transaction."""
        return await self._readers.read(operation)

    def refresh_marks(self, profile: str) -> None:
        """Bring the marks of a queue up to date, unless that was done lately; reads do it by themselves."""
        self._marks.refresh(profile)

    def write_now(self, operation: Callable[[Connection], T]) -> T:
        """Do as `write` does, blocking the calling thread."""
        return self._writer.write_now(operation)

    def read_now(self, operation: Callable[[Connection], T]) -> T:
        """Do as `read` does, blocking the calling thread."""
        try:
            with self._reading.connect() as conn, conn.begin():
                return operation(conn)
        except SQLAlchemyError as error:
            if is_unavailable(error):
                raise unavailable(error) from error
            raise

    async def close(self) -> None:
        """Finish what is under way, fail what waits, close every connection."""
        await asyncio.to_thread(self.close_now)

    def close_now(self) -> None:
        self._readers.stop()
        self._writer.stop()
        self.closed = True
        # Readers first: the writer's connection is the last to go and so makes the final checkpoint.
        self._readers.close()
        self._writer.close()

    def backup(self, target: Path) -> None:
        """Copy the database, as of now, into a new SQLite file while others go on writing."""
        if not is_sqlite(self._url):
            raise UserError("The state is in PostgreSQL; back it up with pg_dump.")
        if target.exists():
            raise UserError(f"{target} exists; name a file that does not, so that no backup is overwritten.")
        source = f"{sqlite_path(self._url).absolute().as_uri()}?mode=ro"
        with closing(sqlite3.connect(source, uri=True)) as live, closing(sqlite3.connect(target)) as copy:
            live.backup(copy)
            copy.execute("PRAGMA journal_mode = DELETE")


def open_store(url: str, clock: Clock | None = None) -> Store:
    """Open the database at a URL, creating or migrating it; raises DataRefused with what to do."""
    with _refusals():
        parsed = _parse(url)
        bring_up_to_date(parsed)
        return Store(parsed, clock or SystemClock())


def server_version(url: str) -> str:
    """Ask a PostgreSQL server for its version and change nothing; raises DataRefused with what to do."""
    with _refusals():
        engine = open_writer(_parse(url))
        with engine.connect() as conn:
            version = str(conn.scalar(text("SHOW server_version")))
        engine.dispose()
        return version


def _parse(url: str) -> URL:
    try:
        parsed = make_url(url)
    except ValueError:
        # Its text quotes what it took for the port, which may be half a password.
        raise ArgumentError(
            "its port is no number; in a user name or password @ is written %40, : is %3A and / is %2F"
        ) from None
    if parsed.get_backend_name() not in ("sqlite", "postgresql"):
        raise ArgumentError(f"{parsed.get_backend_name()} is no database this server speaks to")
    return parsed


@contextmanager
def _refusals() -> Generator[None]:
    """Raise what SQLAlchemy and its drivers say as DataRefused."""
    try:
        yield
    except (ArgumentError, NoSuchModuleError) as error:
        raise DataRefused(
            f"The database URL is not usable: {error}. "
            "Use sqlite:////absolute/path or postgresql+psycopg://user@host/name."
        ) from error
    except ModuleNotFoundError as error:
        raise DataRefused(
            f"The database driver {error.name} is not installed. "
            "For PostgreSQL: pip install 'psycopg[binary]'."
        ) from error
    except DBAPIError as error:
        raise DataRefused(f"The database cannot be opened: {error.orig}") from error

"""Connections: what SQLite and PostgreSQL need said before they keep our promises.

SQLite: one process owns the file, and its one writing connection also checkpoints; several would meet the
WAL-reset corruption bug of SQLite before 3.51.3. Writers take the lock at BEGIN (IMMEDIATE), so no
transaction fails half way for want of it. Readers cannot write at all and never wait for the writer.
synchronous=FULL makes a COMMIT durable: the WAL is synced before it returns.
"""

import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

from sqlalchemy import URL, Connection, Engine, create_engine, event
from sqlalchemy.engine.interfaces import DBAPIConnection

#: How long SQLite waits for a lock another process holds before the write fails.
BUSY_TIMEOUT_S = 5.0
#: How long PostgreSQL waits for the next statement of a transaction before it ends the session: a process
#: that was stopped, or whose machine died, must not keep its rows locked against those who take over.
IDLE_TRANSACTION_S = 10.0
#: How long PostgreSQL's machine may be silent while a connection is made, and on one that is in use: one that
#: vanished says no goodbye, and left to itself the system waits for it for a quarter of an hour, or for two.
CONNECT_S = 5
SILENCE_S = 10
#: Reading connections, and threads that use them.
READERS = 4
#: For every engine: an error's text, which may reach the log, never holds prompts or digests.
QUIET = {"hide_parameters": True}


def open_writer(url: URL) -> Engine:
    """Open the engine of the one writing connection."""
    if not is_sqlite(url):
        # The ping costs a round trip per batch and spares the first batch after a restart of the database.
        alone = {"connect_args": _patience(url), **QUIET}
        engine = create_engine(url, pool_size=1, max_overflow=0, pool_pre_ping=True, **alone)
        event.listen(engine, "connect", _prepare_session)
        return engine
    path = sqlite_path(url)

    def connect() -> sqlite3.Connection:
        connection = _connect(path, "rwc")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")
        return connection

    engine = create_engine(url, creator=connect, pool_size=1, max_overflow=0, **QUIET)
    _begin_with(engine, "BEGIN IMMEDIATE")
    return engine


def open_readers(url: URL) -> Engine:
    """Open the engine of the reading connections."""
    if not is_sqlite(url):
        # State, position and log lines of one answer belong together, so they share a snapshot.
        snapshots = {"isolation_level": "REPEATABLE READ", "connect_args": _patience(url), **QUIET}
        engine = create_engine(url, pool_size=READERS, max_overflow=0, pool_pre_ping=True, **snapshots)
        event.listen(engine, "connect", _prepare_session)
        return engine.execution_options(postgresql_readonly=True)
    path = sqlite_path(url)

    def connect() -> sqlite3.Connection:
        connection = _connect(path, "ro")
        connection.execute("PRAGMA query_only = ON")
        return connection

    engine = create_engine(url, creator=connect, pool_size=READERS, max_overflow=0, **QUIET)
    _begin_with(engine, "BEGIN")
    return engine


def is_sqlite(url: URL) -> bool:
    return url.get_backend_name() == "sqlite"


def sqlite_path(url: URL) -> Path:
    assert url.database, "an SQLite URL names its file"
    return Path(url.database)


def _connect(path: Path, mode: str) -> sqlite3.Connection:
    return sqlite3.connect(
        f"file:{quote(str(path.absolute()))}?mode={mode}",
        uri=True,
        timeout=BUSY_TIMEOUT_S,
        # Python's own transaction handling would begin too late and commit too early.
        isolation_level=None,
        # The pool hands a connection to one thread at a time.
        check_same_thread=False,
    )


def _patience(url: URL) -> dict[str, int]:
    """Say in libpq's words how long a silent machine is waited for; what the URL says of it comes first."""
    bounds = {
        "connect_timeout": CONNECT_S,
        "tcp_user_timeout": SILENCE_S * 1000,
        # While an answer is awaited nothing is sent, and only probes notice.
        "keepalives_idle": SILENCE_S // 2,
        "keepalives_interval": 2,
        "keepalives_count": 3,
    }
    return {name: bound for name, bound in bounds.items() if name not in url.query}


def _prepare_session(connection: DBAPIConnection, record: object) -> None:
    # The planner takes an unknown bound for a third of the queue; starting parallel workers or a compiler
    # for it then costs 10 ms, the statement itself 0.1 ms (1M waiting, PostgreSQL 18).
    with closing(connection.cursor()) as cursor:
        cursor.execute("SET max_parallel_workers_per_gather = 0")
        cursor.execute("SET jit = off")
        cursor.execute(f"SET idle_in_transaction_session_timeout = {IDLE_TRANSACTION_S * 1000:.0f}")
    connection.commit()


def _begin_with(engine: Engine, statement: str) -> None:
    def begin(connection: Connection) -> None:
        connection.exec_driver_sql(statement)

    event.listen(engine, "begin", begin)

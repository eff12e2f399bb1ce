"""Numbered schema steps, run by Alembic from inside the package, all in one transaction.

A database written by a newer version, one that is not ours, or a file found corrupt is refused untouched.
"""

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import URL, Connection, func, inspect, select
from sqlalchemy.exc import DatabaseError, OperationalError

from stillmotion.errors import DataRefused
from stillmotion.settings import MIB
from stillmotion.store.databases import is_sqlite, open_writer, sqlite_path
from stillmotion.store.tables import metadata

#: A database file up to this size is read through whenever it is opened (64 MiB, 0.07 s), a larger one only
#: after a process that did not close it: 1 GiB costs 1 s of CPU and, when it is not in memory, its reading.
READ_THROUGH_BYTES = 64 * MIB

_STEPS = Path(__file__).with_name("migrations")
#: Any number of our own; PostgreSQL's advisory locks are shared by a whole database.
_MIGRATION_LOCK = 7_283_546


def bring_up_to_date(url: URL, target: str = "head") -> None:
    """Create the schema or run the steps it lacks."""
    if is_sqlite(url):
        _refuse_corrupt_file(url)
    engine = open_writer(url)
    try:
        with engine.begin() as conn:
            if not is_sqlite(url):
                # Two servers starting at once: the second waits, then finds the work done.
                conn.execute(select(func.pg_advisory_xact_lock(_MIGRATION_LOCK)))
            upgrade(conn, target)
    finally:
        engine.dispose()


def upgrade(conn: Connection, target: str = "head") -> None:
    """Run the missing steps on a connection that is inside a transaction."""
    config = Config()
    config.set_main_option("script_location", str(_STEPS).replace("%", "%%"))
    config.attributes["connection"] = conn
    steps = ScriptDirectory.from_config(config)
    newest = steps.get_current_head()
    current = MigrationContext.configure(conn).get_current_revision()
    if current == newest:
        return
    known = {step.revision for step in steps.walk_revisions()}
    if current is not None and current not in known:
        raise DataRefused(
            f"The database has schema {current}, written by a newer Stillmotion; this version knows up to "
            f"{newest}. Upgrade Stillmotion, or restore the backup made before the upgrade."
        )
    ours = set(metadata.tables) & set(inspect(conn).get_table_names())
    if current is None and ours:
        raise DataRefused(
            f"The database holds tables named {', '.join(sorted(ours))} that Stillmotion did not make. "
            "Give it a database or schema of its own."
        )
    command.upgrade(config, target)


def _refuse_corrupt_file(url: URL) -> None:
    path = sqlite_path(url)
    if not path.exists():
        return
    # Whoever closes a database takes its log away.
    closed = not path.with_name(f"{path.name}-wal").exists()
    read_through = not closed or path.stat().st_size <= READ_THROUGH_BYTES
    engine = open_writer(url)
    try:
        with engine.connect() as conn:
            verdict = conn.exec_driver_sql("PRAGMA quick_check(1)").scalar_one() if read_through else "ok"
    except OperationalError:
        raise
    except DatabaseError as error:
        verdict = str(error.orig)
    finally:
        engine.dispose()
    if verdict != "ok":
        raise DataRefused(
            f"{path} is not a whole SQLite database ({verdict}). Restore it from a backup made by "
            "`stillmotion backup`, or move it away to start empty."
        )

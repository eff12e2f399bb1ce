"""Opening: new, old, newer, foreign and broken databases."""

import hashlib
import shutil
import socket
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection, create_engine, inspect, make_url, text

from stillmotion.errors import DataRefused, UserError
from stillmotion.keys import check_key
from stillmotion.store import databases, logs, migrate, queue
from stillmotion.store.migrate import bring_up_to_date
from stillmotion.store.open import Store, open_store, server_version
from stillmotion.store.tables import metadata
from stillmotion.types import Caller, State
from tests.store.asks import NOW, OK, ask, claimed, finish, read, submit

OLD_ROWS = (
    "INSERT INTO queue VALUES ('pocket', 1700000000000001)",
    "INSERT INTO request (id, profile, endpoint, key_id, input, queue_base, files_base, state, ord, attempt,"
    " created, owner, lease_until, log_lines) VALUES ('old', 'pocket', 'fal-ai/stable-video', 'k1',"
    " '{\"seed\": 7}', 'http://h/queue', 'http://h/cdn', 'running', 1700000000000001, 1, 1700000000,"
    " 'w', 1, 1)",
    "INSERT INTO log VALUES ('old', 1, 1, 1700000000, 'INFO', 'from the old version')",
    "INSERT INTO api_key (id, name, digest, admin, created) VALUES ('k1', 'old', :digest, false, 1)",
)
OLD_SECRET = "stillm_" + "A" * 43 + "0c2b5986"


def describe(conn: Connection) -> dict[str, object]:
    """Everything the database itself can tell of its schema, in an order of our own."""
    look = inspect(conn)

    def named(rows: list[object]) -> list[str]:
        return sorted(repr(row) for row in rows)

    return {
        table: {
            "columns": named(
                [(c["name"], repr(c["type"]), c["nullable"], c["default"]) for c in look.get_columns(table)]
            ),
            "key": look.get_pk_constraint(table)["constrained_columns"],
            "checks": named([(c["name"], c["sqltext"]) for c in look.get_check_constraints(table)]),
            "indexes": named(
                [
                    (
                        i["name"],
                        i["column_names"],
                        {k: str(v) for k, v in i.get("dialect_options", {}).items()},
                    )
                    for i in look.get_indexes(table)
                ]
            ),
            "foreign": named(
                [
                    (f["constrained_columns"], f["referred_table"], f.get("options"))
                    for f in look.get_foreign_keys(table)
                ]
            ),
            "options": look.get_table_options(table),
        }
        for table in sorted(metadata.tables)
    }


def test_migrated_schema_equals_the_tables(
    blank_url: str, tmp_path: Path, new_postgres_database: Callable[[], str]
) -> None:
    twin_url = f"sqlite:///{tmp_path / 'twin.db'}" if "sqlite" in blank_url else new_postgres_database()
    bring_up_to_date(make_url(blank_url))
    migrated, twin = create_engine(blank_url), create_engine(twin_url)
    metadata.create_all(twin)
    with migrated.connect() as conn, twin.connect() as twin_conn:
        options = {"compare_type": True, "compare_server_default": True}
        assert compare_metadata(MigrationContext.configure(conn, opts=options), metadata) == []
        assert describe(conn) == describe(twin_conn)
    migrated.dispose()
    twin.dispose()


def test_database_of_the_first_schema_is_upgraded_with_its_rows(blank_url: str) -> None:
    digest = hashlib.sha256(OLD_SECRET.encode()).hexdigest()
    bring_up_to_date(make_url(blank_url), "0001")
    engine = create_engine(blank_url)
    with engine.begin() as conn:
        for statement in OLD_ROWS:
            # A colon inside JSON is no parameter.
            conn.execute(
                text(statement.replace('": 7', '"\\: 7')),
                {"digest": digest} if ":digest" in statement else {},
            )
    engine.dispose()

    store = open_store(blank_url)
    old = read(store, "old")
    assert (old.attached, old.fingerprint, old.timings, old.input) == (False, None, {}, {"seed": 7})
    assert isinstance(store.read_now(lambda conn: check_key(conn, f"k1:{OLD_SECRET}", NOW)), Caller)
    assert store.write_now(lambda conn: queue.requeue_running(conn, NOW)) == ["old"]
    assert submit(store, ask(), NOW - 9999).ord == old.ord + 1
    assert finish(store, claimed(store))
    assert read(store, "old").timings == OK.timings
    lines, _ = store.read_now(lambda conn: logs.read_logs(conn, "old"))
    assert [line.message for line in lines] == ["from the old version"]
    store.close_now()


def test_servers_that_start_at_once_make_the_schema_once(new_postgres_database: Callable[[], str]) -> None:
    url = make_url(new_postgres_database())
    with ThreadPoolExecutor(3) as servers:
        assert list(servers.map(bring_up_to_date, [url] * 3)) == [None] * 3


def test_opening_again_changes_nothing_and_keeps_what_was_acknowledged(store_url: str) -> None:
    store = open_store(store_url)
    kept = submit(store, ask())
    store.close_now()
    store = open_store(store_url)
    assert read(store, kept.id) == kept
    store.close_now()


def test_newer_schema_is_refused_untouched(store_url: str) -> None:
    engine = create_engine(store_url)
    with engine.begin() as conn:
        newest = conn.execute(text("SELECT version_num FROM alembic_version")).scalar_one()
        conn.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(DataRefused, match=r"schema 9999, written by a newer .* Upgrade"):
        open_store(store_url)
    with engine.begin() as conn:
        assert conn.execute(text("SELECT version_num FROM alembic_version")).scalar_one() == "9999"
        conn.execute(text("UPDATE alembic_version SET version_num = :newest"), {"newest": newest})
    engine.dispose()


def test_tables_of_another_program_are_refused(blank_url: str) -> None:
    engine = create_engine(blank_url)
    with engine.begin() as conn:
        conn.execute(text("CREATE TABLE request (id text)"))
    engine.dispose()
    with pytest.raises(DataRefused, match="tables named request that Stillmotion did not make"):
        open_store(blank_url)


def test_file_that_is_no_database_is_refused_untouched(tmp_path: Path) -> None:
    path = tmp_path / "stillmotion.db"
    path.write_bytes(b"not a database, but somebody's letters " * 200)
    before = path.read_bytes()
    with pytest.raises(DataRefused, match=r"not a whole SQLite database .* backup"):
        open_store(f"sqlite:///{path}")
    assert path.read_bytes() == before


def fill(store: Store) -> None:
    for _ in range(50):
        submit(store, ask(input={"prompt": "x" * 2000}))


def damage(path: Path) -> None:
    damaged = bytearray(path.read_bytes())
    middle = len(damaged) // 2
    damaged[middle : middle + 8192] = b"\xff" * 8192
    path.write_bytes(damaged)


def test_damaged_file_is_refused(sqlite_url: str) -> None:
    store = open_store(sqlite_url)
    fill(store)
    store.close_now()
    damage(Path(sqlite_url.removeprefix("sqlite:///")))
    with pytest.raises(DataRefused, match="not a whole SQLite database"):
        open_store(sqlite_url)


def test_large_file_is_read_through_only_after_a_process_that_did_not_close_it(
    sqlite_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migrate, "READ_THROUGH_BYTES", 4096)
    store = open_store(sqlite_url)
    fill(store)
    store.close_now()
    path = Path(sqlite_url.removeprefix("sqlite:///"))
    damage(path)
    store = open_store(sqlite_url)
    submit(store, ask())
    # What lies on the disk now is what a kill leaves.
    killed = tmp_path / "killed.db"
    for ending in ("", "-wal"):
        shutil.copy(f"{path}{ending}", f"{killed}{ending}")
    store.close_now()
    with pytest.raises(DataRefused, match="not a whole SQLite database"):
        open_store(f"sqlite:///{killed}")


def test_unusable_urls_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DataRefused, match="Use sqlite:"):
        open_store("not a url")
    with pytest.raises(DataRefused, match="mysql is no database this server speaks to"):
        open_store("mysql://me@host/films")
    with pytest.raises(DataRefused, match=r"port is no number; .* @ is written %40") as refused:
        open_store("postgresql+psycopg://films:s3@cr:et@db/films")
    assert "et@db" not in str(refused.value)
    with pytest.raises(DataRefused, match="cannot be opened"):
        open_store(f"sqlite:///{tmp_path / 'missing' / 'stillmotion.db'}")
    with pytest.raises(DataRefused, match="cannot be opened"):
        open_store(f"postgresql+psycopg://nobody@/nothing?host={tmp_path}")


def test_a_postgresql_that_does_not_answer_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(databases, "CONNECT_S", 2)  # libpq's least
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"postgresql+psycopg://nobody@127.0.0.1:{silent.getsockname()[1]}/films"
        for ask_it in (open_store, server_version):
            began = time.monotonic()
            with pytest.raises(DataRefused, match=r"cannot be opened: .*timeout"):
                ask_it(url)
            assert time.monotonic() - began < 10


def test_a_postgresql_that_vanishes_is_noticed_and_its_url_may_say_when(postgres_url: str) -> None:
    url = make_url(postgres_url).update_query_dict({"keepalives_idle": "7"})
    store = open_store(url.render_as_string(hide_password=False))

    def told(conn: Connection) -> dict[str, str]:
        connection: Any = conn.connection.driver_connection
        return connection.info.get_parameters()

    for run in (store.write_now, store.read_now):
        bounds = run(told)
        assert (bounds["connect_timeout"], bounds["tcp_user_timeout"]) == ("5", "10000")
        assert [bounds[f"keepalives_{name}"] for name in ("idle", "interval", "count")] == ["7", "2", "3"]
    store.close_now()


def test_sqlite_connections_keep_the_promised_modes(sqlite_url: str) -> None:
    store = open_store(sqlite_url)

    def pragma(name: str) -> Callable[[Connection], object]:
        return lambda conn: conn.execute(text(f"PRAGMA {name}")).scalar_one()

    assert store.write_now(pragma("journal_mode")) == "wal"
    assert store.write_now(pragma("synchronous")) == 2  # FULL
    assert store.write_now(pragma("foreign_keys")) == 1
    assert store.write_now(pragma("busy_timeout")) == 5000
    assert store.read_now(pragma("query_only")) == 1
    assert read(store, submit(store, ask()).id).state is State.READY
    store.close_now()
    assert not Path(sqlite_url.removeprefix("sqlite:///") + "-wal").exists()


def test_backup_beside_writes_is_a_whole_database(sqlite_url: str, tmp_path: Path) -> None:
    store = open_store(sqlite_url)
    kept = submit(store, ask())
    target = tmp_path / "backup.db"
    store.backup(target)
    later = submit(store, ask())
    store.close_now()
    with closing(sqlite3.connect(target)) as conn:
        assert conn.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    copy = open_store(f"sqlite:///{target}")
    assert read(copy, kept.id).state is State.READY
    assert copy.read_now(lambda conn: queue.get(conn, later.id)) is None
    with pytest.raises(UserError, match="exists"):
        copy.backup(target)
    copy.close_now()


def test_backup_of_postgresql_points_to_its_own_tool(postgres_url: str, tmp_path: Path) -> None:
    store = open_store(postgres_url)
    with pytest.raises(UserError, match="pg_dump"):
        store.backup(tmp_path / "backup.db")
    store.close_now()

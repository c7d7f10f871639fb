"""Transactions: each is committed once, whatever happens to the connection."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from sqlalchemy import event

from target_crm.balances_cli.verify import verify
from target_crm.engines.base import LOCK_WAIT_SECONDS
from target_crm.errors import ConnectionLost, WarehouseError
from target_crm.warehouse import connection as connection_module
from target_crm.warehouse.connection import Warehouse
from tests.helpers.postgres import new_database
from tests.helpers.target import ACTIONS, AWARDS, action, execute, load, query, snapshot, table, table_sink

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sqlalchemy import Connection


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The waits between attempts. They take no time."""
    seconds: list[float] = []
    monkeypatch.setattr(connection_module.time, "sleep", seconds.append)
    return seconds


@pytest.fixture
def warehouse(new_postgres_url: str) -> Iterator[Warehouse]:
    warehouse = Warehouse(new_postgres_url)
    warehouse.set_up(balances=True)
    with warehouse.write() as connection:
        connection.exec_driver_sql("CREATE TABLE IF NOT EXISTS done (n int)")
        connection.exec_driver_sql("DELETE FROM done")
    yield warehouse
    warehouse.dispose()


def test_a_stricter_isolation_level_of_the_database_changes_nothing(postgres_url: str) -> None:
    url = new_database(postgres_url)
    database = url.rsplit("/", 1)[1]
    execute(url, f"ALTER DATABASE {database} SET default_transaction_isolation = 'repeatable read'")
    messages = [action(f"a{place % 5}", available=place % 5) for place in range(20)]

    loaded = load(url, [ACTIONS, *messages], batch_size_rows=3)

    assert loaded.tallies == {"actions": "20 read = 5 applied + 15 duplicate + 0 superseded + 0 quarantined"}


def terminate(connection: Connection) -> None:
    """End a connection on the server, as a shutdown does."""
    driver_connection: Any = connection.connection.driver_connection
    info = driver_connection.info
    with psycopg.connect(host=info.host, port=info.port, user=info.user, dbname=info.dbname, autocommit=True) as other:
        other.execute("SELECT pg_terminate_backend(%s, 5000)", [info.backend_pid])


def count(connection: Connection) -> None:
    connection.exec_driver_sql("INSERT INTO done VALUES (1)")


def test_a_batch_is_retried_when_the_connection_is_lost(
    warehouse: Warehouse, new_postgres_url: str, waits: list[float]
) -> None:
    attempts: list[int] = []

    def work(connection: Connection) -> None:
        attempts.append(1)
        count(connection)
        if len(attempts) < 3:
            terminate(connection)
            count(connection)

    warehouse.commit_once(work)

    assert query(new_postgres_url, "SELECT n FROM done") == [(1,)]
    assert waits == [0.5, 1.0]


def test_interrupted_ddl_is_retried(new_postgres_url: str, waits: list[float]) -> None:
    crm = Warehouse(new_postgres_url, schema="cut_off")
    narrow, wide = table_sink(crm, "t", "id"), table_sink(crm, "t", "id", "more")

    balances = partial(crm.set_up, balances=True)
    for work in (crm.set_up, balances, partial(crm.ensure, narrow), partial(crm.ensure, wide)):
        with connection_lost_in_ddl(crm):
            work()
    crm.dispose()

    assert query(new_postgres_url, "SELECT * FROM cut_off.award_balances") == []
    assert query(new_postgres_url, "SELECT id, more FROM cut_off.t") == []
    assert len(waits) == 4


@contextmanager
def connection_lost_in_ddl(crm: Warehouse) -> Iterator[None]:
    """End the connection once the server has created or changed the first table."""
    lost: list[str] = []

    def end(connection: Connection, _cursor: object, statement: str, *_: object) -> None:
        if not lost and statement.lstrip().startswith(("CREATE TABLE", "ALTER TABLE")):
            lost.append(statement)
            terminate(connection)

    event.listen(crm._engine, "after_cursor_execute", end)
    yield
    event.remove(crm._engine, "after_cursor_execute", end)
    assert lost


def test_a_server_that_has_never_answered_is_not_retried(waits: list[float]) -> None:
    with pytest.raises(ConnectionLost):
        Warehouse("postgresql://loader@127.0.0.1:1/crm").set_up()

    assert waits == []


def test_a_batch_is_not_written_twice_when_the_reply_to_commit_is_lost(
    warehouse: Warehouse, new_postgres_url: str, waits: list[float]
) -> None:
    with reply_to_commit_lost(warehouse):
        warehouse.commit_once(count)

    assert query(new_postgres_url, "SELECT n FROM done") == [(1,)]
    assert len(waits) == 1


@contextmanager
def reply_to_commit_lost(warehouse: Warehouse) -> Iterator[None]:
    """Lose the connection right after the first COMMIT."""
    commits: list[int] = []
    dialect = warehouse._engine.dialect
    do_commit = dialect.do_commit

    def commit_and_lose(connection: Any) -> None:
        do_commit(connection)
        commits.append(1)
        if len(commits) == 1:
            raise psycopg.OperationalError("server closed the connection unexpectedly")

    dialect.do_commit = commit_and_lose  # type: ignore[method-assign]
    try:
        yield
    finally:
        dialect.do_commit = do_commit  # type: ignore[method-assign]


def test_the_number_of_attempts_is_limited(warehouse: Warehouse, waits: list[float]) -> None:
    with pytest.raises(ConnectionLost):
        warehouse.commit_once(terminate_and_ask)

    assert waits == list(connection_module.RETRY_SECONDS)


def terminate_and_ask(connection: Connection) -> None:
    terminate(connection)
    count(connection)


def test_a_statement_that_the_server_rejects_is_not_retried(warehouse: Warehouse, waits: list[float]) -> None:
    with pytest.raises(WarehouseError, match="no_such_table"):
        warehouse.commit_once(lambda connection: connection.exec_driver_sql("SELECT * FROM no_such_table") and None)

    assert waits == []


def test_a_reader_sees_one_state_throughout(warehouse: Warehouse, new_postgres_url: str) -> None:
    with warehouse.read() as connection:
        before = connection.exec_driver_sql("SELECT count(*) FROM done").scalar()
        warehouse.commit_once(count)
        after = connection.exec_driver_sql("SELECT count(*) FROM done").scalar()

    assert (before, after) == (0, 0)
    assert query(new_postgres_url, "SELECT count(*) FROM done") == [(1,)]


def test_a_signal_ends_the_wait_for_the_lock(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'crm.db'}"
    first, second = Warehouse(url), Warehouse(url)
    first.set_up(balances=True)

    def stop(*_: object) -> None:
        sys.exit(143)

    handler = signal.signal(signal.SIGALRM, stop)
    started_at_seconds = time.monotonic()
    with first.write():
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        with pytest.raises(SystemExit), second.write():
            pass
    signal.signal(signal.SIGALRM, handler)

    assert time.monotonic() - started_at_seconds < LOCK_WAIT_SECONDS / 2


def test_only_a_held_lock_makes_a_writer_wait(tmp_path: Path) -> None:
    crm = Warehouse(f"sqlite:///{tmp_path / 'crm.db'}")
    attempts: list[str] = []

    def fail(_connection: Connection, _cursor: object, statement: str, *_: object) -> None:
        if statement == "BEGIN IMMEDIATE":
            attempts.append(statement)
            raise sqlite3.OperationalError("disk I/O error")

    event.listen(crm._engine, "before_cursor_execute", fail)
    with pytest.raises((WarehouseError, sqlite3.OperationalError), match="disk I/O error"), crm.write():
        pass

    assert len(attempts) == 1


def test_instants_of_the_year_9999_are_read_in_any_time_zone_of_the_server(new_postgres_url: str) -> None:
    execute(new_postgres_url, f"ALTER DATABASE {new_postgres_url.rpartition('/')[2]} SET timezone = 'Pacific/Auckland'")
    load(new_postgres_url, [AWARDS, snapshot("w1", at="9999-12-31T23:00:00Z")])

    assert table(new_postgres_url, "award_balances", "as_of") == [{"as_of": datetime(9999, 12, 31, 23, tzinfo=UTC)}]


@pytest.mark.parametrize(
    ("variables", "options"),
    [
        pytest.param({"PGDATESTYLE": "German"}, "", id="date-style"),
        pytest.param({}, "?options=-cDateStyle%3DSQL,DMY", id="date-style-in-the-url"),
        pytest.param({"PGCLIENTENCODING": "LATIN1"}, "", id="encoding"),
        pytest.param({}, "?client_encoding=latin1", id="encoding-in-the-url"),
        pytest.param({}, "?options=-cclient_encoding%3DLATIN1", id="encoding-in-the-options"),
    ],
)
def test_loads_and_verify_do_not_depend_on_the_sessions_date_style_and_encoding(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], options: str
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    url = new_database(postgres_url) + options

    load(url, [AWARDS, snapshot("1 €", 5)])
    load(url, [AWARDS, snapshot("1 €", 7, at="2026-10-02T12:00:00Z")])

    assert not verify(Warehouse(url)).failed
    assert table(url, "award_balances", "award_id", "points", "as_of") == [
        {"award_id": "1 €", "points": 7, "as_of": datetime(2026, 10, 2, 12, tzinfo=UTC)}
    ]


def test_loaders_with_different_search_paths_to_the_same_tables_use_the_same_lock(new_postgres_url: str) -> None:
    execute(new_postgres_url, "CREATE SCHEMA own")
    execute(new_postgres_url, "CREATE SCHEMA shared")
    shared, both = (
        Warehouse(f"{new_postgres_url}?options=-csearch_path%3D{path}") for path in ("shared", "own,shared")
    )
    shared.set_up(balances=True)

    def locks(crm: Warehouse) -> set[Any]:
        with crm.write() as connection:
            held = "SELECT objid FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()"
            return set(connection.exec_driver_sql(held).scalars())

    assert locks(both) == locks(shared) != set()


def test_a_load_does_not_wait_for_a_backup(new_postgres_url: str) -> None:
    load(new_postgres_url, [AWARDS, snapshot("w1")])
    execute(new_postgres_url, f"ALTER DATABASE {new_postgres_url.rpartition('/')[2]} SET lock_timeout = '3s'")
    with psycopg.connect(new_postgres_url) as backup:
        for (name,) in backup.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall():
            backup.execute(f"LOCK TABLE {name} IN ACCESS SHARE MODE")

        load(new_postgres_url, [AWARDS, snapshot("w2"), ACTIONS, action("a1", award="w3")])

    assert [row["award_id"] for row in table(new_postgres_url, "award_balances", "award_id")][-2:] == ["w2", "w3"]


DRIVERS = (
    *("psycopg", "pymysql", "duckdb_sqlalchemy", "snowflake", "sqlalchemy_bigquery", "sqlalchemy_redshift"),
    *("databricks", "pyodbc", "oracledb", "clickhouse_connect", "pyhive"),
)
EXTRAS = {
    "postgresql://h/d": "postgres",
    "mysql://h/d": "mysql",
    "mariadb://h/d": "mysql",
    "duckdb:///crm.db": "duckdb",
    "snowflake://a/d": "snowflake",
    "bigquery://project": "bigquery",
    "redshift+redshift_connector://h/d": "redshift",
    "databricks://h": "databricks",
    "mssql+pyodbc://h/d": "mssql",
    "oracle+oracledb://h": "oracle",
    "clickhousedb://h": "clickhouse",
    "spark://h/d": "spark",
}


def test_a_missing_driver_names_the_extra_that_installs_it() -> None:
    # In a process of its own, because a driver that is imported already would be found.
    program = f"""
import sys
sys.modules |= dict.fromkeys({DRIVERS})
from target_crm.errors import SettingError
from target_crm.warehouse.connection import Warehouse
for url in {list(EXTRAS)}:
    try:
        Warehouse(url)
    except SettingError as error:
        print(error)
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    messages = ran.stdout.splitlines()
    assert [message.rpartition(" is missing; ")[2] for message in messages] == [
        f"pip install 'pepper-crm[{extra}]'" for extra in EXTRAS.values()
    ]

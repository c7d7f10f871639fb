"""Waits for locks: a log line names the holder, other readers go on, and the final error names the table."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import psycopg
import pytest

from target_crm.engines import base, postgresql_locks
from target_crm.errors import ConnectionLost
from target_crm.warehouse import connection as connection_module
from target_crm.warehouse.connection import Warehouse
from tests.helpers.target import INTEGER, TEXT, load, query, record, schema
from tests.helpers.waits import logged_waits

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NARROW = [schema("sales", {"id": INTEGER}, "id"), record("sales", {"id": 1})]
WIDE = [schema("sales", {"id": INTEGER, "z": TEXT}, "id"), record("sales", {"id": 2, "z": "q"})]


@pytest.fixture
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits are logged after a tenth of a second."""
    for module in (base, postgresql_locks):
        monkeypatch.setattr(module, "LOCK_LOG_SECONDS", 0.1)


@pytest.fixture
def reader(postgres_url: str, new_postgres_url: str) -> Iterator[psycopg.Connection]:
    """A session of `report` that has read the table `sales` and not ended its transaction."""
    load(new_postgres_url, NARROW)
    with psycopg.connect(new_postgres_url, application_name="report") as connection:
        connection.execute("SELECT * FROM sales")
        yield connection
        connection.rollback()


@pytest.mark.usefixtures("short_waits")
def test_a_load_that_adds_a_column_waits_visibly_and_lets_other_readers_go_on(
    new_postgres_url: str, reader: psycopg.Connection
) -> None:
    others: list[int] = []

    def read_and_release() -> None:
        with psycopg.connect(new_postgres_url, options="-c statement_timeout=30s") as other:
            others.extend(other.execute("SELECT id FROM sales").fetchone() or ())
        reader.rollback()

    lines = logged_waits(read_and_release, lambda: load(new_postgres_url, WIDE))

    pid = reader.info.backend_pid
    expected = f"waiting for a lock on table sales, held by pid {pid} (user postgres, application report)"
    assert (lines, others) == ([expected], [1])
    assert query(new_postgres_url, "SELECT id, z FROM sales ORDER BY id") == [(1, None), (2, "q")]


@pytest.mark.usefixtures("short_waits")
def test_the_wait_for_a_locked_table_ends_with_its_name(
    new_postgres_url: str, reader: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "LOCK_WAIT_SECONDS", 0)
    monkeypatch.setattr(connection_module, "RETRY_SECONDS", (0.0,))

    message = rf"lock on table sales is still held by pid {reader.info.backend_pid} \(user postgres, .*report\)"
    with pytest.raises(ConnectionLost, match=message):
        load(new_postgres_url, [schema("sales", {"id": INTEGER, "more": TEXT}, "id")])


@pytest.mark.usefixtures("short_waits")
def test_a_load_that_waits_for_another_loader_names_it(new_postgres_url: str) -> None:
    load(new_postgres_url, NARROW)
    other = Warehouse(new_postgres_url)
    with other.write() as connection:
        pid = connection.exec_driver_sql("SELECT pg_backend_pid()").scalar_one()

        lines = logged_waits(connection.rollback, lambda: load(new_postgres_url, NARROW))
    other.dispose()

    assert lines == [f"waiting for the loader's lock, held by pid {pid} (user postgres, application target-crm)"]


@pytest.mark.usefixtures("short_waits")
def test_a_writer_on_sqlite_logs_that_it_waits(sqlite_url: str) -> None:
    load(sqlite_url, NARROW)
    other = Warehouse(sqlite_url)
    with other.write() as connection:
        lines = logged_waits(connection.rollback, lambda: load(sqlite_url, NARROW))
    other.dispose()

    assert lines == ["waiting for a lock on the database file, held by another connection"]


@pytest.mark.usefixtures("short_waits")
def test_a_loader_names_the_process_that_has_the_file_of_duckdb_open(tmp_path: Path) -> None:
    path = tmp_path / "crm.duckdb"
    load(f"duckdb:///{path}", NARROW)
    hold = f"import duckdb, sys; held = duckdb.connect({str(path)!r}); print(flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout
        assert other.stdout.readline()

        lines = logged_waits(other.communicate, lambda: load(f"duckdb:///{path}", NARROW))

    assert lines == [f"waiting for a lock on the database file, held by process {other.pid}"]


def test_a_batch_waits_for_other_locks_no_longer_than_a_minute_unless_the_role_says_otherwise(
    new_postgres_url: str,
) -> None:
    def limit(url: str) -> str:
        crm = Warehouse(url)
        with crm.write() as connection:
            found: str = connection.exec_driver_sql("SHOW lock_timeout").scalar_one()
        crm.dispose()
        return found

    assert limit(new_postgres_url) == "1min"
    assert limit(f"{new_postgres_url}?options=-clock_timeout%3D5s") == "5s"

"""SQLite."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

from sqlalchemy import Table, event
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.exc import OperationalError
from sqlalchemy.pool import StaticPool

from target_crm.engines.base import (
    LOCK_POLL_SECONDS,
    LOCK_WAIT_SECONDS,
    EngineAdapter,
    insert_by_driver,
    merge_on_conflict,
)

if TYPE_CHECKING:
    from sqlalchemy import URL, Connection, Engine, Table

    from target_crm.engines.base import Rows
    from target_crm.sql.staging import Merge


class SQLiteAdapter(EngineAdapter):
    """A file, and one writer at a time."""

    tested = True
    # Any column takes any value; only what it makes of it depends on its type.
    widens_to = ("number",)
    views_follow_renames = True

    def is_in_memory(self, url: URL) -> bool:
        """Where the URL names no file."""
        return not url.database or url.database == ":memory:"

    def create_engine(self, url: URL, **options: Any) -> Engine:
        """Make a SQLAlchemy engine; a database in memory is that of one connection, which has to serve every thread."""
        if self.is_in_memory(url):
            options |= {"poolclass": StaticPool, "connect_args": {"check_same_thread": False}}
        return super().create_engine(url, **options)

    def listen(self, engine: Engine) -> None:
        """Let BEGIN be ours: the driver's own begins late, and a writer that reads first could never wait its turn."""

        def on_connect(driver_connection: Any, _record: object) -> None:
            driver_connection.isolation_level = None
            driver_connection.execute(f"PRAGMA busy_timeout = {LOCK_WAIT_SECONDS * 1000}")
            driver_connection.execute("PRAGMA journal_mode = WAL")
            # Of use to what sorts the whole ledger, as `verify` does.
            driver_connection.execute(f"PRAGMA threads = {os.cpu_count() or 1}")
            # A signal is heard between two tries only.
            driver_connection.execute(f"PRAGMA busy_timeout = {int(LOCK_POLL_SECONDS * 1000)}")

        def on_begin(connection: Connection) -> None:
            if not connection.get_execution_options().get("crm_writes"):
                connection.exec_driver_sql("BEGIN")
                return
            deadline_seconds = time.monotonic() + LOCK_WAIT_SECONDS
            while True:
                try:
                    connection.exec_driver_sql("BEGIN IMMEDIATE")
                except OperationalError as error:
                    if "database is locked" not in str(error.orig) or time.monotonic() > deadline_seconds:
                        raise
                else:
                    return

        event.listen(engine, "connect", on_connect)
        event.listen(engine, "begin", on_begin)

    def is_retriable(self, error: Exception) -> bool:  # noqa: ARG002
        """No: it has waited for its lock already."""
        return False

    def merge(self, connection: Connection, merge: Merge) -> None:
        """By ON CONFLICT."""
        connection.execute(merge_on_conflict(insert, merge))

    def _bulk_load(self, connection: Connection, table: Table, rows: Rows) -> None:
        """By the driver's own executemany: SQLAlchemy's would make a dict of every row."""
        insert_by_driver(connection, table, rows, mark="?")

"""MySQL and MariaDB."""

from __future__ import annotations

from contextlib import closing, contextmanager, suppress
from typing import TYPE_CHECKING, Any

from sqlalchemy import Column, Table, event

from target_crm.engines.base import LOCK_WAIT_SECONDS, EngineAdapter, digest, insert_by_driver
from target_crm.errors import WarehouseError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Column, Connection, Dialect, Engine, Table

    from target_crm.engines.base import Rows


class MySQLAdapter(EngineAdapter):
    """MySQL and MariaDB: locks by name that outlast a transaction, and DDL that commits at once."""

    widens_to = ("number", "text")
    # The server, or the way to it, is gone; too many connections; a lock was not to be had, or another has won it.
    _PASSING = frozenset({2002, 2003, 2006, 2013, 2055, 1040, 1053, 1077, 1158, 1159, 1160, 1161, 1205, 1213, 1927})

    def listen(self, engine: Engine) -> None:
        """Have values that don't fit refused: a server may be set up to cut them off, with no more than a warning."""

        def on_connect(driver_connection: Any, _record: object) -> None:
            with closing(driver_connection.cursor()) as cursor:
                cursor.execute("SET SESSION sql_mode = CONCAT_WS(',', @@sql_mode, 'STRICT_ALL_TABLES')")

        event.listen(engine, "connect", on_connect)

    @contextmanager
    def session_lock(self, connection: Connection, schema: str | None) -> Iterator[None]:
        """Take a lock by name: names are the server's, so the database is a part of this one."""
        name = digest(f"{connection.engine.url.database}.{schema}")
        with closing(connection.connection.cursor()) as cursor:
            cursor.execute("SELECT GET_LOCK(%s, %s)", (name, LOCK_WAIT_SECONDS))
            if cursor.fetchone() != (1,):
                raise WarehouseError(f"another loader has been at work for more than {LOCK_WAIT_SECONDS} s")
            try:
                yield
            finally:
                # Where the connection is lost, so is the lock.
                with suppress(connection.dialect.loaded_dbapi.Error):
                    cursor.execute("SELECT RELEASE_LOCK(%s)", (name,))

    def is_retriable(self, error: Exception) -> bool:
        """By number: the classes of the driver say little."""
        return bool(error.args) and error.args[0] in self._PASSING

    def widen(self, dialect: Dialect, column: Column[Any]) -> str:
        """By a change of type, which converts what is there."""
        name = dialect.identifier_preparer.quote(column.name)
        return f"MODIFY COLUMN {name} {column.type.compile(dialect)}"

    def _bulk_load(self, connection: Connection, table: Table, rows: Rows) -> None:
        """By the driver's own executemany, which sends many rows in a statement.

        LOAD DATA LOCAL would be faster, but with it a server may ask this machine for any file.
        """
        insert_by_driver(connection, table, rows, mark="%s")


class MariaDBAdapter(MySQLAdapter):
    """Where it is called by its own name."""

    tested = True

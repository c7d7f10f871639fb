"""MySQL and MariaDB."""

from __future__ import annotations

from contextlib import closing, contextmanager, suppress
from typing import TYPE_CHECKING, Any

from sqlalchemy import String, event
from sqlalchemy.dialects.mysql import DATETIME, LONGTEXT
from sqlalchemy.ext.compiler import compiles

from target_crm.engines.base import LOCK_WAIT_SECONDS, ExtendedSQLAdapter, insert_by_driver, lock_name
from target_crm.errors import WarehouseError
from target_crm.records.column_types import ID_CHARS_MAX, ColumnTypes, register
from target_crm.sql.functions import QUARTER_SECONDS, quarter_hours

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Column, Connection, Dialect, Engine, Table
    from sqlalchemy.sql.compiler import SQLCompiler

    from target_crm.engines.base import Rows


class MySQLAdapter(ExtendedSQLAdapter):
    """Named locks that outlast a transaction, and DDL that commits at once."""

    quotes_every_name = True
    widens_columns_to = ("number", "time", "text")
    # The server or the connection to it is lost; too many connections; a lock timeout or a deadlock.
    _RETRIABLE = frozenset({2002, 2003, 2006, 2013, 2055, 1040, 1053, 1077, 1158, 1159, 1160, 1161, 1205, 1213, 1927})

    def add_event_listeners(self, engine: Engine) -> None:
        """Use strict mode: otherwise a server may truncate values that do not fit, with no more than a warning."""

        def on_connect(driver_connection: Any, _record: object) -> None:
            with closing(driver_connection.cursor()) as cursor:
                cursor.execute("SET SESSION sql_mode = CONCAT_WS(',', @@sql_mode, 'STRICT_ALL_TABLES')")

        event.listen(engine, "connect", on_connect)

    @contextmanager
    def session_lock(self, connection: Connection, schema: str | None) -> Iterator[None]:
        """Hold a named lock. Its name contains the database, because names are the server's."""
        name = lock_name(f"{connection.engine.url.database}.{schema}")
        with closing(connection.connection.cursor()) as cursor:
            cursor.execute("SELECT GET_LOCK(%s, %s)", (name, LOCK_WAIT_SECONDS))
            if cursor.fetchone() != (1,):
                raise WarehouseError(f"another loader has held the lock for more than {LOCK_WAIT_SECONDS} s")
            try:
                yield
            finally:
                # A lost connection has released the lock.
                with suppress(connection.dialect.loaded_dbapi.Error):
                    cursor.execute("SELECT RELEASE_LOCK(%s)", (name,))

    def is_retriable(self, error: Exception) -> bool:
        """Decide by number: the driver's classes are too coarse."""
        return bool(error.args) and error.args[0] in self._RETRIABLE

    def widen_column(self, dialect: Dialect, column: Column[Any]) -> str:
        """Change the type, which converts the values."""
        name = dialect.identifier_preparer.quote(column.name)
        return f"MODIFY COLUMN {name} {column.type.compile(dialect)}"

    def _bulk_load(self, connection: Connection, table: Table, rows: Rows) -> None:
        """Use the driver's `executemany`, which sends many rows per statement.

        LOAD DATA LOCAL would be faster, but allows a server to ask this machine for any file.
        """
        insert_by_driver(connection, table, rows, placeholder="%s")


class MariaDBAdapter(MySQLAdapter):
    """MariaDB, from a mariadb:// URL."""

    tested = True


ADAPTERS = {"mysql": MySQLAdapter(), "mariadb": MariaDBAdapter()}

for _name, _collation in (("mysql", "utf8mb4_0900_bin"), ("mariadb", "utf8mb4_nopad_bin")):
    register(
        _name,
        ColumnTypes(
            identifier=String(ID_CHARS_MAX, collation=_collation),
            text=LONGTEXT(charset="utf8mb4", collation=_collation),
            instant=DATETIME(fsp=6),
        ),
    )


@compiles(quarter_hours, "mysql", "mariadb")
def _quarter_hours(element: quarter_hours, compiler: SQLCompiler, **kw: Any) -> str:
    instant = compiler.process(element.clauses, **kw)
    return f"(TIMESTAMPDIFF(SECOND, '1970-01-01', {instant}) DIV {QUARTER_SECONDS})"

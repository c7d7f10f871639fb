"""The adapters for MySQL and MariaDB."""

from __future__ import annotations

import unicodedata
from contextlib import closing, contextmanager, suppress
from typing import TYPE_CHECKING, Any, ClassVar

from sqlalchemy import String, event
from sqlalchemy.dialects.mysql import DATETIME, LONGTEXT, TINYINT
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.compiler import compiles

from target_crm.engines.base import (
    LOADER_LOCK,
    LOCK_LOG_SECONDS,
    ExtendedSQLAdapter,
    LockWait,
    boolean_as_text,
    insert_by_driver,
    lock_name,
    quoted_columns,
)
from target_crm.engines.driver_errors import describe
from target_crm.errors import ConnectionLost, WarehouseError
from target_crm.records.column_types import (
    DECIMAL_DIGITS,
    ID_CHARS_MAX,
    ColumnTypes,
    Identifier,
    LongText,
    register,
)
from target_crm.records.schemas import TableLimits
from target_crm.sql.functions import QUARTER_SECONDS, quarter_hours
from target_crm.sql.tables import STAGING_PREFIX

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from sqlalchemy import Column, ColumnElement, Connection, Dialect, Engine, Table
    from sqlalchemy.pool import ConnectionPoolEntry
    from sqlalchemy.sql.compiler import SQLCompiler
    from sqlalchemy.types import TypeEngine

    from target_crm.engines.base import Rows


# The collation of names treats these letters as equal to other letters, although Unicode does not decompose them.
_LIKE = str.maketrans({"ß": "s", "ı": "i", "ϲ": "σ"})  # noqa: RUF001 - other alphabets
# In a connection's `info`, this key holds the length of the longest statement that the server accepts, in bytes.
_PACKET = "max_allowed_packet"
# Reserve this many bytes for the keywords of a statement, and for each value that is not text.
_STATEMENT_BYTES = 1_024
_VALUE_BYTES = 70
_ESCAPED = "\0\n\r\x1a\"'\\"


def _split(rows: Rows, bytes_max: int) -> Iterator[Rows]:
    """Halve the rows until each part is shorter than `bytes_max`, or has a single row."""
    # In UTF-8, a character has at most four bytes. A character that must be escaped takes two bytes.
    chars = sum(len(value) for row in rows for value in row if isinstance(value, str))
    if len(rows) == 1 or 4 * chars + _VALUE_BYTES * len(rows) * len(rows[0]) <= bytes_max:
        yield rows
    else:
        half = len(rows) // 2
        yield from _split(rows[:half], bytes_max)
        yield from _split(rows[half:], bytes_max)


def _size_bytes(row: Sequence[Any]) -> int:
    """Estimate how many bytes a row takes in a statement."""
    return sum(
        len(value.encode()) + sum(map(value.count, _ESCAPED)) if isinstance(value, str) else _VALUE_BYTES
        for value in row
    )


def _fold(name: str) -> str:
    """Remove case and accents from a name, because the collation of names (utf8mb3_general_ci) ignores them."""
    return "".join(map(_base, name.translate(_LIKE))).casefold()


def _base(letter: str) -> str:
    parts = unicodedata.decomposition(letter).split()
    is_accented = len(parts) > 1 and not parts[0].startswith("<")
    return _base(chr(int(parts[0], 16))) if is_accented else letter


class MySQLAdapter(ExtendedSQLAdapter):
    """The adapter uses named locks, which outlast a transaction, because MySQL commits DDL immediately."""

    quotes_every_name = True
    # InnoDB reserves these column names. It also limits the number of columns and the size of keys.
    limits = TableLimits(
        decimal_digits=DECIMAL_DIGITS,
        reserved_columns=frozenset({"db_row_id", "db_trx_id", "db_roll_ptr", "fts_doc_id"}),
        columns=1_017,
        key_bytes=3_072,
        sizes=True,
        fold=_fold,
    )
    widens_columns_to = ("number", "decimal", "time", "text")
    leave_out_column = "MODIFY COLUMN {name} {type}"
    rename_table = ("ALTER TABLE {old} RENAME TO {new}",)
    # The server stopped, the connection was lost, there were too many connections, a lock timed out, or transactions
    # were deadlocked.
    _RETRIABLE = frozenset({2002, 2003, 2006, 2013, 2055, 1040, 1053, 1077, 1158, 1159, 1160, 1161, 1205, 1213, 1927})
    # A value is out of range, truncated, too long or null, or violates a check. The message does not quote the value.
    _WITHOUT_VALUES = frozenset({1264, 1265, 1406, 1048, 1364, 3819, 4025})
    # The number of an error → the text that follows the value in its message, as in `Duplicate entry '…' for key …`.
    _VALUE_BEFORE: ClassVar[Mapping[int, str]] = {1292: " for column ", 1366: " for column ", 1062: " for key "}
    # Access to a database, a table or a column is denied.
    _NO_PRIVILEGE = frozenset({1044, 1142, 1143})
    _LOCK_TIMEOUT = 1205
    _OPEN_TRANSACTIONS = (
        "SELECT CONCAT('connection ', id, ' (user ', user, ')') FROM information_schema.innodb_trx "
        "JOIN information_schema.processlist ON id = trx_mysql_thread_id WHERE id <> CONNECTION_ID() "
        "ORDER BY trx_started LIMIT 1"
    )
    # An ALTER TABLE that waits for a reader blocks all later readers. The default timeout is a day or even a year.
    _TABLE_LOCK_SECONDS = 10

    def add_event_listeners(self, engine: Engine) -> None:
        """Limit how long a statement waits for a table's lock, and turn on strict mode.

        Without strict mode, a server may truncate values.
        """

        def on_connect(driver_connection: Any, record: ConnectionPoolEntry) -> None:
            with closing(driver_connection.cursor()) as cursor:
                cursor.execute(
                    "SET SESSION sql_mode = CONCAT_WS(',', @@sql_mode, 'STRICT_ALL_TABLES'), "
                    f"SESSION lock_wait_timeout = {self._TABLE_LOCK_SECONDS}"
                )
                cursor.execute("SELECT @@max_allowed_packet")
                (record.info[_PACKET],) = cursor.fetchone()

        event.listen(engine, "connect", on_connect)

    @contextmanager
    def session_lock(self, connection: Connection, schema: str | None) -> Iterator[None]:
        """Hold a named lock. Its name depends on the database, because such locks apply to the whole server."""
        name = lock_name(f"{connection.engine.url.database}.{schema}")
        with closing(connection.connection.cursor()) as cursor:

            def ask(question: str, *arguments: object) -> Any:
                cursor.execute(question, arguments)
                (answer,) = cursor.fetchone() or (None,)
                return answer

            wait = LockWait()
            while ask("SELECT GET_LOCK(%s, %s)", name, LOCK_LOG_SECONDS) != 1:
                wait.go_on(LOADER_LOCK, f"connection {ask('SELECT IS_USED_LOCK(%s)', name)}")
            try:
                yield
            finally:
                # If the connection was lost, the server has already released the lock.
                with suppress(connection.dialect.loaded_dbapi.Error):
                    cursor.execute("SELECT RELEASE_LOCK(%s)", (name,))

    @contextmanager
    def altering(self, connection: Connection, table: Table) -> Iterator[None]:
        """If DDL waits too long for a table's lock, name the oldest open transaction in the error.

        This transaction probably holds the lock. Only the performance schema or a plugin records which session really
        holds the lock, and MariaDB turns on neither by default.
        """
        try:
            yield
        except DBAPIError as error:
            if not error.orig or error.orig.args[:1] != (self._LOCK_TIMEOUT,):
                raise
            try:
                oldest = connection.exec_driver_sql(self._OPEN_TRANSACTIONS).scalar()
            except DBAPIError:
                # The query needs the privilege PROCESS.
                oldest = None
            holder = (
                f"another session, perhaps by {oldest}, the oldest open transaction" if oldest else "another session"
            )
            raise ConnectionLost(
                f"a lock on table {table} is still held by {holder}: "
                "wait until the lock is released, or stop its holder"
            ) from None

    def is_retriable(self, error: Exception) -> bool:
        """Decide by the error's number, because the driver's error classes are too general."""
        return bool(error.args) and error.args[0] in self._RETRIABLE

    def is_about_row(self, error: Exception) -> bool:
        """Decide by the error's number, because mysqlclient and PyMySQL have no class for a failed CHECK."""
        number = next(iter(error.args), None)
        return number in self._WITHOUT_VALUES or number in self._VALUE_BEFORE or super().is_about_row(error)

    def lacks_privilege(self, error: Exception) -> bool:
        """Decide by the error's number, because many of these errors have the general SQLSTATE 42000."""
        return next(iter(error.args), None) in self._NO_PRIVILEGE

    def describe_error(self, error: Exception) -> str:
        """For known errors, return the server's message, without the value that it may quote."""
        number, message = (*error.args, "", "")[:2]
        place = self._VALUE_BEFORE.get(number, "\0")
        if place in message:
            message = message.partition("'")[0].rstrip(": ") + place + message.rpartition(place)[2]
        elif number not in self._WITHOUT_VALUES:
            return describe(error)
        return f"{type(error).__name__}: {message}"

    def widen_column(self, dialect: Dialect, column: Column[Any]) -> str:
        """Return the clause that changes the type. The server also converts the stored values."""
        name = dialect.identifier_preparer.quote(column.name)
        return f"MODIFY COLUMN {name} {column.type.compile(dialect)}"

    def rebuilds_to_widen(self, old: TypeEngine[Any], column: Column[Any]) -> bool:
        """Rebuild the table to widen a boolean, which is a number on this engine.

        Without a rebuild, a second statement after ALTER TABLE would have to change `0` to `false`, and a run may be
        interrupted between the two.
        """
        return isinstance(old, TINYINT) and isinstance(column.type, Identifier | LongText)

    def converted(self, column: ColumnElement[Any], type_: TypeEngine[Any]) -> ColumnElement[Any]:
        """Let the server convert all types except booleans, which are numbers on this engine."""
        is_boolean = isinstance(column.type, TINYINT) and isinstance(type_, Identifier | LongText)
        return boolean_as_text(column) if is_boolean else column

    def _bulk_load(self, connection: Connection, table: Table, rows: Rows) -> None:
        """Use the driver's `executemany`, which sends many rows per statement.

        LOAD DATA LOCAL would be faster, but it would allow the server to request any file of this machine.

        Raises:
            WarehouseError: A row is larger than the server accepts.
        """
        packet_bytes = connection.info[_PACKET]
        names_bytes = len(quoted_columns(connection, table).encode()) + _STATEMENT_BYTES
        for part in _split(rows, packet_bytes - names_bytes):
            if len(part) == 1 and (size_bytes := _size_bytes(part[0])) + names_bytes > packet_bytes:
                raise WarehouseError(
                    f"table {table.name.removeprefix(STAGING_PREFIX)!r}: a record of {size_bytes:,} bytes is larger "
                    f"than the server's max_allowed_packet, {packet_bytes:,} bytes: raise that setting"
                )
            insert_by_driver(connection, table, part, placeholder="%s")


class MariaDBAdapter(MySQLAdapter):
    """The adapter for a mariadb:// URL. The tests use MariaDB, but no MySQL server."""

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

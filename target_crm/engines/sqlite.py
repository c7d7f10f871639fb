"""The adapter for SQLite."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import Boolean, Column, Double, Numeric, Table, case, cast, event, func, or_
from sqlalchemy.dialects.sqlite import DATETIME, insert
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.pool import QueuePool, StaticPool

from target_crm.engines.base import (
    LOCK_POLL_SECONDS,
    LOCK_WAIT_SECONDS,
    ExtendedSQLAdapter,
    LockWait,
    boolean_as_text,
    insert_by_driver,
    merge_on_conflict,
)
from target_crm.records.column_types import (
    DECIMAL_DIGITS,
    POINTS_DIGITS,
    POINTS_PLACES,
    ColumnTypes,
    Identifier,
    Instant,
    LongText,
    Points,
    register,
)
from target_crm.records.schemas import TableLimits
from target_crm.records.values import INTEGER_MAX, INTEGER_MIN
from target_crm.sql import balances
from target_crm.sql.functions import QUARTER_SECONDS, exact, exact_sum, packed, quarter_hours, unpacked

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from datetime import datetime

    from sqlalchemy import URL, ColumnElement, Connection, Dialect, Engine, Select
    from sqlalchemy.sql.compiler import SQLCompiler
    from sqlalchemy.types import TypeEngine

    from target_crm.engines.base import Rows
    from target_crm.sql.staging import Merge
    from target_crm.sql.tables import Tables

# SQLite keeps this much of the staged rows in memory, and writes the others to a temporary file. A larger cache would
# save no time, because the system deletes the file before it writes it to the disk.
TEMPORARY_TABLES_KIB = 4 * 1024


class SQLiteAdapter(ExtendedSQLAdapter):
    """SQLite stores the tables in a file. Only one connection can write to the file at a time."""

    tested = True
    leave_out_column = "DROP COLUMN {name}"
    quotes_every_name = True
    has_schemas = False
    # SQLite writes a row in a temporary table neither to its write-ahead log nor to the file of the warehouse.
    temporary_schema = "temp"
    create_view = "CREATE VIEW {name} AS {query}"
    replaces_views = False
    # Tools use `rowid` and `_rowid_` for the number of a row. In the result of a subquery, SQLite renames columns
    # called true or false. A statement that compares two rows nests one level deeper for each column, and SQLite allows
    # 1,000 levels.
    limits = TableLimits(
        reserved_columns=frozenset({"rowid", "_rowid_", "true", "false"}), columns=990, reserved_prefix="sqlite_"
    )
    widens_columns_to = ("number", "decimal", "time", "text")
    # Without this pragma, SQLite does not rename a table while a view is invalid. After the old table was dropped, its
    # views are invalid until the copy has the old name.
    rename_table = (
        "PRAGMA legacy_alter_table = ON",
        "ALTER TABLE {old} RENAME TO {name}",
        "PRAGMA legacy_alter_table = OFF",
    )
    views_follow_renames = True

    def is_in_memory(self, url: URL) -> bool:
        """Return whether the URL names no file, or `:memory:` instead of a file."""
        return not url.database or url.database == ":memory:"

    def database_exists(self, url: URL) -> bool:
        """Look for the file instead of connecting, because a connection would create it."""
        return Path(url.database or "").exists()

    def create_engine(self, url: URL, **options: Any) -> Engine:
        """Create a SQLAlchemy engine. An in-memory database belongs to one connection, which all threads must share."""
        # Keep the driver from beginning transactions: see `add_event_listeners`. libSQL's driver accepts this
        # option only as an argument of `connect`.
        arguments: dict[str, Any] = {"isolation_level": None}
        if self.is_in_memory(url):
            options["poolclass"] = StaticPool
            arguments["check_same_thread"] = False
        else:
            # The reading thread opens a second connection. Some dialects would give a thread the same one again.
            options["poolclass"] = QueuePool
        return super().create_engine(url, connect_args=arguments, **options)

    def add_event_listeners(self, engine: Engine) -> None:
        """Begin transactions explicitly, because the driver begins one only before the first write.

        A transaction that has already read cannot wait for another writer. SQLite rejects its write immediately.
        """

        def on_connect(driver_connection: Any, _record: object) -> None:
            driver_connection.execute(f"PRAGMA busy_timeout = {LOCK_WAIT_SECONDS * 1000}")
            driver_connection.execute("PRAGMA journal_mode = WAL")
            driver_connection.execute(f"PRAGMA temp.cache_size = -{TEMPORARY_TABLES_KIB}")
            # SQLite sorts the whole ledger for `verify`. With several threads, this is faster.
            driver_connection.execute(f"PRAGMA threads = {os.cpu_count() or 1}")
            # Make only short attempts to lock the file, because Python handles signals only between them.
            driver_connection.execute(f"PRAGMA busy_timeout = {int(LOCK_POLL_SECONDS * 1000)}")

        def on_begin(connection: Connection) -> None:
            if not connection.get_execution_options().get("crm_writes"):
                connection.exec_driver_sql("BEGIN")
                return
            wait = LockWait()
            while True:
                try:
                    connection.exec_driver_sql("BEGIN IMMEDIATE")
                except OperationalError as error:
                    if "database is locked" not in str(error.orig):
                        raise
                    wait.go_on("a lock on the database file", "another connection")
                else:
                    return

        event.listen(engine, "connect", on_connect)
        event.listen(engine, "begin", on_begin)

    def is_retriable(self, error: Exception) -> bool:  # noqa: ARG002
        """Return False, because the listener for `begin` already waits for the lock."""
        return False

    def system_tables(self, connection: Connection) -> Collection[str]:
        """Return the names of virtual tables that exist without CREATE TABLE, such as json_each."""
        modules, pragmas = (connection.exec_driver_sql(f"PRAGMA {each}_list") for each in ("module", "pragma"))
        # Older versions of SQLite ignore these pragmas and return no rows.
        names = [*modules.scalars()] if modules.returns_rows else []
        return names + ([f"pragma_{name}" for name in pragmas.scalars()] if pragmas.returns_rows else [])

    def rebuilds_to_widen(self, old: TypeEngine[Any], column: Column[Any]) -> bool:  # noqa: ARG002
        """Rebuild the table unless the new type is a number. A numeric column already holds any number.

        Without a rebuild, a numeric column would convert text to numbers.
        """
        return isinstance(column.type, Instant | Identifier | LongText)

    def converted(self, column: ColumnElement[Any], type_: TypeEngine[Any]) -> ColumnElement[Any]:
        """Convert booleans, dates and doubles explicitly, because a cast would change them.

        For example, a cast to text keeps only 15 digits of a double.
        """
        as_text = cast(column, LongText())
        if isinstance(type_, Instant):
            return as_text.concat(" 00:00:00.000000")
        if isinstance(column.type, Boolean):
            return boolean_as_text(column)
        # An integer column that was widened to numbers keeps its declared type, so it may also hold doubles.
        is_kept = or_(func.typeof(column) != "real", cast(as_text, Double()) == column)
        # For very large and very small doubles, the last of SQLite's 17 digits may be off by one.
        digits = func.printf("%!.17g", column)
        is_exact = cast(digits, Double()) == column
        return case((is_kept, as_text), (is_exact, digits), else_=func.printf("%!.18g", column))

    def merge(self, connection: Connection, merge: Merge) -> None:
        """Merge rows with a single INSERT … ON CONFLICT statement."""
        connection.execute(merge_on_conflict(insert, merge))

    def all_balances(self, tables: Tables) -> Select[Any]:
        """Group the actions by award without sorting them by time, and look up each award's snapshot by its key.

        SQLite before 3.39 has no full join, and later versions use no index for one of the two subqueries.
        """
        return balances.all_balances(tables, balances.partials_by_packing(tables.actions), balances.by_left_join)

    def _bulk_load(self, connection: Connection, table: Table, rows: Rows) -> None:
        insert_by_driver(connection, table, rows, placeholder="?")


ADAPTERS = {"sqlite": SQLiteAdapter()}


class _Instant(DATETIME):
    """A time in UTC, stored as text. SQLAlchemy's own type is slower: it formats each part of a time separately."""

    def bind_processor(self, dialect: Dialect) -> Callable[[datetime | None], str | None]:  # noqa: ARG002
        return lambda value: None if value is None else value.isoformat(" ", "microseconds")


class _Whole(Numeric[Any]):
    """Whole numbers of any size. Up to 64 bits they are exact, and beyond that they become the nearest double."""

    def bind_processor(self, dialect: Dialect) -> Callable[[int | None], int | float | None]:  # noqa: ARG002
        return lambda value: value if value is None or INTEGER_MIN <= value <= INTEGER_MAX else float(value)

    def result_processor(self, dialect: Dialect, coltype: object) -> None:
        """Leave the driver's values unchanged, because SQLAlchemy's own type would convert them to decimals."""


register(
    "sqlite",
    ColumnTypes(
        points=Numeric(POINTS_DIGITS, POINTS_PLACES, asdecimal=False),
        whole=_Whole(DECIMAL_DIGITS, 0),
        instant=_Instant(),  # type: ignore[no-untyped-call]
    ),
)


@compiles(exact_sum, "sqlite")
def _exact_sum(element: exact_sum, compiler: SQLCompiler, **kw: Any) -> str:
    """Add whole ten-thousandths, because SQLite has no decimals."""
    return f"SUM({_units(compiler.process(element.clauses, **kw))}) / {10**POINTS_PLACES}.0"


def _units(points: str) -> str:
    """Return the SQL that turns points into a whole number of ten-thousandths."""
    return f"CAST(ROUND(({points}) * {10**POINTS_PLACES}) AS INTEGER)"


@compiles(packed, "sqlite")
def _packed(element: packed, compiler: SQLCompiler, **kw: Any) -> str:
    """Pack the values into text that begins with the instant and the id. An instant as text always has 26 characters.

    A NUL separates the id from the values, because it sorts before all other characters. Points are whole
    ten-thousandths, because a double would not always survive the conversion to text and back.
    """
    instant, *values = element.clauses
    texts = [
        _units(compiler.process(each, **kw)) if isinstance(each.type, Points) else compiler.process(each, **kw)
        for each in values
    ]
    return f"({compiler.process(instant, **kw)} || {texts[0]} || CHAR(0) || JSON_ARRAY({', '.join(texts)}))"


@compiles(unpacked, "sqlite")
def _unpacked(element: unpacked, compiler: SQLCompiler, **kw: Any) -> str:
    # Convert the text to a BLOB, because functions for text would stop at the NUL.
    row = f"CAST({compiler.process(element.clauses, **kw)} AS BLOB)"
    value = f"JSON_EXTRACT(CAST(SUBSTR({row}, INSTR({row}, X'00') + 1) AS TEXT), '$[{element.place - 1}]')"
    return f"({value} / {10**POINTS_PLACES}.0)" if isinstance(element.type, Points) else value


@compiles(exact, "sqlite")
def _exact(element: exact, compiler: SQLCompiler, **kw: Any) -> str:
    return f"ROUND({compiler.process(element.clauses, **kw)}, {POINTS_PLACES})"


@compiles(quarter_hours, "sqlite")
def _quarter_hours(element: quarter_hours, compiler: SQLCompiler, **kw: Any) -> str:
    # Leave out the fraction of the second, because SQLite might round it up to the next second.
    second = f"SUBSTR({compiler.process(element.clauses, **kw)}, 1, 19)"
    return f"(CAST(STRFTIME('%s', {second}) AS INTEGER) / {QUARTER_SECONDS})"

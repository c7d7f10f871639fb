"""The adapter for SQL Server."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from sqlalchemy import String, Text, text
from sqlalchemy.dialects.mssql import DATETIME2
from sqlalchemy.ext.compiler import compiles

from target_crm.engines.base import LOCK_WAIT_SECONDS, ExtendedSQLAdapter, lock_name
from target_crm.records.column_types import DECIMAL_DIGITS, ID_CHARS_MAX, ColumnTypes, register
from target_crm.records.schemas import TableLimits
from target_crm.sql.functions import QUARTER_SECONDS, floor_to_integer, quarter_hours

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlalchemy import Column, Connection, Dialect, Table
    from sqlalchemy.sql.compiler import SQLCompiler


class SQLServerAdapter(ExtendedSQLAdapter):
    """The adapter uses SQL Server's application locks, and a pyodbc option that sends many rows at once."""

    engine_options: ClassVar[Mapping[str, Any]] = {"fast_executemany": True}
    add_column = "ADD"
    leave_out_column = "ALTER COLUMN {name} {type} NULL"
    create_view = "CREATE OR ALTER VIEW {name} AS {query}"
    limits = TableLimits(decimal_digits=DECIMAL_DIGITS, columns=1_024)
    widens_columns_to = ("number", "decimal")

    def transaction_lock(self, connection: Connection, schema: str | None) -> None:
        """Take an application lock, which ends with the transaction.

        SQL Server reports a timeout only in a return code, so the statement turns this code into an error.
        """
        connection.execute(
            text(
                "DECLARE @got int; EXEC @got = sp_getapplock @Resource = :name, @LockMode = 'Exclusive', "
                "@LockOwner = 'Transaction', @LockTimeout = :wait_ms; "
                "IF @got < 0 THROW 50000, 'another loader has held the lock for too long', 1"
            ),
            {"name": lock_name(f"{schema}"), "wait_ms": LOCK_WAIT_SECONDS * 1000},
        )

    def rename_column(self, dialect: Dialect, table: Table, old: str, new: str) -> str:
        """Use the procedure `sp_rename`, which expects the new name without quotes."""
        preparer = dialect.identifier_preparer
        name = f"{preparer.format_table(table)}.{preparer.quote(old)}"
        return f"EXEC sp_rename '{name}', '{new}', 'COLUMN'"

    def widen_column(self, dialect: Dialect, column: Column[Any]) -> str:
        """Return the clause that changes the type. SQL Server also converts the stored values."""
        return f"ALTER COLUMN {dialect.identifier_preparer.quote(column.name)} {column.type.compile(dialect)}"


ADAPTERS = {"mssql": SQLServerAdapter()}

_COLLATION = "Latin1_General_100_BIN2_UTF8"
register(
    "mssql",
    ColumnTypes(
        # On SQL Server, lengths are in bytes, and a character may take four bytes.
        identifier=String(ID_CHARS_MAX * 4, collation=_COLLATION),
        text=Text(collation=_COLLATION),
        instant=DATETIME2(6),  # type: ignore[no-untyped-call]
    ),
)


@compiles(quarter_hours, "mssql")
def _quarter_hours(element: quarter_hours, compiler: SQLCompiler, **kw: Any) -> str:
    seconds = f"DATEDIFF_BIG(second, '1970-01-01', {compiler.process(element.clauses, **kw)})"
    return floor_to_integer(f"{seconds} / {QUARTER_SECONDS}.0", compiler, **kw)

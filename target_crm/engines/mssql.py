"""SQL Server."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from sqlalchemy import Column, text

from target_crm.engines.base import LOCK_WAIT_SECONDS, EngineAdapter, digest

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlalchemy import Column, Connection, Dialect, Table


class SQLServerAdapter(EngineAdapter):
    """Application locks, and a driver that sends many rows at once."""

    widens_to = ("number",)
    engine_options: ClassVar[Mapping[str, Any]] = {"fast_executemany": True}

    def transaction_lock(self, connection: Connection, schema: str | None) -> None:
        """Take an application lock, which ends with the transaction; not to get it is no error by itself."""
        connection.execute(
            text(
                "DECLARE @got int; EXEC @got = sp_getapplock @Resource = :name, @LockMode = 'Exclusive', "
                "@LockOwner = 'Transaction', @LockTimeout = :wait_ms; "
                "IF @got < 0 THROW 50000, 'another loader has been at work for too long', 1"
            ),
            {"name": digest(f"{schema}"), "wait_ms": LOCK_WAIT_SECONDS * 1000},
        )

    def rename_column(self, dialect: Dialect, table: Table, old: str, new: str) -> str:
        """By a procedure that takes the new name unquoted."""
        preparer = dialect.identifier_preparer
        name = f"{preparer.format_table(table)}.{preparer.quote(old)}"
        return f"EXEC sp_rename '{name}', '{new}', 'COLUMN'"

    def widen(self, dialect: Dialect, column: Column[Any]) -> str:
        """By a change of type, which converts what is there."""
        return f"ALTER COLUMN {dialect.identifier_preparer.quote(column.name)} {column.type.compile(dialect)}"

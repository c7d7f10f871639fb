"""The adapter for Databricks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import TIMESTAMP, Update
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.schema import CreateTable

from target_crm.engines.base import ExtendedSQLAdapter, create_table_with_layout
from target_crm.engines.update_by_merge import compile_as_merge
from target_crm.records.column_types import ColumnTypes, register
from target_crm.sql.functions import QUARTER_MICROS, floor_to_integer, quarter_hours

if TYPE_CHECKING:
    from sqlalchemy import Connection
    from sqlalchemy.sql.compiler import SQLCompiler


class DatabricksAdapter(ExtendedSQLAdapter):
    """On Databricks, each statement is a separate transaction. So the target recomputes balances from the ledger."""

    def is_atomic(self, connection: Connection, schema: str | None) -> bool:  # noqa: ARG002
        """Return False, because each statement is a separate transaction."""
        return False


ADAPTERS = {"databricks": DatabricksAdapter()}

# SQLAlchemy's `DateTime` would become a type without a time zone.
register("databricks", ColumnTypes(instant=TIMESTAMP(), keeps_time_zone=True))


@compiles(Update, "databricks")
def _update(update: Update, compiler: SQLCompiler, **kw: Any) -> str:
    return compile_as_merge(update, compiler, "WHEN MATCHED{condition} THEN UPDATE SET {set}", " AND {}", **kw)


@compiles(CreateTable, "databricks")
def _create_table(create: CreateTable, compiler: Any, **kw: Any) -> str:
    return create_table_with_layout(create, compiler, "CLUSTER BY (award_id)", **kw)


@compiles(quarter_hours, "databricks")
def _quarter_hours(element: quarter_hours, compiler: SQLCompiler, **kw: Any) -> str:
    return floor_to_integer(
        f"UNIX_MICROS({compiler.process(element.clauses, **kw)}) / {QUARTER_MICROS}", compiler, **kw
    )

"""The adapter for Oracle."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import TIMESTAMP, String, Text, Update
from sqlalchemy.ext.compiler import compiles

from target_crm.engines.base import ExtendedSQLAdapter
from target_crm.engines.update_by_merge import compile_as_merge
from target_crm.records.column_types import ColumnTypes, register
from target_crm.sql.functions import QUARTER_SECONDS, floor_to_integer, quarter_hours

if TYPE_CHECKING:
    from sqlalchemy.sql.compiler import SQLCompiler


class OracleAdapter(ExtendedSQLAdapter):
    """The adapter leaves out the keyword COLUMN after ALTER TABLE … ADD, because Oracle's syntax does not have it."""

    add_column = "ADD"
    leave_out_column = "MODIFY {name} NULL"


ADAPTERS = {"oracle": OracleAdapter()}

# Oracle cannot compare CLOBs, so text is VARCHAR2. SQLAlchemy's `DateTime` would become DATE, which stores only whole
# seconds.
register("oracle", ColumnTypes(text=String(4_000), json=Text(), instant=TIMESTAMP()))


@compiles(Update, "oracle")
def _update(update: Update, compiler: SQLCompiler, **kw: Any) -> str:
    return compile_as_merge(update, compiler, "WHEN MATCHED THEN UPDATE SET {set}{condition}", " WHERE {}", **kw)


@compiles(quarter_hours, "oracle")
def _quarter_hours(element: quarter_hours, compiler: SQLCompiler, **kw: Any) -> str:
    seconds = f"(CAST({compiler.process(element.clauses, **kw)} AS DATE) - DATE '1970-01-01') * 86400"
    return floor_to_integer(f"{seconds} / {QUARTER_SECONDS}.0", compiler, **kw)

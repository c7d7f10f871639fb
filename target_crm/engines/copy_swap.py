"""Scratch tables, for engines that cannot update rows. They receive the changed rows, or a copy of the whole table."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import Column, Executable, Table, literal_column, select, tuple_
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.schema import MetaData
from sqlalchemy.sql.elements import ClauseElement

from target_crm.engines.base import quoted_name
from target_crm.sql.tables import WORK_PREFIX

if TYPE_CHECKING:
    from sqlalchemy import ColumnElement, CompoundSelect, Connection, Select
    from sqlalchemy.sql.compiler import SQLCompiler


def with_all_columns(connection: Connection, table: Table) -> Table:
    """Return the table with all of its columns in the warehouse, even if the stream's schema does not name them."""
    names = connection.execute(select(literal_column("*")).select_from(table).limit(0)).keys()
    columns = (Column(name, table.c[name].type if name in table.c else None) for name in names)
    return Table(table.name, MetaData(schema=table.schema), *columns)


def scratch_table(whole: Table) -> Table:
    """Return the scratch table for a table. Both have the same columns."""
    return whole.to_metadata(MetaData(schema=whole.schema), name=scratch_name(whole))


def qualified_column(connection: Connection, table: Table, column: Column[Any]) -> ColumnElement[Any]:
    """Return a column as `table.column`, even if the stream's schema does not name the column."""
    quote = connection.dialect.identifier_preparer.quote
    return literal_column(f"{quoted_name(connection, table)}.{quote(column.name)}", column.type).label(column.name)


def scratch_name(table: Table) -> str:
    """Return the name of the scratch table, which holds new rows until the target has written them to the table."""
    return f"{WORK_PREFIX}changed_{table.name}"


def key_in(rows: Table, table: Table) -> ColumnElement[Any]:
    """Return the key of a table for use with IN: the key column in `rows`, or a tuple of several columns."""
    columns = [rows.c[column.name] for column in table.primary_key.columns]
    return columns[0] if len(columns) == 1 else tuple_(*columns)


class PrefixedQuery(Executable, ClauseElement):
    """A statement that ends with a query, such as CREATE TABLE … AS."""

    inherit_cache = False

    def __init__(self, prefix: str, rows: Select[Any] | CompoundSelect[Any]) -> None:
        self.prefix = prefix
        self.rows = rows


@compiles(PrefixedQuery)
def _prefixed_query(statement: PrefixedQuery, compiler: SQLCompiler, **kw: Any) -> str:
    return f"{statement.prefix} {compiler.process(statement.rows, **kw)}"

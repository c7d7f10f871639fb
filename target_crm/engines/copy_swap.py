"""A copy of a table's rows beside it, for engines that change rows by taking them out and putting them in again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import Column, Executable, Table, literal_column, select, tuple_
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.schema import MetaData
from sqlalchemy.sql.elements import ClauseElement

from target_crm.engines.base import quoted
from target_crm.sql.tables import WORK_PREFIX

if TYPE_CHECKING:
    from sqlalchemy import ColumnElement, CompoundSelect, Connection, Select
    from sqlalchemy.sql.compiler import SQLCompiler


def reflected(connection: Connection, table: Table) -> Table:
    """A table with all columns that it has in the warehouse, also those that its stream's schema doesn't name."""
    names = connection.execute(select(literal_column("*")).select_from(table).limit(0)).keys()
    columns = (Column(name, table.c[name].type if name in table.c else None) for name in names)
    return Table(table.name, MetaData(schema=table.schema), *columns)


def scratch_table(whole: Table) -> Table:
    """Where rows of a table are while they change."""
    return whole.to_metadata(MetaData(schema=whole.schema), name=scratch_name(whole))


def column_of(connection: Connection, table: Table, column: Column[Any]) -> ColumnElement[Any]:
    """A column of a table, whether or not its stream's schema names it."""
    quote = connection.dialect.identifier_preparer.quote
    return literal_column(f"{quoted(connection, table)}.{quote(column.name)}", column.type).label(column.name)


def scratch_name(table: Table) -> str:
    """The name of the copy."""
    return f"{WORK_PREFIX}changed_{table.name}"


def key_of(table: Table, rows: Table) -> ColumnElement[Any]:
    """The key of a table, in rows that have its columns."""
    columns = [rows.c[column.name] for column in table.primary_key.columns]
    return columns[0] if len(columns) == 1 else tuple_(*columns)


class Written(Executable, ClauseElement):
    """What a query gives, written where a statement's head says."""

    inherit_cache = False

    def __init__(self, head: str, rows: Select[Any] | CompoundSelect[Any]) -> None:
        self.head = head
        self.rows = rows


@compiles(Written)
def _write(written: Written, compiler: SQLCompiler, **kw: Any) -> str:
    return f"{written.head} {compiler.process(written.rows, **kw)}"

"""The adapter for Spark."""

from __future__ import annotations

from contextlib import closing
from itertools import chain
from typing import TYPE_CHECKING, Any
from typing import cast as cast_type

from sqlalchemy import Delete, Table, and_, cast, event, false, func, inspect, literal_column, not_, select, union_all
from sqlalchemy.dialects import registry
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.schema import DropTable, MetaData

from target_crm.engines.base import ExtendedSQLAdapter, bind_values, quoted_columns, quoted_name
from target_crm.engines.copy_swap import (
    PrefixedQuery,
    qualified_column,
    scratch_name,
    scratch_table,
    with_all_columns,
)
from target_crm.errors import WarehouseError
from target_crm.records.column_types import ColumnTypes, register
from target_crm.sql.functions import QUARTER_MICROS, floor_to_integer, quarter_hours
from target_crm.sql.staging import RowUpdate

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from sqlalchemy import ColumnElement, CompoundSelect, Connection, Dialect, Engine, Select
    from sqlalchemy.sql.compiler import SQLCompiler

    from target_crm.engines.base import Rows, Statement


class SparkAdapter(ExtendedSQLAdapter):
    """Spark can only add rows to a Parquet table, or overwrite the table. So all other changes rewrite the table."""

    leave_out_column = ""
    # Limit the number of rows in an INSERT, because its text contains all of them as literals.
    _ROWS_MAX = 500

    def add_event_listeners(self, engine: Engine) -> None:
        """Set the session's time zone to UTC, because Spark converts times to text, and back, in this zone."""

        def on_connect(driver_connection: Any, _record: object) -> None:
            with closing(driver_connection.cursor()) as cursor:
                cursor.execute("SET TIME ZONE 'UTC'")

        event.listen(engine, "connect", on_connect)

    def is_atomic(self, connection: Connection, schema: str | None) -> bool:  # noqa: ARG002
        """Return False, because Spark has no transactions."""
        return False

    def keys(self, connection: Connection, table: Table) -> Collection[str]:  # noqa: ARG002
        """Return the key from the stream's schema, because Spark has no keys."""
        return [column.name for column in table.primary_key.columns]

    def execute(self, connection: Connection, statement: Statement) -> int:
        """Execute a statement. An update or DELETE rewrites the whole table if a row matches its WHERE clause."""
        if not isinstance(statement, RowUpdate | Delete):
            return connection.execute(statement).rowcount
        table = cast_type("Table", statement.table)
        self.recover(connection, table)
        where = statement.where if isinstance(statement, RowUpdate) else statement.whereclause
        found = select(func.count()).select_from(table)
        count: int = connection.scalar(found if where is None else found.where(where)) or 0
        if where is None:
            self.empty(connection, table)
        elif count:
            values = statement.values if isinstance(statement, RowUpdate) else None
            self._overwrite(connection, table, values, where)
        return count

    def recover(self, connection: Connection, table: Table) -> None:
        """If a scratch table exists, it is complete. Overwrite the table with it, to finish an interrupted change."""
        copy = Table(scratch_name(table), MetaData(schema=table.schema))
        if inspect(connection).has_table(copy.name, schema=copy.schema):
            self._put_back(connection, table, copy)

    def _overwrite(
        self,
        connection: Connection,
        table: Table,
        values: Mapping[str, ColumnElement[Any]] | None,
        where: ColumnElement[bool],
    ) -> None:
        """Rewrite a table. Give new values to the rows that meet the condition, or drop them if `values` is None."""
        whole = with_all_columns(connection, table)
        copy = scratch_table(whole)
        as_they_are = [qualified_column(connection, table, column) for column in whole.c]
        stays = select(*as_they_are).select_from(table)
        if values is None:
            rows: Select[Any] | CompoundSelect[Any] = stays.where(not_(func.coalesce(where, false())))
        else:
            keys = [column.name for column in table.primary_key.columns]
            changing = select(*(table.c[key] for key in keys)).where(where).subquery("changing")
            same_key = and_(*(table.c[key] == changing.c[key] for key in keys))
            others = stays.outerjoin(changing, same_key).where(changing.c[keys[0]].is_(None))
            # Cast the new values to the column's type, because PyHive sends instants as text.
            changed = (
                cast(values[column.name], column.type).label(column.name) if column.name in values else unchanged
                for column, unchanged in zip(whole.c, as_they_are, strict=True)
            )
            rows = union_all(select(*changed).select_from(table).where(where), others)
        connection.execute(PrefixedQuery(f"CREATE TABLE {quoted_name(connection, copy)} USING PARQUET AS", rows))
        self._put_back(connection, table, copy)

    def _put_back(self, connection: Connection, table: Table, copy: Table) -> None:
        rows: Select[Any] = select(literal_column("*")).select_from(copy)
        connection.execute(PrefixedQuery(f"INSERT OVERWRITE TABLE {quoted_name(connection, table)}", rows))
        connection.execute(DropTable(copy))

    def rename_column(self, dialect: Dialect, table: Table, old: str, new: str) -> str:  # noqa: ARG002
        """Raise an error: Spark cannot rename columns, because each Parquet file contains their names."""
        raise WarehouseError(
            f"Spark cannot rename column {table.name}.{old} to {new}: "
            "load into a new schema, or copy the tables to a new schema with the new column names"
        )

    def is_retriable(self, error: Exception) -> bool:  # noqa: ARG002
        """Return False, because a statement may still be running after the connection is lost.

        The statement must not run twice at the same time.
        """
        return False

    def _bulk_load(self, connection: Connection, table: Table, rows: Rows) -> None:
        """Insert a few hundred rows per statement. Send each value as text, and cast it to its column's type."""
        types = connection.dialect.type_compiler_instance
        names = [f"_{place}" for place in range(len(table.columns))]
        casts = ", ".join(
            f"CAST({name} AS {types.process(column.type)})" for name, column in zip(names, table.c, strict=True)
        )
        into = f"{quoted_name(connection, table)} ({quoted_columns(connection, table)})"
        columns = [
            [None if value is None else str(value) for value in bind_values(connection.dialect, column, values)]
            for column, values in zip(table.columns, zip(*rows, strict=True), strict=True)
        ]
        texts = list(zip(*columns, strict=True))
        placeholders = f"({', '.join(['%s'] * len(names))})"
        for start in range(0, len(texts), self._ROWS_MAX):
            some = texts[start : start + self._ROWS_MAX]
            values = f"VALUES {', '.join([placeholders] * len(some))} AS _rows({', '.join(names)})"
            statement = f"INSERT INTO {into} SELECT {casts} FROM {values}"  # noqa: S608 - quoted names only
            connection.exec_driver_sql(statement, tuple(chain.from_iterable(some)))


ADAPTERS = {"spark": SparkAdapter()}

registry.register("spark", "target_crm.engines.spark_dialect", "SparkDialect")
register("spark", ColumnTypes())


@compiles(quarter_hours, "spark")
def _quarter_hours(element: quarter_hours, compiler: SQLCompiler, **kw: Any) -> str:
    return floor_to_integer(
        f"UNIX_MICROS({compiler.process(element.clauses, **kw)}) / {QUARTER_MICROS}", compiler, **kw
    )

"""Spark."""

from __future__ import annotations

from contextlib import closing
from itertools import chain
from typing import TYPE_CHECKING, Any
from typing import cast as cast_type

from sqlalchemy import Delete, Table, and_, cast, event, false, func, inspect, literal_column, not_, select, union_all
from sqlalchemy.dialects import registry
from sqlalchemy.schema import DropTable, MetaData

from target_crm.engines.base import EngineAdapter, bound, column_names, quoted
from target_crm.engines.copy_swap import Written, column_of, reflected, scratch_name, scratch_table
from target_crm.errors import WarehouseError
from target_crm.sql.staging import RowUpdate

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from sqlalchemy import ColumnElement, CompoundSelect, Connection, Dialect, Engine, Select

    from target_crm.engines.base import Rows, Statement


class SparkAdapter(EngineAdapter):
    """A cluster that can add rows to a table, and otherwise writes it anew."""

    # Rows come in the text of a statement.
    _ROWS_MAX = 500

    def listen(self, engine: Engine) -> None:
        """Have instants without a zone be UTC."""

        def on_connect(driver_connection: Any, _record: object) -> None:
            with closing(driver_connection.cursor()) as cursor:
                cursor.execute("SET TIME ZONE 'UTC'")

        event.listen(engine, "connect", on_connect)

    def is_atomic(self, connection: Connection, schema: str | None) -> bool:  # noqa: ARG002
        """No: each statement is done by itself."""
        return False

    def keys(self, connection: Connection, table: Table) -> Collection[str]:  # noqa: ARG002
        """It knows of none: those that the loader keeps to."""
        return [column.name for column in table.primary_key.columns]

    def execute(self, connection: Connection, statement: Statement) -> int:
        """An INSERT as it is; what else changes a table writes it anew, where it has such rows."""
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
        """Write a table anew from its copy: there is one only when it is whole."""
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
        """Write a table anew, with other values in the rows that meet a condition, or without them."""
        whole = reflected(connection, table)
        copy = scratch_table(whole)
        as_they_are = [column_of(connection, table, column) for column in whole.c]
        stays = select(*as_they_are).select_from(table)
        if values is None:
            rows: Select[Any] | CompoundSelect[Any] = stays.where(not_(func.coalesce(where, false())))
        else:
            keys = [column.name for column in table.primary_key.columns]
            changing = select(*(table.c[key] for key in keys)).where(where).subquery("changing")
            same_key = and_(*(table.c[key] == changing.c[key] for key in keys))
            others = stays.outerjoin(changing, same_key).where(changing.c[keys[0]].is_(None))
            # PyHive makes a text of a time.
            changed = (
                cast(values[column.name], column.type).label(column.name) if column.name in values else unchanged
                for column, unchanged in zip(whole.c, as_they_are, strict=True)
            )
            rows = union_all(select(*changed).select_from(table).where(where), others)
        connection.execute(Written(f"CREATE TABLE {quoted(connection, copy)} USING PARQUET AS", rows))
        self._put_back(connection, table, copy)

    def _put_back(self, connection: Connection, table: Table, copy: Table) -> None:
        rows: Select[Any] = select(literal_column("*")).select_from(copy)
        connection.execute(Written(f"INSERT OVERWRITE TABLE {quoted(connection, table)}", rows))
        connection.execute(DropTable(copy))

    def rename_column(self, dialect: Dialect, table: Table, old: str, new: str) -> str:  # noqa: ARG002
        """Spark cannot: a Parquet file holds the names of its columns."""
        raise WarehouseError(
            f"Spark can't rename column {table.name}.{old} to {new}: "
            "load into a new schema, or copy the tables there under the new names"
        )

    def is_retriable(self, error: Exception) -> bool:  # noqa: ARG002
        """No: a statement may go on without its client, and must not meet its own repetition."""
        return False

    def _bulk_load(self, connection: Connection, table: Table, rows: Rows) -> None:
        """Some hundred rows a statement, each value as a text that is cast to its column's type."""
        types = connection.dialect.type_compiler_instance
        names = [f"_{place}" for place in range(len(table.columns))]
        casts = (f"CAST({name} AS {types.process(column.type)})" for name, column in zip(names, table.c, strict=True))
        head = f"INSERT INTO {quoted(connection, table)} ({column_names(connection, table)}) SELECT {', '.join(casts)}"
        columns = [
            [None if value is None else str(value) for value in bound(connection.dialect, column, values)]
            for column, values in zip(table.columns, zip(*rows, strict=True), strict=True)
        ]
        texts = list(zip(*columns, strict=True))
        marks = f"({', '.join(['%s'] * len(names))})"
        for start in range(0, len(texts), self._ROWS_MAX):
            some = texts[start : start + self._ROWS_MAX]
            statement = f"{head} FROM VALUES {', '.join([marks] * len(some))} AS _rows({', '.join(names)})"
            connection.exec_driver_sql(statement, tuple(chain.from_iterable(some)))


registry.register("spark", "target_crm.engines.spark_dialect", "SparkDialect")

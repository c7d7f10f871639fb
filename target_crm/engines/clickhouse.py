"""The adapter for ClickHouse."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, ClassVar

from clickhouse_connect.cc_sqlalchemy.types import DateTime64
from sqlalchemy import Cast, Date, Delete, Update, func, inspect, select, text
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.schema import CreateColumn, CreateTable, DropTable

from target_crm.engines.base import (
    LOCK_POLL_SECONDS,
    LOCK_WAIT_SECONDS,
    ExtendedSQLAdapter,
    bind_values,
    comment_clause,
    quoted_name,
)
from target_crm.engines.copy_swap import key_in, qualified_column, scratch_name, scratch_table, with_all_columns
from target_crm.errors import WarehouseError
from target_crm.records.column_types import ColumnTypes, register
from target_crm.sql.functions import QUARTER_MICROS, quarter_hours
from target_crm.sql.staging import RowUpdate
from target_crm.sql.tables import MONTHS_OF

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from sqlalchemy import Column, Connection, Dialect, Table
    from sqlalchemy.sql.compiler import DDLCompiler, SQLCompiler, TypeCompiler

    from target_crm.engines.base import Rows, Statement


class ClickHouseAdapter(ExtendedSQLAdapter):
    """ClickHouse has no UPDATE … FROM, and its transactions are only experimental.

    So the adapter deletes changed rows and inserts them again, and `recover` finishes a change that was interrupted.
    """

    tested = True
    leave_out_column = ""
    widens_columns_to = ("number", "text")
    engine_options: ClassVar[Mapping[str, Any]] = {
        "connect_args": {
            # Make outer joins return nulls, as in standard SQL.
            "join_use_nulls": 1,
            # Wait until each change is done, so that the next statement sees its effect.
            "mutations_sync": 2,
            "lightweight_deletes_sync": 2,
            "async_insert": 0,
            "select_sequential_consistency": 1,
            # Do not drop repeated inserts, because a work table may receive the same rows again.
            "insert_deduplicate": 0,
            # Let an insert write to any number of partitions, because a first load may span many months.
            "max_partitions_per_insert_block": 0,
        }
    }

    def transaction_lock(self, connection: Connection, schema: str | None) -> None:
        """Wait for mutations that an interrupted loader has started.

        ClickHouse has no lock that could keep out a second loader.
        """
        unfinished = text(
            "SELECT count() FROM system.mutations WHERE database = coalesce(:schema, currentDatabase()) AND NOT is_done"
        )
        deadline_seconds = time.monotonic() + LOCK_WAIT_SECONDS
        while connection.scalar(unfinished, {"schema": schema}):
            if time.monotonic() > deadline_seconds:
                raise WarehouseError(
                    f"a mutation from an earlier load has been running for more than {LOCK_WAIT_SECONDS} s: "
                    "run again when system.mutations shows that it is done"
                )
            time.sleep(LOCK_POLL_SECONDS)

    def is_atomic(self, connection: Connection, schema: str | None) -> bool:  # noqa: ARG002
        """Return False, because ClickHouse's transactions are only experimental."""
        return False

    def keys(self, connection: Connection, table: Table) -> Collection[str]:
        """Query the columns by which the table is sorted, because ClickHouse has no unique keys."""
        sorted_by = text(
            "SELECT name FROM system.columns WHERE database = coalesce(:schema, currentDatabase()) AND table = :table "
            "AND is_in_primary_key"
        )
        return connection.scalars(sorted_by, {"schema": table.schema, "table": table.name}).all()

    def view_definition(self, connection: Connection, name: str, schema: str | None) -> str:
        """Query the CREATE statement of a view, because the dialect cannot return it."""
        definition = text(
            "SELECT create_table_query FROM system.tables "
            "WHERE database = coalesce(:schema, currentDatabase()) AND name = :name"
        )
        return str(connection.scalar(definition, {"schema": schema, "name": name}))

    def execute(self, connection: Connection, statement: Statement) -> int:
        """Update rows by copying them. Execute a DELETE only if it finds rows, because every DELETE is a mutation."""
        if isinstance(statement, RowUpdate):
            return self._rewrite(connection, statement)
        if isinstance(statement, Delete) and statement.whereclause is not None:
            table = statement.table
            found = connection.scalar(select(func.count()).select_from(table).where(statement.whereclause)) or 0
            if found:
                connection.execute(statement)
            return found
        return connection.execute(statement).rowcount

    def recover(self, connection: Connection, table: Table) -> None:
        """Insert the new versions of the rows that an interrupted change has deleted."""
        if inspect(connection).has_table(scratch_name(table), schema=table.schema):
            whole = with_all_columns(connection, table)
            changed = scratch_table(whole)
            deleted = key_in(changed, table).not_in(select(key_in(whole, table)))
            connection.execute(whole.insert().from_select(list(whole.c), select(*changed.c).where(deleted)))
            connection.execute(DropTable(changed))

    def _rewrite(self, connection: Connection, change: RowUpdate) -> int:
        """Copy the rows with their new values, delete the rows with the same keys, and insert the copies.

        If an interruption leaves complete copies, `recover` does the rest. Columns without a new value keep their old
        value.
        """
        table = change.table
        found = connection.scalar(select(func.count()).select_from(table).where(change.where)) or 0
        if found:
            whole = with_all_columns(connection, table)
            changed = scratch_table(whole)
            values = [change.values.get(column.name, qualified_column(connection, table, column)) for column in whole.c]
            copies = select(*values).select_from(table).where(change.where)
            connection.execute(
                text(f"CREATE TABLE {quoted_name(connection, changed)} AS {quoted_name(connection, table)}")
            )
            connection.execute(changed.insert().from_select(list(changed.c), copies))
            connection.execute(whole.delete().where(key_in(whole, table).in_(select(key_in(changed, table)))))
            connection.execute(whole.insert().from_select(list(whole.c), select(*changed.c)))
            connection.execute(DropTable(changed))
        return found

    def is_retriable(self, error: Exception) -> bool:  # noqa: ARG002
        """Return False, because a statement may still be running after the connection is lost.

        The statement must not run twice at the same time.
        """
        return False

    def widen_column(self, dialect: Dialect, column: Column[Any]) -> str:
        """Return the clause that changes the type. ClickHouse also converts the stored values."""
        return f"MODIFY COLUMN {CreateColumn(column).compile(dialect=dialect)}"

    def empty(self, connection: Connection, table: Table) -> None:
        """Use TRUNCATE, because a DELETE starts a mutation, which takes longer."""
        connection.execute(text(f"TRUNCATE TABLE {quoted_name(connection, table)}"))

    def _bulk_load(self, connection: Connection, table: Table, rows: Rows) -> None:
        """Use the driver's own `insert`, which sends columns instead of rows."""
        driver_connection: Any = connection.connection.driver_connection
        columns = [
            bind_values(connection.dialect, column, values)
            for column, values in zip(table.columns, zip(*rows, strict=True), strict=True)
        ]
        names = [column.name for column in table.columns]
        driver_connection.client.insert(quoted_name(connection, table), columns, names, column_oriented=True)


ADAPTERS = {"clickhousedb": ClickHouseAdapter()}

register("clickhousedb", ColumnTypes(instant=DateTime64(6, "UTC"), keeps_time_zone=True))


@compiles(CreateTable, "clickhousedb")
def _create_table(create: CreateTable, compiler: DDLCompiler, **_: Any) -> str:
    """Sort a table by its key. If the table grows with time, partition it by month."""
    table, quote = create.element, compiler.preparer.quote
    name = compiler.preparer.format_table(table)
    columns = ", ".join(str(CreateColumn(column).compile(dialect=compiler.dialect)) for column in table.columns)
    keys = ", ".join(quote(column.name) for column in table.primary_key.columns)
    months_of = table.info.get(MONTHS_OF)
    parts = f" PARTITION BY toYYYYMM(coalesce({quote(months_of)}, toDateTime64(0, 6, 'UTC')))" if months_of else ""
    statement = f"CREATE TABLE {name} ({columns}) ENGINE = MergeTree{parts} ORDER BY ({keys})"
    return statement + comment_clause(create, compiler, " COMMENT ")


@compiles(CreateColumn, "clickhousedb")
def _create_column(create: CreateColumn, compiler: DDLCompiler, **_: Any) -> str:
    """Give a nullable column the type `Nullable(…)`, because ClickHouse's types hold no nulls by default."""
    column = create.element
    type_ = compiler.dialect.type_compiler_instance.process(column.type)
    default = compiler.get_column_default_string(column)
    nullable = f"Nullable({type_})" if column.nullable else type_
    statement = f"{compiler.preparer.quote(column.name)} {nullable}{f' DEFAULT {default}' if default else ''}"
    return statement + comment_clause(create, compiler, " COMMENT ")


@compiles(Date, "clickhousedb")
def _date(_type: Date, _compiler: TypeCompiler, **_: Any) -> str:
    """Use Date32, because Date begins in 1970, and would silently change an earlier date."""
    return "Date32"


@compiles(Cast, "clickhousedb")
def _cast(cast: Cast[Any], compiler: SQLCompiler, **kw: Any) -> str:
    """Cast to a nullable type, so that null stays null, as on every other engine."""
    return f"CAST({compiler.process(cast.clause, **kw)} AS Nullable({compiler.process(cast.typeclause, **kw)}))"


@compiles(Update, "clickhousedb")
def _update(update: Update, compiler: SQLCompiler, **kw: Any) -> str:
    """Use ALTER TABLE … UPDATE, because a plain UPDATE needs a recent version, and special table settings."""
    statement: str = compiler.visit_update(update, **kw)
    return statement.replace("UPDATE ", "ALTER TABLE ", 1).replace(" SET ", " UPDATE ", 1)


@compiles(Delete, "clickhousedb")
def _delete(delete: Delete, compiler: SQLCompiler, **kw: Any) -> str:
    """Use TRUNCATE if there is no condition, because ClickHouse requires a condition in DELETE."""
    if delete.whereclause is None:
        return f"TRUNCATE TABLE {compiler.preparer.format_table(delete.table)}"
    return str(compiler.visit_delete(delete, **kw))  # type: ignore[no-untyped-call]


@compiles(quarter_hours, "clickhousedb")
def _quarter_hours(element: quarter_hours, compiler: SQLCompiler, **kw: Any) -> str:
    micros = f"toUnixTimestamp64Micro({compiler.process(element.clauses, **kw)})"
    return f"CAST(floor({micros} / {QUARTER_MICROS}) AS Nullable(Int64))"

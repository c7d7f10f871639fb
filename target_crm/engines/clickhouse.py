"""ClickHouse."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, ClassVar

from sqlalchemy import Cast, Column, Date, Delete, Table, Update, func, inspect, select, text
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.schema import CreateColumn, CreateTable, DropTable

from target_crm.engines.base import LOCK_POLL_SECONDS, LOCK_WAIT_SECONDS, EngineAdapter, bound, quoted
from target_crm.engines.copy_swap import column_of, key_of, reflected, scratch_name, scratch_table
from target_crm.errors import WarehouseError
from target_crm.sql.staging import RowUpdate
from target_crm.sql.tables import MONTHS_OF

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from sqlalchemy import Column, Connection, Dialect, Table
    from sqlalchemy.sql.compiler import DDLCompiler, SQLCompiler, TypeCompiler

    from target_crm.engines.base import Rows, Statement


class ClickHouseAdapter(EngineAdapter):
    """A column store without transactions, and without UPDATE … FROM: rows are taken out, and put in again."""

    tested = True
    widens_to = ("number", "text")
    engine_options: ClassVar[Mapping[str, Any]] = {
        "connect_args": {
            # What SQL says, and every other engine does.
            "join_use_nulls": 1,
            # A statement is over when it is done, and what it has done is seen by the next.
            "mutations_sync": 2,
            "lightweight_deletes_sync": 2,
            "async_insert": 0,
            "select_sequential_consistency": 1,
            # Work tables take the same rows again and again.
            "insert_deduplicate": 0,
            # A first load may well be of ten years.
            "max_partitions_per_insert_block": 0,
        }
    }

    def transaction_lock(self, connection: Connection, schema: str | None) -> None:
        """Wait until what a lost loader has begun is over. Two that are well are not held apart: there are no locks."""
        begun = text(
            "SELECT count() FROM system.mutations WHERE database = coalesce(:schema, currentDatabase()) AND NOT is_done"
        )
        deadline_seconds = time.monotonic() + LOCK_WAIT_SECONDS
        while connection.scalar(begun, {"schema": schema}):
            if time.monotonic() > deadline_seconds:
                raise WarehouseError(f"a mutation has been under way for more than {LOCK_WAIT_SECONDS} s")
            time.sleep(LOCK_POLL_SECONDS)

    def is_atomic(self, connection: Connection, schema: str | None) -> bool:  # noqa: ARG002
        """No: each statement is done by itself."""
        return False

    def keys(self, connection: Connection, table: Table) -> Collection[str]:
        """Those that the rows are in the order of."""
        sorted_by = text(
            "SELECT name FROM system.columns WHERE database = coalesce(:schema, currentDatabase()) AND table = :table "
            "AND is_in_primary_key"
        )
        return connection.scalars(sorted_by, {"schema": table.schema, "table": table.name}).all()

    def execute(self, connection: Connection, statement: Statement) -> int:
        """A change of rows goes by way of a copy of them; nothing is deleted where nothing meets the condition."""
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
        """Put in again what was taken out when a change was cut off."""
        if inspect(connection).has_table(scratch_name(table), schema=table.schema):
            whole = reflected(connection, table)
            changed = scratch_table(whole)
            taken_out = key_of(table, changed).not_in(select(key_of(table, whole)))
            connection.execute(whole.insert().from_select(list(whole.c), select(*changed.c).where(taken_out)))
            connection.execute(DropTable(changed))

    def _rewrite(self, connection: Connection, change: RowUpdate) -> int:
        """Copy the rows as they are to be, take out those of their keys, put the copies in.

        Once the copy is whole, `heal` can do the rest. Columns that the change doesn't know keep what they hold.
        """
        table = change.table
        found = connection.scalar(select(func.count()).select_from(table).where(change.where)) or 0
        if found:
            whole = reflected(connection, table)
            changed = scratch_table(whole)
            values = [change.values.get(column.name, column_of(connection, table, column)) for column in whole.c]
            copies = select(*values).select_from(table).where(change.where)
            connection.execute(text(f"CREATE TABLE {quoted(connection, changed)} AS {quoted(connection, table)}"))
            connection.execute(changed.insert().from_select(list(changed.c), copies))
            connection.execute(whole.delete().where(key_of(table, whole).in_(select(key_of(table, changed)))))
            connection.execute(whole.insert().from_select(list(whole.c), select(*changed.c)))
            connection.execute(DropTable(changed))
        return found

    def is_retriable(self, error: Exception) -> bool:  # noqa: ARG002
        """No: a statement may go on without its client, and must not meet its own repetition."""
        return False

    def widen(self, dialect: Dialect, column: Column[Any]) -> str:
        """By a change of type, which converts what is there."""
        return f"MODIFY COLUMN {CreateColumn(column).compile(dialect=dialect)}"

    def empty(self, connection: Connection, table: Table) -> None:
        """TRUNCATE is done at once, a DELETE row by row."""
        connection.execute(text(f"TRUNCATE TABLE {quoted(connection, table)}"))

    def _bulk_load(self, connection: Connection, table: Table, rows: Rows) -> None:
        """By columns, in the driver's own format."""
        driver_connection: Any = connection.connection.driver_connection
        columns = [
            bound(connection.dialect, column, values)
            for column, values in zip(table.columns, zip(*rows, strict=True), strict=True)
        ]
        names = [column.name for column in table.columns]
        driver_connection.client.insert(quoted(connection, table), columns, names, column_oriented=True)


@compiles(CreateTable, "clickhousedb")
def _create_sorted(create: CreateTable, compiler: DDLCompiler, **_: Any) -> str:
    """A table in the order of its key; where it has a time that it grows with, in a part for each month."""
    table, quote = create.element, compiler.preparer.quote
    name = compiler.preparer.format_table(table)
    columns = ", ".join(str(CreateColumn(column).compile(dialect=compiler.dialect)) for column in table.columns)
    keys = ", ".join(quote(column.name) for column in table.primary_key.columns)
    months_of = table.info.get(MONTHS_OF)
    parts = f" PARTITION BY toYYYYMM(coalesce({quote(months_of)}, toDateTime64(0, 6, 'UTC')))" if months_of else ""
    return f"CREATE TABLE {name} ({columns}) ENGINE = MergeTree{parts} ORDER BY ({keys})"


@compiles(CreateColumn, "clickhousedb")
def _column_by_type(create: CreateColumn, compiler: DDLCompiler, **_: Any) -> str:
    """A column whose type says whether it takes nulls."""
    column = create.element
    type_ = compiler.dialect.type_compiler_instance.process(column.type)
    default = compiler.get_column_default_string(column)
    nullable = f"Nullable({type_})" if column.nullable else type_
    return f"{compiler.preparer.quote(column.name)} {nullable}{f' DEFAULT {default}' if default else ''}"


@compiles(Date, "clickhousedb")
def _wide_date(_type: Date, _compiler: TypeCompiler, **_: Any) -> str:
    """The usual one begins in 1970, and takes an earlier day for another."""
    return "Date32"


@compiles(Cast, "clickhousedb")
def _cast_nullable(cast: Cast[Any], compiler: SQLCompiler, **kw: Any) -> str:
    """A cast that lets nulls through, as everywhere else."""
    return f"CAST({compiler.process(cast.clause, **kw)} AS Nullable({compiler.process(cast.typeclause, **kw)}))"


@compiles(Update, "clickhousedb")
def _mutate(update: Update, compiler: SQLCompiler, **kw: Any) -> str:
    """An UPDATE of one table alone, for which any table will do."""
    statement: str = compiler.visit_update(update, **kw)
    return statement.replace("UPDATE ", "ALTER TABLE ", 1).replace(" SET ", " UPDATE ", 1)


@compiles(Delete, "clickhousedb")
def _delete_synchronously(delete: Delete, compiler: SQLCompiler, **kw: Any) -> str:
    """Without a condition, all rows."""
    if delete.whereclause is None:
        return f"TRUNCATE TABLE {compiler.preparer.format_table(delete.table)}"
    return str(compiler.visit_delete(delete, **kw))  # type: ignore[no-untyped-call]

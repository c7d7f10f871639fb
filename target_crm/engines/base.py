"""The default adapter, which needs only a SQLAlchemy dialect and core SQL, and code that several adapters share."""

from __future__ import annotations

import hashlib
import logging
import time
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar
from typing import cast as cast_type

from sqlalchemy import Double, Integer, String, case, cast, create_engine, inspect, null, type_coerce
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.schema import CreateTable, DropTable, ExecutableDDLElement, SetColumnComment, SetTableComment

from target_crm.engines.driver_errors import describe, is_about_row, pep_249_classes, sqlstate
from target_crm.errors import ConnectionLost
from target_crm.records.schemas import TableLimits
from target_crm.sql import balances
from target_crm.sql.staging import RowUpdate
from target_crm.sql.tables import MONTHS_OF

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

    from sqlalchemy import (
        URL,
        Column,
        ColumnElement,
        Connection,
        Delete,
        Dialect,
        Engine,
        Insert,
        Select,
        Table,
    )
    from sqlalchemy.schema import CreateColumn
    from sqlalchemy.types import TypeEngine

    from target_crm.sql.staging import Merge, Replacement
    from target_crm.sql.tables import Tables

    Rows = Sequence[tuple[Any, ...]]
    Statement = Insert | Delete | RowUpdate

LOCK_WAIT_SECONDS = 60
LOCK_POLL_SECONDS = 0.1
# Log a wait for a lock after this many seconds.
LOCK_LOG_SECONDS = 2
LOADER_LOCK = "the loader's lock"

logger = logging.getLogger("target-crm.warehouse")


class _EveryWord(frozenset[str]):
    """A set that claims to contain every word. As a dialect's reserved words, it makes SQLAlchemy quote all names."""

    def __contains__(self, _word: object) -> bool:
        return True


_EVERY_WORD = _EveryWord()


class LockWait:
    """A wait for a lock. A long wait is logged, but only once."""

    def __init__(self) -> None:
        self._began_seconds = time.monotonic()
        self._is_logged = False

    def go_on(self, lock: str, holder: str) -> None:
        """Call this after each failed attempt to take the lock. If the call returns, try again.

        Raises:
            ConnectionLost: The caller has waited for `LOCK_WAIT_SECONDS`.
        """
        waited_seconds = time.monotonic() - self._began_seconds
        if waited_seconds >= LOCK_WAIT_SECONDS:
            raise ConnectionLost(
                f"{lock} is still held by {holder}: wait until the lock is released, or stop its holder"
            )
        if waited_seconds >= LOCK_LOG_SECONDS and not self._is_logged:
            logger.warning("waiting for %s, held by %s", lock, holder)
            self._is_logged = True


class EngineAdapter:
    """The code that differs between engines. The defaults are for an unknown engine, so they use only core SQL."""

    tested: ClassVar[bool] = False
    """Whether the conformance tests run on the real engine: see docs/warehouses.md."""
    engine_options: ClassVar[Mapping[str, Any]] = {}
    """Additional arguments for SQLAlchemy's `create_engine`."""
    read_options: ClassVar[Mapping[str, Any]] = {}
    """Execution options that give a read-only transaction one consistent view of the warehouse."""
    batch_size_rows: ClassVar[int] = 10_000
    """The default of the setting `batch_size_rows`."""
    has_schemas: ClassVar[bool] = True
    """Whether this engine's databases have schemas."""
    add_column: ClassVar[str] = "ADD"
    """The keywords of ALTER TABLE that add a column."""
    leave_out_column: ClassVar[str] = "ALTER COLUMN {name} DROP NOT NULL"
    """The clause of ALTER TABLE that lets inserts leave out a NOT NULL column. Empty if no change is needed. On most
    engines, the clause makes the column nullable instead of dropping it, because views may read the column."""
    create_view: ClassVar[str] = "CREATE VIEW {name} AS {query}"
    """A template for the statement that creates a view."""
    replaces_views: ClassVar[bool] = False
    """Whether `create_view` replaces an existing view. If not, the target drops the view first."""
    mixes_ddl_and_dml: ClassVar[bool] = False
    """Whether a transaction can use a table that it has created. Also true if DDL commits immediately."""
    limits: ClassVar[TableLimits] = TableLimits()
    """The limits of the engine's tables, such as the maximum number of columns."""
    widens_columns_to: ClassVar[Collection[str]] = ()
    """The column kinds (see `migrations`) to which the target can widen a column. It widens `integer` and `decimal`
    to `number` or `decimal`, `date` to `time`, and every kind to `text`."""
    rename_table: ClassVar[Sequence[str]] = ()
    """Templates for the statements that rename a table. `{old}` and `{new}` are names with the schema, and `{name}` is
    the new name without the schema. Core SQL has no statement that renames a table, so the target cannot rebuild tables
    on an unknown engine."""
    temporary_schema: ClassVar[str | None] = None
    """The schema of temporary tables. Only their own session can see them, so a session can stage rows before it locks
    the target's tables. None means that the target stages rows in a work table, under the lock."""
    views_follow_renames: ClassVar[bool] = False
    """Whether a view stays valid when a column that it reads is renamed."""

    quotes_every_name: ClassVar[bool] = False
    """Whether to quote all names, because SQLAlchemy's lists of reserved words are incomplete. True only for engines on
    which a quoted lower-case name means the same as an unquoted one."""

    # Connections.

    def is_in_memory(self, url: URL) -> bool:  # noqa: ARG002
        """Return whether the database is in memory. The target then warns that all data is lost when the run ends."""
        return False

    def database_exists(self, url: URL) -> bool:  # noqa: ARG002
        """Return whether the database exists, or True if only a connection could find out."""
        return True

    def schema_problem(self, url: URL, schema: str) -> str:  # noqa: ARG002
        """Return why a schema with this name would make its table names ambiguous.

        If they are not ambiguous, return an empty string.
        """
        return ""

    def create_engine(self, url: URL, **options: Any) -> Engine:
        """Create a SQLAlchemy engine for a URL, with this adapter's options."""
        engine = create_engine(url, **options, **self.engine_options)
        if self.quotes_every_name:
            engine.dialect.identifier_preparer.reserved_words = cast_type("set[str]", _EVERY_WORD)
        return engine

    def add_event_listeners(self, engine: Engine) -> None:
        """Add listeners that prepare each new connection or transaction, for example by setting the time zone."""

    def driver_errors(self, dialect: Dialect) -> tuple[type[Exception], ...]:
        """Return the error classes that the warehouse or the connection may raise.

        They include the driver's own classes, because some bulk loads call the driver directly, and SQLAlchemy does not
        wrap the errors from such calls.
        """
        return SQLAlchemyError, dialect.loaded_dbapi.Error

    def is_retriable(self, error: Exception) -> bool:
        """Return whether a retry may succeed after this driver error, for example after a lost connection."""
        return bool(pep_249_classes(error) & {"OperationalError", "InterfaceError"})

    def is_about_row(self, error: Exception) -> bool:
        """Return whether a driver's error is about a row that violates a constraint or has an invalid value."""
        return is_about_row(error)

    def lacks_privilege(self, error: Exception) -> bool:
        """Return whether an error says that the database user lacks a privilege.

        If so, the target adds advice about roles to the message.
        """
        return sqlstate(error) == "42501"

    def describe_error(self, error: Exception) -> str:
        """Describe a driver's error on one line, without values from records."""
        return describe(error)

    # Transactions.

    @contextmanager
    def session_lock(self, connection: Connection, schema: str | None) -> Iterator[None]:  # noqa: ARG002
        """Lock a schema before a transaction, and unlock it afterwards. By default, there is no such lock."""
        yield

    def transaction_lock(self, connection: Connection, schema: str | None) -> None:
        """Lock a schema until the current transaction ends. By default, there is no such lock."""

    def limit_resources(self, connection: Connection) -> None:
        """Limit the memory and threads that the next batch may use."""

    def is_atomic(self, connection: Connection, schema: str | None) -> bool:  # noqa: ARG002
        """Return whether a transaction on the ledger and the balances is atomic.

        If not, the target recomputes the balances of a batch's awards from the ledger.
        """
        return True

    # Staging.

    def may_create_temporary(self, connection: Connection) -> bool:  # noqa: ARG002
        """Return whether the database user may create temporary tables."""
        return True

    def prepare(self, connection: Connection, work: Table) -> None:
        """Empty a work table. If it is temporary, create it."""
        self.clear(connection, work)
        if self.is_temporary(work):
            connection.execute(CreateTable(work))

    def clear(self, connection: Connection, work: Table) -> None:
        """Empty a work table. If it is temporary, drop it."""
        if self.is_temporary(work):
            connection.execute(DropTable(work, if_exists=True))
        else:
            self.empty(connection, work)

    def is_temporary(self, table: Table) -> bool:
        """Return whether only the session that creates a table can see it."""
        return table.schema is not None and table.schema == self.temporary_schema

    def stage(self, connection: Connection, table: Table, rows: Rows) -> None:
        """Fill a staging table with these rows only."""
        self.prepare(connection, table)
        self.load(connection, table, rows)

    def stage_ahead(self, connection: Connection, table: Table, rows: Rows) -> None:
        """Stage rows in a temporary table, in a transaction that ends before the one that will read the rows."""
        with connection.begin():
            self.stage(connection, table, rows)

    # DDL.

    def lock_tables(self, connection: Connection, tables: Sequence[Table]) -> None:
        """Lock tables before altering them, on engines where an ALTER TABLE that waits would block readers."""

    @contextmanager
    def altering(self, connection: Connection, table: Table) -> Iterator[None]:  # noqa: ARG002
        """Execute DDL for a table inside this context.

        If the DDL waits too long for a lock, an adapter can raise an error that names the holder of the lock.
        """
        yield

    def keys(self, connection: Connection, table: Table) -> Collection[str]:
        """Return the key columns of a table in the warehouse. The target compares them with the stream's key."""
        return inspect(connection).get_pk_constraint(table.name, schema=table.schema)["constrained_columns"]

    def comments_on(self, dialect: Dialect, table: Table) -> list[str]:  # noqa: ARG002
        """Return the statements that store the descriptions of a new table and its columns as comments.

        Return none if the dialect does not support comments, or if it puts them into CREATE TABLE, as MySQL's does.
        """
        return []

    def rename_column(self, dialect: Dialect, table: Table, old: str, new: str) -> str:
        """Return the statement that renames a column.

        Raises:
            WarehouseError: The engine cannot rename columns.
        """
        preparer = dialect.identifier_preparer
        name = preparer.format_table(table)
        return f"ALTER TABLE {name} RENAME COLUMN {preparer.quote(old)} TO {preparer.quote(new)}"

    def system_tables(self, connection: Connection) -> Collection[str]:  # noqa: ARG002
        """Return the names of the engine's own tables and views. The target gives these names to no stream's table."""
        return ()

    def view_names(self, connection: Connection, schema: str | None) -> Collection[str]:
        """Return the names of the views in a schema, because no stream's table may have such a name.

        Return none if the dialect cannot list views.
        """
        try:
            return inspect(connection).get_view_names(schema)
        except NotImplementedError:
            return ()

    def view_definition(self, connection: Connection, name: str, schema: str | None) -> str:
        """Return the SQL of a view, which an upgrade searches for columns that it would rename.

        Return an empty string if the dialect cannot return the SQL.
        """
        try:
            return str(inspect(connection).get_view_definition(name, schema))
        except NotImplementedError:
            return ""

    def converted(self, column: ColumnElement[Any], type_: TypeEngine[Any]) -> ColumnElement[Any]:
        """Return the expression that converts a column's values to a wider type."""
        return cast(column, type_)

    def rebuilds_to_widen(self, old: TypeEngine[Any], column: Column[Any]) -> bool:  # noqa: ARG002
        """Return whether the target must copy the table into a new one to give a column a wider type."""
        return False

    def widen_column(self, dialect: Dialect, column: Column[Any]) -> str | None:  # noqa: ARG002
        """Return the clause of ALTER TABLE that gives a column its wider type; None if no change is needed."""
        return None

    # Rows.

    def load(self, connection: Connection, table: Table, rows: Rows) -> None:
        """Insert rows. Each row has a value for every column, in the table's order."""
        if rows:
            self._bulk_load(connection, table, rows)

    def _bulk_load(self, connection: Connection, table: Table, rows: Rows) -> None:
        """Insert one or more rows in the fastest way that the engine offers."""
        names = [column.name for column in table.columns]
        connection.execute(table.insert(), [dict(zip(names, row, strict=True)) for row in rows])

    def execute(self, connection: Connection, statement: Statement) -> int:
        """Execute a statement that changes rows of a table. Return how many rows it changed."""
        if isinstance(statement, RowUpdate):
            return self._update(connection, statement)
        return connection.execute(statement).rowcount

    def _update(self, connection: Connection, change: RowUpdate) -> int:
        """Execute an UPDATE. If it reads other tables, first query the new values, and then write them row by row.

        Core SQL has no UPDATE … FROM, which could do both at once.
        """
        if not change.reads_other_tables:
            return connection.execute(change.update).rowcount
        rows = [row._asdict() for row in connection.execute(change.new_values)]
        if rows:
            connection.execute(change.update_by_key, rows)
        return len(rows)

    def merge(self, connection: Connection, merge: Merge) -> None:
        """Merge rows into a table: delete the stored rows, and insert the merged rows."""
        self.replace(connection, merge.replacement)

    def replace(self, connection: Connection, replacement: Replacement) -> None:
        """Insert new rows into a table, in place of the rows with the same keys."""
        self.prepare(connection, replacement.work)
        for statement in replacement.statements:
            self.execute(connection, statement)
        self.clear(connection, replacement.work)

    def replace_all(self, connection: Connection, table: Table, rows: Select[Any]) -> None:
        """Replace all rows of a table with the result of a query."""
        self.execute(connection, table.delete())
        connection.execute(table.insert().from_select(rows.selected_columns.keys(), rows))

    def all_balances(self, tables: Tables) -> Select[Any]:
        """Return a query that recomputes every balance from the ledger and the snapshots."""
        return balances.all_balances(tables, balances.partials_from_actions(tables.actions))

    def empty(self, connection: Connection, table: Table) -> None:
        """Delete all rows of a table."""
        connection.execute(table.delete())

    def recover(self, connection: Connection, table: Table) -> None:
        """On an engine without transactions, finish a change of a table that was interrupted between two statements."""


class ExtendedSQLAdapter(EngineAdapter):
    """An adapter that also uses SQL beyond the core, such as UPDATE … FROM, which most engines support.

    If an engine lacks one of these features, its adapter turns the feature off.
    """

    add_column = "ADD COLUMN"
    create_view = "CREATE OR REPLACE VIEW {name} AS {query}"
    replaces_views = True
    mixes_ddl_and_dml = True
    rename_table: ClassVar[Sequence[str]] = ("ALTER TABLE {old} RENAME TO {name}",)

    def comments_on(self, dialect: Dialect, table: Table) -> list[str]:
        """Return a `COMMENT ON` statement for the table, and one for each column that has a comment."""
        if table.comment is None or not dialect.supports_comments or dialect.inline_comments:
            return []
        comments: list[ExecutableDDLElement] = [SetTableComment(table)]
        comments += [SetColumnComment(column) for column in table.columns if column.comment]
        return [str(comment.compile(dialect=dialect)) for comment in comments]

    def _update(self, connection: Connection, change: RowUpdate) -> int:
        """Use a single UPDATE … FROM statement."""
        return connection.execute(change.update).rowcount


def lock_name(name: str) -> str:
    """Return a lock name that every engine accepts. The given name may have any length, and contain any characters."""
    return f"crm_{hashlib.blake2b(name.encode(), digest_size=16).hexdigest()}"


def quoted_name(connection: Connection, table: Table) -> str:
    """Return a table's name, quoted for use in SQL."""
    return connection.dialect.identifier_preparer.format_table(table)


def quoted_columns(connection: Connection, table: Table) -> str:
    """Return the names of a table's columns, quoted for use in SQL."""
    quote = connection.dialect.identifier_preparer.quote
    return ", ".join(quote(column.name) for column in table.columns)


def bind_values(dialect: Dialect, column: Column[Any], values: Sequence[Any]) -> Sequence[Any]:
    """Convert a column's values for the driver. Convert each distinct value only once, because values repeat."""
    if isinstance(column.type, Double):
        # PyMySQL would write a decimal such as 1e300 with all its digits, and MySQL accepts at most 65.
        return to_floats(values)
    processor = column.type.dialect_impl(dialect).bind_processor(dialect)
    return values if processor is None else list(map(cache(processor), values))


def to_floats(values: Sequence[Any]) -> Sequence[float | None]:
    """Convert decimals to floats, for drivers that would store decimals with a fixed number of digits."""
    return [None if value is None else float(value) for value in values]


def insert_by_driver(connection: Connection, table: Table, rows: Rows, placeholder: str) -> None:
    """Insert rows with the driver's `executemany`. SQLAlchemy's INSERT would need a dict for every row."""
    placeholders = ", ".join([placeholder] * len(table.columns))
    statement = (
        f"INSERT INTO {quoted_name(connection, table)} ({quoted_columns(connection, table)}) VALUES ({placeholders})"  # noqa: S608 - quoted names only
    )
    columns = zip(table.columns, zip(*rows, strict=True), strict=True)
    converted = [bind_values(connection.dialect, column, values) for column, values in columns]
    connection.exec_driver_sql(statement, list(zip(*converted, strict=True)))


@cache
def merge_on_conflict(insert: Callable[[Table], Any], merge: Merge) -> Insert:
    """Return a merge as INSERT … ON CONFLICT. `insert` is the dialect's function for INSERT statements."""
    rows = insert(merge.table).from_select(list(merge.rows.selected_columns.keys()), merge.rows)
    keys, values = merge.table.primary_key.columns.keys(), merge.union(rows.excluded, merge.table.c)
    upsert: Insert = rows.on_conflict_do_update(index_elements=keys, set_=dict(values))
    return upsert


def boolean_as_text(column: ColumnElement[Any]) -> ColumnElement[str]:
    """Return the expression for the text `true` or `false`, from a column that stores booleans as numbers."""
    return case((column.is_(None), null()), (type_coerce(column, Integer) == 0, "false"), else_="true")


def alter_type_using_cast(dialect: Dialect, column: Column[Any]) -> str:
    """Return the clause of ALTER TABLE that changes a column's type and casts its values."""
    name = dialect.identifier_preparer.quote(column.name)
    converted = cast(column, column.type).compile(dialect=dialect)
    return f"ALTER COLUMN {name} TYPE {column.type.compile(dialect)} USING {converted}"


def create_table_with_layout(create: CreateTable, compiler: Any, layout: str, **kw: Any) -> str:
    """Return the CREATE TABLE statement for a column store.

    If the table grows with time, add the clause `layout`, which partitions or clusters the table.
    """
    statement: str = compiler.visit_create_table(create, **kw).rstrip()
    months_of = create.element.info.get(MONTHS_OF)
    return f"{statement}\n{layout.format(months_of=months_of)}" if months_of else statement


def comment_clause(create: CreateTable | CreateColumn, compiler: Any, keyword: str) -> str:
    """Return the comment on a table or column, for engines that put comments into CREATE TABLE.

    Return an empty string if there is no comment.
    """
    comment = create.element.comment
    return f"{keyword}{compiler.sql_compiler.render_literal_value(comment, String())}" if comment else ""

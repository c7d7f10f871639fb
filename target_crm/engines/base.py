"""How an engine that wants nothing its own way is opened, locked, loaded and changed; and what several share."""

from __future__ import annotations

import hashlib
from contextlib import contextmanager
from functools import cache
from threading import Lock
from typing import TYPE_CHECKING, Any, ClassVar

from sqlalchemy import Column, Delete, Table, cast, create_engine, inspect
from sqlalchemy.exc import SQLAlchemyError

from target_crm.sql.staging import RowUpdate
from target_crm.sql.tables import MONTHS_OF

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

    from sqlalchemy import URL, Column, Connection, Delete, Dialect, Engine, Insert, Select, Table
    from sqlalchemy.schema import CreateTable

    from target_crm.sql.staging import Merge, Replacement

    Rows = Sequence[tuple[Any, ...]]
    Statement = Insert | Delete | RowUpdate

LOCK_WAIT_SECONDS = 60
LOCK_POLL_SECONDS = 0.1
# Held while rows are bound. The reader waits meanwhile, so that the two threads do not compete for the interpreter.
binding = Lock()


class EngineAdapter:
    """What serves on an engine that nobody has heard of."""

    tested: ClassVar[bool] = False
    """Whether the cases that every engine has to pass are run on the real one: see docs/warehouses.md."""
    engine_options: ClassVar[Mapping[str, Any]] = {}
    """Arguments of `create_engine`."""
    widens_to: ClassVar[Collection[str]] = ()
    """Kinds of `ddl` that a column can be made to take: `number` after `integer`, `text` after any."""
    views_follow_renames: ClassVar[bool] = False
    """Whether a view stays valid when a column that it reads is renamed."""
    read_options: ClassVar[Mapping[str, Any]] = {}
    """Execution options of a transaction that only reads, and has to see one state throughout."""

    def is_in_memory(self, url: URL) -> bool:  # noqa: ARG002
        """Whether all that is loaded is gone when the process ends."""
        return False

    def create_engine(self, url: URL, **options: Any) -> Engine:
        """Make a SQLAlchemy engine of a URL."""
        return create_engine(url, **options, **self.engine_options)

    def listen(self, engine: Engine) -> None:
        """Have the engine's events do what it needs."""

    @contextmanager
    def session_lock(self, connection: Connection, schema: str | None) -> Iterator[None]:  # noqa: ARG002
        """Hold back other loaders of a schema from before a transaction until after it."""
        yield

    def transaction_lock(self, connection: Connection, schema: str | None) -> None:
        """Hold back other loaders of a schema until the end of the transaction that has just begun."""

    def limit_resources(self, connection: Connection) -> None:
        """Let the batch that is about to be written take no more of this machine than it needs."""

    def is_atomic(self, connection: Connection, schema: str | None) -> bool:  # noqa: ARG002
        """Whether a transaction on the ledger and the balances is done as a whole or not at all."""
        return True

    def errors(self, dialect: Dialect) -> tuple[type[Exception], ...]:
        """What is raised where the warehouse, or the way to it, fails; in a bulk load, by the driver itself."""
        return SQLAlchemyError, dialect.loaded_dbapi.Error

    def is_retriable(self, error: Exception) -> bool:
        """Whether a driver's error is worth another try: the server, or the way to it, failed."""
        return bool(pep_249_names(error) & {"OperationalError", "InterfaceError"})

    def keys(self, connection: Connection, table: Table) -> Collection[str]:
        """The columns that a table in the warehouse tells its rows apart by."""
        return inspect(connection).get_pk_constraint(table.name, schema=table.schema)["constrained_columns"]

    def execute(self, connection: Connection, statement: Statement) -> int:
        """Change the rows of a table; returns how many were updated or deleted."""
        return connection.execute(statement.update if isinstance(statement, RowUpdate) else statement).rowcount

    def replace_all(self, connection: Connection, table: Table, rows: Select[Any]) -> None:
        """Let a table hold what is computed from a whole ledger, and nothing else."""
        self.execute(connection, table.delete())
        connection.execute(table.insert().from_select(rows.selected_columns.keys(), rows))

    def merge(self, connection: Connection, merge: Merge) -> None:
        """Merge rows into those of a table."""
        self.replace(connection, merge.replacement)

    def replace(self, connection: Connection, replacement: Replacement) -> None:
        """Put rows in the place of those with the same keys."""
        self.empty(connection, replacement.work)
        for statement in replacement.statements:
            self.execute(connection, statement)
        self.empty(connection, replacement.work)

    def recover(self, connection: Connection, table: Table) -> None:
        """Finish a change that was cut off, where it is not a single statement."""

    def rename_column(self, dialect: Dialect, table: Table, old: str, new: str) -> str:
        """The statement that renames a column.

        Raises:
            WarehouseError: the engine cannot rename columns.
        """
        preparer = dialect.identifier_preparer
        name = preparer.format_table(table)
        return f"ALTER TABLE {name} RENAME COLUMN {preparer.quote(old)} TO {preparer.quote(new)}"

    def widen(self, dialect: Dialect, column: Column[Any]) -> str | None:  # noqa: ARG002
        """What to say to ALTER TABLE so that a column takes what its new type does. None: it does so as it is."""
        return None

    def empty(self, connection: Connection, table: Table) -> None:
        """Remove all rows."""
        connection.execute(table.delete())

    def load(self, connection: Connection, table: Table, rows: Rows) -> None:
        """Insert rows that have a value for every column, in the table's order."""
        if rows:
            with binding:
                self._bulk_load(connection, table, rows)

    def _bulk_load(self, connection: Connection, table: Table, rows: Rows) -> None:
        """Insert rows by the engine's fastest way; there is at least one."""
        names = [column.name for column in table.columns]
        connection.execute(table.insert(), [dict(zip(names, row, strict=True)) for row in rows])


def digest(name: str) -> str:
    """A name of any length and alphabet as one that every engine takes."""
    return f"crm_{hashlib.blake2b(name.encode(), digest_size=16).hexdigest()}"


def pep_249_names(error: Exception) -> set[str]:
    """What a driver's error is, in the words that all drivers share."""
    return {each.__name__ for each in type(error).__mro__}


def alter_using_cast(dialect: Dialect, column: Column[Any]) -> str:
    """ALTER TABLE's clause that widens a column by a cast of what is there."""
    name = dialect.identifier_preparer.quote(column.name)
    converted = cast(column, column.type).compile(dialect=dialect)
    return f"ALTER COLUMN {name} TYPE {column.type.compile(dialect)} USING {converted}"


def insert_by_driver(connection: Connection, table: Table, rows: Rows, mark: str) -> None:
    """Insert by the driver's own executemany; `mark` stands for a value."""
    marks = ", ".join([mark] * len(table.columns))
    statement = f"INSERT INTO {quoted(connection, table)} ({column_names(connection, table)}) VALUES ({marks})"  # noqa: S608 - quoted names only
    columns = zip(table.columns, zip(*rows, strict=True), strict=True)
    converted = [bound(connection.dialect, column, values) for column, values in columns]
    connection.exec_driver_sql(statement, list(zip(*converted, strict=True)))


@cache
def merge_on_conflict(insert: Callable[[Table], Any], merge: Merge) -> Insert:
    """A merge as one statement, for engines that know a key when they meet it again."""
    rows = insert(merge.table).from_select(list(merge.rows.selected_columns.keys()), merge.rows)
    keys, values = merge.table.primary_key.columns.keys(), merge.union(rows.excluded, merge.table.c)
    upsert: Insert = rows.on_conflict_do_update(index_elements=keys, set_=dict(values))
    return upsert


def quoted(connection: Connection, table: Table) -> str:
    """A table's name, as it stands in a statement."""
    return connection.dialect.identifier_preparer.format_table(table)


def column_names(connection: Connection, table: Table) -> str:
    """The names of its columns, likewise."""
    quote = connection.dialect.identifier_preparer.quote
    return ", ".join(quote(column.name) for column in table.columns)


def bound(dialect: Dialect, column: Column[Any], values: Sequence[Any]) -> Sequence[Any]:
    """A column's values as the driver wants them: each that repeats is converted once."""
    processor = column.type.dialect_impl(dialect).bind_processor(dialect)
    return values if processor is None else list(map(cache(processor), values))


def as_doubles(values: Sequence[Any]) -> Sequence[float | None]:
    """Numbers of any size, which come as decimals, for drivers that would take them for decimals of some width."""
    return [None if value is None else float(value) for value in values]


def laid_out(create: CreateTable, compiler: Any, layout: str, **kw: Any) -> str:
    """CREATE TABLE for an engine that reads whole columns: how it keeps the rows of a table that grows with time."""
    statement: str = compiler.visit_create_table(create, **kw).rstrip()
    months_of = create.element.info.get(MONTHS_OF)
    return f"{statement}\n{layout.format(months_of=months_of)}" if months_of else statement

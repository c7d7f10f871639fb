"""What each engine wants done its own way: how it is opened, locked, emptied and loaded.

A new engine works with `Ways`, and gets a class of its own where it can do better. Column types and functions that
differ by engine are in `columns.py`.
"""

from __future__ import annotations

import hashlib
import tempfile
import time
import uuid
from contextlib import closing, contextmanager, suppress
from datetime import date, datetime
from decimal import Decimal
from functools import cache
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar
from typing import cast as cast_type

from sqlalchemy import (
    Cast,
    Column,
    Date,
    Delete,
    Executable,
    Table,
    Update,
    and_,
    cast,
    create_engine,
    event,
    false,
    func,
    inspect,
    literal_column,
    not_,
    select,
    text,
    tuple_,
    union_all,
)
from sqlalchemy.dialects import registry
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.pool import NullPool
from sqlalchemy.schema import CreateColumn, CreateTable, DropTable, MetaData
from sqlalchemy.sql import operators, visitors
from sqlalchemy.sql.elements import ClauseElement

from target_crm.columns import POINTS_PLACES, Instant, Points
from target_crm.errors import WarehouseError
from target_crm.staging import Change
from target_crm.tables import MONTHS_OF, WORK_PREFIX, tables_in

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from sqlalchemy import URL, ColumnElement, CompoundSelect, Connection, Dialect, Engine, Insert, Select
    from sqlalchemy.engine.interfaces import ConnectArgsType
    from sqlalchemy.sql.compiler import DDLCompiler, SQLCompiler, TypeCompiler

    Rows = Sequence[tuple[Any, ...]]
    Statement = Insert | Delete | Change

LOCK_WAIT_SECONDS = 60
LOCK_POLL_SECONDS = 0.1


class CannotWiden(Exception):
    """A column can't be made to take other values than it does."""


class Ways:
    """What serves on an engine that nobody has heard of."""

    tested: ClassVar[bool] = False
    """Whether every test of this project runs on it."""
    engine_options: ClassVar[Mapping[str, Any]] = {}
    """Arguments of `create_engine`."""
    read_options: ClassVar[Mapping[str, Any]] = {}
    """Execution options of a transaction that only reads, and has to see one state throughout."""

    def create_engine(self, url: URL, **options: Any) -> Engine:
        """Make a SQLAlchemy engine of a URL."""
        return create_engine(url, **options, **self.engine_options)

    def listen(self, engine: Engine) -> None:
        """Have the engine's events do what it needs."""

    @contextmanager
    def turn(self, connection: Connection, schema: str | None) -> Iterator[None]:  # noqa: ARG002
        """Hold back other loaders of a schema from before a transaction until after it."""
        yield

    def lock(self, connection: Connection, schema: str | None) -> None:
        """Hold back other loaders of a schema until the end of the transaction that has just begun."""

    def is_atomic(self, connection: Connection, schema: str | None) -> bool:  # noqa: ARG002
        """Whether a transaction on the ledger and the balances is done as a whole or not at all."""
        return True

    def is_passing(self, error: Exception) -> bool:
        """Whether a driver's error is worth another try: the server, or the way to it, failed."""
        return bool(pep_249_names(error) & {"OperationalError", "InterfaceError"})

    def keys(self, connection: Connection, table: Table) -> Collection[str]:
        """The columns that a table in the warehouse tells its rows apart by."""
        return inspect(connection).get_pk_constraint(table.name, schema=table.schema)["constrained_columns"]

    def execute(self, connection: Connection, statement: Statement) -> int:
        """Change the rows of a table; returns how many were updated or deleted."""
        return connection.execute(statement.update if isinstance(statement, Change) else statement).rowcount

    def heal(self, connection: Connection, table: Table) -> None:
        """Finish a change that was cut off, where it is not a single statement."""

    def widen(self, dialect: Dialect, column: Column[Any], old: str, new: str) -> str | None:  # noqa: ARG002
        """What to say to ALTER TABLE so that a column of one kind takes values of another, too.

        Kinds are those of `ddl`. None: the column takes both as it is.

        Raises:
            CannotWiden: the engine can't.
        """
        raise CannotWiden

    def empty(self, connection: Connection, table: Table) -> None:
        """Remove all rows."""
        connection.execute(table.delete())

    def load(self, connection: Connection, table: Table, rows: Rows) -> None:
        """Put rows, with a value for every column in the table's order, into a table as fast as the engine can."""
        names = [column.name for column in table.columns]
        connection.execute(table.insert(), [dict(zip(names, row, strict=True)) for row in rows])


class Sqlite(Ways):
    """A file, and one writer at a time."""

    tested = True

    def listen(self, engine: Engine) -> None:
        """Let BEGIN be ours: the driver's own begins late, and a writer that reads first could never wait its turn."""

        def on_connect(driver_connection: Any, _record: object) -> None:
            driver_connection.isolation_level = None
            driver_connection.execute(f"PRAGMA busy_timeout = {LOCK_WAIT_SECONDS * 1000}")
            driver_connection.execute("PRAGMA journal_mode = WAL")
            # A signal is heard between two tries only.
            driver_connection.execute(f"PRAGMA busy_timeout = {int(LOCK_POLL_SECONDS * 1000)}")

        def on_begin(connection: Connection) -> None:
            if not connection.get_execution_options().get("crm_writes"):
                connection.exec_driver_sql("BEGIN")
                return
            deadline_seconds = time.monotonic() + LOCK_WAIT_SECONDS
            while True:
                try:
                    connection.exec_driver_sql("BEGIN IMMEDIATE")
                except OperationalError:  # noqa: PERF203 - a try each time is the point
                    if time.monotonic() > deadline_seconds:
                        raise
                else:
                    return

        event.listen(engine, "connect", on_connect)
        event.listen(engine, "begin", on_begin)

    def is_passing(self, error: Exception) -> bool:  # noqa: ARG002
        """No: it has waited for its lock already."""
        return False

    def widen(self, dialect: Dialect, column: Column[Any], old: str, new: str) -> str | None:  # noqa: ARG002
        """Any column takes any value; only what it makes of it depends on its type."""
        if (old, new) in {("integer", "number"), ("text", "JSON")}:
            return None
        raise CannotWiden

    def load(self, connection: Connection, table: Table, rows: Rows) -> None:
        """By the driver's own executemany: SQLAlchemy's would make a dict of every row."""
        _insert_by_driver(connection, table, rows, mark="?")


class Postgresql(Ways):
    """A server with advisory locks and COPY."""

    tested = True
    read_options: ClassVar[Mapping[str, Any]] = {"isolation_level": "REPEATABLE READ"}
    # One loader at a time per schema of a database, told apart by this number and a hash of the schema's name.
    _LOCK_CLASS = 0x63726D
    _JSON_OID = 114

    def listen(self, engine: Engine) -> None:
        """Let the server speak of times in UTC: the driver can't read the year 9999 in some other zones."""

        def on_connect(driver_connection: Any, _record: object) -> None:
            with closing(driver_connection.cursor()) as cursor:
                cursor.execute("SET TIME ZONE 'UTC'")
            driver_connection.commit()

        event.listen(engine, "connect", on_connect)

    def lock(self, connection: Connection, schema: str | None) -> None:
        """Take an advisory lock, which ends with the transaction."""
        connection.execute(
            text("SELECT pg_advisory_xact_lock(:class, hashtext(coalesce(:schema, current_schema(), '')))"),
            {"class": self._LOCK_CLASS, "schema": schema},
        )

    def is_atomic(self, connection: Connection, schema: str | None) -> bool:
        """Yes, unless a table has parts on other servers: each of them commits by itself."""
        foreign_table = (
            "SELECT 1 FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace "
            "WHERE relkind = 'f' AND nspname = coalesce(:schema, current_schema()) LIMIT 1"
        )
        return connection.scalar(text(foreign_table), {"schema": schema}) is None

    def widen(self, dialect: Dialect, column: Column[Any], old: str, new: str) -> str:
        """By a cast of what is there."""
        return _alter_using_cast(dialect, column, old, new)

    def empty(self, connection: Connection, table: Table) -> None:
        """By TRUNCATE, which leaves no dead rows behind; but while a backup is made it would have to wait."""
        name = _quoted(connection, table)
        connection.exec_driver_sql(
            f"DO $$ BEGIN LOCK TABLE {name} IN ACCESS EXCLUSIVE MODE NOWAIT; TRUNCATE {name}; "  # noqa: S608 - quoted names only
            f"EXCEPTION WHEN lock_not_available THEN DELETE FROM {name}; END $$"
        )

    def load(self, connection: Connection, table: Table, rows: Rows) -> None:
        """By binary COPY, where the driver has it."""
        if connection.dialect.driver != "psycopg":
            super().load(connection, table, rows)
            return
        name, columns = _quoted(connection, table), _columns(connection, table)
        driver_connection: Any = connection.connection.driver_connection
        with driver_connection.cursor() as cursor:
            # As they are: an older loader may have made some wider than this one's schema says.
            types = [column.type_code for column in cursor.execute(f"SELECT {columns} FROM {name} LIMIT 0").description]  # noqa: S608 - quoted names only
            with cursor.copy(f"COPY {name} ({columns}) FROM STDIN (FORMAT BINARY)") as copy:
                # JSON is in the sender's words; the driver would write a string of it.
                copy.set_types(["text" if each == self._JSON_OID else each for each in types])
                for row in rows:
                    copy.write_row(row)


class Duckdb(Ways):
    """A file that one process has open at a time, and a reader of columns."""

    tested = True
    # Between two batches, the file is another process's to open.
    engine_options: ClassVar[Mapping[str, Any]] = {"poolclass": NullPool}

    def listen(self, engine: Engine) -> None:
        """Wait for the file while another process has it open."""

        def on_connect(dialect: Dialect, _record: object, arguments: ConnectArgsType, options: dict[str, Any]) -> Any:
            deadline_seconds = time.monotonic() + LOCK_WAIT_SECONDS
            while True:
                try:
                    return dialect.connect(*arguments, **options)
                except Exception as error:
                    if "Could not set lock" not in str(error) or time.monotonic() > deadline_seconds:
                        raise
                time.sleep(LOCK_POLL_SECONDS)

        event.listen(engine, "do_connect", on_connect)

    def is_passing(self, error: Exception) -> bool:
        """Where two transactions of a process were in each other's way."""
        return "TransactionException" in pep_249_names(error)

    def widen(self, dialect: Dialect, column: Column[Any], old: str, new: str) -> str:
        """By a cast of what is there."""
        return _alter_using_cast(dialect, column, old, new)

    def load(self, connection: Connection, table: Table, rows: Rows) -> None:
        """By columns, through Arrow: row by row takes thirty times as long."""
        import pyarrow  # noqa: PLC0415 - comes with the extra of this engine alone

        # Of other types, Arrow finds out by looking at the values, which takes long for these.
        kinds = {Instant: pyarrow.timestamp("us"), Points: pyarrow.decimal128(19, POINTS_PLACES)}
        arrays = [
            pyarrow.array(values, kind)
            if (kind := kinds.get(type(column.type)))
            else pyarrow.array(_bound(connection.dialect, column, values))
            for column, values in zip(table.columns, zip(*rows, strict=True), strict=True)
        ]
        driver_connection: Any = connection.connection.driver_connection
        driver_connection.register("_rows", pyarrow.table(arrays, names=[str(place) for place in range(len(arrays))]))
        connection.exec_driver_sql(
            f"INSERT INTO {_quoted(connection, table)} ({_columns(connection, table)}) SELECT * FROM _rows"  # noqa: S608 - quoted names only
        )
        # Where this fails, the connection is closed, and what is registered with it.
        driver_connection.unregister("_rows")


class Mysql(Ways):
    """MySQL and MariaDB: locks by name that outlast a transaction, and DDL that commits at once."""

    # The server, or the way to it, is gone; too many connections; a lock was not to be had, or another has won it.
    _PASSING = frozenset({2002, 2003, 2006, 2013, 2055, 1040, 1053, 1077, 1158, 1159, 1160, 1161, 1205, 1213, 1927})

    def listen(self, engine: Engine) -> None:
        """Have values that don't fit refused: a server may be set up to cut them off, with no more than a warning."""

        def on_connect(driver_connection: Any, _record: object) -> None:
            with closing(driver_connection.cursor()) as cursor:
                cursor.execute("SET SESSION sql_mode = CONCAT_WS(',', @@sql_mode, 'STRICT_ALL_TABLES')")

        event.listen(engine, "connect", on_connect)

    @contextmanager
    def turn(self, connection: Connection, schema: str | None) -> Iterator[None]:
        """Take a lock by name: names are the server's, so the database is a part of this one."""
        name = _digest(f"{connection.engine.url.database}.{schema}")
        with closing(connection.connection.cursor()) as cursor:
            cursor.execute("SELECT GET_LOCK(%s, %s)", (name, LOCK_WAIT_SECONDS))
            if cursor.fetchone() != (1,):
                raise WarehouseError(f"another loader has been at work for more than {LOCK_WAIT_SECONDS} s")
            try:
                yield
            finally:
                # Where the connection is lost, so is the lock.
                with suppress(connection.dialect.loaded_dbapi.Error):
                    cursor.execute("SELECT RELEASE_LOCK(%s)", (name,))

    def is_passing(self, error: Exception) -> bool:
        """By number: the classes of the driver say little."""
        return bool(error.args) and error.args[0] in self._PASSING

    def widen(self, dialect: Dialect, column: Column[Any], old: str, new: str) -> str:
        """By a change of type, which converts what is there."""
        if (old, new) != ("integer", "number") and new != "text":
            raise CannotWiden
        name = dialect.identifier_preparer.quote(column.name)
        return f"MODIFY COLUMN {name} {column.type.compile(dialect)}"

    def load(self, connection: Connection, table: Table, rows: Rows) -> None:
        """By the driver's own executemany, which sends many rows in a statement.

        LOAD DATA LOCAL would be faster, but with it a server may ask this machine for any file.
        """
        _insert_by_driver(connection, table, rows, mark="%s")


class Snowflake(Ways):
    """Locks by table that last as long as a transaction, DDL that commits at once, files by way of a stage."""

    # A statement that was cut off, by its lock's or its own timeout, or by a person; the way to the server.
    _PASSING_STATES = frozenset({"08001", "08003", "57014"})
    # An internal error of the server; a session that is gone, or whose token has expired.
    _PASSING_NUMBERS = frozenset({603, 390111, 390112, 390114})
    _NO_SUCH_TABLE = 2003
    # Its dialect takes these from `connect_args` alone: a URL might come from a stranger.
    _FILES = ("private_key_file", "token_file_path")

    def create_engine(self, url: URL, **options: Any) -> Engine:
        """Have sessions wait for locks no longer than on other engines: they would for half a day."""
        session = {"TIMEZONE": "UTC", "LOCK_TIMEOUT": LOCK_WAIT_SECONDS, "QUERY_TAG": "target-crm"}
        files = {name: url.query[name] for name in self._FILES if name in url.query}
        arguments = {"session_parameters": session, **files}
        return super().create_engine(url.difference_update_query(files), connect_args=arguments, **options)

    def lock(self, connection: Connection, schema: str | None) -> None:
        """Change a table of one row: others that do so wait. Before there is one, nothing holds them back.

        A loader that dies in a transaction holds it until Snowflake ends that: after five minutes of others' waiting.
        """
        version = tables_in(schema).version
        try:
            connection.execute(version.update().values(version=version.c.version))
        except DBAPIError as error:
            if getattr(error.orig, "errno", None) != self._NO_SUCH_TABLE:
                raise

    def is_passing(self, error: Exception) -> bool:
        """By state and number besides: a lock that was not to be had is a ProgrammingError."""
        state, number = getattr(error, "sqlstate", None), getattr(error, "errno", None)
        return super().is_passing(error) or state in self._PASSING_STATES or number in self._PASSING_NUMBERS

    def load(self, connection: Connection, table: Table, rows: Rows) -> None:
        """By a file in the user's own stage, which needs no right but to log in; it goes when it is loaded."""
        fields = {f"c{place}": column for place, column in enumerate(table.columns)}
        compiler = connection.dialect.type_compiler_instance
        values = (f"$1:{field}::{compiler.process(column.type)}" for field, column in fields.items())
        # A user may load several warehouses at once.
        stage = f"@~/target-crm/{uuid.uuid4().hex}"
        with tempfile.TemporaryDirectory(prefix="target-crm-") as folder:
            path = Path(folder) / "rows.parquet"
            _write_parquet(path, fields, rows)
            connection.exec_driver_sql(f"PUT 'file://{path}' {stage} AUTO_COMPRESS = FALSE")
        into, chosen = f"{_quoted(connection, table)} ({_columns(connection, table)})", ", ".join(values)
        file = f"(SELECT {chosen} FROM {stage}/{path.name}) FILE_FORMAT = (TYPE = PARQUET USE_LOGICAL_TYPE = TRUE)"  # noqa: S608 - quoted names only
        try:
            connection.exec_driver_sql(f"COPY INTO {into} FROM {file} PURGE = TRUE")
        except DBAPIError:
            with suppress(DBAPIError):
                connection.exec_driver_sql(f"REMOVE {stage}")
            raise


class Bigquery(Ways):
    """No locks, no keys, no transactions of several statements, and files by load jobs, which cost nothing."""

    # What says that a job was never begun. Of one that is lost on the way nobody knows whether it goes on, and its
    # repetition must not run beside it.
    _REFUSALS = frozenset({"rateLimitExceeded", "jobRateLimitExceeded"})

    def is_atomic(self, connection: Connection, schema: str | None) -> bool:  # noqa: ARG002
        """No: each statement is done by itself."""
        return False

    def is_passing(self, error: Exception) -> bool:
        """By reason: the driver wraps what the service said."""
        reasons = {each.get("reason") for each in getattr(next(iter(error.args), None), "errors", None) or ()}
        return bool(reasons & self._REFUSALS) or "due to concurrent update" in str(error)

    def keys(self, connection: Connection, table: Table) -> Collection[str]:  # noqa: ARG002
        """Nobody can tell; those that are wanted."""
        return table.primary_key.columns.keys()

    def widen(self, dialect: Dialect, column: Column[Any], old: str, new: str) -> str:
        """From a whole number alone."""
        if (old, new) != ("integer", "number"):
            raise CannotWiden
        name = dialect.identifier_preparer.quote(column.name)
        return f"ALTER COLUMN {name} SET DATA TYPE {column.type.compile(dialect)}"

    def load(self, connection: Connection, table: Table, rows: Rows) -> None:
        """By a load job; it is done as a whole or not at all."""
        from google.cloud import bigquery  # noqa: PLC0415 - comes with the extra of this engine alone

        dialect: Any = connection.dialect
        client = connection.connection.driver_connection._client  # type: ignore[union-attr]  # noqa: SLF001
        destination = bigquery.DatasetReference(dialect.project_id, table.schema or dialect.dataset_id).table(
            table.name
        )
        settings = bigquery.LoadJobConfig(
            schema=client.get_table(destination).schema,
            source_format=bigquery.SourceFormat.PARQUET,
            write_disposition=bigquery.WriteDisposition.WRITE_APPEND,
        )
        with tempfile.TemporaryDirectory(prefix="target-crm-") as folder:
            path = Path(folder) / "rows.parquet"
            _write_parquet(path, dict(table.columns), rows)
            with path.open("rb") as file:
                client.load_table_from_file(file, destination, job_config=settings).result()


class Databricks(Ways):
    """Each statement is a transaction of its own."""

    def is_atomic(self, connection: Connection, schema: str | None) -> bool:  # noqa: ARG002
        """No: each statement is done by itself."""
        return False


class Mssql(Ways):
    """Application locks, and a driver that sends many rows at once."""

    engine_options: ClassVar[Mapping[str, Any]] = {"fast_executemany": True}

    def lock(self, connection: Connection, schema: str | None) -> None:
        """Take an application lock, which ends with the transaction; not to get it is no error by itself."""
        connection.execute(
            text(
                "DECLARE @got int; EXEC @got = sp_getapplock @Resource = :name, @LockMode = 'Exclusive', "
                "@LockOwner = 'Transaction', @LockTimeout = :wait_ms; "
                "IF @got < 0 THROW 50000, 'another loader has been at work for too long', 1"
            ),
            {"name": _digest(f"{schema}"), "wait_ms": LOCK_WAIT_SECONDS * 1000},
        )

    def widen(self, dialect: Dialect, column: Column[Any], old: str, new: str) -> str:
        """From a whole number alone."""
        if (old, new) != ("integer", "number"):
            raise CannotWiden
        return f"ALTER COLUMN {dialect.identifier_preparer.quote(column.name)} {column.type.compile(dialect)}"


class Clickhouse(Ways):
    """A column store without transactions, and without UPDATE … FROM: rows are taken out, and put in again."""

    tested = True
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

    def lock(self, connection: Connection, schema: str | None) -> None:
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
        if isinstance(statement, Change):
            return self._rewrite(connection, statement)
        if isinstance(statement, Delete) and statement.whereclause is not None:
            table = statement.table
            found = connection.scalar(select(func.count()).select_from(table).where(statement.whereclause)) or 0
            if found:
                connection.execute(statement)
            return found
        return connection.execute(statement).rowcount

    def heal(self, connection: Connection, table: Table) -> None:
        """Put in again what was taken out when a change was cut off."""
        if inspect(connection).has_table(_name_beside(table), schema=table.schema):
            whole = _as_it_is(connection, table)
            changed = _beside(whole)
            taken_out = _key(table, changed).not_in(select(_key(table, whole)))
            connection.execute(whole.insert().from_select(list(whole.c), select(*changed.c).where(taken_out)))
            connection.execute(DropTable(changed))

    def _rewrite(self, connection: Connection, change: Change) -> int:
        """Copy the rows as they are to be, take out those of their keys, put the copies in.

        Once the copy is whole, `heal` can do the rest. Columns that the change doesn't know keep what they hold.
        """
        table = change.table
        found = connection.scalar(select(func.count()).select_from(table).where(change.where)) or 0
        if found:
            whole = _as_it_is(connection, table)
            changed = _beside(whole)
            values = [change.values.get(column.name, _of(connection, table, column)) for column in whole.c]
            copies = select(*values).select_from(table).where(change.where)
            connection.execute(text(f"CREATE TABLE {_quoted(connection, changed)} AS {_quoted(connection, table)}"))
            connection.execute(changed.insert().from_select(list(changed.c), copies))
            connection.execute(whole.delete().where(_key(table, whole).in_(select(_key(table, changed)))))
            connection.execute(whole.insert().from_select(list(whole.c), select(*changed.c)))
            connection.execute(DropTable(changed))
        return found

    def is_passing(self, error: Exception) -> bool:  # noqa: ARG002
        """No: a statement may go on without its client, and must not meet its own repetition."""
        return False

    def widen(self, dialect: Dialect, column: Column[Any], old: str, new: str) -> str:
        """By a change of type, which converts what is there."""
        if (old, new) != ("integer", "number") and new != "text":
            raise CannotWiden
        return f"MODIFY COLUMN {CreateColumn(column).compile(dialect=dialect)}"

    def empty(self, connection: Connection, table: Table) -> None:
        """TRUNCATE is done at once, a DELETE row by row."""
        connection.execute(text(f"TRUNCATE TABLE {_quoted(connection, table)}"))

    def load(self, connection: Connection, table: Table, rows: Rows) -> None:
        """By columns, in the driver's own format."""
        driver_connection: Any = connection.connection.driver_connection
        columns = [
            _bound(connection.dialect, column, values)
            for column, values in zip(table.columns, zip(*rows, strict=True), strict=True)
        ]
        names = [column.name for column in table.columns]
        driver_connection.client.insert(_quoted(connection, table), columns, names, column_oriented=True)


class Spark(Ways):
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
        if not isinstance(statement, Change | Delete):
            return connection.execute(statement).rowcount
        table = cast_type("Table", statement.table)
        self.heal(connection, table)
        where = statement.where if isinstance(statement, Change) else statement.whereclause
        found = select(func.count()).select_from(table)
        count: int = connection.scalar(found if where is None else found.where(where)) or 0
        if where is None:
            self.empty(connection, table)
        elif count:
            values = statement.values if isinstance(statement, Change) else None
            self._overwrite(connection, table, values, where)
        return count

    def heal(self, connection: Connection, table: Table) -> None:
        """Write a table anew from its copy: there is one only when it is whole."""
        copy = Table(_name_beside(table), MetaData(schema=table.schema))
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
        whole = _as_it_is(connection, table)
        copy = _beside(whole)
        as_they_are = [_of(connection, table, column) for column in whole.c]
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
                cast(values[column.name], column.type).label(column.name) if column.name in values else as_it_is
                for column, as_it_is in zip(whole.c, as_they_are, strict=True)
            )
            rows = union_all(select(*changed).select_from(table).where(where), others)
        connection.execute(_Written(f"CREATE TABLE {_quoted(connection, copy)} USING PARQUET AS", rows))
        self._put_back(connection, table, copy)

    def _put_back(self, connection: Connection, table: Table, copy: Table) -> None:
        rows: Select[Any] = select(literal_column("*")).select_from(copy)
        connection.execute(_Written(f"INSERT OVERWRITE TABLE {_quoted(connection, table)}", rows))
        connection.execute(DropTable(copy))

    def is_passing(self, error: Exception) -> bool:  # noqa: ARG002
        """No: a statement may go on without its client, and must not meet its own repetition."""
        return False

    def load(self, connection: Connection, table: Table, rows: Rows) -> None:
        """Some hundred rows a statement, each value as a text that is cast to its column's type."""
        types = connection.dialect.type_compiler_instance
        names = [f"_{place}" for place in range(len(table.columns))]
        casts = (f"CAST({name} AS {types.process(column.type)})" for name, column in zip(names, table.c, strict=True))
        into = (
            f"INSERT INTO {_quoted(connection, table)} ({_columns(connection, table)}) SELECT {', '.join(casts)} FROM"
        )
        columns = [
            [None if value is None else str(value) for value in _bound(connection.dialect, column, values)]
            for column, values in zip(table.columns, zip(*rows, strict=True), strict=True)
        ]
        texts = list(zip(*columns, strict=True))
        marks = f"({', '.join(['%s'] * len(names))})"
        for start in range(0, len(texts), self._ROWS_MAX):
            some = texts[start : start + self._ROWS_MAX]
            statement = f"{into} VALUES {', '.join([marks] * len(some))} AS _rows({', '.join(names)})"
            connection.exec_driver_sql(statement, tuple(chain.from_iterable(some)))


_WAYS: dict[str, Ways] = {
    "sqlite": Sqlite(),
    "postgresql": Postgresql(),
    "duckdb": Duckdb(),
    "mysql": Mysql(),
    "mariadb": Mysql(),
    "snowflake": Snowflake(),
    "bigquery": Bigquery(),
    "databricks": Databricks(),
    "mssql": Mssql(),
    "clickhousedb": Clickhouse(),
    "spark": Spark(),
}
registry.register("spark", "target_crm.spark", "SparkDialect")
_OTHERS = Ways()


def ways_of(backend_name: str) -> Ways:
    """The ways of an engine, by SQLAlchemy's name of it."""
    return _WAYS.get(backend_name, _OTHERS)


def empty(connection: Connection, table: Table) -> None:
    """Remove all rows of a table."""
    ways_of(connection.dialect.name).empty(connection, table)


def execute(connection: Connection, statement: Statement) -> int:
    """Change the rows of a table; returns how many were updated or deleted."""
    return ways_of(connection.dialect.name).execute(connection, statement)


def heal(connection: Connection, *tables: Table) -> None:
    """Finish the changes of tables that were cut off, where no transaction has undone them."""
    for table in tables:
        ways_of(connection.dialect.name).heal(connection, table)


def load(connection: Connection, table: Table, rows: Rows) -> None:
    """Put rows, with a value for every column in the table's order, into a table."""
    if rows:
        ways_of(connection.dialect.name).load(connection, table, rows)


def _digest(name: str) -> str:
    """A name of any length and alphabet as one that every engine takes."""
    return f"crm_{hashlib.blake2b(name.encode(), digest_size=16).hexdigest()}"


def pep_249_names(error: Exception) -> set[str]:
    """What a driver's error is, in the words that all drivers share."""
    return {each.__name__ for each in type(error).__mro__}


def _alter_using_cast(dialect: Dialect, column: Column[Any], old: str, new: str) -> str:
    if (old, new) != ("integer", "number") and new != "text":
        raise CannotWiden
    name = dialect.identifier_preparer.quote(column.name)
    converted = cast(column, column.type).compile(dialect=dialect)
    return f"ALTER COLUMN {name} TYPE {column.type.compile(dialect)} USING {converted}"


def _insert_by_driver(connection: Connection, table: Table, rows: Rows, mark: str) -> None:
    marks = ", ".join([mark] * len(table.columns))
    statement = f"INSERT INTO {_quoted(connection, table)} ({_columns(connection, table)}) VALUES ({marks})"  # noqa: S608 - quoted names only
    columns = zip(table.columns, zip(*rows, strict=True), strict=True)
    bound = [_bound(connection.dialect, column, values) for column, values in columns]
    connection.exec_driver_sql(statement, list(zip(*bound, strict=True)))


def _write_parquet(path: Path, columns: Mapping[str, Column[Any]], rows: Rows) -> None:
    """Rows as a file of named columns, each of one type; instants in UTC."""
    import pyarrow  # noqa: PLC0415 - comes with the extras of the engines that take it
    from pyarrow import parquet  # noqa: PLC0415

    types = {
        str: pyarrow.string(),
        int: pyarrow.int64(),
        bool: pyarrow.bool_(),
        float: pyarrow.float64(),
        Decimal: pyarrow.decimal128(19, POINTS_PLACES),
        datetime: pyarrow.timestamp("us", tz="UTC"),
        date: pyarrow.date32(),
    }
    arrays, fields = [], []
    for (name, column), values in zip(columns.items(), zip(*rows, strict=True), strict=True):
        kind = getattr(column.type, "impl_instance", column.type).python_type
        # A number of any size comes as a decimal, which is not one of Arrow's until its places are known.
        sent = [None if value is None else float(value) for value in values] if kind is float else values
        arrays.append(pyarrow.array(sent, types[kind]))
        fields.append(pyarrow.field(name, types[kind], nullable=bool(column.nullable)))
    parquet.write_table(pyarrow.table(arrays, schema=pyarrow.schema(fields)), path)


def _quoted(connection: Connection, table: Table) -> str:
    return connection.dialect.identifier_preparer.format_table(table)


def _columns(connection: Connection, table: Table) -> str:
    quote = connection.dialect.identifier_preparer.quote
    return ", ".join(quote(column.name) for column in table.columns)


def _bound(dialect: Dialect, column: Column[Any], values: Sequence[Any]) -> Sequence[Any]:
    """A column's values as the driver wants them: each that repeats is converted once."""
    processor = column.type.dialect_impl(dialect).bind_processor(dialect)
    return values if processor is None else list(map(cache(processor), values))


# How an engine that reads whole columns keeps the rows of a table that grows with time, so that it may leave some out.
_LAYOUTS = {
    "bigquery": "PARTITION BY TIMESTAMP_TRUNC({months_of}, MONTH) CLUSTER BY award_id",
    "databricks": "CLUSTER BY (award_id)",
    "snowflake": "CLUSTER BY (TO_DATE({months_of}))",
}


@compiles(CreateTable, "bigquery")
@compiles(CreateTable, "databricks")
@compiles(CreateTable, "snowflake")
def _create_laid_out(create: CreateTable, compiler: Any, **kw: Any) -> str:
    statement: str = compiler.visit_create_table(create, **kw).rstrip()
    months_of = create.element.info.get(MONTHS_OF)
    layout = _LAYOUTS[compiler.dialect.name].format(months_of=months_of)
    return f"{statement}\n{layout}" if months_of else statement


@compiles(Delete, "bigquery")
def _delete(delete: Delete, compiler: Any, **kw: Any) -> str:
    """A DELETE without a condition is refused."""
    truncate = f"TRUNCATE TABLE {compiler.preparer.format_table(delete.table)}"
    return truncate if delete.whereclause is None else str(compiler.visit_delete(delete, **kw))


@compiles(Update, "databricks")
@compiles(Update, "oracle")
def _merge(update: Update, compiler: SQLCompiler, **kw: Any) -> str:
    """UPDATE … FROM, which these lack, as MERGE. What is set may not be in Oracle's ON, hence the second condition."""
    table: Any = update.table
    values: dict[Any, ColumnElement[Any]] = update._values or {}  # noqa: SLF001 - what no public name gives
    conditions = list(_conjuncts(update.whereclause))
    others = [each for each in {f: None for each in conditions for f in each._from_objects} if each is not table]  # noqa: SLF001
    if not others:
        return compiler.visit_update(update, **kw)
    (other,) = others
    set_columns = {column for column in table.c if column in values or column.name in values}
    late = [each for each in conditions if set_columns.intersection(visitors.iterate(each))]
    compiler.stack.append({"correlate_froms": {table}, "asfrom_froms": {table, other}, "selectable": update})
    try:
        words = {
            "source": compiler.process(other, asfrom=True, **kw),
            "on": " AND ".join(compiler.process(each, **kw) for each in conditions if each not in late),
            "late": " AND ".join(f"({compiler.process(each, **kw)})" for each in late),
            "set": ", ".join(
                f"{compiler.preparer.quote(getattr(column, 'name', column))} = {compiler.process(value, **kw)}"
                for column, value in values.items()
            ),
        }
    finally:
        compiler.stack.pop()
    oracle = compiler.dialect.name == "oracle"
    if_late = f" AND {words['late']}" if late and not oracle else ""
    where_late = f" WHERE {words['late']}" if late and oracle else ""
    return (
        f"MERGE INTO {compiler.preparer.format_table(table)} USING {words['source']} ON ({words['on']}) "
        f"WHEN MATCHED{if_late} THEN UPDATE SET {words['set']}{where_late}"
    )


def _conjuncts(condition: Any) -> Iterator[ColumnElement[bool]]:
    if getattr(condition, "operator", None) is operators.and_:
        for each in condition.clauses:
            yield from _conjuncts(each)
    else:
        yield condition


def _as_it_is(connection: Connection, table: Table) -> Table:
    """A table with all columns that it has in the warehouse, also those that its stream's schema doesn't name."""
    names = connection.execute(select(literal_column("*")).select_from(table).limit(0)).keys()
    columns = (Column(name, table.c[name].type if name in table.c else None) for name in names)
    return Table(table.name, MetaData(schema=table.schema), *columns)


def _beside(whole: Table) -> Table:
    """Where rows of a table are while they change."""
    return whole.to_metadata(MetaData(schema=whole.schema), name=_name_beside(whole))


def _of(connection: Connection, table: Table, column: Column[Any]) -> ColumnElement[Any]:
    """A column of a table, whether or not its stream's schema names it."""
    quote = connection.dialect.identifier_preparer.quote
    return literal_column(f"{_quoted(connection, table)}.{quote(column.name)}", column.type).label(column.name)


def _name_beside(table: Table) -> str:
    return f"{WORK_PREFIX}changed_{table.name}"


def _key(table: Table, rows: Table) -> ColumnElement[Any]:
    columns = [rows.c[column.name] for column in table.primary_key.columns]
    return columns[0] if len(columns) == 1 else tuple_(*columns)


class _Written(Executable, ClauseElement):
    """What a query gives, written where a statement's head says."""

    inherit_cache = False

    def __init__(self, head: str, rows: Select[Any] | CompoundSelect[Any]) -> None:
        self.head = head
        self.rows = rows


@compiles(_Written)
def _write(written: _Written, compiler: SQLCompiler, **kw: Any) -> str:
    return f"{written.head} {compiler.process(written.rows, **kw)}"


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

"""The adapter for DuckDB."""

from __future__ import annotations

import os
import re
import time
from contextlib import suppress
from functools import cache
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from sqlalchemy import BigInteger, Boolean, Date, Delete, Double, Numeric, PrimaryKeyConstraint, event, inspect
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.pool import NullPool
from sqlalchemy.schema import CreateColumn

from target_crm.engines.base import (
    LOCK_POLL_SECONDS,
    ExtendedSQLAdapter,
    LockWait,
    alter_type_using_cast,
    quoted_columns,
    quoted_name,
    to_floats,
)
from target_crm.engines.driver_errors import is_about_constraint, pep_249_classes
from target_crm.errors import SettingError
from target_crm.records.column_types import (
    DECIMAL_DIGITS,
    POINTS_PLACES,
    ColumnTypes,
    Identifier,
    Instant,
    JsonText,
    LongText,
    Points,
    register,
)
from target_crm.records.schemas import TableLimits
from target_crm.sql import balances
from target_crm.sql.functions import any_value, packed, unpacked
from target_crm.sql.tables import FORMER_COLUMN

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    from sqlalchemy import URL, Column, Connection, Dialect, Engine, Select, Table
    from sqlalchemy.engine.interfaces import ConnectArgsType
    from sqlalchemy.sql.compiler import DDLCompiler, SQLCompiler

    from target_crm.engines.base import Rows, Statement
    from target_crm.sql.tables import Tables


# Decimals with more digits do not fit into 64 bits. DuckDB takes twenty times as long to read and add up such decimals.
POINTS_DIGITS = 18
# Convert this many rows to Arrow at a time. Arrow holds the GIL meanwhile, and the committing thread may need it.
CHUNK_ROWS = 500
# A new file begins with three headers. Wait this many polls for another process to write them.
HEADERS_BYTES, CREATION_POLLS = 3 * 4096, 20
# For fewer rows, Arrow takes longer than INSERT.
ARROW_ROWS_MIN = 50
# The size of a row group. DuckDB writes the rows of a batch as new row groups if the batch fills at least one of them.
# Otherwise, DuckDB rewrites a row group that is not full. DuckDB's default size is twelve times as large, so a poll
# with ten actions would write tens of megabytes.
ROW_GROUP_ROWS = 10_240
# How much memory DuckDB may use while a batch is written, without deletes. A setting in the URL takes precedence.
MEMORY_LIMIT_BYTES = 96_000_000
# For each row group from which a transaction deletes rows, DuckDB holds this much memory until the transaction ends.
ROW_GROUP_DELETE_BYTES = 256 * 1024
# DuckDB's other settings while a batch is written. Settings in the URL take precedence.
BATCH_SETTINGS = {
    "threads": "1",
    # Write a committed batch directly to the database. Otherwise DuckDB writes it to a log first, and moves it later.
    "checkpoint_threshold": "0KB",
    "allocator_flush_threshold": "1MB",
    "allocator_bulk_deallocation_flush_threshold": "1MB",
}
_MEMORY_LIMIT = "memory_limit"
# Alias → the name of the setting that it stands for.
_ALIASES = {"max_memory": _MEMORY_LIMIT, "worker_threads": "threads", "wal_autocheckpoint": "checkpoint_threshold"}
# The storage version of new files. DuckDB before 1.2 cannot read such files, and has no zstd.
STORAGE_VERSION = "v1.2.0"
# The values in these columns hardly repeat, so DuckDB would take long to choose a compression that saves little space.
_UNCOMPRESSED = frozenset({"action_id", "award_id", "user_id", "last_action_id"})
_ALIAS = "_crm"
_STORED_AS = f"SELECT tags['storage_version'] FROM duckdb_databases() WHERE database_name = '{_ALIAS}'"  # noqa: S608 - our own name
# The databases of every connection: DuckDB's own, the one in memory, and the warehouse.
_DATABASES = frozenset({"memory", "system", "temp", _ALIAS})
# An attribute that we set on the dialect: whether the engine's database file supports zstd.
_HAS_ZSTD = "crm_has_zstd"
# An execution option: the next transaction only stages rows, and does not need the file.
_STAGES = "crm_stages"
# An execution option: the `_MemoryLimit` of the transaction, if we have set one.
_LIMIT = "crm_limit"
_MEMORY = ":memory:"
_TEMPORARY = "temp"
_DEFAULT_SCHEMA = "main"
_NO_FILE = ("md:", "motherduck:")
_session_numbers = count()
_TABLES = """SELECT schema_name, table_name, estimated_size AS rows, index_count FROM duckdb_tables()
    WHERE database_name = current_database()"""
_OUT_OF_MEMORY = ("Out of Memory", "failed to pin block", "could not allocate block")
_NOT_A_DATABASE = "not a valid DuckDB database file"
_FILE_IN_USE = ("Could not set lock", "Unique file handle conflict")


class DuckDBAdapter(ExtendedSQLAdapter):
    """DuckDB stores the tables in a file. While one process can write to the file, no other process can open it.

    Tables declare no keys, because a key needs an index. Nearly every batch would rewrite an index of random ids. The
    index would also stay in memory, and would not free the space of deleted rows. DuckDB needs no index to find rows:
    it uses hash joins, and skips row groups whose ids are outside the batch's range. Keys stay unique because only one
    loader writes at a time, and this loader inserts only rows whose key does not exist.
    """

    tested = True
    # A batch should nearly fill two row groups of the ledger, even if no action is repeated. If it has a few rows more,
    # they begin a third row group, and the commit takes twice as long.
    batch_size_rows = 20_000
    leave_out_column = "DROP COLUMN {name}"
    quotes_every_name = True
    temporary_schema = _TEMPORARY
    limits = TableLimits(decimal_digits=DECIMAL_DIGITS, reserved_columns=frozenset({"rowid"}), sizes=True)
    widens_columns_to = ("number", "decimal", "time", "text")
    # Close the file after each transaction, so that another process can open it.
    engine_options: ClassVar[Mapping[str, Any]] = {"poolclass": NullPool}

    def database_exists(self, url: URL) -> bool:
        """Look for the file instead of connecting, because a connection would create it."""
        database = url.database or _MEMORY
        return database.startswith((_MEMORY, *_NO_FILE)) or Path(database).exists()

    def schema_problem(self, url: URL, schema: str) -> str:
        """Report a schema that has the same name as a database. Then a name such as `crm.actions` is ambiguous."""
        file = Path(url.database or "").name
        ambiguous = f"so a schema {schema} makes names such as {schema}.award_balances ambiguous"
        if schema.lower() in _DATABASES:
            return f"default_target_schema: DuckDB has a database {schema}, {ambiguous}: choose another schema"
        # Other programs name the database after the file, up to the first dot.
        if schema.lower() == next(filter(None, file.split(".")), "").lower():
            return (
                f"default_target_schema: DuckDB gives the database in {file} the name {schema}, {ambiguous}: "
                "choose another schema, or rename the file"
            )
        return ""

    def create_engine(self, url: URL, **options: Any) -> Engine:
        """Create a SQLAlchemy engine. Reject an in-memory database, which would be lost after each transaction."""
        if (url.database or _MEMORY).startswith(_MEMORY):
            raise SettingError(
                "duckdb: an in-memory database is not supported; name a file, as in duckdb:///warehouse.duckdb"
            )
        return super().create_engine(url, **options)

    def add_event_listeners(self, engine: Engine) -> None:
        """Connect to a database in memory, and attach the file only when a transaction needs it.

        Before its transaction, a session can stage rows in memory while another session has the file open.
        """

        def connect(dialect: Dialect, _record: object, arguments: ConnectArgsType, options: dict[str, Any]) -> Any:
            if not _attaches(engine.url):
                return None
            # Each session needs its own directory for temporary files. DuckDB uses the same file names in each session,
            # so in a common directory, the sessions would overwrite each other's files.
            name, chosen = f"{os.getpid()}_{next(_session_numbers)}", options["url_config"].get("temp_directory")
            if chosen:
                Path(chosen).mkdir(parents=True, exist_ok=True)
            own = f"{chosen}/{name}" if chosen else f"{options['database']}.{name}.tmp"
            settings = {**options["url_config"], "temp_directory": own}
            return dialect.connect(*arguments, **{**options, "database": _MEMORY, "url_config": settings})

        def on_begin(connection: Connection) -> None:
            if _attaches(engine.url) and not connection.get_execution_options().get(_STAGES):
                _attach(connection)

        event.listen(engine, "do_connect", connect)
        event.listen(engine, "begin", on_begin)

    def stage_ahead(self, connection: Connection, table: Table, rows: Rows) -> None:
        """Stage rows in memory, without opening the file."""
        connection.execution_options(**{_STAGES: True})
        # Set no memory limit yet: the transaction that writes the rows may need more memory.
        _set(connection)
        super().stage_ahead(connection, table, rows)
        connection.execution_options(**{_STAGES: False})

    def limit_resources(self, connection: Connection) -> None:
        """Use one thread and little memory, because a batch is small."""
        _set(connection)
        if _MEMORY_LIMIT in _chosen_settings(connection.engine.url):
            return
        # Indexes must fit into memory, so if any table has one, set no memory limit. Older versions of this target
        # declared keys, which have indexes.
        tables = connection.exec_driver_sql(_TABLES).all()
        if not any(each.index_count for each in tables):
            limit = _MemoryLimit({(each.schema_name, each.table_name): each.rows for each in tables})
            limit.add(connection, MEMORY_LIMIT_BYTES)
            connection.execution_options(**{_LIMIT: limit})

    def execute(self, connection: Connection, statement: Statement) -> int:
        """Raise the memory limit of the transaction before it deletes rows, because DuckDB needs memory for them."""
        limit = connection.get_execution_options().get(_LIMIT)
        if limit and isinstance(statement, Delete):
            limit.reserve_for_deletes(connection, statement.table)
        return super().execute(connection, statement)

    def keys(self, connection: Connection, table: Table) -> Collection[str]:
        """Return the key that an older version declared.

        If there is none, return the columns that are NOT NULL because they belong to the key.
        """
        declared = super().keys(connection, table)
        if declared:
            return declared
        columns = inspect(connection).get_columns(table.name, schema=table.schema)
        others = {column.name for column in table.columns if not (column.primary_key or column.nullable)}
        others |= {table.info[FORMER_COLUMN]} if FORMER_COLUMN in table.info else set()
        return [column["name"] for column in columns if not column["nullable"] and column["name"] not in others]

    def is_retriable(self, error: Exception) -> bool:
        """Return whether two transactions of this process conflicted, or a transaction ran out of memory."""
        is_conflict = "TransactionException" in pep_249_classes(error) and not is_about_constraint(error)
        return is_conflict or _mentions(error, _OUT_OF_MEMORY)

    def widen_column(self, dialect: Dialect, column: Column[Any]) -> str:
        """Return the clause that changes the type, and casts the stored values to it."""
        return alter_type_using_cast(dialect, column)

    def all_balances(self, tables: Tables) -> Select[Any]:
        """Group the actions by award without sorting them by time, and join the snapshots."""
        return balances.all_balances(tables, balances.partials_by_packing(tables.actions), balances.by_full_join)

    def _bulk_load(self, connection: Connection, table: Table, rows: Rows) -> None:
        """Load columns through Arrow. Inserting row by row would take thirty times as long, except for a few rows."""
        if len(rows) < ARROW_ROWS_MIN:
            super()._bulk_load(connection, table, rows)
            return
        import pyarrow  # noqa: PLC0415 - installed only with the extra of this engine

        arrow_schema = _arrow_schema(table)
        errors: list[BaseException] = []
        reader = pyarrow.RecordBatchReader.from_batches(arrow_schema, _arrow_chunks(arrow_schema, rows, errors))
        driver_connection: Any = connection.connection.driver_connection
        driver_connection.register("_rows", reader)
        name, columns = quoted_name(connection, table), quoted_columns(connection, table)
        try:
            connection.exec_driver_sql(f"INSERT INTO {name} ({columns}) SELECT * FROM _rows")  # noqa: S608 - quoted names only
        except Exception:
            # Raise the error of the conversion, because DuckDB's own error would quote the traceback.
            if errors:
                raise errors[0] from None
            raise
        finally:
            driver_connection.unregister("_rows")


@cache
def _arrow_schema(table: Table) -> Any:
    """Return the Arrow types of the columns. Arrow would take too long to infer them from the values."""
    import pyarrow  # noqa: PLC0415

    types = {
        BigInteger: pyarrow.int64(),
        Boolean: pyarrow.bool_(),
        Date: pyarrow.date32(),
        Double: pyarrow.float64(),
        Instant: pyarrow.timestamp("us"),
        Points: pyarrow.decimal128(POINTS_DIGITS, POINTS_PLACES),
        **dict.fromkeys((Identifier, LongText, JsonText), pyarrow.string()),
    }
    return pyarrow.schema(
        (str(place), pyarrow.decimal128(each.precision, each.scale) if type(each) is Numeric else types[type(each)])
        for place, each in enumerate(column.type for column in table.columns)
    )


def _arrow_chunks(arrow_schema: Any, rows: Rows, errors: list[BaseException]) -> Iterator[Any]:
    """Convert rows to Arrow, `CHUNK_ROWS` at a time. DuckDB fetches the next chunk when it needs it.

    If the conversion fails, add the error to `errors`.
    """
    import pyarrow  # noqa: PLC0415

    # Arrow's default memory pool keeps more memory, and is no faster for such small arrays.
    double, pool = pyarrow.float64(), pyarrow.system_memory_pool()
    try:
        for first in range(0, len(rows), CHUNK_ROWS):
            columns = zip(arrow_schema.types, zip(*rows[first : first + CHUNK_ROWS], strict=True), strict=True)
            arrays = [
                pyarrow.array(to_floats(values) if each == double else values, each, memory_pool=pool)
                for each, values in columns
            ]
            yield pyarrow.record_batch(arrays, schema=arrow_schema)
    except (Exception, KeyboardInterrupt) as error:
        errors.append(error)
        raise


def _attaches(url: URL) -> bool:
    """Return whether to attach the warehouse to a database in memory. Otherwise, the driver opens it."""
    return not (url.database or "").startswith(_NO_FILE) and url.query.get("access_mode") != "read_only"


def _chosen_settings(url: URL) -> set[str]:
    """Return the names of the settings in the URL."""
    return {_ALIASES.get(name, name) for name in map(str.lower, url.query)}


def _set(connection: Connection) -> None:
    """Apply `BATCH_SETTINGS`, except those that the URL sets."""
    chosen = _chosen_settings(connection.engine.url)
    settings = (f"SET {name} = '{value}'" for name, value in BATCH_SETTINGS.items() if name not in chosen)
    driver_connection: Any = connection.connection.driver_connection
    driver_connection.execute("; ".join(settings))


class _MemoryLimit:
    """DuckDB's memory limit in one transaction.

    Args:
        row_counts: The schema and the name of each table → DuckDB's estimate of the number of its rows.
    """

    def __init__(self, row_counts: Mapping[tuple[str, str], int]) -> None:
        self._row_counts = dict(row_counts)
        self._limit_bytes = 0

    def add(self, connection: Connection, additional_bytes: int) -> None:
        """Raise the limit, or set it the first time."""
        self._limit_bytes += additional_bytes
        connection.exec_driver_sql(f"SET {_MEMORY_LIMIT} = '{self._limit_bytes}B'")

    def reserve_for_deletes(self, connection: Connection, table: Any) -> None:
        """Raise the limit by what DuckDB needs if rows are deleted from every row group of a table.

        Do this only for the first delete from a table, because further deletes use the same memory.
        """
        row_count = self._row_counts.pop((table.schema or _DEFAULT_SCHEMA, table.name), 0)
        # Row groups are not always full. We assume that they are nine tenths full on average.
        row_groups = row_count // (ROW_GROUP_ROWS * 9 // 10)
        if row_groups:
            self.add(connection, row_groups * ROW_GROUP_DELETE_BYTES)


def _attach(connection: Connection) -> None:
    """Attach the warehouse's file. Wait while another process or connection has the file open.

    Unlike a connection, ATTACH can set the storage version and the size of row groups.
    """
    driver_connection: Any = connection.connection.driver_connection
    if driver_connection.execute(_STORED_AS).fetchone():
        return
    wait, creation, path = LockWait(), count(), connection.engine.url.database or ""
    while True:
        try:
            _open(driver_connection, path)
        except Exception as error:
            if _mentions(error, _FILE_IN_USE):
                wait.go_on("a lock on the database file", _holder(error))
            elif not (_is_being_created(error, path) and next(creation) < CREATION_POLLS):
                raise
        else:
            break
        time.sleep(LOCK_POLL_SECONDS)
    (version,) = driver_connection.execute(_STORED_AS).fetchone()
    setattr(connection.dialect, _HAS_ZSTD, tuple(map(int, version.strip("v+").split("."))) >= (1, 2))


def _open(driver_connection: Any, path: str) -> None:
    file = Path(path)
    quoted_path = path.replace("'", "''")
    # An existing file keeps its version, so that its readers can still open it.
    is_new = not file.exists()
    version = f", STORAGE_VERSION '{STORAGE_VERSION}'" if is_new else ""
    try:
        driver_connection.execute(f"ATTACH '{quoted_path}' AS {_ALIAS} (ROW_GROUP_SIZE {ROW_GROUP_ROWS}{version})")
        driver_connection.execute(f"USE {_ALIAS}")
    except BaseException as error:
        # On a full disk, ATTACH leaves an empty file, which is not a database. Delete the file only if we created it.
        if is_new and not _mentions(error, _FILE_IN_USE) and file.exists() and not file.stat().st_size:
            file.unlink()
        raise


def _is_being_created(error: Exception, path: str) -> bool:
    """Return whether another process may have created the file, but not written its headers yet."""
    if not _mentions(error, (_NOT_A_DATABASE,)):
        return False
    with suppress(FileNotFoundError):
        return Path(path).stat().st_size < HEADERS_BYTES
    return True


def _mentions(error: BaseException, phrases: Collection[str]) -> bool:
    return any(phrase in str(error) for phrase in phrases)


def _holder(error: Exception) -> str:
    """Return the process that has the file open, according to the error."""
    process = re.search(r"PID (\d+)", str(error))
    return f"process {process[1]}" if process else "another connection"


ADAPTERS = {"duckdb": DuckDBAdapter()}

register("duckdb", ColumnTypes(points=Numeric(POINTS_DIGITS, POINTS_PLACES)))


@compiles(PrimaryKeyConstraint, "duckdb")
def _primary_key(element: PrimaryKeyConstraint, compiler: Any, **kw: Any) -> None:
    """Declare no keys: see `DuckDBAdapter`."""


@compiles(CreateColumn, "duckdb")
def _create_column(element: CreateColumn, compiler: DDLCompiler, **kw: Any) -> str:
    """Set the compression of some columns, because DuckDB would take long to choose one, and would not choose well."""
    column = element.element
    specification: str = compiler.visit_create_column(element, **kw)  # type: ignore[no-untyped-call]
    if column.table.schema == _TEMPORARY:
        return specification
    # In a file of an older version, DuckDB would not compress a zstd column at all.
    if isinstance(column.type, JsonText) and getattr(compiler.dialect, _HAS_ZSTD, False):
        return f"{specification} USING COMPRESSION zstd"
    if isinstance(column.type, Identifier) and column.name in _UNCOMPRESSED:
        return f"{specification} USING COMPRESSION uncompressed"
    return specification


@compiles(any_value, "duckdb")
def _any_value(element: any_value, compiler: SQLCompiler, **kw: Any) -> str:
    # Do not use the default, MAX. On a text column, it would take longer than the rest of an aggregate over the ledger.
    return f"ANY_VALUE({compiler.process(element.clauses, **kw)})"


@compiles(packed, "duckdb")
def _packed(element: packed, compiler: SQLCompiler, **kw: Any) -> str:
    return f"ROW({compiler.process(element.clauses, **kw)})"


@compiles(unpacked, "duckdb")
def _unpacked(element: unpacked, compiler: SQLCompiler, **kw: Any) -> str:
    return f"({compiler.process(element.clauses, **kw)})[{element.place + 1}]"

"""DuckDB."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from sqlalchemy import Column, Double, PrimaryKeyConstraint, Table, event, inspect
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.pool import NullPool
from sqlalchemy.schema import CreateColumn

from target_crm.engines.base import (
    LOCK_POLL_SECONDS,
    LOCK_WAIT_SECONDS,
    EngineAdapter,
    alter_using_cast,
    as_doubles,
    bound,
    column_names,
    pep_249_names,
    quoted,
)
from target_crm.errors import SettingError
from target_crm.records.column_types import (
    POINTS_DIGITS_BY_ENGINE,
    POINTS_PLACES,
    Identifier,
    Instant,
    JsonText,
    LongText,
    Points,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from sqlalchemy import URL, Column, Connection, Dialect, Engine, Table
    from sqlalchemy.engine.interfaces import ConnectArgsType
    from sqlalchemy.sql.compiler import DDLCompiler

    from target_crm.engines.base import Rows


# Rows of one conversion to Arrow, whose buffers are as large as that takes.
CHUNK_ROWS = 2_000
# A table grows by parts of so many rows, and a part that is not full yet is written anew with nearly every batch. Of
# DuckDB's own, six times as large, a poll of ten actions may well write tens of megabytes.
ROW_GROUP_ROWS = 20_480
# For as long as a batch takes, where the URL says nothing else.
BATCH_SETTINGS = {
    "threads": "1",
    "memory_limit": "96MB",
    # A batch that is committed goes to its place at once; else it would be written to a log first, and moved on close.
    "checkpoint_threshold": "0KB",
    "allocator_flush_threshold": "1MB",
    "allocator_bulk_deallocation_flush_threshold": "1MB",
}
# Other names that a URL may have for them.
_ALIASES = {"max_memory": "memory_limit", "worker_threads": "threads", "wal_autocheckpoint": "checkpoint_threshold"}
# Said of new files: older versions than DuckDB 1.2 can't read them, and have no zstd.
STORAGE_VERSION = "v1.2.0"
# Texts that repeat too seldom: to look for a way to compress them takes long, and gains little.
_SELDOM_ALIKE = frozenset({"action_id", "award_id", "user_id", "last_action_id", "content_hash"})
_ALIAS = "_crm"
_STORED_AS = f"SELECT tags['storage_version'] FROM duckdb_databases() WHERE database_name = '{_ALIAS}'"  # noqa: S608 - our own name
# What a dialect is told of the file that its engine opens.
_HAS_ZSTD = "crm_has_zstd"
_MEMORY = ":memory:"
_NO_FILE = ("md:", "motherduck:")
_COUNT_INDEXES = "SELECT count(*) FROM duckdb_constraints() WHERE constraint_type IN ('PRIMARY KEY', 'UNIQUE')"
_LACKS_MEMORY = ("Out of Memory", "failed to pin block", "could not allocate block")
_TAKEN = ("Could not set lock", "Unique file handle conflict")


class DuckDBAdapter(EngineAdapter):
    """A file that one process has open at a time, and a reader of columns.

    Keys are not declared: an index of ids that look random is written anew with nearly every batch, is held in memory,
    and keeps the space of rows that are gone. Rows are found without: DuckDB joins by hash, and skips parts of a table
    whose ids are out of the batch's range. What is inserted is absent, since one writer is at work at a time.
    """

    tested = True
    widens_to = ("number", "text")
    # Between two batches, the file is another process's to open.
    engine_options: ClassVar[Mapping[str, Any]] = {"poolclass": NullPool}

    def create_engine(self, url: URL, **options: Any) -> Engine:
        """Make a SQLAlchemy engine; a database in memory would be gone after each transaction."""
        if (url.database or _MEMORY).startswith(_MEMORY):
            raise SettingError("duckdb: expected the warehouse's file, as in duckdb:///crm.duckdb")
        return super().create_engine(url, **options)

    def listen(self, engine: Engine) -> None:
        """Wait for the file while another process has it open, or another connection of this one; see what it can."""

        def on_connect(dialect: Dialect, _record: object, arguments: ConnectArgsType, options: dict[str, Any]) -> Any:
            deadline_seconds = time.monotonic() + LOCK_WAIT_SECONDS
            while True:
                try:
                    return _open(dialect, arguments, options)
                except Exception as error:
                    if not _says(error, _TAKEN) or time.monotonic() > deadline_seconds:
                        raise
                time.sleep(LOCK_POLL_SECONDS)

        def on_first_connect(driver_connection: Any, _record: object) -> None:
            stored = driver_connection.execute(_STORED_AS).fetchone()
            has_zstd = stored is not None and tuple(map(int, stored[0].strip("v+").split("."))) >= (1, 2)
            setattr(engine.dialect, _HAS_ZSTD, has_zstd)

        event.listen(engine, "do_connect", on_connect)
        event.listen(engine, "first_connect", on_first_connect)

    def limit_resources(self, connection: Connection) -> None:
        """A batch is small: threads would wait for each other, and memory would keep what has been read."""
        driver_connection: Any = connection.connection.driver_connection
        # An index, which an older version has declared, has to fit into memory as a whole.
        (indexes,) = driver_connection.execute(_COUNT_INDEXES).fetchone()
        said = {_ALIASES.get(name, name) for name in connection.engine.url.query}
        if indexes:
            said.add("memory_limit")
        settings = (f"SET {name} = '{value}'" for name, value in BATCH_SETTINGS.items() if name not in said)
        driver_connection.execute("; ".join(settings))

    def keys(self, connection: Connection, table: Table) -> Collection[str]:
        """The key that an older version has declared, or else what can't be null and, if it's no key, could be."""
        declared = super().keys(connection, table)
        if declared:
            return declared
        columns = inspect(connection).get_columns(table.name, schema=table.schema)
        others = {column.name for column in table.columns if not (column.primary_key or column.nullable)}
        return [column["name"] for column in columns if not column["nullable"] and column["name"] not in others]

    def is_retriable(self, error: Exception) -> bool:
        """Where two transactions of a process were in each other's way, or one lacked memory, also for a checkpoint."""
        return "TransactionException" in pep_249_names(error) or _says(error, _LACKS_MEMORY)

    def widen(self, dialect: Dialect, column: Column[Any]) -> str:
        """By a cast of what is there."""
        return alter_using_cast(dialect, column)

    def _bulk_load(self, connection: Connection, table: Table, rows: Rows) -> None:
        """By columns, through Arrow: row by row takes thirty times as long."""
        import pyarrow  # noqa: PLC0415 - comes with the extra of this engine alone

        # Of other types, Arrow finds out by looking at the values, which takes long for these.
        kinds = {
            Instant: pyarrow.timestamp("us"),
            Points: pyarrow.decimal128(POINTS_DIGITS_BY_ENGINE["duckdb"], POINTS_PLACES),
            Double: pyarrow.float64(),
            **dict.fromkeys((Identifier, LongText, JsonText), pyarrow.string()),
        }
        names = [str(place) for place in range(len(table.columns))]
        # Arrow's own pool would keep what it has once held.
        pool = pyarrow.system_memory_pool()
        chunks = [
            pyarrow.table(
                [
                    pyarrow.array(as_doubles(values) if kind is kinds[Double] else values, kind, memory_pool=pool)
                    if (kind := kinds.get(type(column.type)))
                    else pyarrow.array(bound(connection.dialect, column, values), memory_pool=pool)
                    for column, values in zip(
                        table.columns, zip(*rows[first : first + CHUNK_ROWS], strict=True), strict=True
                    )
                ],
                names,
            )
            for first in range(0, len(rows), CHUNK_ROWS)
        ]
        driver_connection: Any = connection.connection.driver_connection
        driver_connection.register("_rows", pyarrow.concat_tables(chunks, promote_options="permissive"))
        connection.exec_driver_sql(
            f"INSERT INTO {quoted(connection, table)} ({column_names(connection, table)}) SELECT * FROM _rows"  # noqa: S608 - quoted names only
        )
        # Where this fails, the connection is closed, and what is registered with it.
        driver_connection.unregister("_rows")


def _open(dialect: Dialect, arguments: ConnectArgsType, options: dict[str, Any]) -> Any:
    """A connection to the warehouse; a file is attached, since only then can it be said how it is laid out."""
    path, settings = options["database"], options["url_config"]
    file = Path(path)
    if path.startswith(_NO_FILE) or settings.get("access_mode") == "read_only":
        return dialect.connect(*arguments, **options)
    beside_the_file = {"temp_directory": f"{path}.tmp"}
    in_memory = {**options, "database": _MEMORY, "url_config": {**beside_the_file, **settings}}
    connection: Any = dialect.connect(*arguments, **in_memory)
    quoted_path = path.replace("'", "''")
    # One that is there stays as its readers know it.
    is_new = not file.exists()
    version = f", STORAGE_VERSION '{STORAGE_VERSION}'" if is_new else ""
    try:
        connection.execute(f"ATTACH '{quoted_path}' AS {_ALIAS} (ROW_GROUP_SIZE {ROW_GROUP_ROWS}{version})")
        connection.execute(f"USE {_ALIAS}")
    except BaseException as error:
        connection.close()
        # On a full disk an empty file is left, which is no database. Another process's file is not ours to remove.
        if is_new and not _says(error, _TAKEN) and file.exists() and not file.stat().st_size:
            file.unlink()
        raise
    return connection


def _says(error: BaseException, words: Collection[str]) -> bool:
    return any(each in str(error) for each in words)


@compiles(PrimaryKeyConstraint, "duckdb")
def _primary_key(element: PrimaryKeyConstraint, compiler: Any, **kw: Any) -> None:
    """Nothing: see `Duckdb`."""


@compiles(CreateColumn, "duckdb")
def _create_column(element: CreateColumn, compiler: DDLCompiler, **kw: Any) -> str:
    """How it is compressed, where DuckDB would take long to find out, and then not do what is best."""
    column = element.element
    specification: str = compiler.visit_create_column(element, **kw)  # type: ignore[no-untyped-call]
    # In an older file, what is to be zstd is not compressed at all.
    if isinstance(column.type, JsonText) and getattr(compiler.dialect, _HAS_ZSTD, False):
        return f"{specification} USING COMPRESSION zstd"
    if isinstance(column.type, Identifier) and column.name in _SELDOM_ALIKE:
        return f"{specification} USING COMPRESSION uncompressed"
    return specification

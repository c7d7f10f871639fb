"""The adapter for Snowflake."""

from __future__ import annotations

import tempfile
import uuid
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import DateTime
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.schema import CreateColumn, CreateTable

from target_crm.engines.base import (
    LOCK_WAIT_SECONDS,
    ExtendedSQLAdapter,
    comment_clause,
    create_table_with_layout,
    quoted_columns,
    quoted_name,
)
from target_crm.engines.parquet import write_parquet
from target_crm.records.column_types import DECIMAL_DIGITS, ColumnTypes, register
from target_crm.records.schemas import TableLimits
from target_crm.sql.tables import tables_in

if TYPE_CHECKING:
    from sqlalchemy import URL, Connection, Dialect, Engine, Table

    from target_crm.engines.base import Rows


class SnowflakeAdapter(ExtendedSQLAdapter):
    """The adapter locks a table for the whole transaction, and loads rows from a file in a stage."""

    limits = TableLimits(decimal_digits=DECIMAL_DIGITS)
    # A failed connection, or a statement that was cancelled by a user or a timeout, including lock timeouts.
    _RETRIABLE_STATES = frozenset({"08001", "08003", "57014"})
    # An internal server error, a session that has ended, or a session whose token has expired.
    _RETRIABLE_NUMBERS = frozenset({603, 390111, 390112, 390114})
    _NO_SUCH_TABLE = 2003
    # The dialect accepts these options only in `connect_args`, because a URL might come from an untrusted source.
    _FILES = ("private_key_file", "token_file_path")

    def create_engine(self, url: URL, **options: Any) -> Engine:
        """Create a SQLAlchemy engine. Its sessions wait for a lock for a minute, because the default is half a day."""
        session = {"TIMEZONE": "UTC", "LOCK_TIMEOUT": LOCK_WAIT_SECONDS, "QUERY_TAG": "target-crm"}
        files = {name: url.query[name] for name in self._FILES if name in url.query}
        arguments = {"session_parameters": session, **files}
        return super().create_engine(url.difference_update_query(files), connect_args=arguments, **options)

    def transaction_lock(self, connection: Connection, schema: str | None) -> None:
        """Update a table with a single row, so that other loaders must wait. Until the table exists, there is no lock.

        If a loader dies in a transaction, Snowflake rolls the transaction back once it has been idle for five minutes
        and blocks another loader.
        """
        version = tables_in(schema).version
        try:
            connection.execute(version.update().values(version=version.c.version))
        except DBAPIError as error:
            if getattr(error.orig, "errno", None) != self._NO_SUCH_TABLE:
                raise

    def comments_on(self, dialect: Dialect, table: Table) -> list[str]:  # noqa: ARG002
        """Return no statements, because CREATE TABLE includes the comments."""
        return []

    def is_retriable(self, error: Exception) -> bool:
        """Also check the error's SQLSTATE and number, because a lock timeout raises a ProgrammingError."""
        state, number = getattr(error, "sqlstate", None), getattr(error, "errno", None)
        return super().is_retriable(error) or state in self._RETRIABLE_STATES or number in self._RETRIABLE_NUMBERS

    def _bulk_load(self, connection: Connection, table: Table, rows: Rows) -> None:
        """Copy a file from the user's own stage, which needs no privilege. `PURGE` deletes the file afterwards."""
        fields = {f"c{place}": column for place, column in enumerate(table.columns)}
        compiler = connection.dialect.type_compiler_instance
        values = (f"$1:{field}::{compiler.process(column.type)}" for field, column in fields.items())
        # The path is unique, because a user may load several warehouses at the same time.
        stage = f"@~/target-crm/{uuid.uuid4().hex}"
        with tempfile.TemporaryDirectory(prefix="target-crm-") as folder:
            path = Path(folder) / "rows.parquet"
            write_parquet(path, fields, rows)
            connection.exec_driver_sql(f"PUT 'file://{path}' {stage} AUTO_COMPRESS = FALSE")
        into = f"{quoted_name(connection, table)} ({quoted_columns(connection, table)})"
        file_format = "(TYPE = PARQUET USE_LOGICAL_TYPE = TRUE)"
        file = f"(SELECT {', '.join(values)} FROM {stage}/{path.name}) FILE_FORMAT = {file_format}"  # noqa: S608 - quoted names only
        try:
            connection.exec_driver_sql(f"COPY INTO {into} FROM {file} PURGE = TRUE")
        except DBAPIError:
            with suppress(DBAPIError):
                connection.exec_driver_sql(f"REMOVE {stage}")
            raise


ADAPTERS = {"snowflake": SnowflakeAdapter()}

register("snowflake", ColumnTypes(instant=DateTime(timezone=True), keeps_time_zone=True))


@compiles(CreateTable, "snowflake")
def _create_table(create: CreateTable, compiler: Any, **kw: Any) -> str:
    statement = create_table_with_layout(create, compiler, "CLUSTER BY (TO_DATE({months_of}))", **kw)
    return statement + comment_clause(create, compiler, "\nCOMMENT = ")


@compiles(CreateColumn, "snowflake")
def _create_column(create: CreateColumn, compiler: Any, **kw: Any) -> str:
    """Put comments into CREATE TABLE. A hundred separate statements would take a round trip and a commit each."""
    statement: str = compiler.visit_create_column(create, **kw)
    return statement + comment_clause(create, compiler, " COMMENT ")

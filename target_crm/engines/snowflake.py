"""Snowflake."""

from __future__ import annotations

import tempfile
import uuid
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import Table
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.schema import CreateTable

from target_crm.engines.base import LOCK_WAIT_SECONDS, EngineAdapter, column_names, laid_out, quoted
from target_crm.engines.parquet import write_parquet
from target_crm.sql.tables import tables_in

if TYPE_CHECKING:
    from sqlalchemy import URL, Connection, Engine, Table

    from target_crm.engines.base import Rows


class SnowflakeAdapter(EngineAdapter):
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

    def transaction_lock(self, connection: Connection, schema: str | None) -> None:
        """Change a table of one row: others that do so wait. Before there is one, nothing holds them back.

        A loader that dies in a transaction holds it until Snowflake ends that: after five minutes of others' waiting.
        """
        version = tables_in(schema).version
        try:
            connection.execute(version.update().values(version=version.c.version))
        except DBAPIError as error:
            if getattr(error.orig, "errno", None) != self._NO_SUCH_TABLE:
                raise

    def is_retriable(self, error: Exception) -> bool:
        """By state and number besides: a lock that was not to be had is a ProgrammingError."""
        state, number = getattr(error, "sqlstate", None), getattr(error, "errno", None)
        return super().is_retriable(error) or state in self._PASSING_STATES or number in self._PASSING_NUMBERS

    def _bulk_load(self, connection: Connection, table: Table, rows: Rows) -> None:
        """By a file in the user's own stage, which needs no right but to log in; it goes when it is loaded."""
        fields = {f"c{place}": column for place, column in enumerate(table.columns)}
        compiler = connection.dialect.type_compiler_instance
        values = (f"$1:{field}::{compiler.process(column.type)}" for field, column in fields.items())
        # A user may load several warehouses at once.
        stage = f"@~/target-crm/{uuid.uuid4().hex}"
        with tempfile.TemporaryDirectory(prefix="target-crm-") as folder:
            path = Path(folder) / "rows.parquet"
            write_parquet(path, fields, rows)
            connection.exec_driver_sql(f"PUT 'file://{path}' {stage} AUTO_COMPRESS = FALSE")
        into, chosen = f"{quoted(connection, table)} ({column_names(connection, table)})", ", ".join(values)
        file = f"(SELECT {chosen} FROM {stage}/{path.name}) FILE_FORMAT = (TYPE = PARQUET USE_LOGICAL_TYPE = TRUE)"  # noqa: S608 - quoted names only
        try:
            connection.exec_driver_sql(f"COPY INTO {into} FROM {file} PURGE = TRUE")
        except DBAPIError:
            with suppress(DBAPIError):
                connection.exec_driver_sql(f"REMOVE {stage}")
            raise


@compiles(CreateTable, "snowflake")
def _create(create: CreateTable, compiler: Any, **kw: Any) -> str:
    return laid_out(create, compiler, "CLUSTER BY (TO_DATE({months_of}))", **kw)

"""The adapter for BigQuery."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from requests import RequestException
from sqlalchemy import TIMESTAMP, Delete, String
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.schema import CreateTable

from target_crm.engines.base import ExtendedSQLAdapter, create_table_with_layout
from target_crm.engines.driver_errors import pep_249_classes
from target_crm.engines.parquet import write_parquet
from target_crm.errors import SettingError
from target_crm.records.column_types import ColumnTypes, register
from target_crm.sql.functions import QUARTER_MICROS, floor_to_integer, quarter_hours

if TYPE_CHECKING:
    from collections.abc import Collection

    from sqlalchemy import URL, Column, Connection, Dialect, Engine, Table
    from sqlalchemy.sql.compiler import SQLCompiler

    from target_crm.engines.base import Rows


class BigQueryAdapter(ExtendedSQLAdapter):
    """BigQuery has no locks, and does not enforce keys. The adapter runs each statement as a separate transaction.

    It loads rows with load jobs, because load jobs are free.
    """

    widens_columns_to = ("number",)
    # If BigQuery gives one of these reasons, the job has not started, so the target can try again. After a lost
    # connection, do not try again, because the job may still be running.
    _REFUSALS = frozenset({"rateLimitExceeded", "jobRateLimitExceeded"})

    def create_engine(self, url: URL, **options: Any) -> Engine:
        """Create a SQLAlchemy engine. If the driver finds no credentials, raise a `SettingError` that says so."""
        from google.auth.exceptions import GoogleAuthError  # noqa: PLC0415 - installed only with the extra of this engine

        try:
            return super().create_engine(url, **options)
        except (OSError, GoogleAuthError) as error:
            raise SettingError(f"no credentials for BigQuery: {error}") from None

    def driver_errors(self, dialect: Dialect) -> tuple[type[Exception], ...]:
        """Add network errors and those of BigQuery's client, because the dialect and bulk loads call the client."""
        from google.api_core.exceptions import GoogleAPIError  # noqa: PLC0415
        from google.auth.exceptions import GoogleAuthError  # noqa: PLC0415

        return (*super().driver_errors(dialect), GoogleAPIError, GoogleAuthError, RequestException)

    def is_atomic(self, connection: Connection, schema: str | None) -> bool:  # noqa: ARG002
        """Return False, because each statement is a separate transaction."""
        return False

    def is_retriable(self, error: Exception) -> bool:
        """Decide by the reasons in BigQuery's response, which the driver may have wrapped in an error of its own."""
        response = next(iter(error.args), None) if "DatabaseError" in pep_249_classes(error) else error
        reasons = {each.get("reason") for each in getattr(response, "errors", None) or ()}
        return bool(reasons & self._REFUSALS) or "due to concurrent update" in str(error)

    def keys(self, connection: Connection, table: Table) -> Collection[str]:  # noqa: ARG002
        """Return the key from the stream's schema, because the dialect does not return primary keys."""
        return table.primary_key.columns.keys()

    def widen_column(self, dialect: Dialect, column: Column[Any]) -> str:
        """Return the clause that changes the type. BigQuery also converts the stored values."""
        name = dialect.identifier_preparer.quote(column.name)
        return f"ALTER COLUMN {name} SET DATA TYPE {column.type.compile(dialect)}"

    def _bulk_load(self, connection: Connection, table: Table, rows: Rows) -> None:
        """Use a load job, which loads either all rows or none."""
        from google.cloud import bigquery  # noqa: PLC0415 - installed only with the extra of this engine

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
            write_parquet(path, dict(table.columns), rows)
            with path.open("rb") as file:
                client.load_table_from_file(file, destination, job_config=settings).result()


ADAPTERS = {"bigquery": BigQueryAdapter()}

# SQLAlchemy's `DateTime` would become a type without a time zone.
register("bigquery", ColumnTypes(identifier=String(), instant=TIMESTAMP(), keeps_time_zone=True))


@compiles(Delete, "bigquery")
def _delete(delete: Delete, compiler: Any, **kw: Any) -> str:
    """Use TRUNCATE if there is no condition, because BigQuery requires a condition in DELETE."""
    truncate = f"TRUNCATE TABLE {compiler.preparer.format_table(delete.table)}"
    return truncate if delete.whereclause is None else str(compiler.visit_delete(delete, **kw))


@compiles(CreateTable, "bigquery")
def _create_table(create: CreateTable, compiler: Any, **kw: Any) -> str:
    layout = "PARTITION BY TIMESTAMP_TRUNC({months_of}, MONTH) CLUSTER BY award_id"
    return create_table_with_layout(create, compiler, layout, **kw)


@compiles(quarter_hours, "bigquery")
def _quarter_hours(element: quarter_hours, compiler: SQLCompiler, **kw: Any) -> str:
    return floor_to_integer(
        f"UNIX_MICROS({compiler.process(element.clauses, **kw)}) / {QUARTER_MICROS}", compiler, **kw
    )

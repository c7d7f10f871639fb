"""BigQuery."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from requests import RequestException
from sqlalchemy import Column, Delete, Table
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.schema import CreateTable

from target_crm.engines.base import EngineAdapter, laid_out, pep_249_names
from target_crm.engines.parquet import write_parquet
from target_crm.errors import SettingError

if TYPE_CHECKING:
    from collections.abc import Collection

    from sqlalchemy import URL, Column, Connection, Dialect, Engine, Table

    from target_crm.engines.base import Rows


class BigQueryAdapter(EngineAdapter):
    """No locks, no keys, no transactions of several statements, and files by load jobs, which cost nothing."""

    widens_to = ("number",)
    # What says that a job was never begun. Of one that is lost on the way nobody knows whether it goes on, and its
    # repetition must not run beside it.
    _REFUSALS = frozenset({"rateLimitExceeded", "jobRateLimitExceeded"})

    def create_engine(self, url: URL, **options: Any) -> Engine:
        """Find the credentials, too."""
        from google.auth.exceptions import GoogleAuthError  # noqa: PLC0415 - comes with the extra of this engine alone

        try:
            return super().create_engine(url, **options)
        except (OSError, GoogleAuthError) as error:
            raise SettingError(f"no credentials for BigQuery: {error}") from None

    def errors(self, dialect: Dialect) -> tuple[type[Exception], ...]:
        """Also those of the driver's client, which tells of tables and takes files, and of the way to the service."""
        from google.api_core.exceptions import GoogleAPIError  # noqa: PLC0415
        from google.auth.exceptions import GoogleAuthError  # noqa: PLC0415

        return (*super().errors(dialect), GoogleAPIError, GoogleAuthError, RequestException)

    def is_atomic(self, connection: Connection, schema: str | None) -> bool:  # noqa: ARG002
        """No: each statement is done by itself."""
        return False

    def is_retriable(self, error: Exception) -> bool:
        """By reason: of what the service said, which the driver may have wrapped."""
        said = next(iter(error.args), None) if "DatabaseError" in pep_249_names(error) else error
        reasons = {each.get("reason") for each in getattr(said, "errors", None) or ()}
        return bool(reasons & self._REFUSALS) or "due to concurrent update" in str(error)

    def keys(self, connection: Connection, table: Table) -> Collection[str]:  # noqa: ARG002
        """Nobody can tell; those that are wanted."""
        return table.primary_key.columns.keys()

    def widen(self, dialect: Dialect, column: Column[Any]) -> str:
        """By a change of type, which converts what is there."""
        name = dialect.identifier_preparer.quote(column.name)
        return f"ALTER COLUMN {name} SET DATA TYPE {column.type.compile(dialect)}"

    def _bulk_load(self, connection: Connection, table: Table, rows: Rows) -> None:
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
            write_parquet(path, dict(table.columns), rows)
            with path.open("rb") as file:
                client.load_table_from_file(file, destination, job_config=settings).result()


@compiles(Delete, "bigquery")
def _delete(delete: Delete, compiler: Any, **kw: Any) -> str:
    """A DELETE without a condition is refused."""
    truncate = f"TRUNCATE TABLE {compiler.preparer.format_table(delete.table)}"
    return truncate if delete.whereclause is None else str(compiler.visit_delete(delete, **kw))


@compiles(CreateTable, "bigquery")
def _create(create: CreateTable, compiler: Any, **kw: Any) -> str:
    return laid_out(create, compiler, "PARTITION BY TIMESTAMP_TRUNC({months_of}, MONTH) CLUSTER BY award_id", **kw)

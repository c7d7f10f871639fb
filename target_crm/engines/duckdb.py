"""DuckDB."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, ClassVar

from sqlalchemy import Column, Table, event
from sqlalchemy.pool import NullPool

from target_crm.columns import POINTS_PLACES, Instant, Points
from target_crm.engines.ways import (
    LOCK_POLL_SECONDS,
    LOCK_WAIT_SECONDS,
    Ways,
    alter_using_cast,
    bound,
    column_names,
    pep_249_names,
    quoted,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlalchemy import Column, Connection, Dialect, Engine, Table
    from sqlalchemy.engine.interfaces import ConnectArgsType

    from target_crm.engines.ways import Rows


class Duckdb(Ways):
    """A file that one process has open at a time, and a reader of columns."""

    tested = True
    widens_to = ("number", "text")
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

    def widen(self, dialect: Dialect, column: Column[Any]) -> str:
        """By a cast of what is there."""
        return alter_using_cast(dialect, column)

    def load(self, connection: Connection, table: Table, rows: Rows) -> None:
        """By columns, through Arrow: row by row takes thirty times as long."""
        import pyarrow  # noqa: PLC0415 - comes with the extra of this engine alone

        # Of other types, Arrow finds out by looking at the values, which takes long for these.
        kinds = {Instant: pyarrow.timestamp("us"), Points: pyarrow.decimal128(19, POINTS_PLACES)}
        arrays = [
            pyarrow.array(values, kind)
            if (kind := kinds.get(type(column.type)))
            else pyarrow.array(bound(connection.dialect, column, values))
            for column, values in zip(table.columns, zip(*rows, strict=True), strict=True)
        ]
        driver_connection: Any = connection.connection.driver_connection
        driver_connection.register("_rows", pyarrow.table(arrays, names=[str(place) for place in range(len(arrays))]))
        connection.exec_driver_sql(
            f"INSERT INTO {quoted(connection, table)} ({column_names(connection, table)}) SELECT * FROM _rows"  # noqa: S608 - quoted names only
        )
        # Where this fails, the connection is closed, and what is registered with it.
        driver_connection.unregister("_rows")

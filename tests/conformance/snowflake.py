"""Snowflake emulated by fakesnow in this process, on DuckDB. The cases show nothing about locks, speed or cost."""

from __future__ import annotations

from contextlib import contextmanager
from itertools import count
from typing import TYPE_CHECKING, Any
from unittest import mock

from tests.conformance import Unavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@contextmanager
def snowflake() -> Iterator[Callable[[], str]]:
    """Let the driver connect to the emulator; yield a function that returns the URL of a new database."""
    try:
        import fakesnow  # noqa: PLC0415 - an extra of the tests
        import snowflake.connector  # noqa: PLC0415
        from fakesnow import info_schema  # noqa: PLC0415
        from fakesnow.cursor import FakeSnowflakeCursor  # noqa: PLC0415
    except ImportError as error:
        raise Unavailable(f"{error.name} is not installed") from None
    numbers = count()

    def new() -> str:
        name = f"crm_{next(numbers)}"
        with snowflake.connector.connect(database=name, schema="public") as connection:
            # In Snowflake every user has a stage; in fakesnow it has to be created.
            connection.cursor().execute('CREATE STAGE "~"')
        return f"snowflake://loader:secret@account/{name}/public"

    comment_on = info_schema.insert_table_comment_sql

    def escaped(*names_and_comment: str) -> str:
        """Escape quotes in a table's comment, because fakesnow puts the comment into its own SQL as it is."""
        return comment_on(*(each.replace("'", "''") for each in names_and_comment))

    with (
        fakesnow.patch(),
        mock.patch.object(FakeSnowflakeCursor, "_transform", _once(FakeSnowflakeCursor._transform)),
        mock.patch.object(info_schema, "insert_table_comment_sql", escaped),
    ):
        yield new


def _once(translate: Callable[..., Any]) -> Callable[..., Any]:
    """Cache the translation of statements to DuckDB's SQL, which takes most of a load's time."""
    from sqlglot import exp  # noqa: PLC0415

    known: dict[Any, Any] = {}

    def translated(cursor: Any, statement: Any, parameters: Any) -> Any:
        if parameters or not isinstance(statement, exp.Insert | exp.Update | exp.Delete | exp.Select):
            return translate(cursor, statement, parameters)
        key = (cursor._conn.database, statement)
        if key not in known:
            known[key] = translate(cursor, statement, parameters)
        return known[key].copy()

    return translated

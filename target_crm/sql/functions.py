"""SQL functions with the same result on every engine.

If the default SQL of a function does not work on an engine, the engine's module compiles the function itself.
"""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING, Any

from sqlalchemy import BigInteger, cast, extract, func, literal_column
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement

from target_crm.records.column_types import Points

if TYPE_CHECKING:
    from sqlalchemy import ColumnElement
    from sqlalchemy.sql.compiler import SQLCompiler
    from sqlalchemy.types import TypeEngine

QUARTER_SECONDS = 900
QUARTER_MICROS = QUARTER_SECONDS * 1_000_000
# The day number of 1 January 1970, if 1 March of the year 0 is day 1.
DAYS_BEFORE_1970 = 719_469


class exact_sum(FunctionElement[Decimal]):  # noqa: N801
    """SUM of points without binary rounding."""

    type = Points()
    inherit_cache = True
    name = "exact_sum"


@compiles(exact_sum)
def _exact_sum(element: exact_sum, compiler: SQLCompiler, **kw: Any) -> str:
    return compiler.process(cast(func.sum(*element.clauses), Points()), **kw)


class exact(FunctionElement[Decimal]):  # noqa: N801
    """The result of adding and subtracting points, without binary rounding."""

    type = Points()
    inherit_cache = True
    name = "exact"


@compiles(exact)
def _exact(element: exact, compiler: SQLCompiler, **kw: Any) -> str:
    return f"({compiler.process(element.clauses, **kw)})"


class any_value(FunctionElement[Any]):  # noqa: N801
    """Any non-null value of a group; null if there is none. Use it only if all non-null values of a group are equal."""

    inherit_cache = True
    name = "any_value"

    def __init__(self, column: ColumnElement[Any]) -> None:
        super().__init__(column)
        self.type = column.type


@compiles(any_value)
def _any_value(element: any_value, compiler: SQLCompiler, **kw: Any) -> str:
    return compiler.process(func.max(*element.clauses), **kw)


class row_number(FunctionElement[int]):  # noqa: N801
    """The number of a row in its window, starting from 1."""

    type = BigInteger()
    inherit_cache = True
    name = "row_number"


@compiles(row_number)
def _row_number(_element: row_number, _compiler: SQLCompiler, **_: Any) -> str:
    # For `func.row_number()`, Firebird's dialect would leave out the empty parentheses.
    return "row_number()"


class packed(FunctionElement[Any]):  # noqa: N801
    """An instant, an id and other values as a single value, which sorts by the instant, then by the id.

    So the maximum of a group contains the values of the group's newest row. Only some engine modules compile this
    function.
    """

    inherit_cache = True
    name = "packed"


class unpacked(FunctionElement[Any]):  # noqa: N801
    """One of the values in a packed value, by its position. The id is at position 1, followed by the other values."""

    inherit_cache = False
    name = "unpacked"

    def __init__(self, value: ColumnElement[Any], place: int, type_: TypeEngine[Any]) -> None:
        super().__init__(value)
        self.place = place
        self.type = type_


class quarter_hours(FunctionElement[int]):  # noqa: N801
    """The number of quarter hours from 1970 to an instant.

    In every time zone that is in use today, midnight falls on a quarter hour. So a report can group quarter hours into
    the days of any time zone.
    """

    type = BigInteger()
    inherit_cache = True
    name = "quarter_hours"


@compiles(quarter_hours)
def _quarter_hours(element: quarter_hours, compiler: SQLCompiler, **kw: Any) -> str:
    """Compute the days from year, month and day, because core SQL has no function that counts days.

    In this calculation, years begin in March.
    """
    (instant,) = element.clauses
    parts = ("year", "month", "day", "hour", "minute")
    year, month, day, hour, minute = (compiler.process(extract(part, instant), **kw) for part in parts)
    years = f"({year} - CASE WHEN {month} < 3 THEN 1 ELSE 0 END)"
    months = f"({month} + CASE WHEN {month} < 3 THEN 9 ELSE -3 END)"
    leap_days = f"FLOOR({years} / 4.0) - FLOOR({years} / 100.0) + FLOOR({years} / 400.0)"
    days = f"{years} * 365 + {leap_days} + FLOOR(({months} * 153 + 2) / 5.0) + {day} - {DAYS_BEFORE_1970}"
    return f"CAST(({days}) * 96 + {hour} * 4 + FLOOR({minute} / 15.0) AS BIGINT)"


@compiles(quarter_hours, "duckdb", "postgresql", "redshift", "snowflake")
def _quarter_hours_of_epoch(element: quarter_hours, compiler: SQLCompiler, **kw: Any) -> str:
    instant = compiler.process(element.clauses, **kw)
    return f"CAST(FLOOR(EXTRACT(EPOCH FROM {instant}) / {QUARTER_SECONDS}) AS BIGINT)"


def floor_to_integer(quotient: str, compiler: SQLCompiler, **kw: Any) -> str:
    """Return the SQL that rounds a quotient down to a BIGINT."""
    return compiler.process(cast(literal_column(f"FLOOR({quotient})"), BigInteger()), **kw)

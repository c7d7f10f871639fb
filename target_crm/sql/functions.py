"""SQL functions that give the same result on every engine: exact sums of points, and the quarter hour of an instant."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING, Any

from sqlalchemy import BigInteger, cast, func, literal_column
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement

from target_crm.records.column_types import POINTS_PLACES, Points

if TYPE_CHECKING:
    from sqlalchemy.sql.compiler import SQLCompiler

QUARTER_SECONDS = 900


class exact_sum(FunctionElement[Decimal]):  # noqa: N801
    """SUM of points without binary rounding: SQLite adds whole ten-thousandths, the others decimals."""

    type = Points()
    inherit_cache = True
    name = "exact_sum"


@compiles(exact_sum)
def _sum(element: exact_sum, compiler: SQLCompiler, **kw: Any) -> str:
    return compiler.process(cast(func.sum(*element.clauses), Points()), **kw)


@compiles(exact_sum, "sqlite")
def _sum_sqlite(element: exact_sum, compiler: SQLCompiler, **kw: Any) -> str:
    units = 10**POINTS_PLACES
    return f"SUM(CAST(ROUND(({compiler.process(element.clauses, **kw)}) * {units}) AS INTEGER)) / {units}.0"


class exact(FunctionElement[Decimal]):  # noqa: N801
    """The result of adding and subtracting points, without binary rounding."""

    type = Points()
    inherit_cache = True
    name = "exact"


@compiles(exact)
def _exact(element: exact, compiler: SQLCompiler, **kw: Any) -> str:
    return f"({compiler.process(element.clauses, **kw)})"


@compiles(exact, "sqlite")
def _exact_sqlite(element: exact, compiler: SQLCompiler, **kw: Any) -> str:
    return f"ROUND({compiler.process(element.clauses, **kw)}, {POINTS_PLACES})"


class quarter_hours(FunctionElement[int]):  # noqa: N801
    """The quarter of an hour that an instant is in, counted from 1970; every zone's days are made of these."""

    type = BigInteger()
    inherit_cache = True
    name = "quarter_hours"


@compiles(quarter_hours)
def _quarters(element: quarter_hours, compiler: SQLCompiler, **kw: Any) -> str:
    instant = compiler.process(element.clauses, **kw)
    return f"CAST(FLOOR(EXTRACT(EPOCH FROM {instant}) / {QUARTER_SECONDS}) AS BIGINT)"


@compiles(quarter_hours, "sqlite")
def _quarters_sqlite(element: quarter_hours, compiler: SQLCompiler, **kw: Any) -> str:
    # Without its fraction: SQLite would round that up.
    second = f"SUBSTR({compiler.process(element.clauses, **kw)}, 1, 19)"
    return f"(CAST(STRFTIME('%s', {second}) AS INTEGER) / {QUARTER_SECONDS})"


@compiles(quarter_hours, "mysql", "mariadb")
def _quarters_mysql(element: quarter_hours, compiler: SQLCompiler, **kw: Any) -> str:
    instant = compiler.process(element.clauses, **kw)
    return f"(TIMESTAMPDIFF(SECOND, '1970-01-01', {instant}) DIV {QUARTER_SECONDS})"


_SECONDS_SINCE_1970 = {
    "mssql": "DATEDIFF_BIG(second, '1970-01-01', {})",
    "oracle": "(CAST({} AS DATE) - DATE '1970-01-01') * 86400",
}


@compiles(quarter_hours, "mssql")
@compiles(quarter_hours, "oracle")
def _quarters_of_seconds(element: quarter_hours, compiler: SQLCompiler, **kw: Any) -> str:
    seconds = _SECONDS_SINCE_1970[compiler.dialect.name].format(compiler.process(element.clauses, **kw))
    return compiler.process(cast(literal_column(f"FLOOR({seconds} / {QUARTER_SECONDS}.0)"), BigInteger()), **kw)


@compiles(quarter_hours, "bigquery")
@compiles(quarter_hours, "databricks")
@compiles(quarter_hours, "spark")
def _quarters_of_micros(element: quarter_hours, compiler: SQLCompiler, **kw: Any) -> str:
    micros = f"UNIX_MICROS({compiler.process(element.clauses, **kw)})"
    return compiler.process(
        cast(literal_column(f"FLOOR({micros} / {QUARTER_SECONDS * 1_000_000})"), BigInteger()), **kw
    )


@compiles(quarter_hours, "clickhousedb")
def _quarters_clickhouse(element: quarter_hours, compiler: SQLCompiler, **kw: Any) -> str:
    micros = f"toUnixTimestamp64Micro({compiler.process(element.clauses, **kw)})"
    return f"CAST(floor({micros} / {QUARTER_SECONDS * 1_000_000}) AS Nullable(Int64))"

"""Column types that mean the same on every engine, and the arithmetic that keeps points exact."""

from __future__ import annotations

from datetime import datetime, timezone
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from sqlalchemy import JSON, TIMESTAMP, BigInteger, DateTime, Double, Numeric, String, Text, cast, func, literal_column
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import TypeDecorator

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy.engine import Dialect
    from sqlalchemy.sql.compiler import SQLCompiler
    from sqlalchemy.types import TypeEngine

ID_CHARS_MAX = 255
# Redshift's TEXT is of 256 bytes, and Oracle compares no CLOB: of the texts that these have, the longest.
_TEXT_LENGTHS_MAX = {"redshift": 65_535, "oracle": 4_000}
# Where a text's length is told in bytes, a character may take four.
_COUNTED_IN_BYTES = frozenset({"redshift", "mssql"})
POINTS_PLACES = 4
POINTS_DIGITS = 19
# DuckDB takes over sixty times as long to read a decimal that doesn't fit into 64 bits.
POINTS_DIGITS_BY_ENGINE = {"duckdb": 18}
# SQLite keeps a decimal as a double, which holds every number of 15 digits: eleven before the point, four behind it.
POINTS_MAX = Decimal(10) ** 11
QUARTER_SECONDS = 900
_WITHOUT_ZONE = len("2026-01-01 00:00:00.000000")
_QUANTUM = Decimal(1).scaleb(-POINTS_PLACES)

# Texts compare byte by byte everywhere: a collation that folds case, or spaces at the end, would merge two awards and
# take a changed name for the same; one that sorts by language would break ties differently on each engine.
_BYTEWISE = {
    "postgresql": "C",
    "mariadb": "utf8mb4_nopad_bin",
    "mysql": "utf8mb4_0900_bin",
    "mssql": "Latin1_General_100_BIN2_UTF8",
}


def engine_name(dialect: Dialect) -> str:
    """SQLAlchemy's name of an engine; a URL of MySQL may well lead to a MariaDB."""
    return "mariadb" if getattr(dialect, "is_mariadb", False) else dialect.name


class Identifier(TypeDecorator[str]):
    """An id of at most `ID_CHARS_MAX` characters."""

    impl = String
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """The engine's own type."""
        if dialect.name == "bigquery":
            return String()
        length = ID_CHARS_MAX * 4 if dialect.name in _COUNTED_IN_BYTES else ID_CHARS_MAX
        return String(length, collation=_BYTEWISE.get(engine_name(dialect)))


class LongText(TypeDecorator[str]):
    """Text of any length."""

    impl = Text
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """The engine's own type. PostgreSQL's default tells any two texts apart, and sorts as its users expect."""
        name = engine_name(dialect)
        if name in {"mysql", "mariadb"}:
            from sqlalchemy.dialects import mysql  # noqa: PLC0415 - takes long, and few need it

            return mysql.LONGTEXT(charset="utf8mb4", collation=_BYTEWISE[name])
        if name in _TEXT_LENGTHS_MAX:
            return String(_TEXT_LENGTHS_MAX[name])
        return Text(collation=_BYTEWISE["mssql"] if name == "mssql" else None)


# Any number, as exact as the engine can: PostgreSQL's NUMERIC has no bound, while MySQL's would be a whole number.
Number: TypeEngine[Any] = Double().with_variant(Numeric(), "postgresql")


class JsonText(LongText):
    """A JSON document, written as text in the sender's words: JSON on PostgreSQL, text elsewhere."""

    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """The engine's own type."""
        if dialect.name == "postgresql":
            return dialect.type_descriptor(_VerbatimJson())
        if dialect.name == "oracle":
            return Text()
        return super().load_dialect_impl(dialect)


class _VerbatimJson(JSON):
    """JSON that goes in as the text it is; SQLAlchemy's would quote it a second time."""

    def bind_processor(self, dialect: Dialect) -> None:  # noqa: ARG002
        return None

    def result_processor(self, dialect: Dialect, coltype: object) -> None:  # noqa: ARG002
        return None


_ZONED = frozenset({"postgresql", "snowflake", "bigquery", "databricks", "redshift", "clickhousedb"})


class Instant(TypeDecorator[datetime]):
    """An instant to the microsecond: aware in Python, with a zone where the engine has those, else UTC without."""

    impl = DateTime
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """The engine's own type."""
        if dialect.name in {"mysql", "mariadb"}:
            from sqlalchemy.dialects import mysql  # noqa: PLC0415

            return dialect.type_descriptor(mysql.DATETIME(fsp=6))
        if dialect.name == "mssql":
            from sqlalchemy.dialects import mssql  # noqa: PLC0415

            return mssql.DATETIME2(6)  # type: ignore[no-untyped-call]
        # There, SQLAlchemy's type for a time with a zone would be one without, or of whole seconds.
        if dialect.name in {"oracle", "bigquery", "databricks"}:
            return TIMESTAMP()
        if dialect.name == "clickhousedb":
            from clickhouse_connect.cc_sqlalchemy.types import DateTime64  # noqa: PLC0415 - the engine's own driver

            instant: TypeEngine[Any] = DateTime64(6, "UTC")
            return instant
        return dialect.type_descriptor(DateTime(timezone=dialect.name in _ZONED))

    def bind_processor(self, dialect: Dialect) -> Callable[[Any], Any] | None:
        """What makes the driver's value. SQLAlchemy's own for SQLite writes each part of a time by itself."""
        if dialect.name != "sqlite":
            return super().bind_processor(dialect)

        def as_text(value: datetime | None) -> str | None:
            if value is None:
                return None
            utc = value if value.tzinfo is timezone.utc else value.astimezone(timezone.utc)
            return utc.isoformat(" ", "microseconds")[:_WITHOUT_ZONE]

        return as_text

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """UTC goes in."""
        if value is None:
            return None
        utc = value if value.tzinfo is timezone.utc else value.astimezone(timezone.utc)
        return utc if dialect.name in _ZONED else utc.replace(tzinfo=None)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        """UTC comes out."""
        if value is None:
            return None
        return value.replace(tzinfo=timezone.utc) if value.tzinfo is None else value.astimezone(timezone.utc)


class Points(TypeDecorator[Decimal]):
    """Exact points with four places. `POINTS_MAX` bounds them so that SQLite, which has no decimals, is exact too."""

    impl = Numeric(POINTS_DIGITS, POINTS_PLACES)
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """The engine's own type."""
        digits = POINTS_DIGITS_BY_ENGINE.get(dialect.name, POINTS_DIGITS)
        sqlite = dialect.name == "sqlite"
        impl = Numeric(digits, POINTS_PLACES, asdecimal=False) if sqlite else Numeric(digits, POINTS_PLACES)
        return dialect.type_descriptor(impl)

    def process_result_value(self, value: Any, dialect: Dialect) -> Decimal | None:  # noqa: ARG002
        """A decimal of four places comes out."""
        return None if value is None else Decimal(str(value)).quantize(_QUANTUM)


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

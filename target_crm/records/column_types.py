"""Column types that mean the same on every engine."""

from __future__ import annotations

from datetime import datetime, timezone
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from sqlalchemy import JSON, TIMESTAMP, DateTime, Double, Numeric, String, Text
from sqlalchemy.types import TypeDecorator

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy.engine import Dialect
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

"""Column types that hold the same values on every engine. An engine's module can register its own types."""

from __future__ import annotations

from copy import copy
from datetime import UTC, datetime
from decimal import Decimal
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy import DateTime, Double, Numeric, String, Text
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.types import TypeDecorator

if TYPE_CHECKING:
    from sqlalchemy.engine import Dialect
    from sqlalchemy.types import TypeEngine

ID_CHARS_MAX = 255
POINTS_PLACES = 4
POINTS_DIGITS = 19
# SQLite stores decimals as doubles. A double keeps 15 digits exactly, here 11 before the decimal point and 4 after it.
POINTS_MAX = Decimal(10) ** 11
_QUANTUM = Decimal(1).scaleb(-POINTS_PLACES)
# SQL Server, Oracle, Snowflake and DuckDB support at most this many digits.
DECIMAL_DIGITS = 38


class ColumnTypes(NamedTuple):
    """The column types of one engine.

    The types for text must compare values byte by byte. If a collation ignored case or trailing spaces, the ids of two
    awards could be equal, and the target would not notice if only the case of a name changed. With the collation of a
    language, engines could sort ids in different orders.
    """

    identifier: String = String(ID_CHARS_MAX)
    """An id of at most `ID_CHARS_MAX` characters."""
    text: TypeEngine[Any] = Text()
    """Text of any length."""
    json: TypeEngine[Any] | None = None
    """A JSON document, which the target writes as text. None if documents are stored in columns of the type `text`."""
    points: TypeEngine[Any] = Numeric(POINTS_DIGITS, POINTS_PLACES)
    """A number of points, stored exactly."""
    whole: TypeEngine[Any] = Double()
    """A whole number beyond 64 bits. The target uses this type only if the engine has no decimals, or does not limit
    their size."""
    instant: TypeEngine[Any] = DateTime()
    """An instant, with a precision of one microsecond."""
    keeps_time_zone: bool = False
    """Whether the driver accepts times with a time zone. If not, it gets UTC times without a time zone."""


# Every engine with decimals supports 18 digits, because they fit into 64 bits.
_UNKNOWN_ENGINE = ColumnTypes(points=Numeric(18, POINTS_PLACES))
_registered: dict[str, ColumnTypes] = {}


def register(engine: str, types: ColumnTypes) -> None:
    """Set the column types of an engine, given SQLAlchemy's name for it. Each engine's module calls this on import."""
    _registered[engine] = types


def _types_of(dialect: Dialect) -> ColumnTypes:
    # A mysql:// URL may connect to MariaDB.
    name = "mariadb" if getattr(dialect, "is_mariadb", False) else dialect.name
    return _registered.get(name, _UNKNOWN_ENGINE)


class Identifier(TypeDecorator[str]):
    """An id of at most `chars_max` characters. `chars_max` must not exceed `ID_CHARS_MAX`."""

    impl = String
    cache_ok = True

    def __init__(self, chars_max: int = ID_CHARS_MAX) -> None:
        super().__init__()
        self.chars_max = chars_max

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """Return the engine's type for ids of this length."""
        identifier = _types_of(dialect).identifier
        if self.chars_max < ID_CHARS_MAX:
            identifier = copy(identifier)
            identifier.length = (identifier.length or ID_CHARS_MAX) * self.chars_max // ID_CHARS_MAX
        return identifier


class LongText(TypeDecorator[str]):
    """Text of any length."""

    impl = Text
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """Return the engine's type for text of any length."""
        return _types_of(dialect).text


@compiles(Double)
def _double(type_: Double[Any], compiler: Any, **kw: Any) -> str:
    """On an unknown engine, use the name `DOUBLE PRECISION` from the SQL standard.

    More engines know this name than SQLAlchemy's default name.
    """
    compiled: str = compiler.visit_double(type_, **kw)
    return compiled if compiler.dialect.name in _registered else "DOUBLE PRECISION"


# A number. On PostgreSQL, NUMERIC without arguments has no fixed precision, so it stores numbers exactly. On MySQL, a
# NUMERIC without arguments would hold only whole numbers.
Number: TypeEngine[Any] = Double().with_variant(Numeric(), "postgresql")


@cache
def decimal_type(digits: int, places: int) -> TypeEngine[Any]:
    """Return the type of an exact decimal number.

    The result is cached, so that equal arguments give the same object.
    """
    return Numeric(digits, places)


class Whole(TypeDecorator[Any]):
    """A whole number beyond 64 bits: see `ColumnTypes.whole`."""

    impl = Double
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """Return the engine's type for whole numbers beyond 64 bits."""
        return _types_of(dialect).whole


class JsonText(LongText):
    """A JSON document, stored as the exact text from the sender."""

    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """Return the engine's type for JSON, or its type for text if JSON is stored as text."""
        types = _types_of(dialect)
        return types.json or types.text


class Instant(TypeDecorator[datetime]):
    """An instant. In Python, it is in UTC. In the warehouse, it has a time zone if the engine supports time zones."""

    impl = DateTime
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """Return the engine's type for instants."""
        return _types_of(dialect).instant

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Convert a time to UTC. Drop the time zone if the driver does not accept it."""
        if value is None:
            return None
        utc = value if value.tzinfo is UTC else value.astimezone(UTC)
        return utc if _types_of(dialect).keeps_time_zone else utc.replace(tzinfo=None)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        """Convert a time from the driver to UTC. A time without a time zone is already in UTC."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Points(TypeDecorator[Decimal]):
    """Points with four decimal places. Below `POINTS_MAX`, they are exact even on SQLite, which lacks decimals."""

    impl = Numeric(POINTS_DIGITS, POINTS_PLACES)
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """Return the engine's type for points."""
        return _types_of(dialect).points

    def process_result_value(self, value: Any, dialect: Dialect) -> Decimal | None:  # noqa: ARG002
        """Convert a number from the driver to a decimal with four decimal places."""
        return None if value is None else Decimal(str(value)).quantize(_QUANTUM)

"""Column types that mean the same on every engine. Engine modules register replacements of the defaults."""

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
# SQLite stores decimals as doubles, which hold every number of 15 digits: eleven before the point, four after it.
POINTS_MAX = Decimal(10) ** 11
_QUANTUM = Decimal(1).scaleb(-POINTS_PLACES)
# The most that SQL Server, Oracle, Snowflake and DuckDB take.
DECIMAL_DIGITS = 38


class ColumnTypes(NamedTuple):
    """The column types of one engine.

    Texts have to compare byte by byte. A collation that ignores case or trailing spaces would merge two awards and
    miss a changed name; one that sorts by language would break ties differently on each engine.
    """

    identifier: String = String(ID_CHARS_MAX)
    """An id of at most `ID_CHARS_MAX` characters."""
    text: TypeEngine[Any] = Text()
    """Text of any length."""
    json: TypeEngine[Any] | None = None
    """A JSON document that is written as text; None for the type of any other text."""
    points: TypeEngine[Any] = Numeric(POINTS_DIGITS, POINTS_PLACES)
    """Exact points."""
    whole: TypeEngine[Any] = Double()
    """A whole number beyond 64 bits, on an engine whose decimals have no limit, or that has no decimals."""
    instant: TypeEngine[Any] = DateTime()
    """An instant to the microsecond."""
    keeps_time_zone: bool = False
    """Whether the driver takes instants with a time zone; otherwise it gets UTC without one."""


# Decimals of 18 digits fit into 64 bits, so every engine with decimals has them.
_UNKNOWN_ENGINE = ColumnTypes(points=Numeric(18, POINTS_PLACES))
_registered: dict[str, ColumnTypes] = {}


def register(engine: str, types: ColumnTypes) -> None:
    """Set the column types of an engine, by SQLAlchemy's name of it. Its module calls this when it is imported."""
    _registered[engine] = types


def _types_of(dialect: Dialect) -> ColumnTypes:
    # A mysql:// URL may connect to MariaDB.
    name = "mariadb" if getattr(dialect, "is_mariadb", False) else dialect.name
    return _registered.get(name, _UNKNOWN_ENGINE)


class Identifier(TypeDecorator[str]):
    """An id of at most `chars_max` characters, which are `ID_CHARS_MAX` or fewer."""

    impl = String
    cache_ok = True

    def __init__(self, chars_max: int = ID_CHARS_MAX) -> None:
        super().__init__()
        self.chars_max = chars_max

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """Return the engine's type."""
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
        """Return the engine's type."""
        return _types_of(dialect).text


@compiles(Double)
def _double(type_: Double[Any], compiler: Any, **kw: Any) -> str:
    """Use core SQL's name of the type on an unknown engine: more engines know it than SQLAlchemy's default."""
    compiled: str = compiler.visit_double(type_, **kw)
    return compiled if compiler.dialect.name in _registered else "DOUBLE PRECISION"


# A number as exact as the engine can: PostgreSQL's NUMERIC has no bounds, while MySQL's would be a whole number.
Number: TypeEngine[Any] = Double().with_variant(Numeric(), "postgresql")


@cache
def decimal_type(digits: int, places: int) -> TypeEngine[Any]:
    """An exact decimal number. Cached, so that equal arguments give the same object."""
    return Numeric(digits, places)


class Whole(TypeDecorator[Any]):
    """A whole number beyond 64 bits: see `ColumnTypes.whole`."""

    impl = Double
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """Return the engine's type."""
        return _types_of(dialect).whole


class JsonText(LongText):
    """A JSON document, written as the text that the sender wrote."""

    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """Return the engine's type."""
        types = _types_of(dialect)
        return types.json or types.text


class Instant(TypeDecorator[datetime]):
    """An instant to the microsecond. In Python it has a time zone; in the warehouse too, where the engine has those."""

    impl = DateTime
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """Return the engine's type."""
        return _types_of(dialect).instant

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Convert to UTC."""
        if value is None:
            return None
        utc = value if value.tzinfo is UTC else value.astimezone(UTC)
        return utc if _types_of(dialect).keeps_time_zone else utc.replace(tzinfo=None)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        """Convert to UTC."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Points(TypeDecorator[Decimal]):
    """Exact points with four places. `POINTS_MAX` bounds them so that SQLite, which has no decimals, is exact too."""

    impl = Numeric(POINTS_DIGITS, POINTS_PLACES)
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """Return the engine's type."""
        return _types_of(dialect).points

    def process_result_value(self, value: Any, dialect: Dialect) -> Decimal | None:  # noqa: ARG002
        """Convert to a decimal of four places."""
        return None if value is None else Decimal(str(value)).quantize(_QUANTUM)

"""Convert a JSON value to a column's value, or raise `Invalid` with the reason.

JSON numbers arrive as `int` or `Decimal`, never as a binary float. Only `optional` and `table_version` return None for
null.
"""

from __future__ import annotations

import math
import re
from ctypes import c_float
from datetime import UTC, date, datetime, time, timedelta
from decimal import Context, Decimal, Inexact
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from target_crm.records.column_types import DECIMAL_DIGITS, ID_CHARS_MAX, POINTS_MAX, POINTS_PLACES

if TYPE_CHECKING:
    from collections.abc import Callable

_T = TypeVar("_T")

_JSON = msgspec.json.Encoder(decimal_format="number")
_DECODER = msgspec.json.Decoder(float_hook=Decimal)
INTEGER_MIN, INTEGER_MAX = -(2**63), 2**63 - 1
_WHOLE_LIMIT = 10**DECIMAL_DIGITS
# Senders write a double with at most 17 digits. A double is exact to 15 digits.
_DOUBLE_DIGITS = 17
_DOUBLE_NOISE = 1e-15
# PostgreSQL's NUMERIC has at most this many decimal places.
_NUMBER_PLACES_MAX = 16_383
# A calendar, basic, ordinal or week date. A time may follow, or an offset without a time (as in XML Schema).
_DATE_AND_REST = re.compile(
    r"(\d{4}-\d{2}-\d{2}|\d{8}|\d{4}-\d{3}|\d{4}-?W\d{2}(?:-?\d)?)"
    r"(?:[T _](\d.*)| ?(UTC|GMT|Z|[+-]\d{2}:?\d{2}))?",
    re.IGNORECASE | re.ASCII,
)
_SPACED_OFFSET = re.compile(r" ?(UTC|GMT|Z|[+-]\d{2}(:?\d{2})?)$", re.IGNORECASE)
_END_OF_DAY = re.compile(r"T24(?=:?00(:?00([.,]0+)?)?(Z|[+-]|$))")
_LEAP_SECOND = re.compile(r"(T\d{2}:?59:?)60(?=[.,Z+-]|$)")
_ORDINAL_DATE = re.compile(r"(\d{4})-(\d{3})(?=T)")
# A fraction of an hour or a minute. Python can parse fractions of a second.
_FRACTION = re.compile(r"(T\d{2}(:?\d{2})?)[.,](\d+)(?=[Z+-]|$)")
_BELOW_MICROSECONDS = re.compile(r"[.,]\d{6}0*[1-9]")
_MINUS = "\N{MINUS SIGN}"
_RANGE_REASON = re.compile(r"(year|month|day|hour|minute|second)s? .*(must be in|out of range)")
_ESCAPED_NUL = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")
_POINTS_QUANTUM = Decimal(1).scaleb(-POINTS_PLACES)
# Points below `POINTS_MAX` have at most this many digits.
_POINTS_DIGITS = POINTS_MAX.adjusted() + POINTS_PLACES
_POINTS_CONTEXT = Context(traps=[Inexact])
_NUMBERS = (int, Decimal)
_NUMERIC_TEXT = re.compile(r"[+-]?\d{1,40}(\.\d{1,40})?")


class Invalid(ValueError):
    """A value that its column cannot hold. The message does not show the value, which may be personal data."""


def from_json(document: str | bytes) -> Any:
    """Decode JSON, with fractional numbers as `Decimal`. Raise `ValueError` if the text is not valid JSON."""
    try:
        return _DECODER.decode(document)
    except (msgspec.DecodeError, ArithmeticError, RecursionError) as error:
        raise ValueError(type(error).__name__) from None


def optional(value: Any, convert: Callable[[Any], _T]) -> _T | None:
    """Convert a value. Return None if the value is null or cannot be converted."""
    if value is None:
        return None
    try:
        return convert(value)
    except Invalid:
        return None


def identifier(value: Any) -> str:
    """Return an id, which is text of 1 to `ID_CHARS_MAX` characters. A whole number is converted to text."""
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or not value:
        raise Invalid(f"is {type_name(value)}, expected an id")
    if len(value) > ID_CHARS_MAX:
        raise Invalid(f"has {len(value)} characters, expected at most {ID_CHARS_MAX}")
    return text(value)


def key_text(value: Any, chars_max: int = ID_CHARS_MAX) -> str:
    """Return text for a key, with at most `chars_max` characters. The text may be empty.

    Numbers and booleans are converted to text.
    """
    result = scalar_text(value)
    if len(result) > chars_max:
        raise Invalid(f"has {len(result)} characters, expected at most {chars_max} in a key")
    return result


def text(value: Any) -> str:
    """Return text. Raise `Invalid` for other values, and for NUL characters, which many SQL engines cannot store."""
    if not isinstance(value, str):
        raise Invalid(f"is {type_name(value)}, expected text")
    if "\0" in value:
        raise Invalid("holds a NUL character")
    return value


def points(value: Any) -> Decimal:
    """Convert a number or numeric string to points.

    Points are smaller than `POINTS_MAX` in magnitude, and have at most four decimal places. Digits that come from a
    sender's floating-point arithmetic are dropped, as in `decimal`.
    """
    if isinstance(value, str):
        if not _NUMERIC_TEXT.fullmatch(value):
            raise Invalid("is text, expected points")
    elif isinstance(value, bool) or not isinstance(value, _NUMBERS):
        raise Invalid(f"is {type_name(value)}, expected points")
    number = Decimal(value)
    if not -POINTS_MAX < number < POINTS_MAX:
        raise Invalid(f"is out of range, expected points below {POINTS_MAX:,}")
    if isinstance(value, int):
        return number
    try:
        # This also drops trailing zeros, because a driver may fail on a thousand of them.
        return _POINTS_CONTEXT.quantize(number, _POINTS_QUANTUM)
    except Inexact:
        return decimal(number, _POINTS_DIGITS, POINTS_PLACES)


def instant(value: Any) -> datetime:
    """Parse an ISO 8601 instant. A time without an offset is in UTC. The result has the time zone UTC.

    These forms of ISO 8601 are valid:

    - extended and basic format; calendar and week dates; ordinal dates with a hyphen
    - a week without a day, which means its Monday
    - any number of decimal places
    - `24:00:00`, and a leap second, which becomes the second after it

    Some taps send other forms, which are also valid: a space instead of `T` or before the offset, `UTC` instead of `Z`,
    and a date with an offset, which means midnight at that offset.
    """
    if not isinstance(value, str):
        raise Invalid(f"is {type_name(value)}, expected an ISO 8601 time")
    try:
        moment = msgspec.convert(value, datetime)
    except msgspec.ValidationError:
        moment = _parse_iso_8601(value)
    return moment if moment.tzinfo is UTC else in_utc(moment)


def in_utc(moment: datetime) -> datetime:
    """Convert a time to UTC. A time without an offset is already in UTC."""
    try:
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except OverflowError:
        raise Invalid("is before the year 1 or after the year 9999 in UTC") from None


def _parse_iso_8601(value: str) -> datetime:
    """Parse the forms of ISO 8601 that RFC 3339 does not include."""
    if not value:
        raise Invalid("is empty, expected an ISO 8601 time")
    # Check the separator here, because `fromisoformat` would accept any character between date and time.
    parts = _DATE_AND_REST.fullmatch(value.strip().replace(_MINUS, "-"))
    if not parts:
        raise Invalid("is not an ISO 8601 time")
    date_, time_of_day, offset = parts.groups(default="")
    text = f"{date_.upper()}T{time_of_day or f'00{offset}'}"
    text = _SPACED_OFFSET.sub(lambda match: "Z" if match[1].isalpha() else match[1], text)
    text, midnights = _END_OF_DAY.subn("T00", text)
    text, leap_seconds = _LEAP_SECOND.subn(r"\g<1>59", text)
    added = timedelta(days=midnights, seconds=leap_seconds)
    if fraction := _FRACTION.search(text):
        added += timedelta(minutes=1 if fraction[2] else 60) * float(f"0.{fraction[3]}")
        text = _FRACTION.sub(r"\1", text)
    try:
        return datetime.fromisoformat(_ORDINAL_DATE.sub(_calendar_date, text)) + added
    except OverflowError:
        raise Invalid("is after the year 9999") from None
    except ValueError as error:
        # Python's message quotes the value, unless the message names a range.
        reason = str(error)
        raise Invalid(f"is not an ISO 8601 time{f': {reason}' if _RANGE_REASON.match(reason) else ''}") from None


def _calendar_date(ordinal_date: re.Match[str]) -> str:
    """Convert an ordinal date, such as 2026-032, to a calendar date."""
    year, number = map(int, ordinal_date.groups())
    result = date(year, 1, 1) + timedelta(days=number - 1)
    if result.year != year:
        raise ValueError("day is out of range for year")
    return result.isoformat()


def day(value: Any) -> date:
    """Convert an ISO 8601 date, or an ISO 8601 time at midnight, to a date."""
    try:
        return msgspec.convert(value, date)
    except msgspec.ValidationError:
        pass
    try:
        moment = _parse_iso_8601(value) if isinstance(value, str) else None
    except Invalid as reason:
        raise Invalid(str(reason).replace("time", "date")) from None
    if moment is None:
        raise Invalid(f"is {type_name(value)}, expected an ISO 8601 date")
    if moment.time() != time():
        raise Invalid("has a time of day, expected a date")
    return moment.date()


def integer(value: Any) -> int:
    """Return a whole number that fits into 64 bits."""
    number = whole(value)
    if not INTEGER_MIN <= number <= INTEGER_MAX:
        raise Invalid(f"is out of the range of 64 bits, {INTEGER_MIN} to {INTEGER_MAX}")
    return number


def whole(value: Any) -> int:
    """Return a whole number of at most `DECIMAL_DIGITS` digits."""
    if (
        isinstance(value, bool)
        or not isinstance(value, _NUMBERS)
        or (isinstance(value, Decimal) and not value.is_finite())
    ):
        raise Invalid(f"is {type_name(value)}, expected a whole number")
    # `abs` would round a decimal, and overflow for 1e999999999.
    if (value.copy_abs() if isinstance(value, Decimal) else abs(value)) >= _WHOLE_LIMIT:
        raise Invalid(f"has more than {DECIMAL_DIGITS} digits")
    number = int(value)
    if value != number:
        raise Invalid("has decimal places, expected a whole number")
    return number


def decimal(value: Any, digits: int, places: int) -> Decimal:
    """Return an exact number of at most `digits` digits, `places` of them after the decimal point.

    Drop digits that come from a sender's floating-point arithmetic, as in 0.30000000000000004.
    """
    exact = number(value)
    limit = 10 ** (digits - places)
    if exact.copy_abs() >= limit:
        raise Invalid(f"is out of range, expected at most {digits - places} digits before the point")
    rounded = exact.quantize(Decimal(1).scaleb(-places), context=Context(digits + 1))
    is_double = len(exact.as_tuple().digits) <= _DOUBLE_DIGITS
    is_noise = is_double and math.isclose(rounded, exact, rel_tol=_DOUBLE_NOISE) and rounded.copy_abs() < limit
    if rounded != exact and not is_noise:
        raise Invalid(f"has more than {places} decimal places")
    return rounded


def sized_integer(value: Any, convert: Callable[[Any], int], bits: int, *, is_unsigned: bool) -> int:
    """Return a whole number that fits into `bits` bits."""
    number = convert(value)
    limit = 2 ** (bits - 1)
    if not (0 <= number < 2 * limit if is_unsigned else -limit <= number < limit):
        raise Invalid(
            f"is out of the range of its column, {'an unsigned' if is_unsigned else 'a signed'} {bits}-bit integer"
        )
    return number


def single(value: Any, convert: Callable[[Any], Decimal]) -> Decimal:
    """Return a number within the range of a 32-bit float."""
    number = convert(value)
    nearest = c_float(float(number)).value
    if not math.isfinite(nearest) or (number and not nearest):
        raise Invalid("is out of the range of its column, a 32-bit float: expected a magnitude of 1.4e-45 to 3.4e38")
    return number


def sized_text(value: Any, convert: Callable[[Any], str], size: int, *, is_in_bytes: bool) -> str:
    """Return text of at most `size` characters. If `is_in_bytes` is true, `size` counts bytes of UTF-8 instead."""
    text = convert(value)
    found = len(text.encode()) if is_in_bytes else len(text)
    if found > size:
        raise Invalid(f"has {found} {'bytes' if is_in_bytes else 'characters'}, but its column takes at most {size}")
    return text


def sized_instant(value: Any, convert: Callable[[Any], datetime], bits: int) -> datetime:
    """Return an instant whose seconds since 1970 fit into `bits` bits.

    Second 0 is invalid, because MySQL uses it for a time that is not set.
    """
    moment = convert(value)
    last = datetime.fromtimestamp(2**bits - 1, UTC)
    if not 0 < moment.timestamp() <= 2**bits - 1:
        raise Invalid(f"is out of range: its column takes times from 1970 to {last:%Y-%m-%d}")
    return moment


def table_version(value: Any) -> int | None:
    """Return a table version, from a whole number or a string of digits. Return None for any other value."""
    if value is None:
        # Most records have no version. Raising and catching an exception for each such record would take longer.
        return None
    if isinstance(value, str) and value.isdecimal():
        value = int(value)
    try:
        return integer(value)
    except Invalid:
        return None


def number(value: Any) -> Decimal:
    """Return any finite number within the range of a double."""
    if isinstance(value, bool) or not isinstance(value, _NUMBERS):
        raise Invalid(f"is {type_name(value)}, expected a number")
    result = Decimal(value)
    double = float(result)
    if not math.isfinite(double) or (result and not double):
        raise Invalid("is out of the range of a double")
    exponent = result.as_tuple().exponent
    if result and isinstance(exponent, int) and exponent < -_NUMBER_PLACES_MAX:
        raise Invalid(f"has more than {_NUMBER_PLACES_MAX:,} decimal places")
    return result or Decimal(0)


def double(value: Any) -> Decimal:
    """Convert a number to the form in which a query returns it from a column of doubles."""
    nearest = float(number(value))
    return Decimal(nearest) if nearest.is_integer() else Decimal(repr(nearest))


def whole_double(value: Any) -> int:
    """Convert a 64-bit integer to the form in which a query returns it from a column of doubles."""
    return int(float(integer(value)))


def key_number(value: Any, convert: Callable[[Any], _T]) -> _T:
    """Return a number for a key. The column must keep it exactly, because otherwise two keys might become equal."""
    result = convert(value)
    if result != value:
        raise Invalid("has more digits than its column keeps, so it cannot be part of a key")
    return result


def key_instant(value: Any) -> datetime:
    """Return an instant for a key. A time finer than a microsecond is invalid, because it would lose digits."""
    result = instant(value)
    if _BELOW_MICROSECONDS.search(value):
        raise Invalid("is finer than a microsecond, expected at most 6 decimal places in a key")
    return result


def boolean(value: Any) -> bool:
    """Return a boolean. A string or number such as "true" or 1 is invalid."""
    if not isinstance(value, bool):
        raise Invalid(f"is {type_name(value)}, expected a boolean")
    return value


def json_text(value: Any) -> str:
    """Encode any value as compact JSON. Decimals keep their digits."""
    return _JSON.encode(value).decode()


def without_nul(text: str) -> str:
    """Replace NUL characters, which many SQL engines cannot store."""
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}")


def json_document(value: Any) -> str:
    """Encode any value as JSON text. Raise `Invalid` if the value contains a NUL character."""
    return json_without_nul(json_text(value))


def json_without_nul(document: str) -> str:
    """Return the JSON document unchanged. Raise `Invalid` if it contains a NUL character.

    PostgreSQL would store such a document, but each query that extracts a value from it would fail.
    """
    if "\\u0000" in document and _ESCAPED_NUL.search(document):
        raise Invalid("holds a NUL character")
    return document


def scalar_text(value: Any) -> str:
    """Return text. A number or boolean becomes its JSON text, so that no digit is lost."""
    return json_text(value) if isinstance(value, _NUMBERS) else text(value)


def number_text(number: Decimal) -> str:
    """Format a number without an exponent and without trailing zeros."""
    return f"{number.normalize():f}"


def any_text(value: Any) -> str:
    """Convert any value to text. A string stays unchanged, and everything else becomes JSON."""
    return text(value) if isinstance(value, str) else json_text(value)


def type_name(value: Any) -> str:
    """Return the type of a JSON value, for a message that must not show the value itself."""
    names = {bool: "a boolean", int: "a number", Decimal: "a number", str: "text", list: "a list", dict: "an object"}
    return "null" if value is None else "empty" if value == "" else names.get(type(value), "of an unknown kind")

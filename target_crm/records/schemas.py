"""Derive a table's columns from a stream's JSON Schema, and convert records to rows of the table."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from functools import cache, cached_property, partial
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import unquote

from sqlalchemy import BigInteger, Boolean, Date, Numeric

from target_crm.records import values
from target_crm.records.column_types import (
    DECIMAL_DIGITS,
    ID_CHARS_MAX,
    Identifier,
    Instant,
    JsonText,
    LongText,
    Number,
    Points,
    Whole,
    decimal_type,
)
from target_crm.records.deletions import ABSENT
from target_crm.records.names import NAME_BYTES_MAX, assign_columns, snake_case

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
    from datetime import datetime

    from sqlalchemy.types import TypeEngine

EXTRA = "_sdc_extra"
EXTRACTED_AT = "_sdc_extracted_at"
BATCHED_AT = "_sdc_batched_at"
# The version of the complete read that emitted the row, and the time when the row was deleted or found missing.
TABLE_VERSION = "_sdc_table_version"
DELETED_AT = "_sdc_deleted_at"
# The names of these columns before version 3 of the tables → their names now. If a property has a former name, an older
# version stored it in a column with another name, and the property must keep that column. So no property gets a column
# with a former name.
FORMER_NAMES = {
    "_extra": EXTRA,
    "_extracted_at": EXTRACTED_AT,
    "_loaded_at": BATCHED_AT,
    "_version": TABLE_VERSION,
    "_deleted_at": DELETED_AT,
}
# `SEQ` is the order of arrival in work tables. `RANK` is the rank by age in queries of these tables.
SEQ = "_seq"
RANK = "_rank"
_RESERVED_COLUMNS = {*FORMER_NAMES, *FORMER_NAMES.values(), SEQ, RANK}
_INTEGER_DIGITS = len(f"{values.INTEGER_MAX}")
# A decimal column can hold at least this many digits before the decimal point, even if the schema sets no bounds.
_WHOLE_DIGITS_MIN = 20
# A character in UTF-8 has at most this many bytes.
_CHARACTER_BYTES = 4
# Reserve this many bytes for a number or time in a key.
_KEY_VALUE_BYTES = 20


@dataclass(frozen=True)
class TableLimits:
    """The limits of an engine's tables. The defaults are for an unknown engine."""

    decimal_digits: int | None = 0
    """The maximum number of digits in a decimal. 0 for an engine without decimals, None for an engine without a limit.
    """
    reserved_columns: frozenset[str] = frozenset()
    """Names in lower case that no column may have."""
    columns: int | None = None
    """The maximum number of columns in a table."""
    key_bytes: int | None = None
    """The maximum size of a primary key, in bytes."""
    sizes: bool = False
    """Whether a column on this engine rejects a value that is too large for the column's type."""
    name_bytes: int = NAME_BYTES_MAX
    """The maximum length of a table's or column's name, in bytes."""
    reserved_prefix: str | None = None
    """A prefix that no table name may have."""
    fold: Callable[[str], str] = str.casefold
    """Normalizes names. If the engine may treat two names as equal, the result is the same for both."""


class Stored(NamedTuple):
    """The kind of values that an existing column holds, and how large they can be."""

    kind: str
    """For example, `text` or `time`. The module `migrations` lists all kinds."""
    digits: int = 0
    """For a `decimal`: how many digits it has."""
    places: int = 0
    """For a `decimal`: how many of its digits come after the decimal point."""
    size: int = 0
    """How large a value can be: the characters or bytes of a `text`, the bits of an `integer` or a `number`, or for a
    `time`, the bits of its seconds since 1970. 0 if the column accepts every value that the target may store."""
    is_in_bytes: bool = False
    """Whether `size` counts the bytes of text in UTF-8."""
    is_unsigned: bool = False


@dataclass(frozen=True)
class Kind:
    """The type of a property's column, and the conversion of its JSON values."""

    type: TypeEngine[Any]
    convert: Callable[[Any], Any]
    spills: bool = False
    """Whether a value that the column cannot hold goes to `_sdc_extra`. If not, a record with such a value is invalid.
    """


IDENTIFIER = Kind(Identifier(), values.identifier)
KEY = Kind(Identifier(), values.key_text)
KEY_DOUBLE = Kind(Number, partial(values.key_number, convert=values.double))
KEY_WHOLE_DOUBLE = Kind(BigInteger(), partial(values.key_number, convert=values.whole_double))
KEY_INSTANT = Kind(Instant(), values.key_instant)
POINTS = Kind(Points(), values.points)
INSTANT = Kind(Instant(), values.instant)
DATE = Kind(Date(), values.day)
INSTANT_OR_TEXT = Kind(Instant(), values.instant, spills=True)
TEXT = Kind(LongText(), values.scalar_text)
INTEGER = Kind(BigInteger(), values.integer)
WHOLE = Kind(Whole(), values.whole)
NUMBER = Kind(Number, values.number)
BOOLEAN = Kind(Boolean(), values.boolean)
JSON = Kind(JsonText(), values.json_document)
ANY_TEXT = Kind(LongText(), values.any_text)

# The keywords of JSON Schema that the target uses → the types of their values.
_WORDS: dict[str, tuple[type, ...]] = {
    "$ref": (str,),
    "type": (str, list),
    "anyOf": (list,),
    "oneOf": (list,),
    "allOf": (list,),
    "enum": (list,),
    "format": (str,),
    "properties": (dict,),
    "required": (list,),
    "minimum": (int, float, Decimal),
    "maximum": (int, float, Decimal),
    # In draft 4 of JSON Schema, the values of these two keywords are booleans.
    "exclusiveMinimum": (int, float, Decimal, bool),
    "exclusiveMaximum": (int, float, Decimal, bool),
    "multipleOf": (int, float, Decimal),
}
# The kind of an existing column → the kinds of properties whose values may be too large for it.
_SIZED = {
    "text": {TEXT, ANY_TEXT},
    "integer": {INTEGER},
    "number": {NUMBER, KEY_DOUBLE},
    "time": {INSTANT, INSTANT_OR_TEXT, KEY_INSTANT},
}
# The keywords that bound a number → the distance from the bound to the nearest allowed whole number.
_BOUNDS = {"minimum": 0, "maximum": 0, "exclusiveMinimum": 1, "exclusiveMaximum": -1}
_SCALARS = {"string": TEXT, "integer": INTEGER, "number": NUMBER, "boolean": BOOLEAN}
_TEXT_FORMATS = {"date-time": INSTANT, "date": DATE}
_JSON_NAMES = {
    str: "string",
    bool: "boolean",
    int: "integer",
    Decimal: "number",
    float: "number",
    dict: "object",
    list: "array",
    type(None): "null",
}


@cache
def decimal_kind(digits: int, places: int) -> Kind:
    """Return the kind of columns for exact numbers."""
    return Kind(decimal_type(digits, places), partial(values.decimal, digits=digits, places=places))


@cache
def key_kind(chars_max: int) -> Kind:
    """Return the kind of columns for text in a key."""
    return Kind(Identifier(chars_max), partial(values.key_text, chars_max=chars_max))


@cache
def sized_kind(kind: Kind, stored: Stored) -> Kind:
    """Return the kind of a property whose column a user has made smaller."""
    size, convert = stored.size, kind.convert
    sized: Callable[[Any], Any]
    if stored.kind == "text":
        sized = partial(values.sized_text, convert=convert, size=size, is_in_bytes=stored.is_in_bytes)
    elif stored.kind == "integer":
        sized = partial(values.sized_integer, convert=convert, bits=size, is_unsigned=stored.is_unsigned)
    elif stored.kind == "number":
        sized = partial(values.single, convert=convert)
    else:
        sized = partial(values.sized_instant, convert=convert, bits=size)
    return Kind(kind.type, sized, kind.spills)


@dataclass(frozen=True)
class Field:
    """A property of a stream and the column that it fills."""

    property: str
    column: str
    kind: Kind
    required: bool
    nullable: bool


@dataclass(frozen=True)
class Shape:
    """The columns of a stream's rows: one per property, `_sdc_extra` for properties without a column, and metadata."""

    fields: tuple[Field, ...]
    keys: tuple[str, ...]
    keeps_extra: bool

    @classmethod
    def of(
        cls,
        schema: Mapping[str, Any],
        key_properties: Sequence[str],
        fixed: Mapping[str, Kind] | None = None,
        recorded: Mapping[str, str] | None = None,
        stored: Mapping[str, Stored] | None = None,
        *,
        limits: TableLimits = TableLimits(),
    ) -> Shape:
        """Derive the columns from a SCHEMA message.

        Args:
            schema: The stream's JSON Schema.
            key_properties: The properties of the stream's key.
            fixed: Properties whose kind and column do not depend on the schema.
            recorded: Property → column, for all other properties that the stream ever had.
            stored: Column of the existing table → the kind and size of its values. A column keeps its type if it can
                hold all values of its property.
            limits: The engine's limits.

        Raises:
            InvalidSchema: A keyword of the schema has the wrong type.
        """
        fixed, stored = fixed or {}, stored or {}
        properties = dict(word(schema, "properties") or {})
        # This property fills the metadata column of the same name.
        properties.pop(DELETED_AT, None)
        columns = {name: snake_case(name) for name in fixed}
        reserved = {*_RESERVED_COLUMNS, *limits.reserved_columns, *columns.values()}
        others = {*properties, *key_properties} - fixed.keys()
        columns |= assign_columns(others, recorded or {}, stored, reserved, limits.name_bytes, fold=limits.fold)
        kinds = {
            **fixed,
            **{name: _kind_of_property(name, schema, limits) for name in properties if name not in fixed},
        }
        existing = {name: stored[column] for name, column in columns.items() if name not in fixed and column in stored}
        kinds |= {name: _fitted(kinds[name], column, limits) for name, column in existing.items() if name in kinds}
        # Handle key properties last, so that their kinds replace those that `_fitted` has chosen.
        kinds |= _key_kinds({key: kinds.get(key) for key in key_properties if key not in fixed}, existing, limits)
        if limits.sizes:
            kinds |= {name: _sized(kinds[name], column) for name, column in existing.items()}
        required = {*key_properties, *filter(_is_text, word(schema, "required") or ())}
        return cls(
            fields=tuple(
                Field(name, columns[name], kind, name in required, allows_null(properties.get(name), schema))
                for name, kind in kinds.items()
            ),
            keys=tuple(columns[key] for key in key_properties),
            keeps_extra=schema.get("additionalProperties", True) is not False,
        )

    def row(
        self, record: Mapping[str, Any], *, extracted_at: datetime, loaded_at: datetime, version: int | None = None
    ) -> tuple[Any, ...]:
        """Convert a record to a row. The fields come first, then the metadata columns in the order of `FORMER_NAMES`.

        A log-based tap sets `_sdc_deleted_at` in the record of a deleted row, and may leave out all other properties
        except the key. If the stream has a key, the row of such a record has `ABSENT` for each missing value.

        Raises:
            Invalid: A key or a required property is missing, or a value does not fit its column.
        """
        spilled: list[str] = []
        try:
            deleted_at = values.instant(record[DELETED_AT]) if record.get(DELETED_AT) else None
        except values.Invalid as reason:
            raise values.Invalid(f"{DELETED_AT} {reason}") from None
        may_be_partial = deleted_at is not None and bool(self.keys)
        row = [
            ABSENT
            if may_be_partial and field.property not in record and field.column not in self.keys
            else self._value(field, record, spilled)
            for field in self.fields
        ]
        extra = self._extra(record, spilled)
        if extra is None and ABSENT in row:
            extra = ABSENT
        return (*row, extra, extracted_at, loaded_at, version, deleted_at)

    def key_row(self, record: Mapping[str, Any], version: int) -> tuple[Any, ...]:
        """Return a row with only the key and version of a record.

        Raises:
            Invalid: The key is missing or invalid.
        """
        row = [self._value(field, record, []) if field.column in self.keys else None for field in self.fields]
        return (*row, None, None, None, version, None)

    def only_key(self, row: Sequence[Any]) -> tuple[Any, ...] | None:
        """Convert a row to the row that `key_row` returns for the same record.

        Return None if the stream has no key, or if the row has no version.
        """
        *columns, _extra, _extracted_at, _loaded_at, version, _deleted_at = row
        if version is None or not self.keys:
            return None
        key = [value if field.column in self.keys else None for field, value in zip(self.fields, columns, strict=True)]
        return (*key, None, None, None, version, None)

    def record(self, row: Sequence[Any]) -> tuple[dict[str, Any], datetime]:
        """Return a record that `row` would convert to this row, and the time when the tap read the record."""
        *columns, extra, extracted_at, _loaded_at, _version, deleted_at = row
        record = {
            field.property: values.from_json(value) if field.kind is JSON and value else value
            for field, value in zip(self.fields, columns, strict=True)
            if value is not ABSENT
        }
        record |= values.from_json(extra) if extra and extra is not ABSENT else {}
        return record | ({DELETED_AT: deleted_at} if deleted_at else {}), extracted_at

    def _value(self, field: Field, record: Mapping[str, Any], spilled: list[str]) -> Any:
        """Return the value for a field's column.

        If the value goes to `_sdc_extra` instead, add the property's name to `spilled`.
        """
        value = record.get(field.property)
        is_time = isinstance(field.kind.type, Instant | Date)
        if value == "" and is_time and field.nullable and field.column not in self.keys:
            # Some sources send an empty string for a time that is not set.
            return None
        if value is not None:
            try:
                return field.kind.convert(value)
            except values.Invalid as reason:
                if not field.kind.spills:
                    raise values.Invalid(f"{field.property} {reason}") from None
                spilled.append(field.property)
                return None
        is_key = field.column in self.keys
        if is_key or (field.required and field.property not in record):
            is_null = field.property in record
            raise MissingProperty(f"{field.property} is {'null, but a part of the key' if is_null else 'missing'}")
        return None

    def _extra(self, record: Mapping[str, Any], spilled: Sequence[str]) -> str | None:
        extra = {name: record[name] for name in spilled}
        if self.keeps_extra:
            extra |= {name: value for name, value in record.items() if name not in self._names}
        try:
            return values.json_document(extra) if extra else None
        except values.Invalid as reason:
            raise values.Invalid(f"a property that is not in the schema {reason}") from None

    @cached_property
    def _names(self) -> set[str]:
        return {*(field.property for field in self.fields), DELETED_AT}


def _key_kinds(
    kinds: Mapping[str, Kind | None], existing: Mapping[str, Stored], limits: TableLimits
) -> dict[str, Kind]:
    """Return a kind for each key property. `kinds` holds the kinds that these properties would have outside a key."""
    texts = [name for name, kind in kinds.items() if kind in {None, TEXT, ANY_TEXT, JSON, INSTANT_OR_TEXT}]
    chars_max = ID_CHARS_MAX
    if texts and limits.key_bytes:
        bytes_max = limits.key_bytes - _KEY_VALUE_BYTES * (len(kinds) - len(texts))
        chars_max = min(chars_max, bytes_max // _CHARACTER_BYTES // len(texts))
    text = KEY if chars_max == ID_CHARS_MAX else key_kind(chars_max)
    others = {
        name: _key_kind(kind, existing.get(name), limits) for name, kind in kinds.items() if kind and name not in texts
    }
    return dict.fromkeys(texts, text) | others


def _key_kind(kind: Kind, stored: Stored | None, limits: TableLimits) -> Kind:
    """Return the kind of a key property that is not text. Values that the column cannot keep exactly are invalid."""
    if kind is INTEGER and stored and stored.kind == "number" and limits.decimal_digits is not None:
        # The column holds doubles, because an earlier schema declared numbers.
        return KEY_WHOLE_DOUBLE
    if kind is WHOLE and limits.decimal_digits == 0:
        # This engine stores whole numbers beyond 64 bits as doubles, which are not exact enough for a key.
        return INTEGER
    if kind is NUMBER and limits.decimal_digits is not None:
        return KEY_DOUBLE
    if type(kind.type) is Numeric:
        return Kind(kind.type, partial(values.key_number, convert=kind.convert))
    return KEY_INSTANT if kind is INSTANT else kind


def _fitted(kind: Kind, stored: Stored, limits: TableLimits) -> Kind:
    """Return the kind of a property whose column exists.

    The column keeps its type if this type can hold all values of the property.
    """
    if stored.kind == "text" and kind not in {TEXT, ANY_TEXT}:
        return ANY_TEXT
    if stored.kind == "time" and kind is DATE:
        return INSTANT
    places = kind.type.scale if type(kind.type) is Numeric else None
    if stored.kind == "number" and places is not None:
        return NUMBER
    if stored.kind != "decimal" or limits.decimal_digits == 0:
        return kind
    is_narrower = kind is INTEGER and stored.digits - stored.places < _INTEGER_DIGITS
    # Apart from points, the target creates decimals with as many digits as the engine allows. Users created the others.
    is_users = kind is NUMBER and stored.digits != limits.decimal_digits
    is_held = is_narrower or is_users or (places is not None and places <= stored.places)
    return decimal_kind(stored.digits, stored.places) if is_held else kind


def _sized(kind: Kind, stored: Stored) -> Kind:
    """Return the kind of a property whose column may be smaller than the column that the target would create."""
    if kind is KEY:
        is_smaller = stored.kind == "text" and 0 < stored.size < ID_CHARS_MAX
        return key_kind(stored.size) if is_smaller else kind
    return sized_kind(kind, stored) if stored.size and kind in _SIZED.get(stored.kind, ()) else kind


class MissingProperty(values.Invalid):
    """A record without a key, or without a property that its schema requires."""


class InvalidSchema(ValueError):
    """A JSON Schema with a keyword of the wrong type. The message names the keyword."""


def _kind_of_property(name: str, schema: Mapping[str, Any], limits: TableLimits) -> Kind:
    try:
        return kind_of(schema["properties"][name], schema, limits)
    except InvalidSchema as reason:
        raise InvalidSchema(f"property {name!r}: {reason}") from None


def kind_of(
    definition: Any,
    root: Mapping[str, Any] | None = None,
    limits: TableLimits = TableLimits(),
) -> Kind:
    """Return the kind of column for a property's JSON Schema.

    If the schema allows several types, the column can hold all of them.

    Args:
        definition: The property's schema.
        root: The stream's schema, which contains the targets of `$ref`.
        limits: The engine's limits.
    """
    allowed = {(name, format_) for name, format_ in _types(definition, root or {}, frozenset()) if name != "null"}
    names = {name for name, _ in allowed}
    if names == {"string"}:
        kinds = {_TEXT_FORMATS.get(format_, TEXT) for _, format_ in allowed}
        # Some taps declare that a time may also be any text.
        return kinds.pop() if len(kinds) == 1 else INSTANT_OR_TEXT if INSTANT in kinds else TEXT
    if names and names <= {"integer", "number"}:
        return _number_kind(names, [precision for _, precision in allowed], limits)
    if len(names) == 1:
        (name,) = names
        return _SCALARS.get(name, JSON if name in {"object", "array"} else ANY_TEXT)
    return JSON if names and names <= {"object", "array"} else ANY_TEXT


class _Precision(NamedTuple):
    """The precision of the numbers that a schema allows."""

    digits: int
    """Digits before the decimal point. 0 for integers of 64 bits, and for numbers without bounds in the schema."""
    places: int | None
    """Digits after the decimal point; None if their number has no limit."""


def _precision(name: str, definition: Mapping[str, Any]) -> _Precision:
    """Return the precision of an `integer` or `number`."""
    bounds = [
        Decimal(f"{bound}") + distance
        for each, distance in _BOUNDS.items()
        if (bound := word(definition, each)) is not None and not isinstance(bound, bool)
    ]
    # A multipleOf of zero is invalid; ignore it.
    step = Decimal(f"{word(definition, 'multipleOf') or 0}")
    if name == "integer":
        beyond = [_digits_below(bound) for bound in bounds if not values.INTEGER_MIN <= bound <= values.INTEGER_MAX]
        beyond += [step.adjusted() + 1] if step > values.INTEGER_MAX else []
        return _Precision(max(beyond, default=0), 0)
    exponent = step.normalize().as_tuple().exponent if step else None
    places = max(0, -exponent) if isinstance(exponent, int) else None
    return _Precision(max(map(_digits_below, bounds), default=0), places)


def _digits_below(bound: Decimal) -> int:
    """Count the digits before the decimal point, given a bound.

    A bound of 1,000 means 3 digits, because a power of ten is usually an exclusive bound.
    """
    return bound.adjusted() + (bound.normalize().as_tuple().digits != (1,))


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _number_kind(names: Collection[str], allowed: Collection[_Precision], limits: TableLimits) -> Kind:
    """Return the kind of column for integers, numbers, or both."""
    digits = max(each.digits for each in allowed)
    if names == {"integer"} and not digits:
        return INTEGER
    if any(each.places is None for each in allowed):
        return NUMBER
    places = max(each.places or 0 for each in allowed)
    if max(digits, _WHOLE_DIGITS_MIN) + places > DECIMAL_DIGITS:
        return NUMBER
    if limits.decimal_digits:
        return decimal_kind(limits.decimal_digits, places)
    return WHOLE if names == {"integer"} else NUMBER


def allows_null(definition: Any, root: Mapping[str, Any] | None = None) -> bool:
    """Return whether a property may be null."""
    types = {name for name, _ in _types(definition, root or {}, frozenset())}
    return not types or "null" in types


def _types(definition: Any, root: Mapping[str, Any], visited: frozenset[str]) -> Iterator[tuple[str, Any]]:
    """Yield each type that a schema allows, with its format or precision.

    Yield nothing if the schema allows any type.
    """
    if definition is None or isinstance(definition, bool):
        return
    if not isinstance(definition, dict):
        raise InvalidSchema(f"its schema is {values.type_name(definition)}, expected an object")
    reference = word(definition, "$ref")
    # A recursive reference adds no further types.
    if reference is not None and reference not in visited:
        yield from _types(_resolve(reference, root), root, visited | {reference})
        return
    choices = [*(word(definition, "anyOf") or ()), *(word(definition, "oneOf") or ())]
    if choices:
        for choice in choices:
            # An alternative may leave out the keywords that all alternatives share.
            shared = {name: value for name, value in definition.items() if name not in {"anyOf", "oneOf"}}
            yield from _types(shared | _present(choice) if isinstance(choice, dict) else choice, root, visited)
        return
    if parts := word(definition, "allOf"):
        merged = {name: value for name, value in _present(definition).items() if name != "allOf"}
        for part in parts:
            while isinstance(part, dict) and isinstance(part.get("$ref"), str) and part["$ref"] not in visited:
                visited |= {part["$ref"]}
                part = _resolve(part["$ref"], root)  # noqa: PLW2901 - follows the reference
            if isinstance(part, dict):
                merged = _present(part) | merged
        yield from _types(merged, root, visited)
        return
    yield from ((name, _format(name, definition)) for name in _names(definition))


def _names(definition: Mapping[str, Any]) -> Iterator[str]:
    """Yield the names of the types that a schema declares or implies."""
    declared = word(definition, "type")
    for name in [declared] if isinstance(declared, str) else declared or _implied_types(definition):
        if not isinstance(name, str | None):
            raise InvalidSchema(f'"type" has {values.type_name(name)} in its list, expected type names')
        yield name or "null"


def _implied_types(definition: Mapping[str, Any]) -> Iterator[str]:
    """Yield the types that the other keywords of a schema imply."""
    values_allowed = [*(word(definition, "enum") or ()), *([definition["const"]] if "const" in definition else ())]
    yield from {_JSON_NAMES[type(value)] for value in values_allowed if type(value) in _JSON_NAMES}
    if not values_allowed:
        present = _present(definition).keys()
        if present & {"properties", "additionalProperties"}:
            yield "object"
        if "items" in present:
            yield "array"
        if present & {"format", "pattern"}:
            yield "string"


def _format(name: str, definition: Mapping[str, Any]) -> Any:
    if name in {"integer", "number"}:
        return _precision(name, definition)
    return word(definition, "format") or "" if name == "string" else ""


def _present(definition: Mapping[str, Any]) -> dict[str, Any]:
    """Return a schema without the keywords that are null. Some taps send null instead of leaving a keyword out."""
    return {name: value for name, value in definition.items() if value is not None}


def word(definition: Mapping[str, Any], name: str) -> Any:
    """Return the value of a keyword in a schema, or None if the keyword is missing or null.

    Raises:
        InvalidSchema: The value has the wrong type.
    """
    value, types = definition.get(name), _WORDS[name]
    if value is not None and (not isinstance(value, types) or (isinstance(value, bool) and bool not in types)):
        expected = {str: "text", dict: "an object", list: "a list", int: "a number"}
        raise InvalidSchema(
            f'"{name}" is {values.type_name(value)}, '
            f"expected {' or '.join(expected[each] for each in types if each in expected)}"
        )
    return value


def _resolve(reference: str, root: Mapping[str, Any]) -> Any:
    """Return the schema at a JSON pointer such as `#/definitions/money`. Return None if there is no such schema."""
    found: Any = root if reference.startswith("#") else None
    for part in reference.removeprefix("#").strip("/").split("/") if reference.strip("#/") else ():
        name = unquote(part).replace("~1", "/").replace("~0", "~")
        found = found.get(name) if isinstance(found, dict) else None
    return found

"""Pure: a stream's JSON Schema → its table's columns, and a record → a row of them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from sqlalchemy import BigInteger, Boolean, Date

from target_crm.records import values
from target_crm.records.column_types import Identifier, Instant, JsonText, LongText, Number, Points

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from datetime import datetime

    from sqlalchemy.types import TypeEngine

# The limit of PostgreSQL; no other engine's is lower.
NAME_CHARS_MAX = 63
EXTRA = "_sdc_extra"
EXTRACTED_AT = "_sdc_extracted_at"
BATCHED_AT = "_sdc_batched_at"
# The version that a full-table tap will activate, and when a row turned out to be deleted.
TABLE_VERSION = "_sdc_table_version"
DELETED_AT = "_sdc_deleted_at"
# Names before version 3 of the tables → names now. No property gets a column of a former name either: one that had
# to give way to it would otherwise move to another column.
FORMER_NAMES = {
    "_extra": EXTRA,
    "_extracted_at": EXTRACTED_AT,
    "_loaded_at": BATCHED_AT,
    "_version": TABLE_VERSION,
    "_deleted_at": DELETED_AT,
}
# In work tables: the order of arrival; in queries of them: the rank by age.
SEQ = "_seq"
RANK = "_rank"
_RESERVED_COLUMNS = {*FORMER_NAMES, *FORMER_NAMES.values(), SEQ, RANK}


@dataclass(frozen=True)
class Kind:
    """The type of a property's column, and the conversion of its JSON values."""

    type: TypeEngine[Any]
    convert: Callable[[Any], Any]


IDENTIFIER = Kind(Identifier(), values.identifier)
POINTS = Kind(Points(), values.points)
INSTANT = Kind(Instant(), values.instant)
DATE = Kind(Date(), values.day)
TEXT = Kind(LongText(), values.text)
INTEGER = Kind(BigInteger(), values.integer)
NUMBER = Kind(Number, values.number)
BOOLEAN = Kind(Boolean(), values.boolean)
JSON = Kind(JsonText(), values.json_document)
ANY_SCALAR = Kind(LongText(), values.any_text)

_SCALARS = {"string": TEXT, "integer": INTEGER, "number": NUMBER, "boolean": BOOLEAN}
_TEXT_FORMATS = {"date-time": INSTANT, "date": DATE}


@dataclass(frozen=True)
class Field:
    """A property of a stream and the column that it fills."""

    property: str
    column: str
    kind: Kind
    required: bool


@dataclass(frozen=True)
class Shape:
    """The rows of a stream: a column per property, `_sdc_extra` (properties without a column), and metadata columns."""

    fields: tuple[Field, ...]
    keys: tuple[str, ...]
    keeps_extra: bool

    @classmethod
    def of(
        cls, schema: Mapping[str, Any], key_properties: Sequence[str], fixed: Mapping[str, Kind] | None = None
    ) -> Shape:
        """Read a SCHEMA message. `fixed` properties have the given kind, whatever the schema says."""
        fixed = fixed or {}
        kinds = {name: fixed.get(name) or kind_of(definition) for name, definition in schema["properties"].items()}
        kinds = {**fixed, **kinds}
        for key in key_properties:
            kinds[key] = IDENTIFIER if kinds.get(key) in {None, TEXT, ANY_SCALAR, JSON} else kinds[key]
        # A schema's properties have no order, so their order must not decide which of two gets which column.
        others = sorted(kinds.keys() - fixed.keys(), key=lambda name: (name != snake_case(name), name))
        columns = column_names([*fixed, *others], taken=_RESERVED_COLUMNS)
        required = {*key_properties, *schema.get("required", ())}
        return cls(
            fields=tuple(Field(name, columns[name], kind, name in required) for name, kind in kinds.items()),
            keys=tuple(columns[key] for key in key_properties),
            keeps_extra=schema.get("additionalProperties", True) is not False,
        )

    def row(
        self, record: Mapping[str, Any], *, extracted_at: datetime, loaded_at: datetime, version: int | None = None
    ) -> tuple[Any, ...]:
        """Convert a record to a row: its fields, then the metadata columns in the order of `FORMER_NAMES`.

        Raises:
            Invalid: A key or a required property is missing, or a value does not fit its column.
        """
        row = [self._value(field, record) for field in self.fields]
        return (*row, self._extra(record), extracted_at, loaded_at, version, None)

    def key_row(self, record: Mapping[str, Any], version: int) -> tuple[Any, ...]:
        """A row with nothing but the key and version of a record.

        Raises:
            Invalid: The key is missing or invalid.
        """
        row = [self._value(field, record) if field.column in self.keys else None for field in self.fields]
        return (*row, None, None, None, version, None)

    def _value(self, field: Field, record: Mapping[str, Any]) -> Any:
        value = record.get(field.property)
        if value is not None:
            try:
                return field.kind.convert(value)
            except values.Invalid as reason:
                raise values.Invalid(f"{field.property} {reason}") from None
        if field.required and (field.column in self.keys or field.property not in record):
            raise MissingProperty(f"{field.property} is missing")
        return None

    def _extra(self, record: Mapping[str, Any]) -> str | None:
        if not self.keeps_extra:
            return None
        extra = {name: value for name, value in record.items() if name not in self._names}
        try:
            return values.json_document(extra) if extra else None
        except values.Invalid as reason:
            raise values.Invalid(f"a property that is not in the schema {reason}") from None

    @cached_property
    def _names(self) -> set[str]:
        return {field.property for field in self.fields}


class MissingProperty(values.Invalid):
    """A record without a key, or without a property that its schema requires."""


def kind_of(definition: Mapping[str, Any] | bool) -> Kind:
    """The kind of column for a property's JSON Schema. If the schema allows several types, one that holds them all."""
    if isinstance(definition, bool):
        return JSON
    allowed = {(name, format_) for name, format_ in _types(definition) if name != "null"}
    names = {name for name, _ in allowed}
    if names == {"integer", "number"}:
        return NUMBER
    if len(allowed) == 1:
        ((name, format_),) = allowed
        return _TEXT_FORMATS.get(format_, TEXT) if name == "string" else _SCALARS.get(name, JSON)
    return ANY_SCALAR if names and names <= set(_SCALARS) else JSON


def _types(definition: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    """Each allowed type with its format."""
    declared = definition.get("type", ())
    for name in [declared] if isinstance(declared, str) else declared:
        yield name, definition.get("format", "") if name == "string" else ""
    for choice in (*definition.get("anyOf", ()), *definition.get("oneOf", ())):
        yield from _types(choice)


def column_names(properties: Iterable[str], taken: set[str]) -> dict[str, str]:
    """Property → column in snake_case. On a clash the later one gets a number: `foo_bar`, `foo_bar_2`."""
    names: dict[str, str] = {}
    used = set(taken)
    for name in properties:
        base = snake_case(name)
        column = base
        count = 1
        while column in used:
            count += 1
            suffix = f"_{count}"
            column = f"{base[: NAME_CHARS_MAX - len(suffix)]}{suffix}"
        used.add(column)
        names[name] = column
    return names


def snake_case(name: str) -> str:
    """`updatedAt` → `updated_at`, `HTTPCode` → `http_code`, `_id` → `_id`; at most 60 characters of a-z, 0-9 and _."""
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name)
    return re.sub(r"[^a-z0-9_]+", "_", words.lower())[:60] or "_"

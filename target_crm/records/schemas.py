"""Pure: a stream's JSON Schema → its table's columns, and a record → a row of them."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from functools import cached_property
from typing import TYPE_CHECKING, Any

from sqlalchemy import BigInteger, Boolean, Date

from target_crm.records import values
from target_crm.records.column_types import Identifier, Instant, JsonText, LongText, Number, Points
from target_crm.records.names import assign_columns, snake_case

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from datetime import datetime

    from sqlalchemy.types import TypeEngine

EXTRA = "_sdc_extra"
EXTRACTED_AT = "_sdc_extracted_at"
BATCHED_AT = "_sdc_batched_at"
# The version that a full-table tap will activate, and when the row was found to be deleted.
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
    spills: bool = False
    """A value that the column cannot hold goes to `_sdc_extra`; otherwise the record is refused."""


IDENTIFIER = Kind(Identifier(), values.identifier)
KEY = Kind(Identifier(), values.key_text)
POINTS = Kind(Points(), values.points)
INSTANT = Kind(Instant(), values.instant)
DATE = Kind(Date(), values.day)
INSTANT_OR_TEXT = Kind(Instant(), values.instant, spills=True)
TEXT = Kind(LongText(), values.scalar_text)
INTEGER = Kind(BigInteger(), values.integer)
NUMBER = Kind(Number, values.number)
BOOLEAN = Kind(Boolean(), values.boolean)
JSON = Kind(JsonText(), values.json_document)
ANY_TEXT = Kind(LongText(), values.any_text)

# Some sources write an empty string for a time that is not set.
_EMPTY_IS_NULL = {INSTANT, INSTANT_OR_TEXT, DATE}
_SCALARS = {"string": TEXT, "integer": INTEGER, "number": NUMBER, "boolean": BOOLEAN}
_TEXT_FORMATS = {"date-time": INSTANT, "date": DATE}
_HELD_AS_TEXT = {TEXT, ANY_TEXT, KEY, IDENTIFIER}
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
    """The rows of a stream: a column per property, `_sdc_extra` (properties without a column), and metadata columns."""

    fields: tuple[Field, ...]
    keys: tuple[str, ...]
    keeps_extra: bool
    marks_deleted: bool
    """Records may carry `_sdc_deleted_at`, as those of log-based taps do."""

    @classmethod
    def of(
        cls,
        schema: Mapping[str, Any],
        key_properties: Sequence[str],
        fixed: Mapping[str, Kind] | None = None,
        recorded: Mapping[str, str] | None = None,
        stored: Mapping[str, str] | None = None,
    ) -> Shape:
        """Read a SCHEMA message.

        Args:
            schema: The stream's JSON Schema.
            key_properties: The properties of its key.
            fixed: Properties that have the given kind, whatever the schema says, and always the same column.
            recorded: Property → column, for all other properties that the stream ever had.
            stored: Column → what it holds (`text`, `time` and so on), in the existing table. A column that holds more
                than its property keeps its type.
        """
        fixed, stored = fixed or {}, stored or {}
        properties = dict(schema.get("properties") or {})
        marks_deleted = properties.pop(DELETED_AT, None) is not None
        kinds = {name: fixed.get(name) or kind_of(definition, schema) for name, definition in properties.items()}
        kinds = {**fixed, **kinds}
        for key in key_properties:
            if key not in fixed and kinds.get(key) in {None, TEXT, ANY_TEXT, JSON}:
                kinds[key] = KEY
        columns = {name: snake_case(name) for name in fixed}
        reserved = {*_RESERVED_COLUMNS, *columns.values()}
        columns |= assign_columns(kinds.keys() - fixed.keys(), recorded or {}, stored, reserved)
        if not fixed:
            kinds = {name: _fitted(kind, stored.get(columns[name])) for name, kind in kinds.items()}
        required = {*key_properties, *schema.get("required", ())}
        return cls(
            fields=tuple(
                Field(name, columns[name], kind, name in required, allows_null(properties.get(name), schema))
                for name, kind in kinds.items()
            ),
            keys=tuple(columns[key] for key in key_properties),
            keeps_extra=schema.get("additionalProperties", True) is not False,
            marks_deleted=marks_deleted,
        )

    def row(
        self, record: Mapping[str, Any], *, extracted_at: datetime, loaded_at: datetime, version: int | None = None
    ) -> tuple[Any, ...]:
        """Convert a record to a row: its fields, then the metadata columns in the order of `FORMER_NAMES`.

        Raises:
            Invalid: A key or a required property is missing, or a value does not fit its column.
        """
        spilled: list[str] = []
        row = [self._value(field, record, spilled) for field in self.fields]
        deleted_at = values.optional(record.get(DELETED_AT), values.instant) if self.marks_deleted else None
        return (*row, self._extra(record, spilled), extracted_at, loaded_at, version, deleted_at)

    def key_row(self, record: Mapping[str, Any], version: int) -> tuple[Any, ...]:
        """A row with nothing but the key and version of a record.

        Raises:
            Invalid: The key is missing or invalid.
        """
        row = [self._value(field, record, []) if field.column in self.keys else None for field in self.fields]
        return (*row, None, None, None, version, None)

    def _value(self, field: Field, record: Mapping[str, Any], spilled: list[str]) -> Any:
        """A field's value in its column; the name of a field whose value goes to `_sdc_extra` is added to `spilled`."""
        value = record.get(field.property)
        if value == "" and field.nullable and field.kind in _EMPTY_IS_NULL and field.column not in self.keys:
            return None
        if value is not None:
            try:
                return field.kind.convert(value)
            except values.Invalid as reason:
                if not field.kind.spills:
                    raise values.Invalid(f"{field.property} {reason}") from None
                spilled.append(field.property)
                return None
        if field.required and (field.column in self.keys or field.property not in record):
            is_null = field.property in record
            raise MissingProperty(f"{field.property} is {'null, and a key part' if is_null else 'missing'}")
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
        return {field.property for field in self.fields} | ({DELETED_AT} if self.marks_deleted else set())


def _fitted(kind: Kind, stored: str | None) -> Kind:
    if stored == "text" and kind not in _HELD_AS_TEXT:
        return ANY_TEXT
    return INSTANT if stored == "time" and kind is DATE else kind


class MissingProperty(values.Invalid):
    """A record without a key, or without a property that its schema requires."""


def kind_of(definition: Any, root: Mapping[str, Any] | None = None) -> Kind:
    """The kind of column for a property's JSON Schema. If the schema allows several types, one that holds them all.

    Args:
        definition: The property's schema.
        root: The stream's schema, where `$ref` points to.
    """
    allowed = {(name, format_) for name, format_ in _types(definition, root or {}, frozenset()) if name != "null"}
    names = {name for name, _ in allowed}
    if names == {"string"}:
        kinds = {_TEXT_FORMATS.get(format_, TEXT) for _, format_ in allowed}
        # Some taps declare a time as a time or any text.
        return kinds.pop() if len(kinds) == 1 else INSTANT_OR_TEXT if INSTANT in kinds else TEXT
    if len(names) == 1:
        (name,) = names
        return _SCALARS.get(name, JSON)
    if names == {"integer", "number"}:
        return NUMBER
    return JSON if names and names <= {"object", "array"} else ANY_TEXT


def allows_null(definition: Any, root: Mapping[str, Any] | None = None) -> bool:
    """Whether a property may be null."""
    types = {name for name, _ in _types(definition, root or {}, frozenset())}
    return not types or "null" in types


def _types(definition: Any, root: Mapping[str, Any], visited: frozenset[str]) -> Iterator[tuple[str, str]]:
    """Each type that a schema allows, with its format; none for a schema that allows any."""
    if definition is None or isinstance(definition, bool):
        return
    reference = definition.get("$ref")
    if isinstance(reference, str):
        if reference in visited:
            # A recursive type is a tree.
            yield "object", ""
        else:
            yield from _types(_resolve(reference, root), root, visited | {reference})
        return
    choices = [*definition.get("anyOf", ()), *definition.get("oneOf", ())]
    if choices:
        for choice in choices:
            # A choice may leave out what it shares with the others.
            shared = {name: value for name, value in definition.items() if name not in {"anyOf", "oneOf"}}
            yield from _types({**shared, **choice} if isinstance(choice, dict) else choice, root, visited)
        return
    if parts := definition.get("allOf", ()):
        merged = {name: value for name, value in definition.items() if name != "allOf"}
        for part in parts:
            while isinstance(part, dict) and isinstance(part.get("$ref"), str) and part["$ref"] not in visited:
                visited |= {part["$ref"]}
                part = _resolve(part["$ref"], root)  # noqa: PLW2901 - follows the reference
            if isinstance(part, dict):
                merged = {**part, **merged}
        yield from _types(merged, root, visited)
        return
    declared = definition.get("type")
    names = [declared] if isinstance(declared, str) else list(declared or _implied_types(definition))
    for name in names:
        yield name, definition.get("format", "") if name == "string" else ""


def _implied_types(definition: Mapping[str, Any]) -> Iterator[str]:
    """The types of a schema that declares none."""
    values_allowed = [*definition.get("enum", ()), *([definition["const"]] if "const" in definition else ())]
    yield from {_JSON_NAMES[type(value)] for value in values_allowed if type(value) in _JSON_NAMES}
    if not values_allowed:
        if "properties" in definition or "additionalProperties" in definition:
            yield "object"
        if "items" in definition:
            yield "array"
        if "format" in definition or "pattern" in definition:
            yield "string"


def _resolve(reference: str, root: Mapping[str, Any]) -> Any:
    """What a JSON pointer such as `#/definitions/money` points to; None if it points nowhere."""
    found: Any = root if reference.startswith("#") else None
    for part in reference.removeprefix("#").strip("/").split("/") if reference.strip("#/") else ():
        found = found.get(part.replace("~1", "/").replace("~0", "~")) if isinstance(found, dict) else None
    return found

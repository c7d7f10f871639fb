"""`Shape`: the columns that follow from a stream's JSON Schema, and the row of a record."""

from __future__ import annotations

from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import pytest

from target_crm.records.schemas import (
    ANY_TEXT,
    BOOLEAN,
    DATE,
    IDENTIFIER,
    INSTANT,
    INSTANT_OR_TEXT,
    INTEGER,
    JSON,
    KEY,
    NUMBER,
    POINTS,
    TEXT,
    WHOLE,
    Kind,
    MissingProperty,
    Shape,
    Stored,
    TableLimits,
    decimal_kind,
    kind_of,
)
from target_crm.records.values import Invalid

READ_AT = datetime(2026, 10, 5, 0, 0, tzinfo=UTC)
LOADED_AT = datetime(2026, 10, 5, 0, 1, tzinfo=UTC)


def row(shape: Shape, record: dict[str, Any]) -> tuple[Any, ...]:
    *row, version, deleted_at = shape.row(record, extracted_at=READ_AT, loaded_at=LOADED_AT)
    assert (version, deleted_at) == (None, None)
    return tuple(row)


DEFINITIONS = {
    "definitions": {
        "money": {"type": ["null", "number"]},
        "tree": {"type": "array", "items": {"$ref": "#/definitions/tree"}},
    },
    "$defs": {
        "at": {"type": "string", "format": "date-time"},
        "in cents": {"type": "integer"},
        "itself": {"$ref": "#/$defs/itself"},
        "list": {"anyOf": [{"type": "integer"}, {"$ref": "#/$defs/list"}]},
    },
}


@pytest.mark.parametrize(
    ("definition", "kind"),
    [
        pytest.param({"type": "string"}, TEXT, id="string"),
        pytest.param({"type": ["null", "string"]}, TEXT, id="string-or-null"),
        pytest.param({"type": "string", "format": "date-time"}, INSTANT, id="date-time"),
        pytest.param({"type": ["string", "null"], "format": "date"}, DATE, id="date-or-null"),
        pytest.param({"type": "string", "format": "uuid"}, TEXT, id="other-format"),
        pytest.param(
            {"anyOf": [{"type": "string", "format": "date-time"}, {"type": "null"}]}, INSTANT, id="date-time-or-null"
        ),
        pytest.param(
            {"anyOf": [{"type": "string", "format": "date-time"}, {"type": "string"}]},
            INSTANT_OR_TEXT,
            id="time-or-text",
        ),
        pytest.param({"type": "integer"}, INTEGER, id="integer"),
        pytest.param({"type": ["number", "null"]}, NUMBER, id="number"),
        pytest.param({"type": ["integer", "number"]}, NUMBER, id="integer-or-number"),
        pytest.param({"type": "boolean"}, BOOLEAN, id="boolean"),
        pytest.param({"type": "object"}, JSON, id="object"),
        pytest.param({"type": ["array", "null"]}, JSON, id="array"),
        pytest.param({"type": ["string", "integer"]}, ANY_TEXT, id="string-or-integer"),
        pytest.param({"type": ["string", "object"]}, ANY_TEXT, id="string-or-object"),
        pytest.param({"anyOf": [{"type": "integer"}, {"type": "null"}]}, INTEGER, id="anyOf"),
        pytest.param({"oneOf": [{"type": "integer"}, {"type": ["null", "string"]}]}, ANY_TEXT, id="oneOf"),
        pytest.param({"type": "null"}, ANY_TEXT, id="only-null"),
        pytest.param({}, ANY_TEXT, id="anything"),
        pytest.param(True, ANY_TEXT, id="true-allows-anything"),
        pytest.param(None, ANY_TEXT, id="null-instead-of-a-schema"),
        pytest.param({"$ref": "#/definitions/money"}, NUMBER, id="ref"),
        pytest.param({"anyOf": [{"$ref": "#/$defs/at"}, {"type": "null"}]}, INSTANT, id="ref-in-anyOf"),
        pytest.param({"$ref": "#/definitions/tree"}, JSON, id="recursive-ref"),
        pytest.param({"$ref": "#/$defs/itself"}, ANY_TEXT, id="ref-to-itself"),
        pytest.param({"$ref": "#/$defs/list"}, INTEGER, id="ref-to-itself-in-anyOf"),
        pytest.param({"$ref": "#/$defs/in%20cents"}, INTEGER, id="encoded-ref"),
        pytest.param({"$ref": "#/definitions/nothing"}, ANY_TEXT, id="ref-to-nothing"),
        pytest.param({"allOf": [{"type": "string"}]}, TEXT, id="allOf"),
        pytest.param({"allOf": [{"$ref": "#/$defs/at"}, {"description": "x"}]}, INSTANT, id="ref-in-allOf"),
        pytest.param(
            {"allOf": [{"type": "string"}, {"$ref": "#/$defs/in%20cents"}]}, TEXT, id="type-before-ref-in-allOf"
        ),
        pytest.param({"enum": ["a", "b", None]}, TEXT, id="enum"),
        pytest.param({"const": 5}, INTEGER, id="const"),
        pytest.param({"enum": [1, "a"]}, ANY_TEXT, id="enum-of-several-types"),
        pytest.param({"properties": {"a": {}}}, JSON, id="properties-without-type"),
        pytest.param({"additionalProperties": {"type": "string"}}, JSON, id="map-without-type"),
        pytest.param({"items": {"type": "string"}}, JSON, id="items-without-type"),
        pytest.param({"format": "date-time"}, INSTANT, id="format-without-type"),
        pytest.param({"type": ["null", "string"], "format": "time"}, TEXT, id="time-of-day"),
        pytest.param(
            {"anyOf": [{"type": "string", "format": "date-time"}, {"type": ["string", "null"]}]},
            INSTANT_OR_TEXT,
            id="time-or-nullable-text",
        ),
    ],
)
def test_a_column_can_hold_every_value_that_the_schema_of_its_property_allows(definition: Any, kind: Kind) -> None:
    assert kind_of(definition, DEFINITIONS) is kind


UNLIMITED, DECIMALS, DOUBLES = (TableLimits(decimal_digits=digits) for digits in (None, 38, 0))


@pytest.mark.parametrize(
    ("definition", "limits", "kind"),
    [
        pytest.param({"type": "integer", "maximum": 2**63 - 1}, DECIMALS, INTEGER, id="64-bits"),
        pytest.param({"type": "integer", "exclusiveMaximum": 2**63}, DECIMALS, INTEGER, id="64-bits-exclusive"),
        pytest.param({"type": "integer", "maximum": 2**63}, DECIMALS, decimal_kind(38, 0), id="65-bits"),
        pytest.param({"type": "integer", "minimum": -(2**63) - 1}, DECIMALS, decimal_kind(38, 0), id="negative"),
        pytest.param({"type": "integer", "maximum": 2**64}, UNLIMITED, WHOLE, id="65-bits-unlimited"),
        pytest.param({"type": "integer", "maximum": 2**64}, DOUBLES, WHOLE, id="65-bits-without-decimals"),
        pytest.param({"type": "integer", "maximum": 10**40}, DECIMALS, NUMBER, id="41-digits"),
        pytest.param({"type": "integer", "multipleOf": 1e18}, DECIMALS, INTEGER, id="step-of-64-bits"),
        pytest.param({"type": "integer", "multipleOf": 2**63 - 1}, DECIMALS, INTEGER, id="largest-step-of-64-bits"),
        pytest.param({"type": "integer", "multipleOf": 1e21}, DECIMALS, decimal_kind(38, 0), id="larger-step"),
        pytest.param({"type": "integer", "multipleOf": 10**38}, DECIMALS, NUMBER, id="step-of-39-digits"),
        pytest.param(
            {"type": "number", "multipleOf": Decimal("1e-06")}, DECIMALS, decimal_kind(38, 6), id="multipleOf"
        ),
        pytest.param({"type": "number", "multipleOf": 0.25}, DECIMALS, decimal_kind(38, 2), id="quarters"),
        pytest.param({"type": "number", "multipleOf": 10}, DECIMALS, decimal_kind(38, 0), id="tens"),
        pytest.param({"type": "number", "multipleOf": 0.01}, UNLIMITED, NUMBER, id="multipleOf-unlimited"),
        pytest.param({"type": "number", "multipleOf": 0.01}, DOUBLES, NUMBER, id="multipleOf-without-decimals"),
        pytest.param({"type": "number", "multipleOf": 1e-20}, DECIMALS, NUMBER, id="too-many-places"),
        pytest.param(
            {"type": "number", "multipleOf": Decimal("1e-10"), "maximum": 10**28, "exclusiveMaximum": True},
            DECIMALS,
            decimal_kind(38, 10),
            id="all-digits-as-draft-4-says",
        ),
        pytest.param(
            {"type": "number", "multipleOf": Decimal("1e-38"), "maximum": 10**62}, DECIMALS, NUMBER, id="100-digits"
        ),
        pytest.param({"type": ["integer", "number"], "multipleOf": 0.01}, DECIMALS, decimal_kind(38, 2), id="both"),
        pytest.param(
            {"anyOf": [{"type": "number", "multipleOf": 0.01}, {"type": "number"}]}, DECIMALS, NUMBER, id="any-number"
        ),
        pytest.param(
            {"anyOf": [{"type": "number", "multipleOf": step} for step in (0.01, 0.0001)]},
            DECIMALS,
            decimal_kind(38, 4),
            id="finest",
        ),
    ],
)
def test_a_number_with_bounds_and_steps_gets_a_column_that_is_exact(
    definition: Any, limits: TableLimits, kind: Kind
) -> None:
    assert kind_of(definition, {}, limits) is kind


INTEGERS, NUMBERS, CENTS = {"type": "integer"}, {"type": "number"}, {"type": "number", "multipleOf": 0.01}


@pytest.mark.parametrize(
    ("definition", "stored", "limits", "kind"),
    [
        pytest.param(INTEGERS, Stored("integer"), DECIMALS, INTEGER, id="as-declared"),
        pytest.param(INTEGERS, Stored("text"), DECIMALS, ANY_TEXT, id="integers-as-text"),
        pytest.param({"type": "string"}, Stored("text"), DECIMALS, TEXT, id="text"),
        pytest.param({"type": "string", "format": "date"}, Stored("time"), DECIMALS, INSTANT, id="dates-as-times"),
        pytest.param({"type": "string", "format": "date"}, Stored("date"), DECIMALS, DATE, id="dates"),
        pytest.param(INTEGERS, Stored("time"), DECIMALS, INTEGER, id="integers-instead-of-times"),
        pytest.param(CENTS, Stored("number"), DECIMALS, NUMBER, id="cents-as-doubles"),
        pytest.param(INTEGERS, Stored("number"), DECIMALS, INTEGER, id="integers-instead-of-doubles"),
        pytest.param(INTEGERS, Stored("decimal", 18, 0), DECIMALS, decimal_kind(18, 0), id="18-digits-of-a-user"),
        pytest.param(INTEGERS, Stored("decimal", 20, 2), DECIMALS, decimal_kind(20, 2), id="18-digits-and-cents"),
        pytest.param(INTEGERS, Stored("decimal", 19, 0), DECIMALS, INTEGER, id="all-digits-of-an-integer"),
        pytest.param(NUMBERS, Stored("decimal", 10, 2), DECIMALS, decimal_kind(10, 2), id="numbers-in-a-users-column"),
        pytest.param(NUMBERS, Stored("decimal", 38, 2), DECIMALS, NUMBER, id="numbers-are-not-bounded-any-more"),
        pytest.param(CENTS, Stored("decimal", 38, 2), DECIMALS, decimal_kind(38, 2), id="as-many-places"),
        pytest.param(CENTS, Stored("decimal", 10, 2), DECIMALS, decimal_kind(10, 2), id="fewer-digits"),
        pytest.param(CENTS, Stored("decimal", 38, 4), DECIMALS, decimal_kind(38, 4), id="more-places"),
        pytest.param(CENTS, Stored("decimal", 38, 1), DECIMALS, decimal_kind(38, 2), id="fewer-places"),
        pytest.param(INTEGERS, Stored("decimal", 10, 0), DOUBLES, INTEGER, id="an-engine-without-decimals"),
    ],
)
def test_an_existing_column_keeps_its_type_if_the_type_can_hold_every_value(
    definition: Any, stored: Stored, limits: TableLimits, kind: Kind
) -> None:
    (field,) = Shape.of({"properties": {"n": definition}}, [], stored={"n": stored}, limits=limits).fields

    assert field.kind is kind


SIZES = TableLimits(decimal_digits=38, sizes=True)


@pytest.mark.parametrize(
    ("definition", "keys", "stored", "fits", "too_large"),
    [
        pytest.param({"type": "string"}, [], Stored("text", size=3), "grö", "größ", id="characters"),
        pytest.param({"type": "string"}, [], Stored("text", size=3, is_in_bytes=True), "ab", "äöü", id="bytes"),
        pytest.param(INTEGERS, [], Stored("integer", size=16), -(2**15), 2**15, id="bits"),
        pytest.param(INTEGERS, [], Stored("integer", size=16, is_unsigned=True), 2**16 - 1, -1, id="no-sign"),
        pytest.param(NUMBERS, [], Stored("number", size=32), Decimal("0.5"), Decimal("1e300"), id="single-precision"),
        pytest.param({"type": "string"}, ["n"], Stored("text", size=3), "abc", "abcd", id="key"),
        pytest.param({"type": "string"}, ["n"], Stored("text", size=1), "a", "ab", id="key-of-one-character"),
        pytest.param({"type": "string"}, ["n"], Stored("text"), "x" * 255, "x" * 256, id="key-without-a-size"),
        pytest.param({"type": "string"}, ["n"], Stored("text", size=255), "x" * 255, "x" * 256, id="key-of-the-target"),
    ],
)
def test_a_value_that_exceeds_a_users_smaller_column_is_invalid(
    definition: Any, keys: list[str], stored: Stored, fits: Any, too_large: Any
) -> None:
    shape = Shape.of({"properties": {"n": definition}}, keys, stored={"n": stored}, limits=SIZES)

    assert row(shape, {"n": fits})[0] == fits
    with pytest.raises(Invalid):
        row(shape, {"n": too_large})


@pytest.mark.parametrize(("texts", "chars"), [(3, 255), (4, 192), (16, 48)])
def test_the_texts_of_a_key_share_its_length(texts: int, chars: int) -> None:
    keys = [f"k{number}" for number in range(texts)]
    properties = {key: {"type": "string"} for key in keys}
    shape = Shape.of({"properties": properties}, keys, limits=TableLimits(key_bytes=3_072))

    assert row(shape, dict.fromkeys(keys, "x" * chars))[:texts] == ("x" * chars,) * texts
    with pytest.raises(Invalid, match=f"has {chars + 1} characters, expected at most {chars} in a key"):
        row(shape, dict.fromkeys(keys, "x" * (chars + 1)))


@pytest.mark.parametrize("names", [["userName", "user_name", "user name"], ["user name", "user_name", "userName"]])
def test_the_column_of_a_property_does_not_depend_on_the_order_of_properties(names: list[str]) -> None:
    shape = Shape.of({"properties": {name: {"type": "string"} for name in names}}, [])

    assert {field.property: field.column for field in shape.fields} == {
        "user_name": "user_name",
        "user name": "user_name_2",
        "userName": "user_name_3",
    }


def test_each_value_of_a_record_is_converted_to_the_kind_of_its_column() -> None:
    shape = Shape.of(
        {
            "properties": {
                "id": {"type": "string"},
                "createdAt": {"type": "string", "format": "date-time"},
                "born": {"type": "string", "format": "date"},
                "count": {"type": "integer"},
                "share": {"type": "number"},
                "open": {"type": "boolean"},
                "tags": {"type": "array"},
                "absent": {"type": "string"},
            }
        },
        ["id"],
    )
    record = {
        "id": 7,
        "createdAt": "2026-10-01T12:00:00+02:00",
        "born": "2000-02-29",
        "count": 3,
        "share": Decimal("0.1"),
        "open": True,
        "tags": ["a", Decimal("1.50")],
    }

    assert row(shape, record) == (
        "7",
        datetime(2026, 10, 1, 10, 0, tzinfo=UTC),
        date(2000, 2, 29),
        3,
        Decimal("0.1"),
        True,
        '["a",1.50]',
        None,
        None,
        READ_AT,
        LOADED_AT,
    )


def test_properties_that_are_not_in_the_schema_are_kept_as_json() -> None:
    shape = Shape.of({"properties": {"id": {"type": "string"}}}, ["id"])

    assert row(shape, {"id": "1", "new": {"x": Decimal("1.50")}, "id2": None}) == (
        "1",
        '{"new":{"x":1.50},"id2":null}',
        READ_AT,
        LOADED_AT,
    )


def test_other_properties_are_dropped_if_the_schema_forbids_them() -> None:
    shape = Shape.of({"properties": {"id": {"type": "string"}}, "additionalProperties": False}, ["id"])

    assert row(shape, {"id": "1", "new": 5}) == ("1", None, READ_AT, LOADED_AT)


@pytest.mark.parametrize("name", ["_sdc_extra", "_extra"])
def test_a_property_named_like_a_metadata_column_gets_another_column(name: str) -> None:
    shape = Shape.of({"properties": {name: {"type": "string"}}}, [])

    assert [field.column for field in shape.fields] == [f"{name}_2"]
    assert row(shape, {name: "mine"}) == ("mine", None, READ_AT, LOADED_AT)


def test_the_deletion_mark_of_a_record_does_not_become_another_column() -> None:
    properties = {"id": {"type": "string"}, "_sdc_deleted_at": {"type": ["null", "string"], "format": "date-time"}}
    shape = Shape.of({"properties": properties}, ["id"])

    assert [field.column for field in shape.fields] == ["id"]
    record = {"id": "1", "_sdc_deleted_at": "2026-10-05T00:00:00Z"}
    assert shape.row(record, extracted_at=READ_AT, loaded_at=LOADED_AT)[-1] == READ_AT


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        pytest.param({"name": "x"}, "id is missing", id="no-key"),
        pytest.param({"id": None, "name": "x"}, "id is null, but a part of the key", id="null-key"),
        pytest.param({"id": "1"}, "name is missing", id="no-required-property"),
    ],
)
def test_a_record_without_its_key_or_a_required_property_is_invalid(record: dict[str, Any], reason: str) -> None:
    properties = {"id": {"type": "string"}, "name": {"type": ["string", "null"]}}
    shape = Shape.of({"properties": properties, "required": ["name"]}, ["id"])

    with pytest.raises(MissingProperty) as error:
        row(shape, record)

    assert str(error.value) == reason


def test_a_required_property_may_be_null_unless_it_is_a_key() -> None:
    shape = Shape.of({"properties": {"id": {}, "name": {"type": "string"}}, "required": ["name"]}, ["id"])

    assert row(shape, {"id": "1", "name": None})[:2] == ("1", None)


@pytest.mark.parametrize("is_reference", [False, True], ids=["in-place", "by-reference"])
def test_an_empty_text_is_null_in_a_column_of_times_only_if_its_schema_allows_null(is_reference: bool) -> None:
    time: dict[str, Any] = {"type": "string", "format": "date-time"}
    definitions = {"set": time, "maybe": time | {"type": ["string", "null"]}}
    properties = {name: {"$ref": f"#/definitions/{name}"} for name in definitions} if is_reference else definitions
    shape = Shape.of({"properties": properties, "definitions": definitions}, [])

    assert row(shape, {"maybe": ""})[:2] == (None, None)
    with pytest.raises(Invalid):
        row(shape, {"set": ""})


def test_the_reason_names_the_property_and_not_the_value() -> None:
    shape = Shape.of({"properties": {"id": {"type": "string"}, "age": {"type": "integer"}}}, ["id"])

    with pytest.raises(Invalid) as error:
        row(shape, {"id": "1", "age": "Tom Jones"})

    assert str(error.value) == "age is text, expected a whole number"


@pytest.mark.parametrize(
    ("definition", "kind"),
    [
        pytest.param({"type": "string"}, KEY, id="text"),
        pytest.param({"type": ["string", "integer"]}, KEY, id="text-or-number"),
        pytest.param({}, KEY, id="anything"),
        pytest.param(None, KEY, id="not-in-the-schema"),
        pytest.param({"type": "integer"}, INTEGER, id="number"),
        pytest.param({"type": "integer", "maximum": 2**64}, INTEGER, id="65-bits-without-decimals"),
        pytest.param({"type": "string", "format": "date"}, DATE, id="date"),
        pytest.param(
            {"anyOf": [{"type": "string", "format": "date-time"}, {"type": "string"}]}, KEY, id="time-or-text"
        ),
    ],
)
def test_a_key_has_a_kind_that_can_be_indexed(definition: Any, kind: Kind) -> None:
    shape = Shape.of({"properties": {"id": definition} if definition is not None else {}}, ["id"])

    assert [(field.column, field.kind, field.required) for field in shape.fields] == [("id", kind, True)]
    assert shape.keys == ("id",)


def test_fixed_properties_have_their_kind_whatever_the_schema_contains() -> None:
    shape = Shape.of({"properties": {"points": {"type": "string"}}}, [], {"userId": IDENTIFIER, "points": POINTS})

    assert row(shape, {"points": "0.25", "userId": 5}) == ("5", Decimal("0.25"), None, READ_AT, LOADED_AT)

"""Inputs that other taps and databases really send. An earlier version lost, refused or changed each of them."""

from __future__ import annotations

import json
import re
from contextlib import nullcontext
from typing import Any

import pytest
from singer_sdk.exceptions import InvalidRecord

from target_crm.errors import InputError, WarehouseError
from tests.helpers.target import ACTIONS, INTEGER, TEXT, action, activate, load, query, record, schema, state, table

NUMBER = {"type": ["null", "number"]}
TIME = {"type": ["null", "string"], "format": "date-time"}
DAY = {"type": ["null", "string"], "format": "date"}


def versioned(stream: str, version: Any, **fields: Any) -> str:
    return json.dumps({"type": "RECORD", "stream": stream, "record": fields, "version": version})


def reasons(url: str) -> list[str]:
    return sorted(row["reason"] for row in table(url, "rejected_records", "reason"))


# Times


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("2024-03-01T10:00:00+02", "2024-03-01 08:00:00", id="offset-of-hours"),
        pytest.param("2024-03-01 10:00:00 +0530", "2024-03-01 04:30:00", id="spaces"),
        pytest.param("2024-03-01 10:00:00 UTC", "2024-03-01 10:00:00", id="utc-by-name"),
        pytest.param("20240301T100000Z", "2024-03-01 10:00:00", id="basic-format"),
        pytest.param("2024-03-01T10:00:00,123Z", "2024-03-01 10:00:00.123", id="comma-fraction"),
        pytest.param("2024-03-01T24:00:00Z", "2024-03-02 00:00:00", id="end-of-day"),
        pytest.param("20240229T2400Z", "2024-03-01 00:00:00", id="end-of-leap-day"),
        pytest.param("2016-12-31T23:59:60Z", "2017-01-01 00:00:00", id="leap-second"),
        pytest.param("2024-01-01 12:00:00.345960+00", "2024-01-01 12:00:00.345960", id="fraction-like-a-leap-second"),
        pytest.param("2017-01-01T00:59:60+01:00", "2017-01-01 00:00:00", id="leap-second-elsewhere"),
        pytest.param("2024-W09-5T10:00:00Z", "2024-03-01 10:00:00", id="week-date"),
        pytest.param("2024-061T10:00:00Z", "2024-03-01 10:00:00", id="ordinal-date"),
        pytest.param("2023-365T24:00Z", "2024-01-01 00:00:00", id="end-of-an-ordinal-date"),
        pytest.param("2024-03-01T10:00:00\u221205:00", "2024-03-01 15:00:00", id="minus-sign"),
        pytest.param("2024-03-01T10:30.5Z", "2024-03-01 10:30:30", id="fraction-of-a-minute"),
        pytest.param("20240301T1030,25+02", "2024-03-01 08:30:15", id="fraction-of-a-minute-in-basic-format"),
        pytest.param("2024-03-01 10.25", "2024-03-01 10:15:00", id="fraction-of-an-hour"),
        pytest.param("2024-03-01", "2024-03-01 00:00:00", id="date"),
        pytest.param("2024-03-01 10:00:00 +02", "2024-03-01 08:00:00", id="space-and-offset-of-hours"),
        pytest.param("2024-03-01t24:00z", "2024-03-02 00:00:00", id="small-letters"),
        pytest.param("2024-01-01+02:00", "2023-12-31 22:00:00", id="date-east-of-utc"),
        pytest.param("2024-01-01-05:00", "2024-01-01 05:00:00", id="date-west-of-utc"),
        pytest.param("2024-01-01Z", "2024-01-01 00:00:00", id="date-in-utc"),
        pytest.param("9999-12-31T23:59:59+14:00", "9999-12-31 09:59:59", id="year-9999"),
        pytest.param("0001-01-01T00:00:00-01:00", "0001-01-01 01:00:00", id="year-1"),
        pytest.param("", None, id="empty"),
    ],
)
def test_a_time_in_any_form_of_iso_8601_lands_as_its_instant(sqlite_url: str, text: str, expected: str | None) -> None:
    load(sqlite_url, [schema("t", {"id": TEXT, "at": TIME}, "id"), record("t", {"id": "1", "at": text})])

    assert reasons(sqlite_url) == []
    ((found,),) = query(sqlite_url, "SELECT at FROM t")
    assert (found and found.removesuffix("000").removesuffix(".000")) == expected


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        pytest.param("2024-13-01T00:00:00Z", "at is not an ISO 8601 time: month must be in 1..12", id="month"),
        pytest.param("2024-02-30T00:00:00Z", "at is not an ISO 8601 time: day is out of range for month", id="day"),
        pytest.param("2024-03-01T25:00:00Z", "at is not an ISO 8601 time: hour must be in 0..23", id="hour"),
        pytest.param("9999-12-31T23:59:59-05:00", "at is before the year 1 or after the year 9999 in UTC", id="far"),
        pytest.param(
            "2023-366", "at is not an ISO 8601 time: day is out of range for year", id="ordinal-date-of-another-year"
        ),
        pytest.param("2024-000", "at is not an ISO 8601 time: day is out of range for year", id="ordinal-date-of-zero"),
        pytest.param("1709287", "at is not an ISO 8601 time", id="seven-digits"),
        pytest.param("tomorrow", "at is not an ISO 8601 time", id="word"),
        pytest.param("2024-01-01310:00", "at is not an ISO 8601 time", id="digit-between-date-and-time"),
    ],
)
def test_the_reason_for_an_invalid_time_says_what_is_wrong(sqlite_url: str, text: str, reason: str) -> None:
    valid = record("t", {"id": "2", "at": None})

    load(sqlite_url, [schema("t", {"id": TEXT, "at": TIME}, "id"), record("t", {"id": "1", "at": text}), valid])

    assert [each.split(", not ")[0] for each in reasons(sqlite_url)] == [reason]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("2024-01-01T00:00:00Z", "2024-01-01", id="midnight"),
        pytest.param("2024-01-01 00:00:00", "2024-01-01", id="midnight-without-offset"),
        pytest.param("20240101", "2024-01-01", id="basic-format"),
        pytest.param("2024-W01-1", "2024-01-01", id="week-date"),
        pytest.param("2024-01-01+02:00", "2024-01-01", id="offset"),
        pytest.param("2024-001", "2024-01-01", id="ordinal-date"),
        pytest.param("", None, id="empty"),
    ],
)
def test_a_date_column_accepts_times_at_midnight(warehouse_url: str, text: str, expected: str | None) -> None:
    load(warehouse_url, [schema("t", {"id": TEXT, "d": DAY}, "id"), record("t", {"id": "1", "d": text})])

    assert reasons(warehouse_url) == []
    ((found,),) = query(warehouse_url, "SELECT d FROM t")
    assert (found and str(found)) == expected


# Values


@pytest.mark.parametrize(
    "word",
    [
        "collation",
        "lateral",
        "tablesample",
        "concurrently",
        "returning",
        "nothing",
        "portion",
        "select",
        "order",
        "key",
    ],
)
def test_a_keyword_is_a_valid_name_of_a_column_and_of_a_stream(warehouse_url: str, word: str) -> None:
    keyed = schema(word, {"id": INTEGER, word: TEXT}, "id")

    load(warehouse_url, [keyed, record(word, {"id": 1, word: "a"})])
    load(warehouse_url, [keyed, record(word, {"id": 1, word: "b"})])

    assert query(warehouse_url, f'SELECT "{word}" FROM "{word}"') == [("b",)]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        pytest.param(989 - 6, None, id="most"),
        pytest.param(
            990 - 6, r"stream 'w': .* table 'w' would have 990 columns, more than the 989 that fit on sqlite", id="more"
        ),
    ],
)
def test_a_stream_with_too_many_columns_is_refused_at_its_schema(
    sqlite_url: str, columns: int, message: str | None
) -> None:
    wide = schema("w", {"id": INTEGER} | {f"c{number}": TEXT for number in range(columns)}, "id")
    lines = [wide, record("w", {"id": 1, "c1": "x"}), schema("other", {"id": TEXT}, "id"), record("other", {"id": "1"})]

    with pytest.raises(WarehouseError, match=message) if message else nullcontext():
        load(sqlite_url, lines)
        load(sqlite_url, [wide, record("w", {"id": 1, "c1": "y"})])

    assert query(sqlite_url, "SELECT id FROM other") == [("1",)]
    if not message:
        assert query(sqlite_url, "SELECT c1 FROM w") == [("y",)]


# The input as a whole


def test_byte_order_marks_of_concatenated_files_are_skipped(sqlite_url: str) -> None:
    keyed, row, last = schema("t", {"id": TEXT}, "id"), record("t", {"id": "1"}), state({"n": 1})

    loaded = load(sqlite_url, ["\ufeff" + keyed, "\ufeff" + row, last])

    assert (loaded.states, query(sqlite_url, "SELECT id FROM t")) == (['{"n":1}'], [("1",)])


def test_a_run_that_could_load_nothing_of_a_stream_fails_after_committing_the_others(sqlite_url: str) -> None:
    bad = [record("bad", {"id": str(n), "n": "many"}) for n in range(2)]
    lines = [schema("bad", {"id": TEXT, "n": INTEGER}, "id"), schema("good", {"id": TEXT}, "id"), *bad]

    with pytest.raises(InputError, match=r"quarantined 2 of 2 records of bad; see rejected_records"):
        load(sqlite_url, [*lines, record("good", {"id": "1"})])

    assert query(sqlite_url, "SELECT id FROM good") == [("1",)]
    assert len(reasons(sqlite_url)) == 2
    assert {row["exit_state"] for row in table(sqlite_url, "load_runs", "exit_state")} == {"failed"}


@pytest.mark.parametrize(
    ("bad", "fraction", "fails"),
    [(10, 0.1, False), (11, 0.1, True), (11, 0.2, False), (100, 0.99, True), (100, 1, False)],
)
def test_a_run_fails_if_more_than_a_fraction_of_a_stream_was_quarantined(
    sqlite_url: str, bad: int, fraction: float, fails: bool
) -> None:
    records = [record("t", {"id": str(n), "n": "many" if n < bad else n}) for n in range(100)]
    lines = [schema("t", {"id": TEXT, "n": INTEGER}, "id"), *records]

    if fails:
        with pytest.raises(InputError, match=f"quarantined {bad} of 100 records of t"):
            load(sqlite_url, lines, max_rejected_fraction=fraction)
    else:
        load(sqlite_url, lines, max_rejected_fraction=fraction)

    assert query(sqlite_url, "SELECT count(*) FROM t") == [(100 - bad,)]


def test_records_that_cannot_be_read_count_for_their_stream(sqlite_url: str) -> None:
    people, other = schema("people", {"id": TEXT}, "id"), schema("other", {"id": TEXT}, "id")
    lost = ['{"type":"RECORD","stream":"people","record":{"id":"2","score":NaN}}'] * 3

    with pytest.raises(InputError, match="quarantined 3 of 3 records of people"):
        load(sqlite_url, [people, *lost, other, record("other", {"id": "1"})])

    assert query(sqlite_url, "SELECT id FROM other") == [("1",)]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        pytest.param(
            '{"type": "SCHEMA", "stream": "s", "schema": {"properties": {"n": {"maximum": Infinity}}}}',
            "line 1: a SCHEMA message that cannot be read (stream 's'): the line is not a Singer message: "
            "it has Infinity, which is not a JSON number",
            id="infinity",
        ),
        pytest.param(
            schema("s", {"id": TEXT}, "id")[:60],
            "line 1: a SCHEMA message that cannot be read (stream 's'): the line is not a Singer message",
            id="cut-off",
        ),
        pytest.param(
            '{"type":"SCHEMA","str',
            "line 1: a SCHEMA message that cannot be read: the line is not a Singer message",
            id="cut-off-before-the-name",
        ),
        pytest.param(
            schema("s", {"id": TEXT}, "id") + record("s", {"id": "0"}),
            "line 1: a SCHEMA message that cannot be read (stream 's'): the line is not a Singer message",
            id="two-messages-in-a-line",
        ),
        pytest.param(
            '{"key_properties": ["id"], "schema": {"properties": {"n": {"type": "number", "maximum": NaN}}}, '
            '"stream": "s", "type": "SCHEMA"}',
            "line 1: a SCHEMA message that cannot be read (stream 's'): the line is not a Singer message: "
            "it has NaN, which is not a JSON number",
            id="type-at-the-end",
        ),
        pytest.param(
            '{"key_properties": ["id"], "schema": {"properties": {"n": {"type": "number"',
            "line 1: a SCHEMA message that cannot be read: the line is not a Singer message",
            id="cut-off-before-the-type",
        ),
        pytest.param(
            record("s", {"id": "0"})[:40] + schema("s", {"id": TEXT}, "id"),
            "line 1: a SCHEMA message that cannot be read (stream 's'): the line is not a Singer message",
            id="after-another-message",
        ),
        pytest.param(
            schema("s", {"id": TEXT}, "id").replace("SCHEMA", "schema"),
            "quarantined 3 of 3 records of s; see rejected_records for the reasons",
            id="unknown-type",
        ),
        pytest.param(
            "INFO Starting sync",
            "quarantined 2 of 2 records of s; see rejected_records for the reasons",
            id="no-message-at-all",
        ),
    ],
)
def test_a_stream_whose_schema_cannot_be_read_makes_the_run_fail(sqlite_url: str, line: str, message: str) -> None:
    records = [record("s", {"id": "1"}), record("s", {"id": "2"})]
    other = [schema("other", {"id": TEXT}, "id"), record("other", {"id": "1"})]

    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        load(sqlite_url, [line, *records, *other])


def test_a_record_that_contains_a_schema_message_is_quarantined_if_it_is_cut_off(sqlite_url: str) -> None:
    cut = '{"stream": "s", "record": {"id": "2", "sent": {"type": "SCHEMA", "stream": "s"'

    load(sqlite_url, [schema("s", {"id": TEXT}, "id"), record("s", {"id": "1"}), cut])

    assert query(sqlite_url, "SELECT id FROM s") == [("1",)]
    assert reasons(sqlite_url) == ["the line is not a Singer message"]


# Keywords of JSON Schema


@pytest.mark.parametrize(
    ("definition", "sent", "landed"),
    [
        pytest.param({"type": None}, "a", "a", id="type"),
        pytest.param({"type": ["string", None]}, "a", "a", id="null-in-the-list-of-types"),
        pytest.param({"type": "string", "format": None}, "a", "a", id="format"),
        pytest.param(
            {"format": None, "pattern": None, "items": None, "properties": None}, 1, "1", id="implying-a-type"
        ),
        pytest.param({"enum": None, "type": "integer"}, 1, 1, id="enum"),
        pytest.param(
            {"anyOf": None, "oneOf": None, "allOf": None, "$ref": None, "type": "string"}, "a", "a", id="unions"
        ),
        pytest.param({"type": "string", "anyOf": [None, {"type": "null"}]}, "a", "a", id="choice"),
        pytest.param({"type": "integer", "anyOf": [{"type": None}]}, 1, 1, id="type-of-a-choice"),
        pytest.param({"allOf": [{"type": None}, {"type": "integer"}]}, 1, 1, id="type-of-a-part"),
        pytest.param({"type": "integer", "minimum": None, "maximum": None}, 1, 1, id="bounds"),
        pytest.param({"type": "number", "multipleOf": None}, 1.5, 1.5, id="step"),
        pytest.param({"type": "number", "multipleOf": 0}, 1.5, 1.5, id="step-of-zero"),
        pytest.param({"type": "datetime"}, "a", "a", id="unknown-type"),
    ],
)
def test_a_schema_keyword_that_is_null_or_unknown_counts_as_absent(
    sqlite_url: str, definition: Any, sent: Any, landed: Any
) -> None:
    words = {"required": None, "additionalProperties": None, "type": None}
    message = json.loads(schema("s", {"id": TEXT, "x": definition}, "id"))
    message["schema"] |= words

    load(sqlite_url, [json.dumps(message), record("s", {"id": "1", "x": sent, "y": None})])

    assert query(sqlite_url, "SELECT x FROM s") == [(landed,)]


def test_properties_that_are_null_count_as_absent(sqlite_url: str) -> None:
    message = {"type": "SCHEMA", "stream": "s", "schema": {"properties": None}, "key_properties": ["id"]}

    load(sqlite_url, [json.dumps(message), record("s", {"id": "1", "x": 5})])

    assert query(sqlite_url, "SELECT id, _sdc_extra FROM s") == [("1", '{"x":5}')]


@pytest.mark.parametrize(
    ("definition", "reason"),
    [
        pytest.param("string", "its schema is text, expected an object", id="no-schema"),
        pytest.param({"anyOf": ["string"]}, "its schema is text, expected an object", id="choice"),
        pytest.param({"type": 7}, '"type" is a number, expected text or a list', id="type"),
        pytest.param({"type": [{}]}, '"type" has an object in its list, expected type names', id="types"),
        pytest.param({"anyOf": {}}, '"anyOf" is an object, expected a list', id="anyOf"),
        pytest.param({"allOf": "x"}, '"allOf" is text, expected a list', id="allOf"),
        pytest.param({"enum": "a"}, '"enum" is text, expected a list', id="enum"),
        pytest.param({"type": "string", "format": ["date"]}, '"format" is a list, expected text', id="format"),
        pytest.param({"type": "integer", "maximum": "9"}, '"maximum" is text, expected a number', id="bound"),
        pytest.param({"type": "integer", "minimum": True}, '"minimum" is a boolean, expected a number', id="boolean"),
        pytest.param({"type": "number", "multipleOf": "cents"}, '"multipleOf" is text, expected a number', id="step"),
        pytest.param({"$ref": 1}, '"$ref" is a number, expected text', id="reference"),
    ],
)
def test_a_keyword_of_the_wrong_type_stops_at_the_schema_and_is_named(
    sqlite_url: str, definition: Any, reason: str
) -> None:
    message = f"stream 's', in its SCHEMA message: property 'x': {reason}"

    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        load(sqlite_url, [schema("s", {"id": TEXT, "x": definition}, "id"), record("s", {"id": "1"})])


@pytest.mark.parametrize(
    ("word", "value", "reason"),
    [
        ("properties", [], '"properties" is a list, expected an object'),
        ("required", "id", '"required" is text, expected a list'),
    ],
)
def test_the_error_names_a_keyword_of_the_wrong_type_at_the_top_of_a_schema(
    sqlite_url: str, word: str, value: Any, reason: str
) -> None:
    message = json.loads(schema("s", {"id": TEXT}, "id"))
    message["schema"][word] = value

    with pytest.raises(InputError, match=re.escape(f"stream 's', in its SCHEMA message: {reason}")):
        load(sqlite_url, [json.dumps(message), record("s", {"id": "1"})])


# Deletions


@pytest.mark.parametrize("hard_delete", [False, True])
@pytest.mark.parametrize(
    "unreadable",
    [
        pytest.param('{"type":"RECORD","stream":"people","record":{"id":"2","score":NaN},"version":2}', id="nan"),
        pytest.param(
            '{"type":"RECORD","stream":"people","record":{"id":"2","name":"\\ud800"},"version":2}', id="surrogate"
        ),
        pytest.param('{"type":"RECORD","record":{"id":"2"},"version":2', id="cut-off"),
        pytest.param(
            json.dumps({"type": "RECORD", "stream": "people", "record": {"id": "2", "name": "x" * 2**24}}), id="long"
        ),
        pytest.param(
            '{"type":"RECORD","stream":"p\\u0065ople","record":{"id":"2","score":NaN},"version":2}', id="escaped-name"
        ),
        pytest.param(
            '{"type":"RECORD","stream":"people","record":{"id":["2"],"name":"x"},"version":2}', id="invalid-key"
        ),
        pytest.param(
            '{"type":"RECORD","record":{"id":"2","score":NaN,"stream":"other"},"version":2}', id="name-in-the-record"
        ),
        pytest.param(
            '{"type":"RECORD","record":{"id":"2","score":1,"stream":"other"},"vers',
            id="name-in-a-record-that-is-cut-off",
        ),
        pytest.param(
            '{"type":"RECORD","stream":"other","record":{"i{"type":"RECORD","record":{"id":"2"}', id="two-in-a-line"
        ),
    ],
)
def test_a_row_whose_record_was_unreadable_is_not_deleted(sqlite_url: str, hard_delete: bool, unreadable: str) -> None:
    people = schema("people", {"id": TEXT, "name": TEXT, "score": NUMBER}, "id")
    first = [versioned("people", 1, id=key) for key in "12"]

    load(sqlite_url, [people, *first, activate("people", 1)], hard_delete=hard_delete)
    load(
        sqlite_url,
        [people, versioned("people", 2, id="1"), unreadable, *[activate("people", 2)] * 2],
        hard_delete=hard_delete,
    )

    assert query(sqlite_url, "SELECT id FROM people WHERE _sdc_deleted_at IS NULL ORDER BY id") == [("1",), ("2",)]
    ignored = "SELECT sum(ignored_activations) FROM load_runs WHERE stream = 'people'"
    assert [int(count) for (count,) in query(sqlite_url, ignored)] == [2]


def test_a_row_whose_record_came_before_its_schema_is_not_deleted(sqlite_url: str) -> None:
    people = schema("people", {"id": TEXT}, "id")
    early, late = versioned("people", 2, id="2"), versioned("people", 2, id="1")

    load(sqlite_url, [people, *(versioned("people", 1, id=key) for key in "12"), activate("people", 1)])
    load(sqlite_url, [early, people, late, activate("people", 2)])

    assert query(sqlite_url, "SELECT id FROM people WHERE _sdc_deleted_at IS NULL ORDER BY id") == [("1",), ("2",)]


@pytest.mark.parametrize("version", [None, "x", True])
def test_rows_of_this_run_without_a_version_are_not_deleted(sqlite_url: str, version: Any) -> None:
    people = schema("people", {"id": TEXT}, "id")

    load(
        sqlite_url,
        [people, versioned("people", version, id="1"), record("people", {"id": "2"}), activate("people", 3)],
    )

    assert query(sqlite_url, "SELECT id FROM people WHERE _sdc_deleted_at IS NULL ORDER BY id") == [("1",), ("2",)]


def test_a_version_may_be_written_as_text(sqlite_url: str) -> None:
    people = schema("people", {"id": TEXT}, "id")
    first = [versioned("people", "6", id=key) for key in "12"]

    load(sqlite_url, [people, *first, activate("people", "6")])
    load(sqlite_url, [people, versioned("people", "7", id="1"), activate("people", "7")])

    assert query(sqlite_url, "SELECT id FROM people WHERE _sdc_deleted_at IS NULL") == [("1",)]


@pytest.mark.parametrize("hard_delete", [False, True])
def test_a_record_with_sdc_deleted_at_deletes_its_row_until_a_later_one_brings_it_back(
    sqlite_url: str, hard_delete: bool
) -> None:
    keyed = schema("s", {"id": INTEGER, "v": TEXT, "_sdc_deleted_at": TIME}, "id")
    rows = [record("s", {"id": n, "v": "a"}) for n in (1, 2)]
    deletion = record("s", {"id": 2, "v": "a", "_sdc_deleted_at": "2026-11-01T00:00:00Z"})

    load(sqlite_url, [keyed, *rows], hard_delete=hard_delete)
    load(sqlite_url, [keyed, deletion], hard_delete=hard_delete)

    found = [
        (key, deleted is not None)
        for key, deleted in query(sqlite_url, "SELECT id, _sdc_deleted_at FROM s ORDER BY id")
    ]
    assert found == ([(1, False)] if hard_delete else [(1, False), (2, True)])

    load(sqlite_url, [keyed, record("s", {"id": 2, "v": "b"})], hard_delete=hard_delete)

    assert query(sqlite_url, "SELECT id, v FROM s WHERE _sdc_deleted_at IS NULL ORDER BY id") == [(1, "a"), (2, "b")]


@pytest.mark.parametrize("hard_delete", [False, True])
@pytest.mark.parametrize("declared", [{}, {"_sdc_deleted_at": TIME}], ids=["not-declared", "declared"])
def test_a_deletion_may_contain_nothing_but_the_key(
    sqlite_url: str, hard_delete: bool, declared: dict[str, Any]
) -> None:
    keyed = json.loads(schema("s", {"id": INTEGER, "v": TEXT} | declared, "id"))
    keyed["schema"]["required"] = ["id", "v"]
    deletion = record("s", {"id": 2, "_sdc_deleted_at": "2026-11-01T00:00:00Z"})

    load(
        sqlite_url,
        [json.dumps(keyed), *(record("s", {"id": key, "v": "a"}) for key in (1, 2)), deletion],
        hard_delete=hard_delete,
    )

    assert query(sqlite_url, "SELECT id FROM s WHERE _sdc_deleted_at IS NULL") == [(1,)]
    assert query(sqlite_url, "SELECT id FROM s WHERE _sdc_deleted_at IS NOT NULL") == [(2,)] * (not hard_delete)


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        pytest.param(["update", "delete"], [("b", True)], id="update-then-deletion"),
        pytest.param(["delete", "update"], [("b", False)], id="deletion-then-update"),
        pytest.param(["update", "delete", "insert"], [("c", False)], id="brought-back"),
        pytest.param(["delete", "update", "delete"], [("b", True)], id="deleted-twice"),
        pytest.param(["delete", "named"], [("d", True)], id="values-in-the-second-deletion"),
        pytest.param(["named", "delete"], [("d", True)], id="values-in-the-first-deletion"),
        pytest.param(["both", "named"], [("d", True)], id="other-values-in-each-deletion"),
    ],
)
@pytest.mark.parametrize("batch_size_rows", [1, 10], ids=["batch-each", "one-batch"])
def test_a_deletion_keeps_the_values_of_the_record_before_it(
    sqlite_url: str, sent: list[str], expected: list[tuple[str, bool]], batch_size_rows: int
) -> None:
    deleted = {"_sdc_deleted_at": "2026-11-01T00:00:00Z"}
    records = {
        "update": {"id": 1, "v": "b"},
        "insert": {"id": 1, "v": "c"},
        "delete": {"id": 1} | deleted,
        "named": {"id": 1, "v": "d"} | deleted,
        "both": {"id": 1, "v": "e", "n": 8} | deleted,
    }
    keyed = schema("s", {"id": INTEGER, "v": TEXT, "n": INTEGER, "w": TEXT}, "id")
    load(sqlite_url, [keyed, record("s", {"id": 1, "v": "a", "n": 7, "w": "z"})])

    # All of them have the same `time_extracted`, like the records of a log-based run.
    load(sqlite_url, [keyed, *(record("s", records[name]) for name in sent)], batch_size_rows=batch_size_rows)

    found = query(sqlite_url, "SELECT v, _sdc_deleted_at IS NOT NULL FROM s")
    assert [(value, bool(is_deleted)) for value, is_deleted in found] == expected


def test_a_deletion_may_empty_a_column_and_leave_out_another(sqlite_url: str) -> None:
    keyed = schema("s", {"v": TEXT, "n": INTEGER, "id": INTEGER}, "id")
    load(sqlite_url, [keyed, record("s", {"v": "a", "n": 7, "id": 1})])

    load(sqlite_url, [keyed, record("s", {"v": None, "id": 1, "_sdc_deleted_at": "2026-11-01T00:00:00Z"})])

    assert query(sqlite_url, "SELECT v, n, _sdc_deleted_at IS NOT NULL FROM s") == [(None, 7, 1)]


@pytest.mark.parametrize("hard_delete", [False, True])
def test_deletions_of_a_stream_without_a_key_are_appended_with_one_warning(
    sqlite_url: str, hard_delete: bool, caplog: pytest.LogCaptureFixture
) -> None:
    deletions = [record("s", {"n": number, "_sdc_deleted_at": "2026-11-01T00:00:00Z"}) for number in (1, 2)]

    load(sqlite_url, [schema("s", {"n": INTEGER}), record("s", {"n": 1}), *deletions], hard_delete=hard_delete)

    assert query(sqlite_url, "SELECT n, _sdc_deleted_at IS NULL FROM s ORDER BY n, 2") == [(1, 0), (1, 1), (2, 0)]
    assert caplog.text.count("s: the stream has no key, so no row can be marked as deleted") == 1


def test_an_older_deletion_changes_nothing_and_counts_as_superseded(sqlite_url: str) -> None:
    keyed = schema("s", {"id": INTEGER, "v": TEXT}, "id")
    older = record("s", {"id": 1, "_sdc_deleted_at": "2026-11-01T00:00:00Z"}, at="2026-10-01T00:00:00Z")
    lines = [keyed, record("s", {"id": 1, "v": "a"}), older]

    tallies = [load(sqlite_url, messages).tallies["s"] for messages in (lines, [keyed, older])]

    assert tallies == [
        "2 read = 1 applied + 0 duplicate + 1 superseded + 0 quarantined",
        "1 read = 0 applied + 0 duplicate + 1 superseded + 0 quarantined",
    ]
    assert query(sqlite_url, "SELECT v, _sdc_deleted_at FROM s") == [("a", None)]


def test_a_deletion_whose_time_cannot_be_read_is_quarantined(sqlite_url: str) -> None:
    keyed = schema("s", {"id": INTEGER}, "id")

    load(sqlite_url, [keyed, record("s", {"id": 1}), record("s", {"id": 1, "_sdc_deleted_at": "20 Nov 2026"})])

    assert [row["reason"] for row in table(sqlite_url, "rejected_records", "reason")] == [
        "_sdc_deleted_at is not an ISO 8601 time"
    ]


# The ledger


def test_an_action_read_again_with_fewer_or_masked_fields_is_a_duplicate_with_one_warning(
    warehouse_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    full = [json.loads(action(f"a{n}")) for n in range(3)]
    for message in full:
        message["record"] |= {"environment": "LIVE"}
    load(warehouse_url, [ACTIONS, *map(json.dumps, full)])
    before = table(warehouse_url, "actions"), table(warehouse_url, "award_balances")

    for message in full:
        del message["record"]["environment"]
        message["record"]["context"]["user"]["_id"] = "masked"
    caplog.clear()
    again = load(warehouse_url, [ACTIONS, *map(json.dumps, full)], batch_size_rows=2)

    assert again.tallies == {"actions": "3 read = 0 applied + 3 duplicate + 0 superseded + 0 quarantined"}
    assert (table(warehouse_url, "actions"), table(warehouse_url, "award_balances")) == before
    warnings = [each.getMessage() for each in caplog.records if each.levelname == "WARNING"]
    assert warnings == [
        "actions: some were read again with other values in user_id (3), environment (3); the ledger keeps the old ones"
    ]


@pytest.mark.parametrize("batch_size_rows", [1, 9])
def test_an_action_that_a_later_one_completes_causes_no_warning(
    warehouse_url: str, caplog: pytest.LogCaptureFixture, batch_size_rows: int
) -> None:
    without_effect = json.loads(action("a1"))
    without_effect["record"]["type"] = "REWARD_VOID"

    loaded = load(warehouse_url, [ACTIONS, json.dumps(without_effect), action("a1")], batch_size_rows=batch_size_rows)

    assert loaded.tallies == {"actions": "2 read = 2 applied + 0 duplicate + 0 superseded + 0 quarantined"}
    assert query(warehouse_url, "SELECT type, effect FROM actions") == [("REWARD_EARNED", "earned")]
    assert not [each.getMessage() for each in caplog.records if "read again" in each.getMessage()]


@pytest.mark.parametrize(
    ("lacked", "column", "reason"),
    [
        pytest.param({"context": None}, "user_id", "context.user._id is missing", id="user"),
        pytest.param(
            {"metadata": {"pointsAvailable": 2, "pointsAdded": 2}},
            "award_id",
            "metadata.awardId is missing",
            id="award",
        ),
        pytest.param({"when": {}}, "occurred_at", "when.timestamp is missing", id="time"),
    ],
)
def test_an_action_that_lacks_a_needed_field_is_a_duplicate_if_the_ledger_has_its_id(
    sqlite_url: str, caplog: pytest.LogCaptureFixture, lacked: dict[str, Any], column: str, reason: str
) -> None:
    load(sqlite_url, [ACTIONS, action("known")])
    messages = [ACTIONS, action("known", **lacked), action("new", **lacked), action("here", **lacked), action("here")]
    caplog.clear()

    again = load(sqlite_url, messages)

    assert again.tallies == {"actions": "4 read = 1 applied + 2 duplicate + 0 superseded + 1 quarantined"}
    assert reasons(sqlite_url) == [reason]
    assert query(sqlite_url, "SELECT action_count, earned_total FROM award_balances") == [(2, 4)]
    warnings = [each.getMessage() for each in caplog.records if "read again" in each.getMessage()]
    differing = {"award_id": "award_id (2), perk_id (2)"}.get(column, f"{column} (2)")
    assert warnings == [
        f"actions: some were read again with other values in {differing}; the ledger keeps the old ones"
    ]
    load(sqlite_url, messages[:2], on_invalid_record="fail")
    with pytest.raises(InvalidRecord, match=re.escape(reason)):
        load(sqlite_url, messages[:3], on_invalid_record="fail")

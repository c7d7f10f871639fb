"""Inputs in the forms that other taps and databases send. What an engine stores for them depends on the engine."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import select, text

from target_crm.records.names import to_text
from tests.helpers.target import activate, load, record, schema, table, with_version

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from target_crm.warehouse.connection import Warehouse

TEXT, INTEGER, NUMBER, BOOLEAN, OBJECT = (
    {"type": [name, "null"]} for name in ("string", "integer", "number", "boolean", "object")
)
TIME, DAY = ({"type": ["string", "null"], "format": name} for name in ("date-time", "date"))
KEYWORDS = (
    *("collation", "lateral", "tablesample", "concurrently", "returning", "nothing", "portion"),
    *("select", "order", "group", "key", "user", "values", "window", "offset", "rank", "check", "column", "end"),
)
SYSTEM_NAMES = (
    *("xmin", "XMAX", "cmin", "cmax", "ctid", "tableoid", "oid", "rowid", "_rowid_", "ROWID"),
    *("db_row_id", "DB_TRX_ID", "db_roll_ptr", "FTS_DOC_ID", "true", "FALSE", "null"),
)
TIMES = {
    "2024-03-01T10:00:00+02": "2024-03-01 08:00:00",
    "2024-03-01 10:00:00 +0530": "2024-03-01 04:30:00",
    "20240301T100000Z": "2024-03-01 10:00:00",
    "2024-03-01T10:00:00,123Z": "2024-03-01 10:00:00.123000",
    "2024-03-01T24:00:00Z": "2024-03-02 00:00:00",
    "2016-12-31T23:59:60Z": "2017-01-01 00:00:00",
    "9999-12-31T23:59:59+14:00": "9999-12-31 09:59:59",
    "0001-01-01T00:00:00-01:00": "0001-01-01 01:00:00",
    "": None,
}
DELETED = "2026-11-01T00:00:00Z"
LARGEST, SMALLEST = "1.7976931348623157e308", "5e-324"

Row = tuple[Any, ...]


@dataclass(frozen=True)
class Case:
    """Runs of the target, and what the warehouse contains after them.

    Attributes:
        runs: The messages of each run.
        rows: For each stream, its properties and their values, row by row, in the order of the first property.
        rejected: The reasons for the records in quarantine.
        settings: The settings for all runs.
    """

    runs: Sequence[Sequence[str]]
    rows: Mapping[str, tuple[Sequence[str], Sequence[Row]]]
    rejected: Sequence[str] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)


def line(stream: str, fields: str) -> str:
    """A RECORD message whose values are written in JSON as given."""
    return f'{{"type": "RECORD", "stream": "{stream}", "record": {{{fields}}}}}'


def whole_schema(stream: str, definition: Mapping[str, Any], *keys: str) -> str:
    return json.dumps({"type": "SCHEMA", "stream": stream, "schema": definition, "key_properties": list(keys)})


def named(stream: str, names: Sequence[str]) -> list[str]:
    """A record with the name of each property as its value."""
    fields = {name: name for name in names}
    return [schema(stream, {"id": INTEGER} | dict.fromkeys(names, TEXT), "id"), record(stream, {"id": 1} | fields)]


PEOPLE = schema("t_people", {"id": INTEGER, "name": TEXT, "score": NUMBER}, "id")
VERSIONED = [PEOPLE, *(with_version(1, record("t_people", {"id": each})) for each in (1, 2)), activate("t_people", 1)]
UNREADABLE = '{"type":"RECORD","stream":"t_people","record":{"id":2,"name":"b","score":NaN},"version":2}'
LOGGED = schema("t_log", {"id": INTEGER, "v": TEXT, "n": NUMBER, "doc": OBJECT}, "id")
LOGGED_ROWS = [record("t_log", {"id": each, "v": "a", "n": 1.5, "doc": {"a": 1}, "more": 1}) for each in (1, 2)]
KEY_ONLY = record("t_log", {"id": 2, "_sdc_deleted_at": DELETED})
MONEY = schema("t_money", {"id": INTEGER, "cents": NUMBER | {"multipleOf": 0.01}, "n": NUMBER}, "id")
BIG = INTEGER | {"minimum": 0, "maximum": 2**64 - 1}
WORDS = {
    "definitions": {"money": {"type": ["null", "number"]}, "at": {"$ref": "#/definitions/time"}, "time": TIME},
    "properties": {
        "id": INTEGER,
        "amount": {"$ref": "#/definitions/money"},
        "created": {"$ref": "#/definitions/at"},
        "name": {"allOf": [{"type": "string"}, {"maxLength": 9}]},
        "state": {"enum": ["a", None]},
        "fixed": {"const": 5},
        "any": {},
        "void": None,
        "tree": {"$ref": "#"},
    },
}
EITHER = {"anyOf": [{"type": "string", "format": "date-time"}, {"type": ["string", "null"]}]}

CASES = {
    "a-later-property-with-the-name-of-a-column": Case(
        [
            [
                schema("t_deals", {"id": INTEGER, "Deal Stage": TEXT}, "id"),
                record("t_deals", {"id": 1, "Deal Stage": "a"}),
            ],
            [
                schema("t_deals", {"id": INTEGER, "deal_stage": TEXT, "Deal Stage": TEXT}, "id"),
                record("t_deals", {"id": 2, "Deal Stage": "b", "deal_stage": "c"}),
            ],
        ],
        {"t_deals": (("id", "Deal Stage", "deal_stage"), [(1, "a", None), (2, "b", "c")])},
    ),
    "properties-that-differ-by-accents-or-case": Case(
        [
            named("t_accents", names)
            for names in (["naïve"], ["naïve", "naive", "NAIVE", "straße", "strase", "strasse"])
        ],
        {"t_accents": (("id", "naïve", "naive", "NAIVE"), [(1, "naïve", "naive", "NAIVE")])},
    ),
    "streams-with-similar-names": Case(
        [
            [schema(name, {"id": INTEGER, "v": TEXT}, "id"), record(name, {"id": 1, "v": name})]
            for name in ("t_shop-orders", "t_shop_orders", "t_Shop orders", "t_shöp-orders")
        ],
        {
            name: (("id", "v"), [(1, name)])
            for name in ("t_shop-orders", "t_shop_orders", "t_Shop orders", "t_shöp-orders")
        },
    ),
    "camel-case-then-snake-case": Case(
        [
            [
                schema("t_camel", {"id": INTEGER, "ownerId": TEXT}, "id"),
                record("t_camel", {"id": 1, "ownerId": "a"}),
                schema("t_camel", {"id": INTEGER, "owner_id": TEXT, "ownerId": TEXT}, "id"),
                record("t_camel", {"id": 2, "ownerId": "b", "owner_id": "c"}),
            ]
        ],
        {"t_camel": (("id", "ownerId", "owner_id"), [(1, "a", None), (2, "b", "c")])},
    ),
    "keywords": Case([named("t_words", KEYWORDS)] * 2, {"t_words": (("id", *KEYWORDS), [(1, *KEYWORDS)])}),
    "reserved-names": Case(
        [named("t_system", SYSTEM_NAMES)] * 2, {"t_system": (("id", *SYSTEM_NAMES), [(1, *SYSTEM_NAMES)])}
    ),
    **{
        f"an-unreadable-record-then-activate-version-{mode}": Case(
            [VERSIONED, [PEOPLE, with_version(2, record("t_people", {"id": 1})), UNREADABLE, activate("t_people", 2)]],
            {"t_people": (("id", "_sdc_deleted_at"), [(1, None), (2, None)])},
            ["the line is not a Singer message: it has NaN, which is not a JSON number"],
            {"hard_delete": mode == "hard"},
        )
        for mode in ("marked", "hard")
    },
    "activate-version-after-records-without-one": Case(
        [[PEOPLE, record("t_people", {"id": 1}), record("t_people", {"id": 2}), activate("t_people", 3)]],
        {"t_people": (("id", "_sdc_deleted_at"), [(1, None), (2, None)])},
    ),
    "times-in-any-form": Case(
        [
            [
                schema("t_times", {"id": INTEGER, "at": TIME}, "id"),
                *(record("t_times", {"id": number, "at": at}) for number, at in enumerate(TIMES)),
            ]
        ],
        {"t_times": (("id", "at"), list(enumerate(TIMES.values())))},
    ),
    "an-empty-part-of-a-key": Case(
        [
            [
                schema("t_parts", {"day": DAY, "country": TEXT, "n": INTEGER}, "day", "country"),
                *(record("t_parts", {"day": "2024-01-01", "country": key, "n": 1}) for key in ("US", "", "0", None)),
                record("t_parts", {"day": "2024-01-01", "country": "", "n": 2}),
            ]
        ],
        {"t_parts": (("country", "n"), [("", 2), ("0", 1), ("US", 1)])},
        ["country is null, but a part of the key"],
    ),
    "integers-of-64-bits-and-beyond": Case(
        [
            [
                schema("t_big", {"id": INTEGER, "n": BIG}, "id"),
                record("t_big", {"id": -(2**63), "n": 2**64 - 1}),
                record("t_big", {"id": 2**63 - 1, "n": -(2**63)}),
                record("t_big", {"id": 2**63, "n": 1}),
            ]
        ],
        {"t_big": (("id", "n"), [(-(2**63), 2**64 - 1), (2**63 - 1, -(2**63))])},
        [f"id is out of the range of 64 bits, {-(2**63)} to {2**63 - 1}"],
    ),
    "references-and-unions-in-a-schema": Case(
        [
            [
                whole_schema("t_refs", WORDS, "id"),
                record(
                    "t_refs",
                    {"id": 1, "amount": 12.5, "created": "2024-03-01T10:00:00Z", "name": "al", "state": "a", "fixed": 5}
                    | {"any": "x", "void": "y", "tree": {"id": 2}},
                ),
            ]
        ],
        {
            "t_refs": (
                ("id", "amount", "created", "name", "state", "fixed", "any", "void", "tree"),
                [(1, 12.5, "2024-03-01 10:00:00", "al", "a", 5, "x", "y", {"id": 2})],
            )
        },
    ),
    "a-schema-without-properties": Case(
        [[whole_schema("t_events", {"type": "object"}, "_id"), record("t_events", {"_id": "a", "n": 3})]],
        {"t_events": (("_id", "_sdc_extra"), [("a", {"n": 3})])},
    ),
    "a-date-that-becomes-a-time": Case(
        [
            [schema("t_due", {"id": INTEGER, "due": DAY}, "id"), record("t_due", {"id": 1, "due": "2024-02-29"})],
            [
                schema("t_due", {"id": INTEGER, "due": TIME}, "id"),
                record("t_due", {"id": 2, "due": "2024-03-01T10:20:30.5Z"}),
            ],
        ],
        {"t_due": (("id", "due"), [(1, "2024-02-29 00:00:00"), (2, "2024-03-01 10:20:30.500000")])},
    ),
    "a-schema-that-becomes-narrower": Case(
        [
            [
                schema(
                    "t_narrow", {"id": INTEGER, "code": TEXT, "flag": TEXT, "doc": TEXT, "n": NUMBER, "at": TIME}, "id"
                ),
                record("t_narrow", {"id": 1, "code": "007", "flag": "x", "doc": "y", "n": 0.5, "at": DELETED}),
            ],
            [
                schema(
                    "t_narrow",
                    {"id": INTEGER, "code": INTEGER, "flag": BOOLEAN, "doc": OBJECT, "n": INTEGER, "at": DAY},
                    "id",
                ),
                record("t_narrow", {"id": 2, "code": 7, "flag": True, "doc": {"a": 1}, "n": 3, "at": "2024-03-01"}),
            ],
        ],
        {
            "t_narrow": (
                ("id", "code", "flag", "doc", "n", "at"),
                [
                    (1, "007", "x", "y", 0.5, "2026-11-01 00:00:00"),
                    (2, "7", "true", '{"a":1}', 3, "2024-03-01 00:00:00"),
                ],
            )
        },
    ),
    "scalars-without-loss": Case(
        [
            [
                schema("t_scalars", {"id": INTEGER, "t": TEXT, "d": NUMBER}, "id"),
                line("t_scalars", f'"id": 1, "t": 5, "d": {LARGEST}'),
                line("t_scalars", f'"id": 2, "t": true, "d": {SMALLEST}'),
                line("t_scalars", '"id": 3, "t": 1.50, "d": -2.2250738585072014e-308'),
                line("t_scalars", '"id": 4, "t": -0, "d": -0'),
            ]
        ],
        {
            "t_scalars": (
                ("id", "t", "d"),
                [
                    (1, "5", float(LARGEST)),
                    (2, "true", float(SMALLEST)),
                    (3, "1.50", -2.2250738585072014e-308),
                    (4, "0", 0),
                ],
            )
        },
    ),
    "a-time-or-any-text": Case(
        [
            [
                schema("t_either", {"id": INTEGER, "at": EITHER, "time": {"type": "string", "format": "time"}}, "id"),
                record("t_either", {"id": 1, "at": "2024-03-01T10:00:00Z", "time": "10:00:00"}),
                record("t_either", {"id": 2, "at": "soon", "time": "10:00"}),
            ]
        ],
        {
            "t_either": (
                ("id", "at", "time", "_sdc_extra"),
                [(1, "2024-03-01 10:00:00", "10:00:00", None), (2, None, "10:00", {"at": "soon"})],
            )
        },
    ),
    "exact-decimals": Case(
        [[MONEY, line("t_money", '"id": 1, "cents": 12345678901234567.89, "n": 0.25')]],
        {"t_money": (("id", "cents", "n"), [(1, Decimal("12345678901234567.89"), 0.25)])},
    ),
    "a-deletion-with-values": Case(
        [
            [LOGGED, *LOGGED_ROWS],
            [LOGGED, record("t_log", {"id": 2, "v": None, "n": 2, "_sdc_deleted_at": DELETED})],
        ],
        {
            "t_log": (
                ("id", "v", "n", "doc", "_sdc_extra", "_sdc_deleted_at"),
                [
                    (1, "a", 1.5, {"a": 1}, {"more": 1}, None),
                    (2, None, 2, {"a": 1}, {"more": 1}, "2026-11-01 00:00:00"),
                ],
            )
        },
    ),
    **{
        f"a-deletion-with-only-the-key-{name}": Case(
            runs,
            {
                "t_log": (
                    ("id", "v", "n", "doc", "_sdc_extra", "_sdc_deleted_at"),
                    [
                        (1, "a", 1.5, {"a": 1}, {"more": 1}, None),
                        (2, "a", 1.5, {"a": 1}, {"more": 1}, "2026-11-01 00:00:00"),
                    ],
                )
            },
        )
        for name, runs in {
            "in-a-later-run": [[LOGGED, *LOGGED_ROWS], *[[LOGGED, KEY_ONLY]] * 2],
            "in-the-same-batch": [[LOGGED, *LOGGED_ROWS, KEY_ONLY]],
        }.items()
    },
    "a-hard-deletion-with-only-the-key": Case(
        [[LOGGED, *LOGGED_ROWS], [LOGGED, KEY_ONLY]],
        {"t_log": (("id", "v"), [(1, "a")])},
        settings={"hard_delete": True},
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_real_input_lands_on_every_engine_as_it_was_meant(crm: Warehouse, case: Case) -> None:
    for messages in case.runs:
        load(crm, messages, max_rejected_fraction=1.0, **case.settings)

    assert sorted(row["reason"] for row in table(crm, "rejected_records", "reason")) == sorted(case.rejected)
    for stream, (properties, expected) in case.rows.items():
        rows = values_of(crm, stream, properties)
        assert len(rows) == len(expected), stream
        for found, wanted in zip(rows, expected, strict=True):
            for name, got, value in zip(properties, found, wanted, strict=True):
                assert normal(got, value, exact=crm.limits.decimal_digits != 0) == value, name


def values_of(crm: Warehouse, stream: str, properties: Sequence[str]) -> list[Row]:
    """The values of a stream's properties, in the columns that are recorded for them."""
    streams, columns = crm.tables.streams, crm.tables.columns
    with crm.read() as connection:
        name, stream_id = connection.execute(
            select(streams.c.table_name, streams.c.stream_id).where(streams.c.stream == to_text(stream))
        ).one()
        of_stream = select(columns.c.property, columns.c.column_name).where(columns.c.stream_id == stream_id)
        column_of = dict(connection.execute(of_stream).tuples().all())
        quote = connection.dialect.identifier_preparer.quote
        chosen = [quote(column_of.get(each, each)) for each in properties]
        query = f"SELECT {', '.join(chosen)} FROM {quote(name)} ORDER BY {chosen[0]}"
        return [tuple(row) for row in connection.execute(text(query))]


def normal(found: Any, expected: Any, *, exact: bool) -> Any:
    """Convert a value to the form of the expected value, because engines return values in different forms."""
    if isinstance(found, datetime):
        return str(found.replace(tzinfo=None))
    if isinstance(expected, dict) and isinstance(found, str):
        return json.loads(found)
    if isinstance(expected, float) and isinstance(found, Decimal):
        return float(found)
    if isinstance(expected, int | Decimal) and not exact and isinstance(found, float):
        return expected if found == float(expected) else found
    if isinstance(expected, str) and isinstance(found, str) and found.startswith(expected):
        # SQLite stores times as text.
        return expected if set(found.removeprefix(expected)) <= set(".0") else found
    return found

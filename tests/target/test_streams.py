"""Streams other than `actions`: tables and columns from their schemas, upserts by key, and stream maps."""

from __future__ import annotations

import json
from decimal import Decimal
from hashlib import md5

from tests.helpers.target import (
    ACTIONS,
    AWARDS,
    INTEGER,
    NUMBER,
    TEXT,
    action,
    activate,
    execute,
    load,
    query,
    record,
    schema,
    snapshot,
    state,
    table,
)


def test_other_streams_are_upserted_by_their_key(warehouse_url: str) -> None:
    perks = schema(
        "perks", {"_id": TEXT, "title": TEXT, "rules": {"type": "object"}, "open": {"type": "boolean"}}, "_id"
    )
    load(
        warehouse_url,
        [
            perks,
            record("perks", {"_id": "p1", "title": "Stamp", "open": True}, "2026-10-01T00:00:00Z"),
            record("perks", {"_id": "p2", "title": "Coin", "rules": {"every": [1.50, "ü"]}}, "2026-10-01T00:00:00Z"),
        ],
    )

    later = load(
        warehouse_url,
        [
            perks,
            record("perks", {"_id": "p1", "title": "Old", "open": True}, "2026-09-01T00:00:00Z"),
            record("perks", {"_id": "p2", "title": "Coins"}, "2026-10-02T00:00:00Z"),
            record("perks", {"_id": "p3", "title": "New", "extra": 1}, "2026-10-02T00:00:00Z"),
            record("perks", {"_id": "p3", "title": "New", "extra": 1}, "2026-10-02T00:00:00Z"),
        ],
    )

    assert later.tallies == {"perks": "4 read = 2 applied + 1 duplicate + 1 superseded + 0 quarantined"}
    rows = query(
        warehouse_url, "SELECT _id, title, CAST(rules AS text), open, CAST(_sdc_extra AS text) FROM perks ORDER BY _id"
    )
    assert rows == [
        ("p1", "Stamp", None, True, None),
        ("p2", "Coins", None, None, None),
        ("p3", "New", None, None, '{"extra":1}'),
    ]


def test_the_last_of_several_rows_extracted_at_the_same_time_is_kept(warehouse_url: str) -> None:
    loaded = load(
        warehouse_url,
        [schema("t", {"id": TEXT, "n": INTEGER}, "id"), *(record("t", {"id": "1", "n": n}) for n in (1, 2, 3))],
        batch_size_rows=2,
    )

    assert query(warehouse_url, "SELECT id, n FROM t") == [("1", 3)]
    assert loaded.tallies == {"t": "3 read = 2 applied + 0 duplicate + 1 superseded + 0 quarantined"}


def test_the_last_of_several_rows_without_time_extracted_is_kept(warehouse_url: str) -> None:
    load(
        warehouse_url,
        [schema("t", {"id": TEXT, "n": INTEGER}, "id"), *(record("t", {"id": "1", "n": n}, None) for n in range(5))],
        batch_size_rows=3,
    )

    assert query(warehouse_url, "SELECT id, n FROM t") == [("1", 4)]


def test_a_stream_without_a_key_is_appended(warehouse_url: str) -> None:
    messages = [schema("visits", {"place": TEXT}), record("visits", {"place": "a"}), record("visits", {"place": "a"})]

    loaded = [load(warehouse_url, messages) for _ in range(2)]

    assert query(warehouse_url, "SELECT place FROM visits") == [("a",)] * 4
    assert loaded[1].tallies == {"visits": "2 read = 2 applied + 0 duplicate + 0 superseded + 0 quarantined"}


def test_a_key_may_have_two_properties(warehouse_url: str) -> None:
    definition = schema("t", {"shop": TEXT, "day": {"type": "string", "format": "date"}, "n": NUMBER}, "shop", "day")
    rows = [("a", "2026-10-01", 0.1), ("a", "2026-10-02", 1), ("b", "2026-10-01", 2), ("a", "2026-10-01", 0.25)]

    load(
        warehouse_url,
        [definition, *(record("t", {"shop": shop, "day": day, "n": n}) for shop, day, n in rows)],
        batch_size_rows=3,
    )

    found = query(warehouse_url, "SELECT shop, day, n FROM t ORDER BY shop, day")
    assert [(shop, str(day), float(n)) for shop, day, n in found] == [
        ("a", "2026-10-01", 0.25),
        ("a", "2026-10-02", 1.0),
        ("b", "2026-10-01", 2.0),
    ]


def test_new_properties_become_columns_during_a_run_and_in_a_later_run(warehouse_url: str) -> None:
    load(
        warehouse_url,
        [
            schema("t", {"id": TEXT}, "id"),
            record("t", {"id": "1", "name": "early"}),
            schema("t", {"id": TEXT, "name": TEXT}, "id"),
            record("t", {"id": "2", "name": "in time"}),
        ],
    )
    load(warehouse_url, [schema("t", {"id": TEXT, "count": INTEGER}, "id"), record("t", {"id": "3", "count": 5})])

    assert query(warehouse_url, "SELECT id, name, count, CAST(_sdc_extra AS text) FROM t ORDER BY id") == [
        ("1", None, None, '{"name":"early"}'),
        ("2", "in time", None, None),
        ("3", None, 5, None),
    ]


def test_columns_missing_from_the_schema_keep_their_values(warehouse_url: str) -> None:
    load(
        warehouse_url,
        [
            schema("t", {"id": TEXT, "name": TEXT, "size": INTEGER}, "id"),
            record("t", {"id": "1", "name": "old", "size": 1}),
            record("t", {"id": "2", "name": "kept", "size": 2}),
        ],
    )
    execute(warehouse_url, "ALTER TABLE t ADD COLUMN note text")
    execute(warehouse_url, "UPDATE t SET note = 'by hand'")

    messages = [schema("t", {"id": TEXT, "name": TEXT}, "id"), record("t", {"id": "1", "name": "new"})]
    load(warehouse_url, [*messages, record("t", {"id": "3", "name": "late"})])

    assert query(warehouse_url, "SELECT id, name, size, note FROM t ORDER BY id") == [
        ("1", "new", 1, "by hand"),
        ("2", "kept", 2, "by hand"),
        ("3", "late", None, None),
    ]


def test_names_may_be_reserved_words_or_long_or_clash(warehouse_url: str) -> None:
    properties = {
        "select": TEXT,
        "userName": TEXT,
        "user_name": TEXT,
        "_rank": INTEGER,
        "_seq": INTEGER,
        "x" * 90: TEXT,
    }
    values = {"select": "1", "userName": "a", "user_name": "b", "_rank": 7, "_seq": 8, "x" * 90: "c"}

    load(warehouse_url, [schema("order", properties, "select"), *[record("order", values)] * 2])

    columns = f'"select", user_name, user_name_2, _rank_2, _seq_2, {"x" * 60}'
    assert query(warehouse_url, f'SELECT {columns} FROM "order"') == [("1", "b", "a", 7, 8, "c")]


def test_streams_with_long_names_do_not_share_a_work_table(warehouse_url: str) -> None:
    one, other = "x" * 58 + "1", "x" * 58 + "2"

    load(
        warehouse_url,
        [
            schema(one, {"id": TEXT, "v": INTEGER}, "id"),
            schema(other, {"id": TEXT, "v": TEXT}, "id"),
            record(one, {"id": "1", "v": 5}),
            record(other, {"id": "1", "v": "five"}),
        ],
    )

    assert query(warehouse_url, f"SELECT id, v FROM {one}") == [("1", 5)]
    assert query(warehouse_url, f"SELECT id, v FROM {other}") == [("1", "five")]


def test_awards_are_keyed_by_id_even_if_the_schema_has_no_key(sqlite_url: str) -> None:
    keyless = json.loads(AWARDS)
    del keyless["key_properties"]

    loaded = load(sqlite_url, [json.dumps(keyless), snapshot("w1", 5), snapshot("w1", 5), record("awards", {})])

    assert loaded.tallies == {"awards": "3 read = 1 applied + 1 duplicate + 0 superseded + 1 quarantined"}
    assert table(sqlite_url, "award_balances", "award_id", "points") == [{"award_id": "w1", "points": Decimal(5)}]


def test_the_awards_table_keeps_properties_that_no_balance_needs(warehouse_url: str) -> None:
    more = json.loads(AWARDS)
    more["schema"]["properties"]["updated_at"] = INTEGER

    fields = {"_id": "w1", "points": "0.25", "userId": 7, "perkId": "p1", "updatedAt": None, "updated_at": 5, "x": [1]}
    load(warehouse_url, [json.dumps(more), record("awards", fields, "2026-10-01T00:00:00Z")])

    assert query(warehouse_url, "SELECT user_id, updated_at, updated_at_2, CAST(_sdc_extra AS text) FROM awards") == [
        ("7", None, 5, '{"x":[1]}')
    ]
    (balance,) = table(warehouse_url, "award_balances", "points", "as_of")
    assert (balance["points"], balance["as_of"].isoformat()) == (Decimal("0.25"), "2026-10-01T00:00:00+00:00")


def test_an_error_of_the_database_does_not_repeat_the_value(new_postgres_url: str) -> None:
    load(new_postgres_url, [schema("t", {"id": TEXT, "n": TEXT}, "id"), record("t", {"id": "1", "n": "7"})])
    execute(new_postgres_url, "ALTER TABLE t ADD COLUMN number int GENERATED ALWAYS AS (n::int) STORED")

    lines = [record("t", {"id": "2", "n": "Tom Jones"}), record("t", {"id": "3", "n": "9"})]
    load(new_postgres_url, [schema("t", {"id": TEXT, "n": TEXT}, "id"), *lines])

    ((reason,),) = query(new_postgres_url, "SELECT reason FROM rejected_records")
    assert reason.startswith("table t: ")
    assert reason.endswith(": a value was rejected")
    assert query(new_postgres_url, "SELECT id, n FROM t ORDER BY id") == [("1", "7"), ("3", "9")]


def test_two_streams_may_share_a_table_through_a_stream_map(sqlite_url: str) -> None:
    loaded = load(
        sqlite_url,
        [
            schema("north", {"id": TEXT, "wind": INTEGER}, "id", required=["wind"]),
            record("north", {"id": "1", "wind": 1}),
            schema("south", {"id": TEXT, "sun": TEXT}, "id", required=["sun"]),
            record("south", {"id": "2", "sun": "yes"}),
            record("north", {"id": "3", "wind": 3}),
            state({"n": 1}),
        ],
        stream_maps={"north": {"__alias__": "places"}, "south": {"__alias__": "places"}},
    )

    assert query(sqlite_url, "SELECT id, wind, sun FROM places ORDER BY id") == [
        ("1", 1, None),
        ("2", None, "yes"),
        ("3", 3, None),
    ]
    assert loaded.tallies == {"places": "3 read = 3 applied + 0 duplicate + 0 superseded + 0 quarantined"}


def test_a_stream_that_a_stream_map_removes_is_ignored(sqlite_url: str) -> None:
    # Without the map, the name of the stream would be an error: it is reserved.
    messages = [
        schema("user_balances", {"id": TEXT}, "id"),
        record("user_balances", {"id": "1"}),
        activate("user_balances", 1),
    ]

    loaded = load(sqlite_url, [*messages, state({"n": 1})], stream_maps={"user_balances": None})

    assert (loaded.states, loaded.tallies) == (['{"n":1}'], {})


def test_a_stream_map_can_hash_the_user_id(sqlite_url: str) -> None:
    hashed = "dict(user=dict(_id=md5(context['user']['_id'])))"

    load(sqlite_url, [ACTIONS, action("a1", user="tom@example.com")], stream_maps={"actions": {"context": hashed}})

    user_id = md5(b"tom@example.com").hexdigest()
    assert table(sqlite_url, "award_balances", "award_id", "user_id", "points") == [
        {"award_id": "w1", "user_id": user_id, "points": Decimal(2)}
    ]
    assert query(sqlite_url, "SELECT count(*) FROM actions WHERE CAST(payload AS text) LIKE '%tom@%'") == [(0,)]


def test_floats_and_times_computed_by_a_stream_map_are_loaded(sqlite_url: str) -> None:
    maps = {
        "t": {"ratio": "float(a) / 8", "day": "datetime.date(2026, 10, 1)"},
        "awards": {"points": "float(points) / 100", "updatedAt": "datetime.datetime(2026, 10, 1, 12)"},
    }
    messages = [schema("t", {"id": TEXT, "a": NUMBER}, "id"), record("t", {"id": "1", "a": 0.5})]

    load(sqlite_url, [*messages, AWARDS, snapshot("w1", 29)], stream_maps=maps)

    assert table(sqlite_url, "rejected_records") == []
    ((ratio, day),) = query(sqlite_url, "SELECT ratio, day FROM t")
    assert (float(ratio), str(day)) == (0.0625, "2026-10-01")
    (balance,) = table(sqlite_url, "award_balances", "points", "as_of")
    assert (balance["points"], balance["as_of"].isoformat()) == (Decimal("0.29"), "2026-10-01T12:00:00+00:00")

"""Lines and records that cannot be loaded: `rejected_records` keeps each with its line number and the reason."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from target_crm.loader import reader
from tests.helpers.target import (
    ACTIONS,
    AWARDS,
    INTEGER,
    TEXT,
    action,
    load,
    query,
    record,
    schema,
    snapshot,
    state,
    table,
)

if TYPE_CHECKING:
    import pytest


def test_incomplete_messages_are_quarantined_with_line_and_reason(sqlite_url: str) -> None:
    lines = [
        '{"type":"STATE"}',
        '{"type":"STATE","value":null}',
        '{"type":"RECORD","stream":["x"],"record":{}}',
        '{"type":"RECORD","stream":"actions","record":[]}',
        '{"type":"RECORD","stream":"early","record":{"id":1}}',
    ]

    loaded = load(sqlite_url, [ACTIONS, *lines, state({"n": 1})], max_rejected_fraction=1)

    assert loaded.states == ['{"n":1}']
    assert loaded.tallies == {"": "5 read = 0 applied + 0 duplicate + 0 superseded + 5 quarantined"}
    assert [
        (row["input_line"], row["reason"])
        for row in sorted(table(sqlite_url, "rejected_records"), key=lambda row: row["input_line"])
    ] == [
        (2, "the STATE message has no value"),
        (3, "the STATE message has no value"),
        (4, "the RECORD message has no stream or no record"),
        (5, "the RECORD message has no stream or no record"),
        (6, "the record came before its stream's SCHEMA"),
    ]


def test_an_action_may_have_numbers_that_no_decimal_holds_where_no_column_needs_them(warehouse_url: str) -> None:
    numbers = f"[{'9' * 5000}, 1e9999999999999999999]"
    first, other = (action("a1", available=points, note="@").replace('"@"', numbers) for points in (2, 3))

    load(warehouse_url, [ACTIONS, first])
    load(warehouse_url, [ACTIONS, first, other], max_rejected_fraction=1)

    assert numbers in query(warehouse_url, "SELECT CAST(payload AS TEXT) FROM actions")[0][0]
    (rejected,) = table(warehouse_url, "rejected_records")
    assert rejected["reason"] == "the ledger has this _id with another award, effect, time or points"
    assert numbers in rejected["payload"]


def test_the_quarantine_keeps_the_beginning_of_an_overlong_line(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "LINE_BYTES_MAX", 2000)

    loaded = load(sqlite_url, [ACTIONS, action("a1", note="x" * 3000), action("a2")])

    assert [row["action_id"] for row in table(sqlite_url, "actions")] == ["a2"]
    (rejected,) = table(sqlite_url, "rejected_records", "reason", "payload")
    assert rejected["reason"] == "the line is longer than 2,000 bytes"
    assert len(rejected["payload"]) == reader.HEAD_BYTES
    assert loaded.tallies[""] == "1 read = 0 applied + 0 duplicate + 0 superseded + 1 quarantined"


def test_an_award_whose_points_the_tap_has_moved_is_quarantined(sqlite_url: str) -> None:
    awards, moved = json.loads(AWARDS), json.loads(snapshot("w2", 5))
    awards["schema"].setdefault("properties", {})["invalid_points"] = {"type": ["object", "null"]}
    del moved["record"]["points"]
    moved["record"]["invalid_points"] = {"points": "many"}

    load(sqlite_url, [json.dumps(awards), snapshot("w1", 5), json.dumps(moved)])

    assert table(sqlite_url, "rejected_records", "reason") == [{"reason": "points is text, expected points"}]
    (row,) = table(sqlite_url, "awards")
    assert row["_id"] == "w1"
    assert "invalid_points" not in row


def test_a_record_with_an_invalid_time_extracted_loses_only_this_time(sqlite_url: str) -> None:
    began = datetime.now(UTC)

    load(sqlite_url, [AWARDS, snapshot("w1", 5, read_at="yesterday")])

    assert table(sqlite_url, "rejected_records", "reason") == []
    assert [row["_sdc_extracted_at"] > began for row in table(sqlite_url, "awards")] == [True]


def test_a_record_with_a_nul_character_is_quarantined_and_json_stays_readable(warehouse_url: str) -> None:
    messages = [
        *(ACTIONS, action("a1", note=r"no NUL: \u0000"), action("a2", note="\0"), action("a3", **{"n\0": 1})),
        schema("t", {"id": TEXT, "tags": {"type": "array"}}, "id"),
        record("t", {"id": "1", "tags": [r"no NUL: \\u0000"]}),
        record("t", {"id": "2", "tags": [{"a": r"a NUL after a backslash: \\" + "\0"}]}),
        record("t", {"id": "3", "more": "\0"}),
    ]

    load(warehouse_url, messages)

    if warehouse_url.startswith("postgresql"):
        assert query(warehouse_url, "SELECT payload->>'note', payload::jsonb->>'type' FROM actions") == [
            (r"no NUL: \u0000", "REWARD_EARNED")
        ]
    assert table(warehouse_url, "actions", "action_id") == [{"action_id": "a1"}]
    assert query(warehouse_url, "SELECT id FROM t") == [("1",)]
    assert sorted(row["reason"] for row in table(warehouse_url, "rejected_records", "reason")) == [
        "a property that is not in the schema holds a NUL character",
        "tags holds a NUL character",
        "the record holds a NUL character",
        "the record holds a NUL character",
    ]


def test_nul_characters_in_names_are_replaced_in_the_quarantine(warehouse_url: str) -> None:
    messages = [schema("a\0b", {"id": TEXT, "n\0": INTEGER}, "id"), record("a\0b", {"id": "1", "n\0": "x"})]

    load(warehouse_url, [*messages, record("a\0b", {"id": "2", "n\0": 5}), state({})])

    assert query(warehouse_url, "SELECT id, n_ FROM a_b") == [("2", 5)]
    assert table(warehouse_url, "rejected_records", "stream", "reason") == [
        {
            "stream": "a\N{REPLACEMENT CHARACTER}b",
            "reason": "n\N{REPLACEMENT CHARACTER} is text, expected a whole number",
        }
    ]

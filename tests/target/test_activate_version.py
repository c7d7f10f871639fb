"""ACTIVATE_VERSION: rows that the activated version lacks are marked in `_sdc_deleted_at`, or deleted."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest

from target_crm.errors import InputError, WarehouseError
from tests.helpers.target import (
    ACTIONS,
    AWARDS,
    INTEGER,
    NUMBER,
    TEXT,
    action,
    activate,
    load,
    query,
    record,
    run_target,
    schema,
    snapshot,
    state,
    table,
    with_version,
)

if TYPE_CHECKING:
    from pathlib import Path


DELETED = {"_sdc_deleted_at": "2020-11-01T00:00:00Z"}


def versioned(stream: str, key: str, version: int, **fields: Any) -> str:
    """A RECORD of a version, with a key and other fields."""
    return with_version(version, record(stream, {"id": key, **fields}))


def test_rows_missing_from_the_activated_version_are_marked_until_they_return(warehouse_url: str) -> None:
    keyed = schema("perks", {"id": TEXT}, "id")
    marks = "SELECT id, _sdc_deleted_at IS NOT NULL FROM perks ORDER BY id"

    load(warehouse_url, [keyed, versioned("perks", "1", 1), versioned("perks", "2", 1), activate("perks", 1)])
    load(warehouse_url, [keyed, versioned("perks", "1", 2), activate("perks", 2), activate("perks", 1)])
    assert query(warehouse_url, marks) == [("1", False), ("2", True)]

    load(warehouse_url, [keyed, versioned("perks", "2", 3), activate("perks", 3)])
    assert query(warehouse_url, marks) == [("1", True), ("2", False)]


def test_a_version_deletes_nothing_if_the_schema_has_several_merchants(sqlite_url: str) -> None:
    def read(merchant: str) -> str:
        interval = ["2026-10-01T00:00:00Z", "2026-10-02T00:00:00Z"]
        bookmark = {"replication_key_value": interval[1], "covered_from": interval[0], "read": [interval]}
        return state({"bookmarks": {"actions": {**bookmark, "merchant": merchant}}})

    keyed = schema("perks", {"id": TEXT}, "id")
    load(sqlite_url, [ACTIONS, action("a1"), read("m1"), keyed, versioned("perks", "1", 1), activate("perks", 1)])
    load(sqlite_url, [ACTIONS, action("a2"), read("m2"), keyed, versioned("perks", "2", 2)])
    with pytest.raises(InputError, match="the schema has several merchants"):
        load(sqlite_url, [keyed, versioned("perks", "2", 3), activate("perks", 3)])

    assert query(sqlite_url, "SELECT count(*) FROM perks WHERE _sdc_deleted_at IS NOT NULL") == [(0,)]


def test_a_deleted_row_that_returns_unchanged_loses_its_deletion_mark(sqlite_url: str, tmp_path: Path) -> None:
    keyed = schema("perks", {"id": TEXT, "title": TEXT}, "id")
    old, middle, new = (f"2026-10-0{day}T00:00:00Z" for day in (1, 2, 3))

    def run(version: int, **times: str) -> dict[str, bool]:
        """Load perks extracted at these times, all with the same title; return which rows are marked as deleted."""
        perks = [with_version(version, record("perks", {"id": key, "title": "Stamp"}, at)) for key, at in times.items()]
        ran = run_target(sqlite_url, tmp_path, keyed, *perks, activate("perks", version))
        assert ran.returncode == 0, ran.stderr
        rows = query(sqlite_url, "SELECT id, _sdc_deleted_at IS NOT NULL FROM perks WHERE title = 'Stamp'")
        return {key: bool(marked) for key, marked in rows}

    run(1, kept=middle, older=middle, equal=middle, newer=middle)
    without_three = run(2, kept=new)
    with_all = run(3, kept=new, older=old, equal=middle, newer=new)

    assert without_three == {"kept": False, "older": True, "equal": True, "newer": True}
    assert with_all == {"kept": False, "older": False, "equal": False, "newer": False}


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param([(1, {"title": "A"}, 7), (2, {"title": None, **DELETED}, None)], id="deletion-without-version"),
        pytest.param([(5, {"title": "A", **DELETED}, 7), (2, {"title": "old"}, 8)], id="older-record"),
    ],
)
@pytest.mark.parametrize("runs", [1, 2])
def test_an_older_record_does_not_undo_a_later_deletion(
    sqlite_url: str, sent: list[tuple[int, dict[str, Any], int | None]], runs: int
) -> None:
    keyed = schema("s", {"id": TEXT, "title": {"type": ["string", "null"]}}, "id")
    messages = [
        with_version(version, record("s", {"id": "1", **fields}, f"2026-10-0{day}T00:00:00Z"))
        for day, fields, version in sent
    ]

    for lines in [messages] if runs == 1 else [[each] for each in messages]:
        load(sqlite_url, [keyed, *lines])

    assert query(sqlite_url, "SELECT id FROM s WHERE _sdc_deleted_at IS NOT NULL") == [("1",)]


def test_hard_delete_removes_rows_missing_from_the_activated_version(warehouse_url: str) -> None:
    keyed = schema("t", {"id": TEXT}, "id")

    load(warehouse_url, [keyed, versioned("t", "1", 1)])
    load(warehouse_url, [keyed, versioned("t", "2", 2), activate("t", 2)], hard_delete=True)

    assert query(warehouse_url, "SELECT id FROM t") == [("2",)]


def test_a_deleted_award_leaves_user_balances_but_stays_in_award_balances(warehouse_url: str) -> None:
    load(warehouse_url, [AWARDS, with_version(1, snapshot("w1", 5)), with_version(1, snapshot("w2", 7))])
    load(warehouse_url, [AWARDS, activate("awards", 2)], hard_delete=True)

    assert query(warehouse_url, "SELECT * FROM user_balances") == []
    assert [row["points"] for row in table(warehouse_url, "award_balances")] == [Decimal(5), Decimal(7)]


def test_a_deletion_record_of_an_award_does_not_bring_back_the_points_of_deleted_awards(warehouse_url: str) -> None:
    deletion = record("awards", {"_id": "w2", **DELETED}, "2026-10-06T00:00:00Z")

    load(warehouse_url, [AWARDS, *(with_version(1, snapshot(award)) for award in ("w1", "w2")), snapshot("w3")])
    load(
        warehouse_url, [AWARDS, with_version(2, snapshot("w2")), with_version(2, snapshot("w3")), activate("awards", 2)]
    )
    load(warehouse_url, [AWARDS, deletion], hard_delete=True)

    assert query(warehouse_url, "SELECT _id FROM awards WHERE _sdc_deleted_at IS NOT NULL ORDER BY _id") == [
        ("w1",),
        ("w2",),
    ]
    assert query(warehouse_url, "SELECT points FROM user_balances") == [(5,)]


def test_a_hard_deletion_removes_only_the_row_that_it_names(warehouse_url: str) -> None:
    keyed = schema("t", {"shop": TEXT, "id": TEXT}, "shop", "id")

    def row(shop: str, key: str, **more: str) -> str:
        return record("t", {"shop": shop, "id": key, **more})

    load(warehouse_url, [keyed, row("s1", "1"), row("s1", "2"), row("s2", "1"), row("s2", "2", **DELETED)])
    load(warehouse_url, [keyed, row("s1", "1", **DELETED)], hard_delete=True)

    assert query(warehouse_url, "SELECT shop, id FROM t ORDER BY shop, id") == [("s1", "2"), ("s2", "1"), ("s2", "2")]


def test_a_hard_deletion_that_is_older_than_the_row_removes_nothing(warehouse_url: str) -> None:
    keyed = schema("t", {"id": TEXT}, "id")
    load(warehouse_url, [keyed, record("t", {"id": "1"}, "2026-10-06T00:00:00Z")])
    load(warehouse_url, [keyed, record("t", {"id": "1", **DELETED}, "2026-10-05T00:00:00Z")], hard_delete=True)

    assert query(warehouse_url, "SELECT id FROM t") == [("1",)]


def test_a_hard_deletion_spares_a_marked_row_that_the_batch_repeats(warehouse_url: str) -> None:
    keyed = schema("t", {"id": TEXT}, "id")
    marked = record("t", {"id": "2", **DELETED}, "2026-10-06T00:00:00Z")
    load(warehouse_url, [keyed, record("t", {"id": "1"}, "2026-10-06T00:00:00Z"), marked])
    older = record("t", {"id": "2"}, "2026-10-05T00:00:00Z")
    deletion = record("t", {"id": "1", **DELETED}, "2026-10-07T00:00:00Z")
    load(warehouse_url, [keyed, older, deletion], hard_delete=True)

    assert query(warehouse_url, "SELECT id FROM t") == [("2",)]


@pytest.mark.parametrize("batch_size_rows", [1, 9])
@pytest.mark.parametrize("hard_delete", [False, True])
def test_a_row_of_the_activated_version_stays_even_if_refused_or_superseded(
    warehouse_url: str, hard_delete: bool, batch_size_rows: int
) -> None:
    keyed = schema("perks", {"id": TEXT, "size": INTEGER}, "id")
    first = [versioned("perks", key, 1, size=1) for key in ("refused", "older", "missing")]
    older = json.loads(versioned("perks", "older", 2, size=0)) | {"time_extracted": "2026-10-01T00:00:00Z"}
    second = [versioned("perks", "refused", 2, size="many"), versioned("perks", "new", 2, size=[]), json.dumps(older)]

    settings = {"hard_delete": hard_delete, "batch_size_rows": batch_size_rows}
    load(warehouse_url, [keyed, *first, activate("perks", 1)], **settings)
    load(warehouse_url, [keyed, *second, activate("perks", 2)], **settings)

    assert query(warehouse_url, "SELECT id, size FROM perks WHERE _sdc_deleted_at IS NULL ORDER BY id") == [
        ("older", 1),
        ("refused", 1),
    ]
    assert query(warehouse_url, "SELECT id FROM perks WHERE _sdc_deleted_at IS NOT NULL") == [
        ("missing",) for _ in range(not hard_delete)
    ]


@pytest.mark.parametrize("hard_delete", [False, True])
def test_a_first_activation_that_would_delete_most_rows_needs_a_decision(
    sqlite_url: str, tmp_path: Path, hard_delete: bool
) -> None:
    keyed = schema("perks", {"id": TEXT}, "id")
    load(sqlite_url, [keyed, *(record("perks", {"id": key}) for key in "123")])
    messages = [keyed, versioned("perks", "1", 7), activate("perks", 7), state({"at": 1})]
    kept = "SELECT id FROM perks WHERE _sdc_deleted_at IS NULL ORDER BY id"

    refused = run_target(sqlite_url, tmp_path, *messages, hard_delete=hard_delete)

    assert (refused.returncode, refused.stdout) == (1, '{"at":1}\n')
    assert refused.stderr.splitlines()[-1] == (
        "target-crm: ignored ACTIVATE_VERSION of perks: 2 of 3 rows would be deleted because they have no version; "
        "if these rows were really deleted, raise max_deleted_fraction for one run"
    )
    assert query(sqlite_url, kept) == [("1",), ("2",), ("3",)]
    ignored = "SELECT exit_state, ignored_activations FROM load_runs WHERE stream = 'perks' AND ignored_activations > 0"
    assert query(sqlite_url, ignored) == [("failed", 1)]

    allowed = run_target(sqlite_url, tmp_path, *messages, hard_delete=hard_delete, max_deleted_fraction=1)

    assert allowed.returncode == 0, allowed.stderr
    assert query(sqlite_url, kept) == [("1",)]


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        pytest.param([("a", "1", 1), ("a", "2", 1), ("a", None, 2)], ["1", "2"], id="version-without-records"),
        pytest.param([("a", "1", 1), ("a", "2", 2), ("a", None, 2)], ["1", "2"], id="version-without-a-row"),
        pytest.param([("a", "1", 1), ("a", "2", 2), ("a", None, 1), ("a", None, 3)], ["1", "2"], id="later-version"),
        pytest.param([("a", "1", 1), ("a", None, 1), ("a", "2", 2), ("a", None, 2)], ["2"], id="read-again"),
        pytest.param([("a", "1", 5), ("b", "2", 3), ("a", None, 5)], ["1", "2"], id="another-stream"),
        pytest.param(
            [("a", "1", 5), ("a", None, 5), ("b", "2", 6), ("b", None, 6)], ["1", "2"], id="another-stream-is-done"
        ),
        pytest.param(
            [("a", "1", 5), ("b", "2", None), ("a", None, 5)], ["1", "2"], id="another-stream-without-version"
        ),
    ],
)
def test_a_run_does_not_delete_rows_that_it_has_seen(
    sqlite_url: str, sent: list[tuple[str, str | None, Any]], kept: list[str]
) -> None:
    maps = {"a": {"__alias__": "t"}, "b": {"__alias__": "t"}}
    messages = [versioned(each, key, version) if key else activate(each, version) for each, key, version in sent]

    load(sqlite_url, [*(schema(each, {"id": TEXT}, "id") for each in "ab"), *messages], stream_maps=maps)

    assert query(sqlite_url, "SELECT id FROM t WHERE _sdc_deleted_at IS NULL ORDER BY id") == [(key,) for key in kept]
    ignored = query(sqlite_url, "SELECT ignored_activations FROM load_runs WHERE stream = 't'")
    assert ignored == [(int(len(kept) > 1),)]


def test_an_award_without_points_is_not_marked_as_deleted(warehouse_url: str) -> None:
    without_points = snapshot("w1", None, at="2026-10-02T12:00:00Z")

    load(warehouse_url, [AWARDS, *(with_version(1, snapshot(award)) for award in ("w1", "w2", "w3"))])
    load(
        warehouse_url,
        [AWARDS, with_version(2, without_points), with_version(2, snapshot("w2", True)), activate("awards", 2)],
    )

    assert query(warehouse_url, "SELECT _id, points FROM awards WHERE _sdc_deleted_at IS NULL ORDER BY _id") == [
        ("w1", 5),
        ("w2", 5),
    ]


@pytest.mark.parametrize("version", [2**63, "two", 2.5, None])
def test_an_activate_version_without_a_valid_version_is_quarantined(sqlite_url: str, version: Any) -> None:
    keyed = schema("perks", {"id": TEXT}, "id")

    load(sqlite_url, [keyed, versioned("perks", "1", 1), activate("perks", version), state({})])

    assert query(sqlite_url, "SELECT id FROM perks WHERE _sdc_deleted_at IS NULL") == [("1",)]
    assert [row["reason"] for row in table(sqlite_url, "rejected_records", "reason")] == [
        "the ACTIVATE_VERSION message has no stream or no version"
    ]


def test_the_ledger_keeps_every_action_when_a_version_is_activated(sqlite_url: str) -> None:
    loaded = load(sqlite_url, [ACTIONS, action("a1"), activate("actions", 9), activate("unknown", 1), state({})])

    assert loaded.states == ["{}"]
    assert [row["action_id"] for row in table(sqlite_url, "actions")] == ["a1"]
    assert table(sqlite_url, "rejected_records", "reason") == []


def test_a_stopped_stream_protects_the_table_that_it_shares(sqlite_url: str) -> None:
    maps = {"people_b": {"__alias__": "people"}}
    people = {"id": TEXT, "n": NUMBER}
    streams = [schema(name, people, "id") for name in ("people", "people_b")]
    rows = [record("people", {"id": "1", "n": 1}), record("people_b", {"id": "2", "n": 1})]
    load(sqlite_url, [*streams, *(with_version(1, row) for row in rows), activate("people", 1)], stream_maps=maps)
    narrower = schema("people_b", people | {"n": {"type": "boolean"}}, "id")
    second = [streams[0], narrower, *(with_version(2, row) for row in rows), activate("people", 2)]

    with pytest.raises(WarehouseError, match=r"stream 'people_b': did not load 1 record: table 'people': column 'n'"):
        load(sqlite_url, second, stream_maps=maps)

    assert query(sqlite_url, "SELECT id, _sdc_deleted_at FROM people ORDER BY id") == [("1", None), ("2", None)]

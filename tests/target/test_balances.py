"""Balances: the same tables for any order, batch size and repetition, and equal to the oracle's."""

from __future__ import annotations

import json
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import example, given, settings

from target_crm.balances_cli.verify import rebuild, verify
from target_crm.warehouse.connection import Warehouse
from tests.helpers import oracle
from tests.helpers.deliveries import PERK_OF, START, USER_OF, deliver, deliveries
from tests.helpers.oracle import Action, Snapshot
from tests.helpers.target import ACTIONS, AWARDS, action, execute, load, query, snapshot, table
from tests.stress import size


def check_delivery(
    warehouse: Warehouse, delivery: tuple[list[Action | Snapshot], list[list[Action | Snapshot]], int]
) -> None:
    history, runs, batch_size_rows = delivery

    delivered = deliver(warehouse, runs, batch_size_rows)

    assert delivered["award_balances"] == oracle.balances(history, USER_OF)
    assert delivered["rejected_records"] == []
    assert not verify(warehouse).drifted
    rebuild(warehouse)
    assert table(warehouse, "award_balances") == delivered["award_balances"]
    in_order = deliver(warehouse, [history], 1000)
    assert in_order == delivered


def snapshot_of_w1(second: int, read_at: int, value: int | None) -> Snapshot:
    """A snapshot; times in seconds after `START`."""
    updated_at = START + timedelta(seconds=second)
    points = None if value is None else Decimal(value)
    return Snapshot("w1", points, updated_at, START + timedelta(seconds=read_at), PERK_OF["w1"])


BACK_AND_FORTH = [snapshot_of_w1(0, 1, 5), snapshot_of_w1(0, 2, 7), snapshot_of_w1(0, 3, 5)]
CORRECTED = [snapshot_of_w1(0, 1, 5), snapshot_of_w1(0, 2, 7)]
POINTS_REMOVED = [snapshot_of_w1(0, 1, 5), snapshot_of_w1(1, 2, None)]


@settings(max_examples=size(30, 60))
@given(deliveries())
@example((BACK_AND_FORTH, [[BACK_AND_FORTH[0], BACK_AND_FORTH[2], BACK_AND_FORTH[1]]], 1))
@example((CORRECTED, [CORRECTED], 1))
@example((POINTS_REMOVED, [POINTS_REMOVED], 1))
@example((POINTS_REMOVED, [POINTS_REMOVED], 2))
def test_any_delivery_of_a_history_gives_the_oracles_balances_on_sqlite(sqlite: Warehouse, delivery: Any) -> None:
    check_delivery(sqlite, delivery)


@pytest.mark.warehouse
@settings(max_examples=15)
@given(deliveries())
def test_any_delivery_of_a_history_gives_the_oracles_balances_on_postgresql(postgres: Warehouse, delivery: Any) -> None:
    check_delivery(postgres, delivery)


@pytest.mark.parametrize("batch_size_rows", [1, 2])
def test_a_snapshot_without_updated_at_counts_as_of_its_latest_extraction(
    warehouse_url: str, batch_size_rows: int
) -> None:
    first, again = (snapshot(at=None, read_at=f"2026-10-01T12:00:0{second}Z") for second in (3, 4))

    load(warehouse_url, [AWARDS, first, again], batch_size_rows=batch_size_rows)
    load(warehouse_url, [AWARDS, first])

    (balance,) = table(warehouse_url, "award_balances", "as_of")
    assert balance == {"as_of": START + timedelta(seconds=4)}


def test_points_add_up_exactly(warehouse_url: str) -> None:
    tenths = [action(f"a{n}", delta=0.1, available=n / 10, at=f"2026-10-01T12:00:0{n}Z") for n in range(10)]

    load(warehouse_url, [ACTIONS, *tenths], batch_size_rows=3)

    (balance,) = table(warehouse_url, "award_balances", "points", "earned_total")
    assert balance == {"points": Decimal("0.9"), "earned_total": Decimal(1)}
    assert query(warehouse_url, "SELECT count(*) FROM award_balances WHERE earned_total = 1 AND points = 0.9") == [(1,)]


def test_the_points_of_user_balances_add_up_exactly(warehouse_url: str) -> None:
    load(warehouse_url, [ACTIONS, *(action(f"a{n}", award=f"w{n}", delta=0.1, available=0.3) for n in range(10))])
    load(warehouse_url, [AWARDS, snapshot("w0", 0.7, at="2026-10-02T00:00:00Z")])

    names = "user_id, perk_id, points, opening, earned_total, adjusted, award_count"
    total = query(warehouse_url, f"SELECT {names} FROM user_balances")
    assert [tuple(map(str, row)) for row in total] in (
        [("u1", "p1", "3.4", "2.0", "1.0", "0.4", "10")],
        [("u1", "p1", "3.4000", "2.0000", "1.0000", "0.4000", "10")],
    )


def test_the_drift_view_shows_points_that_no_action_explains(warehouse_url: str) -> None:
    load(
        warehouse_url,
        [
            AWARDS,
            snapshot(points=100, at="2026-09-01T00:00:00Z"),
            ACTIONS,
            action("a1", "REWARD_EARNED", delta=0.3, available=100.3, at="2026-09-02T00:00:00Z"),
            action("a2", "REDEEM_PERK", delta=50.2, available=50.1, at="2026-09-03T00:00:00Z"),
            action("a3", "AWARD_POINTS_REFUNDED", delta=0.1, available=50.2, at="2026-09-04T00:00:00Z"),
        ],
    )

    names = "points, explained, unexplained, snapshot_points, opening, adjusted"
    drift = query(warehouse_url, f"SELECT {names} FROM award_balance_drift")
    assert [[Decimal(str(value)) for value in row] for row in drift] == [
        [Decimal("50.2"), Decimal("-49.8"), Decimal(100), Decimal(100), Decimal(100), Decimal(0)]
    ]


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        pytest.param([snapshot(points=21)], (21, 0, None), id="only-a-snapshot"),
        pytest.param([action("a1", available=24, delta=3)], (21, 0, "a1"), id="before-the-action"),
        pytest.param(
            [action("a1", "REDEEM_PERK", available=4, delta=16), action("a2", available=10, delta=3)],
            (20, 3, "a1"),
            id="of-two-actions-at-the-same-time-the-smaller-id-is-the-oldest",
        ),
        pytest.param(
            [action("a2", available=7, delta=2), action("a1", available=5, delta=1, at="2026-09-30T12:00:00Z")],
            (4, 0, "a1"),
            id="an-older-action-comes-later",
        ),
        pytest.param(
            [snapshot(points=21, at="2026-09-01T00:00:00Z"), action("a1", available=24, delta=3)],
            (21, 0, "a1"),
            id="an-action-after-a-snapshot",
        ),
        pytest.param(
            [action("a1", available=24, delta=3), snapshot(points=20, at="2026-10-02T00:00:00Z")],
            (21, -4, "a1"),
            id="an-expiry-after-the-last-action",
        ),
    ],
)
@pytest.mark.parametrize("batch_size_rows", [1, 9])
def test_opening_and_adjusted_contain_the_points_that_do_not_come_from_actions(
    sqlite_url: str, events: list[str], expected: tuple[int, int, str | None], batch_size_rows: int
) -> None:
    load(sqlite_url, [AWARDS, ACTIONS, *events], batch_size_rows=batch_size_rows)

    (balance,) = table(sqlite_url, "award_balances", "opening", "first_action_id")
    ((adjusted,),) = query(sqlite_url, "SELECT adjusted FROM award_balance_drift")
    assert (balance["opening"], adjusted, balance["first_action_id"]) == expected


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        pytest.param(
            [action("a1", available=7, at="2026-10-01T12:00:00Z"), snapshot(points=5, at="2026-10-01T12:00:00Z")],
            (Decimal(7), "action", "a1"),
            id="at-the-same-time-an-action-wins-over-a-snapshot",
        ),
        pytest.param(
            [action("a1", available=7, at="2026-10-01T12:00:00Z"), snapshot(points=5, at="2026-10-01T12:00:00.001Z")],
            (Decimal(5), "award", "a1"),
            id="a-later-snapshot-wins-over-an-action",
        ),
        pytest.param(
            [action("a", available=7), action("B", available=8)],
            (Decimal(7), "action", "a"),
            id="at-the-same-time-the-action-id-with-the-greater-bytes-wins",
        ),
        pytest.param(
            [snapshot(points=5, at=None, read_at="2026-10-01T12:00:01Z"), action("a1", available=7)],
            (Decimal(5), "award", "a1"),
            id="a-snapshot-without-updated-at-counts-as-of-its-extraction",
        ),
        pytest.param(
            [action("late", available=9, at="2026-09-30T12:00:00Z"), action("a1", available=7)],
            (Decimal(7), "action", "a1"),
            id="a-late-event-does-not-overwrite-a-newer-balance",
        ),
    ],
)
@pytest.mark.parametrize("order", [1, -1], ids=["in-order", "reversed"])
def test_the_balance_is_the_newest_observation_in_any_order(
    warehouse_url: str, events: list[str], expected: tuple[Decimal, str, str], order: int
) -> None:
    load(warehouse_url, [AWARDS, ACTIONS, *events[::order]], batch_size_rows=1)

    (balance,) = table(warehouse_url, "award_balances", "points", "as_of_source", "last_action_id")
    assert tuple(balance.values()) == expected


def test_the_ledger_keeps_the_first_action_and_quarantines_a_conflicting_one(warehouse_url: str) -> None:
    first, second = action("a1", delta=2, available=2), action("a1", delta=3, available=3)

    in_one_batch = load(warehouse_url, [ACTIONS, first, first, second])
    again = load(warehouse_url, [ACTIONS, second, first], batch_size_rows=1)

    assert in_one_batch.tallies == {"actions": "3 read = 1 applied + 1 duplicate + 0 superseded + 1 quarantined"}
    assert again.tallies == {"actions": "2 read = 0 applied + 1 duplicate + 0 superseded + 1 quarantined"}
    assert table(warehouse_url, "award_balances", "points", "earned_total", "action_count") == [
        {"points": Decimal(2), "earned_total": Decimal(2), "action_count": 1}
    ]
    (rejected,) = table(warehouse_url, "rejected_records", "stream", "reason", "input_line", "payload")
    assert json.loads(rejected.pop("payload")) == json.loads(second)["record"]
    assert rejected == {
        "stream": "actions",
        "reason": "the ledger has this _id with another award, effect, time or points",
        "input_line": 4,
    }


def test_an_action_without_points_is_in_the_ledger_but_in_no_balance(warehouse_url: str) -> None:
    legacy = json.loads(action("a1"))
    legacy["record"]["metadata"] = {"awardId": "w1", "points": 50}

    load(warehouse_url, [ACTIONS, json.dumps(legacy)])

    assert table(warehouse_url, "actions", "action_id", "effect") == [{"action_id": "a1", "effect": None}]
    assert table(warehouse_url, "award_balances") == []


def test_all_rows_of_a_batch_have_the_same_time_of_loading(sqlite_url: str) -> None:
    load(sqlite_url, [ACTIONS, *(action(f"a{n}") for n in range(6))], batch_size_rows=3)

    times = [row["loaded_at"] for row in table(sqlite_url, "actions", "loaded_at")]
    assert times == [times[0]] * 3 + [times[3]] * 3
    assert times[0] < times[3]


def test_work_tables_are_empty_after_a_run(warehouse_url: str) -> None:
    load(warehouse_url, [AWARDS, snapshot(), ACTIONS, action("a1"), action("a2", delta=True), "no message"])

    for name in ("fresh", "staging_actions", "staging_awards", "staging_rejected_records", "merged"):
        assert query(warehouse_url, f"SELECT count(*) FROM _crm_{name}") == [(0,)], name


def test_a_snapshot_without_user_and_perk_keeps_those_of_the_balance(warehouse_url: str) -> None:
    without_user = json.loads(snapshot("w1", 7, at="2026-10-02T00:00:00Z"))
    without_user["record"].update(userId=None, perkId=None)

    load(warehouse_url, [ACTIONS, action("a1", award="w1"), AWARDS, json.dumps(without_user)])

    (row,) = table(warehouse_url, "award_balances", "user_id", "perk_id", "points")
    assert row == {"user_id": "u1", "perk_id": "p1", "points": Decimal(7)}


@pytest.mark.parametrize("batch_size_rows", [1, 9])
@pytest.mark.parametrize("order", [1, -1], ids=["in-order", "reversed"])
def test_a_snapshot_without_user_and_perk_takes_them_from_any_other_snapshot(
    warehouse_url: str, order: int, batch_size_rows: int
) -> None:
    without_user = json.loads(snapshot("w1", 7, at="2026-10-02T00:00:00Z"))
    without_user["record"].update(userId=None, perkId=None)
    snapshots = [snapshot("w1"), json.dumps(without_user), snapshot("w2")]

    load(warehouse_url, [AWARDS, *snapshots[::order]], batch_size_rows=batch_size_rows)
    again = load(warehouse_url, [AWARDS, snapshots[1]])

    crm = Warehouse(warehouse_url)
    stored = table(crm, "award_balances", "award_id", "user_id", "perk_id", "points")
    assert stored[0] == {"award_id": "w1", "user_id": "u1", "perk_id": "p1", "points": Decimal(7)}
    assert again.tallies["awards"] == "1 read = 0 applied + 1 duplicate + 0 superseded + 0 quarantined"
    assert not verify(crm).drifted
    rebuild(crm)
    assert table(crm, "award_balances", "award_id", "user_id", "perk_id", "points") == stored
    crm.dispose()


@pytest.mark.parametrize(
    "ids",
    [
        pytest.param(["a", "B", "é"], id="by-bytes"),
        pytest.param(["a", "a!", "a\x01"], id="one-begins-with-another"),
        pytest.param(["a\"'", "a\\", "a[,]"], id="with-quotes"),
    ],
)
def test_verify_and_rebuild_order_simultaneous_actions_like_the_loader(warehouse_url: str, ids: list[str]) -> None:
    points = ["99999999999.9999", "-99999999999.9999", "0.0001"]
    # The perk is known from one action only.
    without_perk = [
        action(each, available=value, delta=7).replace('"p1"', "null") for each, value in zip(ids, points, strict=True)
    ]
    earlier = action("z", available="0.3", delta="99999999999.9998", at="2026-09-30T12:00:00Z")
    load(warehouse_url, [ACTIONS, earlier, *without_perk], batch_size_rows=1)
    crm = Warehouse(warehouse_url)
    loaded = table(crm, "award_balances")

    assert loaded[0]["last_action_id"] == max(ids, key=str.encode)
    assert not verify(crm).drifted
    execute(warehouse_url, "DELETE FROM award_balances")
    rebuild(crm)
    assert table(crm, "award_balances") == loaded
    crm.dispose()


def test_an_unchanged_snapshot_does_not_update_the_balance(warehouse_url: str) -> None:
    load(warehouse_url, [AWARDS, snapshot("w1", 5, read_at="2026-10-05T00:00:00Z")])
    before = table(warehouse_url, "award_balances", "updated_at")

    again = load(warehouse_url, [AWARDS, snapshot("w1", 5, read_at="2026-10-06T00:00:00Z")])

    assert again.tallies["awards"] == "1 read = 0 applied + 1 duplicate + 0 superseded + 0 quarantined"
    assert table(warehouse_url, "award_balances", "updated_at") == before

"""Balances: whatever the order, the batches and the repetitions, the same tables; and they are the oracle's."""

from __future__ import annotations

import json
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from sqlalchemy import delete

from target_crm.balances_cli.verify import rebuild, verify
from target_crm.warehouse.connection import Warehouse
from tests.helpers import oracle
from tests.helpers.oracle import Action, Snapshot
from tests.helpers.target import ACTIONS, AWARDS, action, load, query, record, snapshot, table
from tests.stress.scenario import PERSON

START = datetime(2026, 10, 1, 12, 0, tzinfo=timezone.utc)
# Ids that a careless collation merges or puts into another order.
AWARD_IDS = ["w1", "W1", "é"]
ACTION_IDS = ["a", "B", "b", "10", "9", "é", "Z", "z"]
USER_OF = {"w1": "u1", "W1": "u1", "é": "u2"}
PERK_OF = {"w1": "p1", "W1": "p2", "é": "p1"}
TYPES = {
    "earned": ("REWARD_EARNED", "pointsAdded"),
    "redeemed": ("REDEEM_PERK", "pointsRedeemed"),
    "refunded": ("AWARD_POINTS_REFUNDED", "pointsRefunded"),
}

# Few instants, so that many events are simultaneous.
instants = st.integers(0, 4).map(lambda seconds: START + timedelta(seconds=seconds, milliseconds=seconds % 2))
points = st.one_of(
    st.integers(-5, 20).map(Decimal),
    st.decimals(Decimal(-99), Decimal(99), places=4),
    st.sampled_from([Decimal("0.1"), Decimal("0.2"), Decimal("99999999999.9999"), Decimal("-99999999999.9999")]),
)
deltas = st.one_of(
    st.integers(0, 20).map(Decimal), st.decimals(0, 99, places=4), st.sampled_from([Decimal("0.1"), Decimal("0.7")])
)


@st.composite
def histories(draw: st.DrawFn) -> list[Action | Snapshot]:
    """Actions and snapshots of a few awards, no two with the same identity."""
    actions = [
        Action(
            action_id=action_id,
            award_id=(award := draw(st.sampled_from(AWARD_IDS))),
            occurred_at=draw(instants),
            effect=draw(st.sampled_from(["earned", "redeemed", "refunded", "earned", None])),
            delta=draw(deltas),
            available=draw(points),
            perk_id=draw(st.sampled_from([PERK_OF[award], PERK_OF[award], None])),
        )
        for action_id in draw(st.lists(st.sampled_from(ACTION_IDS), unique=True))
    ]
    snapshots = draw(
        st.lists(
            st.builds(
                Snapshot,
                award_id=st.sampled_from(AWARD_IDS),
                points=st.one_of(points, points, st.none()),
                updated_at=st.one_of(instants, instants, st.none()),
                read_at=instants,
                perk_id=st.sampled_from([True, True, None]),
            ).map(lambda sight: Snapshot(**{**vars(sight), "perk_id": sight.perk_id and PERK_OF[sight.award_id]})),
            unique_by=lambda sight: (sight.award_id, sight.as_of, sight.read_at),
            max_size=5,
        )
    )
    return [*actions, *snapshots]


@st.composite
def deliveries(draw: st.DrawFn) -> tuple[list[Action | Snapshot], list[list[Action | Snapshot]], int]:
    """A history; runs that deliver all of it, in any order, some of it again and again; the rows of a batch."""
    history = draw(histories())
    again = draw(st.lists(st.sampled_from(history), max_size=6)) if history else []
    delivered = draw(st.permutations([*history, *again]))
    cut = draw(st.integers(0, len(delivered)))
    overlap = draw(st.integers(0, 2))
    return history, [delivered[:cut], delivered[max(cut - overlap, 0) :]], draw(st.integers(1, 5))


def message(event: Action | Snapshot, user_of: dict[str, str]) -> str:
    """The event as the tap would send it; numbers and times in one of their several ways of being written."""
    if isinstance(event, Snapshot):
        fields = {
            "_id": event.award_id,
            "points": None if event.points is None else _as_sent(event.points),
            "userId": user_of[event.award_id],
            "perkId": event.perk_id,
            "updatedAt": event.updated_at and event.updated_at.isoformat(),
        }
        return record("awards", fields | {"owner": PERSON}, event.read_at.isoformat())
    action_type, delta = TYPES[event.effect or "earned"]
    offset = timezone(timedelta(hours=len(event.action_id)))
    metadata = {
        "awardId": event.award_id,
        "perkId": event.perk_id,
        "pointsAvailable": _as_sent(event.available),
        delta: _as_sent(event.delta),
    }
    if event.effect is None:
        del metadata["pointsAvailable"]
    fields = {
        "_id": event.action_id,
        "type": action_type,
        "when": {"timestamp": event.occurred_at.astimezone(offset).isoformat()},
        "context": {"user": {"_id": user_of[event.award_id], "fullName": PERSON}},
        "metadata": metadata,
    }
    return record("actions", fields)


def _as_sent(number: Decimal) -> int | str:
    return int(number) if number == int(number) else str(number)


def deliver(
    warehouse: Warehouse,
    runs: list[list[Action | Snapshot]],
    batch_size_rows: int,
    user_of: dict[str, str] = USER_OF,
) -> dict[str, Any]:
    """Load the runs into the emptied tables; returns all that they then hold, but for the times of loading."""
    with warehouse.write() as connection:
        for name in ("actions", "awards", "award_balances", "rejected_records"):
            connection.execute(delete(getattr(warehouse.tables, name)))
    for run in runs:
        messages = [message(event, user_of) for event in run]
        load(warehouse, [AWARDS, ACTIONS, *messages], batch_size_rows=batch_size_rows)
    return {name: table(warehouse, name) for name in ("actions", "awards", "award_balances", "rejected_records")}


def check(warehouse: Warehouse, delivery: tuple[list[Action | Snapshot], list[list[Action | Snapshot]], int]) -> None:
    history, runs, batch_size_rows = delivery

    delivered = deliver(warehouse, runs, batch_size_rows)

    assert delivered["award_balances"] == oracle.balances(history, USER_OF)
    assert delivered["rejected_records"] == []
    assert not verify(warehouse).drifted
    rebuild(warehouse)
    assert table(warehouse, "award_balances") == delivered["award_balances"]
    in_order = deliver(warehouse, [history], 1000)
    assert in_order == delivered


def snap(second: int, read_at: int, value: int | None, award: str = "w1") -> Snapshot:
    updated_at = START + timedelta(seconds=second)
    points = None if value is None else Decimal(value)
    return Snapshot(award, points, updated_at, START + timedelta(seconds=read_at), PERK_OF[award])


BACK_AND_FORTH = [snap(0, 1, 5), snap(0, 2, 7), snap(0, 3, 5)]
CORRECTED = [snap(0, 1, 5), snap(0, 2, 7)]
POINTS_GONE = [snap(0, 1, 5), snap(1, 2, None)]
quick = settings(deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])


@settings(quick, max_examples=60)
@given(deliveries())
@example((BACK_AND_FORTH, [[BACK_AND_FORTH[0], BACK_AND_FORTH[2], BACK_AND_FORTH[1]]], 1))
@example((CORRECTED, [CORRECTED], 1))
@example((POINTS_GONE, [POINTS_GONE], 1))
@example((POINTS_GONE, [POINTS_GONE], 2))
def test_any_delivery_of_a_history_gives_the_oracles_balances_on_sqlite(sqlite: Warehouse, delivery: Any) -> None:
    check(sqlite, delivery)


@settings(quick, max_examples=15)
@given(deliveries())
def test_any_delivery_of_a_history_gives_the_oracles_balances_on_postgresql(postgres: Warehouse, delivery: Any) -> None:
    check(postgres, delivery)


@pytest.mark.parametrize("batch_size_rows", [1, 2])
def test_a_snapshot_without_a_time_is_as_new_as_its_last_reading(warehouse_url: str, batch_size_rows: int) -> None:
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


def test_what_a_user_has_of_a_perk_adds_up_exactly(warehouse_url: str) -> None:
    load(warehouse_url, [ACTIONS, *(action(f"a{n}", award=f"w{n}", delta=0.1, available=0.1) for n in range(10))])

    total = query(warehouse_url, "SELECT user_id, perk_id, points, earned_total, award_count FROM user_balances")
    assert [tuple(map(str, row)) for row in total] in (
        [("u1", "p1", "1.0", "1.0", "10")],
        [("u1", "p1", "1.0000", "1.0000", "10")],
    )


def test_what_no_action_explains_is_in_the_drift_view(warehouse_url: str) -> None:
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

    drift = query(warehouse_url, "SELECT points, explained, unexplained, snapshot_points FROM award_balance_drift")
    assert [[Decimal(str(value)) for value in row] for row in drift] == [
        [Decimal("50.2"), Decimal("-49.8"), Decimal(100), Decimal(100)]
    ]


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        pytest.param(
            [action("a1", available=7, at="2026-10-01T12:00:00Z"), snapshot(points=5, at="2026-10-01T12:00:00Z")],
            (Decimal(7), "action", "a1"),
            id="at-the-same-instant-an-action-outranks-a-snapshot",
        ),
        pytest.param(
            [action("a1", available=7, at="2026-10-01T12:00:00Z"), snapshot(points=5, at="2026-10-01T12:00:00.001Z")],
            (Decimal(5), "award", "a1"),
            id="a-later-snapshot-outranks-an-action",
        ),
        pytest.param(
            [action("a", available=7), action("B", available=8)],
            (Decimal(7), "action", "a"),
            id="at-the-same-instant-the-greater-id-byte-by-byte",
        ),
        pytest.param(
            [snapshot(points=5, at=None, read_at="2026-10-01T12:00:01Z"), action("a1", available=7)],
            (Decimal(5), "award", "a1"),
            id="a-snapshot-without-a-time-counts-as-of-when-it-was-read",
        ),
        pytest.param(
            [action("late", available=9, at="2026-09-30T12:00:00Z"), action("a1", available=7)],
            (Decimal(7), "action", "a1"),
            id="a-late-event-does-not-overwrite-a-newer-balance",
        ),
    ],
)
@pytest.mark.parametrize("order", [1, -1], ids=["in-order", "reversed"])
def test_the_newest_sight_of_an_award_is_its_balance(
    warehouse_url: str, events: list[str], expected: tuple[Decimal, str, str], order: int
) -> None:
    load(warehouse_url, [AWARDS, ACTIONS, *events[::order]], batch_size_rows=1)

    (balance,) = table(warehouse_url, "award_balances", "points", "as_of_source", "last_action_id")
    assert tuple(balance.values()) == expected


def test_the_same_action_with_other_content_is_set_aside_and_the_first_stands(warehouse_url: str) -> None:
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
        "reason": "the ledger has this _id with other content",
        "input_line": 4,
    }


def test_a_legacy_action_is_in_the_ledger_and_in_no_balance(warehouse_url: str) -> None:
    legacy = json.loads(action("a1"))
    legacy["record"]["metadata"] = {"awardId": "w1", "points": 50}

    load(warehouse_url, [ACTIONS, json.dumps(legacy)])

    assert table(warehouse_url, "actions", "action_id", "effect") == [{"action_id": "a1", "effect": None}]
    assert table(warehouse_url, "award_balances") == []


def test_every_row_tells_when_its_own_batch_was_loaded(warehouse_url: str) -> None:
    load(warehouse_url, [ACTIONS, *(action(f"a{n}") for n in range(6))], batch_size_rows=3)

    times = [row["loaded_at"] for row in table(warehouse_url, "actions", "loaded_at")]
    assert times == [times[0]] * 3 + [times[3]] * 3
    assert times[0] < times[3]


def test_work_tables_are_empty_between_transactions(warehouse_url: str) -> None:
    load(warehouse_url, [AWARDS, snapshot(), ACTIONS, action("a1"), action("a2", delta=True), "no message"])

    for name in ("fresh", "staging_actions", "staging_awards", "staging_rejected_records", "merged"):
        assert query(warehouse_url, f"SELECT count(*) FROM _crm_{name}") == [(0,)], name


def test_a_snapshot_without_its_user_leaves_the_balance_with_its_user(warehouse_url: str) -> None:
    without_user = json.loads(snapshot("w1", 7, at="2026-10-02T00:00:00Z"))
    without_user["record"].update(userId=None, perkId=None)

    load(warehouse_url, [ACTIONS, action("a1", award="w1"), AWARDS, json.dumps(without_user)])

    (row,) = table(warehouse_url, "award_balances", "user_id", "perk_id", "points")
    assert row == {"user_id": "u1", "perk_id": "p1", "points": Decimal(7)}


@pytest.mark.parametrize("batch_size_rows", [1, 9])
@pytest.mark.parametrize("order", [1, -1], ids=["in-order", "reversed"])
def test_whoever_tells_it_an_award_has_its_user_and_perk_for_life(
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


def test_an_award_that_is_read_again_unchanged_changes_no_balance(warehouse_url: str) -> None:
    load(warehouse_url, [AWARDS, snapshot("w1", 5, read_at="2026-10-05T00:00:00Z")])
    before = table(warehouse_url, "award_balances", "updated_at")

    again = load(warehouse_url, [AWARDS, snapshot("w1", 5, read_at="2026-10-06T00:00:00Z")])

    assert again.tallies["awards"] == "1 read = 0 applied + 1 duplicate + 0 superseded + 0 quarantined"
    assert table(warehouse_url, "award_balances", "updated_at") == before

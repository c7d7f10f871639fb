"""Random histories of awards, and random deliveries: in any order, repeated, by two runs, with any batch size."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from hypothesis import strategies as st
from sqlalchemy import delete

from tests.helpers.oracle import Action, Snapshot
from tests.helpers.target import ACTIONS, AWARDS, load, record, table

if TYPE_CHECKING:
    from target_crm.warehouse.connection import Warehouse

START = datetime(2026, 10, 1, 12, 0, tzinfo=UTC)
# A collation may consider some of these ids equal, or sort them in another order than their bytes.
AWARD_IDS = ["w1", "W1", "é"]
ACTION_IDS = ["a", "B", "b", "10", "9", "é", "Z", "z"]
USER_OF = {"w1": "u1", "W1": "u1", "é": "u2"}
PERK_OF = {"w1": "p1", "W1": "p2", "é": "p1"}
TYPES = {
    "earned": ("REWARD_EARNED", "pointsAdded"),
    "redeemed": ("REDEEM_PERK", "pointsRedeemed"),
    "refunded": ("AWARD_POINTS_REFUNDED", "pointsRefunded"),
}

# There are few instants, so that many events are simultaneous.
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
    """Actions and snapshots of a few awards. Each action occurs once. Snapshots of an award differ in their times."""
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
            ).map(lambda drawn: replace(drawn, perk_id=drawn.perk_id and PERK_OF[drawn.award_id])),
            unique_by=lambda snapshot: (snapshot.award_id, snapshot.as_of, snapshot.read_at),
            max_size=5,
        )
    )
    return [*actions, *snapshots]


@st.composite
def deliveries(draw: st.DrawFn) -> tuple[list[Action | Snapshot], list[list[Action | Snapshot]], int]:
    """A history, two runs that deliver its events in any order with repetitions, and the batch size in rows."""
    history = draw(histories())
    repeated = draw(st.lists(st.sampled_from(history), max_size=6)) if history else []
    delivered = draw(st.permutations([*history, *repeated]))
    cut = draw(st.integers(0, len(delivered)))
    overlap = draw(st.integers(0, 2))
    return history, [delivered[:cut], delivered[max(cut - overlap, 0) :]], draw(st.integers(1, 5))


def message(event: Action | Snapshot, user_of: dict[str, str]) -> str:
    """The event as a RECORD of the tap. Points are numbers or text, and times have various offsets."""
    if isinstance(event, Snapshot):
        fields = {
            "_id": event.award_id,
            "points": None if event.points is None else _as_sent(event.points),
            "userId": user_of[event.award_id],
            "perkId": event.perk_id,
            "updatedAt": event.updated_at and event.updated_at.isoformat(),
        }
        return record("awards", fields | {"owner": "Tom Jones"}, event.read_at.isoformat())
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
        "context": {"user": {"_id": user_of[event.award_id], "fullName": "Tom Jones"}},
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
    """Empty the tables and load the runs. Return all rows, without the times of loading."""
    with warehouse.write() as connection:
        for name in ("actions", "awards", "award_balances", "rejected_records"):
            connection.execute(delete(getattr(warehouse.tables, name)))
    for run in runs:
        messages = [message(event, user_of) for event in run]
        load(warehouse, [AWARDS, ACTIONS, *messages], batch_size_rows=batch_size_rows)
    return {name: table(warehouse, name) for name in ("actions", "awards", "award_balances", "rejected_records")}

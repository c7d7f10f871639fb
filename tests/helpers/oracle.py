"""Compute the expected balances in plain Python, from the rules alone and without the target's code."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime


@dataclass(frozen=True)
class Action:
    """A loyalty action; `effect` is None if the action does not affect a balance."""

    action_id: str
    award_id: str
    occurred_at: datetime
    effect: str | None
    delta: Decimal
    available: Decimal
    perk_id: str | None


@dataclass(frozen=True)
class Snapshot:
    """An award as returned by Pepper."""

    award_id: str
    points: Decimal | None
    updated_at: datetime | None
    read_at: datetime
    perk_id: str | None

    @property
    def as_of(self) -> datetime:
        return self.updated_at or self.read_at


def balances(events: Iterable[Action | Snapshot], user_of: dict[str, str]) -> list[dict[str, Any]]:
    """Return the rows of `award_balances`, ordered by award. A repeated action counts once."""
    actions: dict[str, Action] = {}
    snapshots: dict[str, list[Snapshot]] = {}
    for event in events:
        if isinstance(event, Snapshot):
            if event.points is not None:
                snapshots.setdefault(event.award_id, []).append(event)
        elif event.effect:
            actions.setdefault(event.action_id, event)
    awards = {action.award_id for action in actions.values()} | set(snapshots)
    return [
        _balance(
            award,
            user_of[award],
            [action for action in actions.values() if action.award_id == award],
            snapshots.get(award, []),
        )
        for award in sorted(awards, key=str.encode)
    ]


def _balance(award: str, user: str, actions: list[Action], snapshots: list[Snapshot]) -> dict[str, Any]:
    last = max(actions, key=lambda action: (action.occurred_at, action.action_id.encode()), default=None)
    newest = max(snapshots, key=lambda snapshot: (snapshot.as_of, snapshot.read_at), default=None)
    if newest is None or (last is not None and last.occurred_at >= newest.as_of):
        assert last is not None
        points, as_of, source = last.available, last.occurred_at, "action"
    else:
        assert newest.points is not None
        points, as_of, source = newest.points, newest.as_of, "award"
    totals = {"earned": Decimal(0), "redeemed": Decimal(0), "refunded": Decimal(0)}
    for action in actions:
        assert action.effect is not None
        totals[action.effect] += action.delta
    # Before its oldest action, the award had the points after that action, minus the points that the action added.
    first = min(actions, key=lambda action: (action.occurred_at, action.action_id.encode()), default=None)
    opening = points if first is None else first.available - _sign(first) * first.delta
    # An award never changes its perk, but an event may lack the perk.
    perks = {event.perk_id for event in (*actions, *snapshots)} - {None}
    return {
        "award_id": award,
        "user_id": user,
        "perk_id": perks.pop() if perks else None,
        "points": points,
        "as_of": as_of,
        "as_of_source": source,
        "last_action_id": last.action_id if last else None,
        "earned_total": totals["earned"],
        "redeemed_total": totals["redeemed"],
        "refunded_total": totals["refunded"],
        "action_count": len(actions),
        "first_action_at": first.occurred_at if first else None,
        "last_action_at": last.occurred_at if last else None,
        "first_action_id": first.action_id if first else None,
        "opening": opening,
    }


def _sign(action: Action) -> int:
    return -1 if action.effect == "redeemed" else 1

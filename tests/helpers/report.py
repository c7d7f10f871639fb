"""A history with every kind of movement, for the tests of the report."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from tests.helpers.target import (
    ACTIONS,
    AWARDS,
    action,
    record,
    schema,
    snapshot,
)

NOW = datetime(2026, 10, 5, 12, tzinfo=UTC)
PERKS = schema("perks", {"_id": {"type": "string"}, "title": {"type": "string"}, "type": {"type": "string"}}, "_id")


def perk(perk_id: str, title: str) -> str:
    return record("perks", {"_id": perk_id, "title": title, "type": "STAMP_CARD"})


def at(location: str, user: str = "u1") -> dict[str, Any]:
    """Return a location and a user, to override the ones of `action`."""
    return {"context": {"user": {"_id": user}, "location": {"_id": location}}}


# w1 has 10 opening points, and loses 3 points between two actions. w2 is new, and a later snapshot has 1 point less.
# w3 has only a snapshot. w4 has 2 points, and is then deleted.
HISTORY = [
    *(PERKS, perk("p1", "Coffee card"), AWARDS, ACTIONS),
    action("a0", delta=4, available=14, award="w1", at="2026-09-28T12:00:00Z", **at("l1")),
    action("a1", "REDEEM_PERK", delta=6, available=5, award="w1", at="2026-10-01T09:10:00Z", **at("l1")),
    action("a2", "AWARD_POINTS_REFUNDED", delta=1.5, available=6.5, award="w1", at="2026-10-01T23:30:00Z"),
    action("b1", delta=8, available=8, award="w2", user="u2", at="2026-10-01T09:20:00Z", **at("l2", "u2")),
    record("awards", {"_id": "w2", "points": 7, "userId": "u2", "perkId": "p1", "updatedAt": "2026-10-03T00:00:00Z"}),
    snapshot("w3", 20, at="2026-10-02T00:00:00Z"),
    action("d1", delta=2, available=2, award="w4", at="2026-10-01T10:00:00Z"),
    snapshot("w4", 2, at="2026-10-01T09:00:00Z"),
]


def points(row: dict[str, Any], *names: str) -> list[float]:
    return [float(row[name]) for name in names]

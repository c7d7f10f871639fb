"""What Pepper keeps: compact records in memory, and the JSON that its API shows of each.

Times are integers, milliseconds since 1970 in UTC, named `…_ms`. Points are exact decimals.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, NamedTuple

Json = dict[str, Any]

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MILLISECOND = timedelta(milliseconds=1)
TENANT = {"_id": "5c0ffee0c0ffee0c0ffee0c0", "title": "The Pepper Mill"}

DELTA_FIELDS = {
    "REWARD_EARNED": "pointsAdded",
    "REDEEM_PERK": "pointsRedeemed",
    "AWARD_POINTS_REFUNDED": "pointsRefunded",
}
"""The types that move an award's points, each with the metadata field that says by how much."""


def to_ms(moment: datetime) -> int:
    """Milliseconds since 1970, rounded down. A ValueError for a moment without a time zone."""
    if moment.tzinfo is None:
        raise ValueError(f"{moment.isoformat()} has no time zone")
    return (moment - EPOCH) // MILLISECOND


def to_datetime(at_ms: int) -> datetime:
    """The moment in UTC."""
    return EPOCH + at_ms * MILLISECOND


def to_iso(at_ms: int) -> str:
    """The moment as Pepper writes it: `2021-03-05T13:37:52.194Z`."""
    return to_datetime(at_ms).isoformat(timespec="milliseconds")[:-6] + "Z"


def to_number(points: Decimal) -> int | float:
    """Points as a JSON number. Steps of 0.25 are exact in binary too."""
    return int(points) if points == int(points) else float(points)


@dataclass(frozen=True, slots=True)
class Location:
    """A place where the merchant serves."""

    id: str
    title: str
    geo: tuple[float, float]

    def as_json(self) -> Json:
        """The location as an action's context shows it."""
        return {"_id": self.id, "title": self.title, "geo": list(self.geo), "regions": [], "tags": [""]}


@dataclass(frozen=True, slots=True)
class Perk:
    """A template for awards.

    Points move in multiples of `step`, at most `earn_steps_max` of them are earned at once, and `redeem_from` points
    or more are redeemed at once.
    """

    id: str
    type: str
    title: str
    step: Decimal
    earn_steps_max: int
    redeem_from: Decimal
    created_ms: int

    def as_json(self) -> Json:
        """The perk as `GET /perks` shows it."""
        return {
            "_id": self.id,
            "tenantId": TENANT["_id"],
            "type": self.type,
            "title": self.title,
            "terms": f"{self.title}: one per guest, not to be exchanged for cash.",
            "earn": {"points": to_number(self.step)},
            "redeem": {"points": to_number(self.redeem_from)},
            "updatedAt": to_iso(self.created_ms),
        }


@dataclass(slots=True)
class User:
    """A guest. `last_ms` is the moment of the newest thing that happened to this user, awards included."""

    id: str
    number: int
    platform: str
    created_ms: int
    updated_ms: int
    wants_marketing: bool
    last_ms: int = 0
    awards: dict[str, Award] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)

    @property
    def name(self) -> str:
        """A name that nobody bears."""
        return f"Guest {self.number:04}"

    def as_json(self, *, with_credentials: bool = False) -> Json:
        """The user as `GET /users` shows it."""
        email = f"guest{self.number:04}@example.com"
        shown: Json = {
            "_id": self.id,
            "id": self.id,
            "tenantId": TENANT["_id"],
            "firstName": "Guest",
            "lastName": f"{self.number:04}",
            "fullName": self.name,
            "primaryPlatform": self.platform,
            "state": "ACTIVE",
            "created": to_iso(self.created_ms),
            "updatedAt": to_iso(self.updated_ms),
            "hasAgreedToReceiveMarketing": self.wants_marketing,
            "hasAgreedToShareData": True,
            "deleted": False,
            "roles": ["USER"],
            "contacts": [{"type": "EMAIL", "value": email}],
        }
        if with_credentials:
            shown["credentials"] = [{"provider": "EMAIL", "id": email}]
        return shown


@dataclass(slots=True)
class Award:
    """A perk granted to a user. `history` holds (moment, points from then on), oldest first."""

    id: str
    user: User
    perk: Perk
    history: list[tuple[int, Decimal]] = field(default_factory=list)

    @property
    def points(self) -> Decimal:
        """The balance now."""
        return self.history[-1][1]

    @property
    def updated_ms(self) -> int:
        """The moment of the newest change of the points."""
        return self.history[-1][0]

    def points_at(self, at_ms: int) -> Decimal | None:
        """The balance at a moment; None before the award existed."""
        changes = bisect_right(self.history, at_ms, key=lambda change: change[0])
        return self.history[changes - 1][1] if changes else None

    def as_json(self) -> Json:
        """The award as `GET /awards` shows it, with its copy of the perk."""
        return {
            "_id": self.id,
            "userId": self.user.id,
            "perkId": self.perk.id,
            "points": to_number(self.points),
            "updatedAt": to_iso(self.updated_ms),
            "perk": self.perk.as_json(),
        }


class Event(NamedTuple):
    """Something that happened and that `GET /actions` tells, from `visible_ms` on.

    `award`, `delta` and `available` (points moved, points after) are set where the event moved an award's points;
    `details` is the metadata of any other event.
    """

    id: str
    type: str
    occurred_ms: int
    visible_ms: int
    user: User
    location: Location | None
    award: Award | None = None
    delta: Decimal = Decimal(0)
    available: Decimal = Decimal(0)
    details: Json | None = None

    def as_json(self) -> Json:
        """The action as `GET /actions` shows it."""
        context: Json = {
            "tenant": TENANT,
            "user": {"_id": self.user.id, "fullName": self.user.name, "primaryPlatform": self.user.platform},
            "tags": [],
        }
        if self.location:
            context["location"] = self.location.as_json()
        return {
            "_id": self.id,
            "context": context,
            "tenantId": TENANT["_id"],
            "type": self.type,
            "source": "API_SERVER",
            "version": "0",
            "when": when(self.occurred_ms),
            "metadata": self._metadata(),
            "environment": "SANDBOX",
        }

    def _metadata(self) -> Json | None:
        if self.award is None:
            return self.details
        delta = to_number(self.delta)
        metadata: Json = {
            "awardId": self.award.id,
            "perkId": self.award.perk.id,
            DELTA_FIELDS[self.type]: delta,
            "pointsAvailable": to_number(self.available),
        }
        if self.type == "REWARD_EARNED":
            metadata |= {"loyaltyEarned": delta, "trigger": "GLOBAL"}
        return metadata


def when(at_ms: int) -> Json:
    """An action's `when`: months count from 0, weeks start on Sunday and week 1 holds 1 January."""
    moment = to_datetime(at_ms)
    day_of_year = moment.timetuple().tm_yday
    first_weekday = moment.replace(month=1, day=1).isoweekday() % 7
    return {
        "timezone": "Etc/UTC",
        "timestamp": to_iso(at_ms),
        "year": moment.year,
        "monthofyear": moment.month - 1,
        "weekofyear": (day_of_year - 1 + first_weekday) // 7 + 1,
        "dayofmonth": moment.day,
        "dayofweek": moment.isoweekday() % 7,
        "daypart": DAYPARTS[moment.hour // 4],
    }


DAYPARTS = ("NIGHT", "EARLY", "BREAKFAST", "LUNCH", "AFTERNOON", "DINNER")

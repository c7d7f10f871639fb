"""Keep Pepper's records in memory, and format them as JSON, as the API does.

Times are integers: the milliseconds since 1970 in UTC. The names of such variables end in `_ms`. Points are exact
decimals.
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
"""The action types that change an award's points, and the metadata field that contains the change."""


def to_ms(moment: datetime) -> int:
    """Return the milliseconds since 1970, rounded down. Raise a ValueError for a time without a time zone."""
    if moment.tzinfo is None:
        raise ValueError(f"{moment.isoformat()} has no time zone")
    return (moment - EPOCH) // MILLISECOND


def to_datetime(at_ms: int) -> datetime:
    """Convert milliseconds since 1970 to a time in UTC."""
    return EPOCH + at_ms * MILLISECOND


def to_iso(at_ms: int) -> str:
    """Format a time as Pepper does: `2021-03-05T13:37:52.194Z`."""
    return to_datetime(at_ms).isoformat(timespec="milliseconds")[:-6] + "Z"


def to_number(points: Decimal) -> int | float:
    """Return points as a JSON number. Multiples of 0.25 are exact as floating-point numbers."""
    return int(points) if points == int(points) else float(points)


@dataclass(frozen=True, slots=True)
class Location:
    """A location of the merchant."""

    id: str
    title: str
    geo: tuple[float, float]

    def as_json(self) -> Json:
        """Return the location as it appears in an action's context."""
        return {"_id": self.id, "title": self.title, "geo": list(self.geo), "regions": [], "tags": [""]}


@dataclass(frozen=True, slots=True)
class Perk:
    """A template for awards.

    Points change in multiples of `step`. An action earns at most `earn_steps_max` steps, or redeems at least
    `redeem_from` points.
    """

    id: str
    type: str
    title: str
    step: Decimal
    earn_steps_max: int
    redeem_from: Decimal
    created_ms: int

    def as_json(self) -> Json:
        """Return the perk as `GET /perks` shows it."""
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
    """A user. `last_ms` is the time of the user's newest change, including changes to awards."""

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
        """A fictitious name."""
        return f"Guest {self.number:04}"

    def as_json(self, *, with_credentials: bool = False) -> Json:
        """Return the user as `GET /users` shows it."""
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
    """A perk granted to a user. `history` contains pairs of a time and the points from then on, oldest first."""

    id: str
    user: User
    perk: Perk
    history: list[tuple[int, Decimal]] = field(default_factory=list)

    @property
    def points(self) -> Decimal:
        """The current balance."""
        return self.history[-1][1]

    @property
    def updated_ms(self) -> int:
        """The time when the points last changed."""
        return self.history[-1][0]

    def points_at(self, at_ms: int) -> Decimal | None:
        """Return the balance at a time, or None if the award did not exist yet."""
        changes = bisect_right(self.history, at_ms, key=lambda change: change[0])
        return self.history[changes - 1][1] if changes else None

    def as_json(self) -> Json:
        """Return the award as `GET /awards` shows it, with a copy of the perk."""
        return {
            "_id": self.id,
            "userId": self.user.id,
            "perkId": self.perk.id,
            "points": to_number(self.points),
            "updatedAt": to_iso(self.updated_ms),
            "perk": self.perk.as_json(),
        }


class Event(NamedTuple):
    """An action, which `GET /actions` returns from `visible_ms` on.

    `award`, `delta` (the change in points) and `available` (the points after the change) are set if the action changed
    an award's points. `details` is the metadata of any other action.
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
        """Return the action as `GET /actions` shows it."""
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
    """Return an action's `when`. Months are numbered from 0, weeks start on Sunday, and week 1 contains 1 January."""
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

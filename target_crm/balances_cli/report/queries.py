"""The statements of the report, and the arithmetic on their rows. Pure.

A *movement* changes an award's points. Each action with an effect is one: it issues, redeems or refunds points. If the
balance before an action plus its delta is not the balance after it, something else *added* or *removed* points: an edit
or an expiry in Pepper. A newer snapshot and the deletion of an award add or remove points in the same way. Points that
an award had before its first movement are *opening* points. Their date is unknown, so they count from the beginning:

    opening + issued - redeemed + refunded + added - removed = outstanding

at any time. After the last movement, outstanding is the sum of `award_balances` over the awards that exist.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from functools import cache
from typing import TYPE_CHECKING, Any

from sqlalchemy import BigInteger, and_, bindparam, case, cast, func, literal_column, null, select, union_all

from target_crm.records.column_types import Instant, LongText, Points
from target_crm.records.schemas import DELETED_AT
from target_crm.sql.functions import QUARTER_SECONDS, exact, exact_sum, quarter_hours

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from datetime import tzinfo

    from sqlalchemy import ColumnElement, FromClause, Select

    from target_crm.sql.tables import Tables

    Row = Mapping[str, Any]

USERS_SHOWN = 20
LOCATIONS_SHOWN = 20
# Upper bounds of the age classes of outstanding points; the last class is open.
AGES_DAYS = (30, 90, 180, 365)
# How many future days are shown. Actions dated later count on the last of them.
DAYS_AHEAD_MAX = timedelta(days=2)
# Python has no later years; two days less keep every time zone within them.
_LAST_QUARTER = int(datetime(9999, 12, 30, tzinfo=UTC).timestamp()) // QUARTER_SECONDS

MOVEMENTS = ("opening", "issued", "redeemed", "refunded", "added", "removed")
_ZERO = cast(literal_column("0"), Points())
_NONE = Decimal(0)


def _added_or_removed(change: ColumnElement[Any]) -> dict[str, ColumnElement[Any]]:
    """Split a change without an action into points added and points removed."""
    return {
        "added": case((change > _ZERO, change), else_=_ZERO),
        "removed": case((change < _ZERO, exact(_ZERO - change)), else_=_ZERO),
    }


def _movement(at: ColumnElement[Any], actions: int, **points: ColumnElement[Any]) -> list[ColumnElement[Any]]:
    return [
        at.label("at"),
        literal_column(str(actions)).label("actions"),
        *(points.get(name, _ZERO).label(name) for name in MOVEMENTS),
    ]


@cache
def movements(tables: Tables) -> FromClause:
    """Return every movement: its time, its points of each kind, and whether it was an action."""
    a, balances, awards = tables.actions.c, tables.award_balances.c, tables.awards.c

    def delta(effect: str, column: ColumnElement[Any]) -> ColumnElement[Any]:
        return case((a.effect == literal_column(f"'{effect}'"), column), else_=_ZERO)

    deltas = {
        "issued": delta("earned", a.points_added),
        "redeemed": delta("redeemed", a.points_redeemed),
        "refunded": delta("refunded", a.points_refunded),
    }
    before = func.lag(a.points_available).over(partition_by=a.award_id, order_by=[a.occurred_at, a.action_id])
    chain = (
        select(
            a.occurred_at, a.points_available, before.label("before"), *(c.label(name) for name, c in deltas.items())
        )
        .where(a.effect.is_not(None))
        .subquery("chain")
        .c
    )
    own = {name: chain[name] for name in deltas}
    unmoved = exact(chain.points_available - chain.issued + chain.redeemed - chain.refunded)
    of_actions = select(
        *_movement(
            chain.occurred_at,
            1,
            opening=case((chain.before.is_(None), unmoved), else_=_ZERO),
            **own,
            **_added_or_removed(case((chain.before.is_not(None), exact(unmoved - chain.before)), else_=_ZERO)),
        )
    )
    last = tables.actions.alias("last")
    of_snapshots = (
        select(
            *_movement(
                balances.as_of,
                0,
                opening=case((last.c.action_id.is_(None), balances.points), else_=_ZERO),
                **_added_or_removed(
                    case((last.c.action_id.is_not(None), exact(balances.points - last.c.points_available)), else_=_ZERO)
                ),
            )
        )
        .outerjoin_from(tables.award_balances, last, last.c.action_id == balances.last_action_id)
        .where(balances.as_of_source == literal_column("'award'"))
    )
    of_deletions = (
        select(*_movement(awards[DELETED_AT], 0, **_added_or_removed(exact(_ZERO - balances.points))))
        .join_from(tables.award_balances, tables.awards, awards["_id"] == balances.award_id)
        .where(awards[DELETED_AT].is_not(None))
    )
    return union_all(of_actions, of_snapshots, of_deletions).subquery("movements")


@cache
def by_quarter_hour(tables: Tables) -> Select[Any]:
    """Sum movements per quarter of an hour since `start`; earlier movements are summed under null."""
    m = movements(tables).c
    quarter = case((m.at >= bindparam("start", type_=Instant()), quarter_hours(m.at)))
    buckets = select(quarter.label("quarter"), m.actions, *(m[name] for name in MOVEMENTS)).subquery("buckets").c
    return select(
        buckets.quarter,
        cast(func.sum(buckets.actions), BigInteger).label("actions"),
        *(exact_sum(buckets[name]).label(name) for name in MOVEMENTS),
    ).group_by(buckets.quarter)


@cache
def _existing(tables: Tables) -> FromClause:
    """Return the balances of awards that are not deleted."""
    balances, awards = tables.award_balances, tables.awards
    return (
        select(*balances.c)
        .outerjoin_from(balances, awards, awards.c["_id"] == balances.c.award_id)
        .where(awards.c[DELETED_AT].is_(None))
        .subquery("existing")
    )


def _holders(user_id: ColumnElement[Any], points: ColumnElement[Any]) -> ColumnElement[Any]:
    return func.count(case((points > _ZERO, user_id)).distinct()).label("holders")


@cache
def outstanding(tables: Tables) -> Select[Any]:
    """Sum outstanding points, and count their awards and holders."""
    s = _existing(tables).c
    return select(
        func.coalesce(exact_sum(s.points), _ZERO).label("points"),
        func.count().label("awards"),
        _holders(s.user_id, s.points),
    )


@cache
def by_perk(tables: Tables, perks: FromClause | None) -> Select[Any]:
    """Sum outstanding points per perk, most first. `perks` has `_id` and, if it knows them, `title` and `type`."""
    s = _existing(tables).c
    sums = (
        select(
            s.perk_id,
            exact_sum(s.points).label("points"),
            func.count().label("awards"),
            _holders(s.user_id, s.points),
            exact_sum(s.earned_total).label("issued"),
            exact_sum(s.redeemed_total).label("redeemed"),
            exact_sum(s.refunded_total).label("refunded"),
        )
        .group_by(s.perk_id)
        .subquery("sums")
    )
    named = [
        (perks.c[name] if perks is not None and name in perks.c else cast(null(), LongText())).label(name)
        for name in ("title", "type")
    ]
    query = select(sums.c.perk_id, *named, *(column for column in sums.c if column.name != "perk_id"))
    source = sums if perks is None else sums.outerjoin(perks, perks.c["_id"] == sums.c.perk_id)
    return query.select_from(source).order_by(sums.c.points.desc(), sums.c.perk_id)


@cache
def by_age(tables: Tables) -> Select[Any]:
    """Sum outstanding points per age class: the class's bound in days, null for the open class."""
    s = _existing(tables).c
    since: list[Any] = [
        (s.as_of >= bindparam(f"days_{days}", type_=Instant()), literal_column(str(days))) for days in AGES_DAYS
    ]
    aged = select(case(*since).label("days"), s.points).subquery("aged").c
    return select(aged.days, exact_sum(aged.points).label("points"), func.count().label("awards")).group_by(aged.days)


@cache
def by_user(tables: Tables) -> Select[Any]:
    """Return the users with the most points."""
    s = _existing(tables).c
    points = exact_sum(s.points).label("points")
    return (
        select(
            s.user_id,
            points,
            func.count().label("awards"),
            exact_sum(s.earned_total).label("issued"),
            exact_sum(s.redeemed_total).label("redeemed"),
            exact_sum(s.refunded_total).label("refunded"),
        )
        .where(s.user_id.is_not(None))
        .group_by(s.user_id)
        .order_by(points.desc(), s.user_id)
        .limit(USERS_SHOWN)
    )


@cache
def by_location(tables: Tables) -> Select[Any]:
    """Return the locations with the most loyalty actions since `start`; null stands for no location."""
    a = tables.actions.c
    actions = func.count().label("actions")
    return (
        select(
            a.location_id,
            actions,
            *(
                exact_sum(case((a.effect == literal_column(f"'{effect}'"), column), else_=_ZERO)).label(name)
                for effect, column, name in (
                    ("earned", a.points_added, "issued"),
                    ("redeemed", a.points_redeemed, "redeemed"),
                    ("refunded", a.points_refunded, "refunded"),
                )
            ),
        )
        .where(and_(a.effect.is_not(None), a.occurred_at >= bindparam("start", type_=Instant())))
        .group_by(a.location_id)
        .order_by(actions.desc(), a.location_id)
        .limit(LOCATIONS_SHOWN)
    )


@dataclass(frozen=True)
class Period:
    """Whole days of a time zone, both ends included."""

    first: date
    last: date
    zone: tzinfo

    @classmethod
    def until(cls, now: datetime, days: int, zone: tzinfo) -> Period:
        """Return the period of so many days that ends today."""
        today = now.astimezone(zone).date()
        return cls(today - timedelta(days=days - 1), today, zone)

    @property
    def start(self) -> datetime:
        """The start of the first day, in UTC."""
        return datetime.combine(self.first, time(), self.zone).astimezone(UTC)


def per_day(quarters: Iterable[Row], period: Period) -> list[dict[str, Any]]:
    """Sum rows of `by_quarter_hour` per day, with the points outstanding at the end of each day."""
    outstanding_points = _NONE
    moved: dict[date, dict[str, Any]] = defaultdict(lambda: dict.fromkeys(("actions", *MOVEMENTS), _NONE))
    for row in quarters:
        outstanding_points += row["opening"]
        if row["quarter"] is None:
            outstanding_points += _net(row)
        else:
            # A clock that is ahead dates actions on coming days. Dates far ahead are errors of another kind.
            day = _local(row["quarter"], period.zone).date()
            of_day = moved[min(day, period.last + DAYS_AHEAD_MAX)]
            for name in of_day:
                of_day[name] += row[name]
    last = max([period.last, *moved])
    days = []
    for day in (period.first + timedelta(days=number) for number in range((last - period.first).days + 1)):
        of_day = moved[day]
        outstanding_points += _net(of_day)
        known = {name: of_day[name] for name in MOVEMENTS if name != "opening"}
        days.append({"day": day, "actions": int(of_day["actions"]), **known, "outstanding": outstanding_points})
    return days


def by_weekday_and_hour(quarters: Iterable[Row], period: Period) -> list[dict[str, int]]:
    """Count loyalty actions per hour of the week, Monday (0) first, including hours without any."""
    counts: dict[tuple[int, int], int] = defaultdict(int)
    for row in quarters:
        if row["quarter"] is not None:
            local = _local(row["quarter"], period.zone)
            counts[local.weekday(), local.hour] += row["actions"]
    return [
        {"weekday": weekday, "hour": hour, "actions": counts[weekday, hour]}
        for weekday in range(7)
        for hour in range(24)
    ]


def roll_forward(days: list[dict[str, Any]]) -> dict[str, Decimal]:
    """Return the points outstanding before the days, the movements, and the points outstanding after them."""
    moved = {name: sum((day[name] for day in days), _NONE) for name in MOVEMENTS if name != "opening"}
    return {"before": days[-1]["outstanding"] - _net(moved), **moved, "after": days[-1]["outstanding"]}


def rates(moved: Row) -> dict[str, Decimal | None]:
    """Return redeemed (less refunded) and removed points as fractions of the issued points."""
    issued = moved["issued"]
    return {
        "redemption": _share(moved["redeemed"] - moved["refunded"], issued),
        "breakage": _share(moved["removed"], issued),
    }


def all_time(quarters: Iterable[Row]) -> dict[str, Decimal]:
    """Sum all movements."""
    rows = list(quarters)
    return {name: sum((row[name] for row in rows), _NONE) for name in MOVEMENTS}


def ages(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """Return the rows of `by_age` in order, with the bounds of each class in days."""
    found = {row["days"]: row for row in rows}
    classes = zip((0, *AGES_DAYS), (*AGES_DAYS, None), strict=True)
    return [
        {
            "days_from": least,
            "days_to": most,
            "points": found[most]["points"] if most in found else _NONE,
            "awards": found[most]["awards"] if most in found else 0,
        }
        for least, most in classes
    ]


def age_limits(now: datetime) -> dict[str, datetime]:
    """Return the parameters of `by_age`."""
    return {f"days_{days}": now - timedelta(days=days) for days in AGES_DAYS}


def _net(moved: Row) -> Decimal:
    net: Decimal = moved["issued"] - moved["redeemed"] + moved["refunded"] + moved["added"] - moved["removed"]
    return net


def _share(part: Decimal, whole: Decimal) -> Decimal | None:
    return round(part / whole, 4) if whole > 0 else None


def _local(quarter: int, zone: tzinfo) -> datetime:
    return datetime.fromtimestamp(min(quarter, _LAST_QUARTER) * QUARTER_SECONDS, zone)

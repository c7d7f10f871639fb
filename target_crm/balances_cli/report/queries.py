"""The SQL statements of the report, and the calculations with their results. This module does no I/O.

A *movement* changes an award's points. Each action with an effect is a movement: it issues, redeems or refunds points.
Sometimes the balance before an action, plus the action's change, does not equal the balance after the action. Then
points were *added* or *removed* without an action, for example by an edit or an expiry in Pepper. A newer snapshot, or
the deletion of an award, can also add or remove points. Points that an award had before its first movement are
*opening* points. Their date is unknown, so they count from the beginning. At any time:

    opening + issued - redeemed + refunded + added - removed = outstanding

After the last movement, the outstanding points are the sum of the points in `award_balances`, without deleted awards.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from functools import cache
from typing import TYPE_CHECKING, Any

from sqlalchemy import BigInteger, and_, bindparam, case, cast, func, literal_column, null, or_, select, union_all

from target_crm.records.column_types import Identifier, Instant, LongText, Points
from target_crm.records.schemas import DELETED_AT
from target_crm.sql.functions import QUARTER_SECONDS, exact, exact_sum, quarter_hours

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from datetime import tzinfo

    from sqlalchemy import ColumnElement, FromClause, Select, Table

    from target_crm.sql.tables import Tables

    Row = Mapping[str, Any]

USERS_SHOWN = 20
LOCATIONS_SHOWN = 20
# The upper bounds of the age classes of outstanding points. The last class has no upper bound.
AGES_DAYS = (30, 90, 180, 365)
# Show outstanding points by month of issue for this many months, including the current one.
MONTHS_SHOWN = 24
# A period that ends today shows up to this many future days. Actions with later dates count on the last of these days.
DAYS_AHEAD_MAX = timedelta(days=2)

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


def _of_perks(tables: Tables, award_id: ColumnElement[Any]) -> ColumnElement[bool]:
    """Return whether an award belongs to one of the perks in the parameter `perks`.

    Look up the perk in the award's balance, because an action may lack the perk.
    """
    balances = tables.award_balances.c
    perks = bindparam("perks", expanding=True, type_=Identifier())
    return award_id.in_(select(balances.award_id).where(balances.perk_id.in_(perks)))


@cache
def movements(tables: Tables, *, by_perk: bool = False) -> FromClause:
    """Return every movement: its time, its points of each kind, and whether it was an action.

    Args:
        tables: The target's tables.
        by_perk: Whether to return only movements of the perks in the parameter `perks`.
    """
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
        .where(a.effect.is_not(None), *([_of_perks(tables, a.award_id)] if by_perk else []))
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
    if by_perk:
        of_snapshots, of_deletions = (
            each.where(_of_perks(tables, balances.award_id)) for each in (of_snapshots, of_deletions)
        )
    return union_all(of_actions, of_snapshots, of_deletions).subquery("movements")


@cache
def by_quarter_hour(tables: Tables, *, by_perk: bool = False) -> Select[Any]:
    """Sum movements per quarter hour, from `start` to `end`.

    Earlier movements have a row in which `quarter` is null. In the row of later movements, `quarter` is `end_quarter`,
    the first quarter hour after the end.
    """
    m = movements(tables, by_perk=by_perk).c
    start, end = (bindparam(name, type_=Instant()) for name in ("start", "end"))
    later = cast(bindparam("end_quarter", type_=BigInteger()), BigInteger)
    quarter = case((m.at >= end, later), (m.at >= start, quarter_hours(m.at)))
    buckets = select(quarter.label("quarter"), m.actions, *(m[name] for name in MOVEMENTS)).subquery("buckets").c
    return select(
        buckets.quarter,
        cast(func.sum(buckets.actions), BigInteger).label("actions"),
        *(exact_sum(buckets[name]).label(name) for name in MOVEMENTS),
    ).group_by(buckets.quarter)


@cache
def _existing(tables: Tables, *, by_perk: bool = False) -> FromClause:
    """Return the balances of awards that are not deleted.

    If `by_perk` is true, return only the balances of the perks in the parameter `perks`.
    """
    balances, awards = tables.award_balances, tables.awards
    existing = (
        select(*balances.c)
        .outerjoin_from(balances, awards, awards.c["_id"] == balances.c.award_id)
        .where(awards.c[DELETED_AT].is_(None))
    )
    if by_perk:
        existing = existing.where(balances.c.perk_id.in_(bindparam("perks", expanding=True, type_=Identifier())))
    return existing.subquery("existing")


def _holders(user_id: ColumnElement[Any], points: ColumnElement[Any]) -> ColumnElement[Any]:
    return func.count(case((points > _ZERO, user_id)).distinct()).label("holders")


@cache
def outstanding(tables: Tables, *, by_perk: bool = False) -> Select[Any]:
    """Sum the points of the awards that are not deleted. Count these awards, and the users with points."""
    s = _existing(tables, by_perk=by_perk).c
    return select(
        func.coalesce(exact_sum(s.points), _ZERO).label("points"),
        func.count().label("awards"),
        _holders(s.user_id, s.points),
    )


@cache
def perks_with_awards(tables: Tables) -> Select[Any]:
    """Return the ids of all perks that have awards. Deleted awards count, because their movements do."""
    return select(tables.award_balances.c.perk_id).distinct()


@cache
def by_perk(tables: Tables, perks: FromClause | None) -> Select[Any]:
    """Sum outstanding points per perk, largest sum first.

    The table `perks` has the column `_id`, and may have `title`, `type` and the time of the deletion. A perk is
    `retired` if it is deleted in this table, or missing. Without the table, no perk is retired.
    """
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
    retired: ColumnElement[int] = literal_column("0")
    if perks is not None:
        is_unknown = perks.c["_id"].is_(None)
        is_deleted = [perks.c[DELETED_AT].is_not(None)] if DELETED_AT in perks.c else []
        is_retired = and_(sums.c.perk_id.is_not(None), or_(is_unknown, *is_deleted))
        retired = case((is_retired, literal_column("1")), else_=literal_column("0"))
    query = select(
        sums.c.perk_id,
        *named,
        retired.label("retired"),
        *(column for column in sums.c if column.name != "perk_id"),
    )
    source = sums if perks is None else sums.outerjoin(perks, perks.c["_id"] == sums.c.perk_id)
    return query.select_from(source).order_by(sums.c.points.desc(), sums.c.perk_id)


@cache
def by_age(tables: Tables, *, by_perk: bool = False) -> Select[Any]:
    """Sum outstanding points per age class. `days` is the upper bound of the class. In the last class, it is null.

    A snapshot with the same points as the last action is no movement, so its time does not count.
    """
    held, last = _existing(tables, by_perk=by_perk), tables.actions.alias("last")
    s = held.c
    moved_at = case((s.points == last.c.points_available, s.last_action_at), else_=s.as_of)
    since: list[Any] = [
        (moved_at >= bindparam(f"days_{days}", type_=Instant()), literal_column(str(days))) for days in AGES_DAYS
    ]
    aged = (
        select(case(*since).label("days"), s.points)
        .outerjoin_from(held, last, last.c.action_id == s.last_action_id)
        .subquery("aged")
        .c
    )
    return select(aged.days, exact_sum(aged.points).label("points"), func.count().label("awards")).group_by(aged.days)


@cache
def by_issue(tables: Tables, *, by_perk: bool = False) -> Select[Any]:
    """Sum outstanding points per month of issue, if each award spends its oldest points first.

    So the points that are left on an award are those that were issued last. `months_ago` is null for points that were
    issued before the oldest of the parameters `month_…`. Points that no action has issued are left out. The award had
    such points before its first action, or an edit added them.
    """
    a, held = tables.actions.c, _existing(tables, by_perk=by_perk)
    newest_first = [a.occurred_at.desc(), a.action_id.desc()]
    issued = (
        select(
            a.occurred_at,
            a.points_added.label("own"),
            held.c.points.label("held"),
            func.sum(a.points_added).over(partition_by=a.award_id, order_by=newest_first).label("own_and_newer"),
        )
        .join_from(tables.actions, held, held.c.award_id == a.award_id)
        .where(a.effect == literal_column("'earned'"), held.c.points > _ZERO)
        .subquery("issued")
        .c
    )
    unspent = exact(issued.held - issued.own_and_newer + issued.own)
    since: list[Any] = [
        (issued.occurred_at >= bindparam(f"month_{number}", type_=Instant()), literal_column(str(number)))
        for number in range(MONTHS_SHOWN)
    ]
    left = case((unspent < issued.own, unspent), else_=issued.own)
    dated = select(case(*since).label("months_ago"), left.label("points")).where(unspent > _ZERO).subquery("dated").c
    return select(dated.months_ago, exact_sum(dated.points).label("points")).group_by(dated.months_ago)


@cache
def by_user(tables: Tables, *, by_perk: bool = False) -> Select[Any]:
    """Select the users with the most points, at most `USERS_SHOWN`."""
    s = _existing(tables, by_perk=by_perk).c
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
def by_location(tables: Tables, *, by_perk: bool = False) -> Select[Any]:
    """Return the locations with the most loyalty actions from `start` to `end`.

    The row with a null `location_id` counts the actions without a location.

    The title of a location is in the payload of the action `example_id`. This id is null if no action has a payload.
    """
    a = tables.actions.c
    actions = func.count().label("actions")
    return (
        select(
            a.location_id,
            func.max(case((a.payload.is_not(None), a.action_id))).label("example_id"),
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
        .where(
            a.effect.is_not(None),
            a.occurred_at >= bindparam("start", type_=Instant()),
            a.occurred_at < bindparam("end", type_=Instant()),
            *([_of_perks(tables, a.award_id)] if by_perk else []),
        )
        .group_by(a.location_id)
        .order_by(actions.desc(), a.location_id)
        .limit(LOCATIONS_SHOWN)
    )


@cache
def payloads(actions: Table) -> Select[Any]:
    """Return the payloads of the actions in the parameter `action_ids`.

    On engines with a JSON type, the driver may decode the payloads.
    """
    named = bindparam("action_ids", expanding=True, type_=Identifier())
    return select(actions.c.action_id, actions.c.payload).where(actions.c.action_id.in_(named))


@dataclass(frozen=True)
class Period:
    """A period of whole days in a time zone. It includes the first and the last day.

    If `is_open` is true, the user has set no last day, so the last day is today.
    """

    first: date
    last: date
    zone: tzinfo
    is_open: bool = False

    @property
    def days(self) -> int:
        """The number of days from `first` to `last`. An open period may also show future days, which do not count."""
        return (self.last - self.first).days + 1

    @property
    def before(self) -> Period:
        """The previous period of equal length."""
        return Period(self.first - timedelta(days=self.days), self.first - timedelta(days=1), self.zone)

    @property
    def start(self) -> datetime:
        """The start of the first day, in UTC."""
        return self._begin(self.first)

    @property
    def end(self) -> datetime:
        """The end of the last day, in UTC. For an open period, the end of the last future day that is shown."""
        return self._begin(self.last + timedelta(days=1) + (DAYS_AHEAD_MAX if self.is_open else timedelta()))

    @property
    def end_quarter(self) -> int:
        """The first quarter hour after the end of the period. Quarter hours are numbered from the beginning of 1970."""
        return int(self.end.timestamp()) // QUARTER_SECONDS

    def _begin(self, day: date) -> datetime:
        return datetime.combine(day, time(), self.zone).astimezone(UTC)


def per_day(quarters: Iterable[Row], period: Period) -> list[dict[str, Any]]:
    """Sum rows of `by_quarter_hour` per day, and add the outstanding points at the end of each day."""
    outstanding_points = _NONE
    moved: dict[date, dict[str, Any]] = defaultdict(lambda: dict.fromkeys(("actions", *MOVEMENTS), _NONE))
    for row in quarters:
        outstanding_points += row["opening"]
        quarter = row["quarter"]
        if quarter is None or (day := _local(quarter, period.zone).date()) < period.first:
            outstanding_points += _net(row)
        elif period.is_open or quarter < period.end_quarter:
            # If a clock is ahead, actions may have dates in the next few days. Show actions with later dates on the
            # last of these days.
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


def begins(quarters: Iterable[Row], period: Period) -> date:
    """Return the day of the first movement.

    If this day is before the period, or there are no movements, return the first day of the period.
    """
    found = [row["quarter"] for row in quarters]
    if not found or None in found:
        return period.first
    return min(max(period.first, _local(min(found), period.zone).date()), period.last)


def by_weekday_and_hour(quarters: Iterable[Row], period: Period) -> list[dict[str, int]]:
    """Count loyalty actions per hour of the week, starting on Monday (0). Hours without actions are included."""
    counts: dict[tuple[int, int], int] = defaultdict(int)
    first = int(period.start.timestamp()) // QUARTER_SECONDS
    for row in quarters:
        if row["quarter"] is not None and first <= row["quarter"] < period.end_quarter:
            local = _local(row["quarter"], period.zone)
            counts[local.weekday(), local.hour] += row["actions"]
    return [
        {"weekday": weekday, "hour": hour, "actions": counts[weekday, hour]}
        for weekday in range(7)
        for hour in range(24)
    ]


def roll_forward(days: list[dict[str, Any]]) -> dict[str, Decimal]:
    """Return the movements on the given days, and the outstanding points before and after these days."""
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
    """Return the sum of all movements, for each kind of movement."""
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


def issue_months(rows: Iterable[Row], outstanding_points: Decimal, today: date) -> list[dict[str, Any]]:
    """Return outstanding points by month of issue, starting with the oldest month that has any.

    The row `earlier` sums the months before the shown months. The row `undated` is the rest of the outstanding
    points. It consists of the points that no action has issued, and of the negative balances.
    """
    found = {row["months_ago"]: row["points"] for row in rows}
    oldest = max((number for number in found if number is not None), default=-1)
    months = [
        {"month": f"{_months_back(today, number):%Y-%m}", "points": found.get(number, _NONE)}
        for number in range(MONTHS_SHOWN - 1 if None in found else oldest, -1, -1)
    ]
    earlier = [{"month": "earlier", "points": found[None]}] if None in found else []
    undated = outstanding_points - sum(found.values(), _NONE)
    return [*([{"month": "undated", "points": undated}] if undated else []), *earlier, *months]


def month_limits(today: date, zone: tzinfo) -> dict[str, datetime]:
    """Return the parameters of `by_issue`: the beginning of each month, starting with the current month."""
    return {
        f"month_{number}": datetime.combine(_months_back(today, number), time(), zone).astimezone(UTC)
        for number in range(MONTHS_SHOWN)
    }


def _months_back(today: date, months: int) -> date:
    year, month = divmod(today.year * 12 + today.month - 1 - months, 12)
    return date(year, month + 1, 1)


def age_limits(now: datetime) -> dict[str, datetime]:
    """Return the parameters of `by_age`: for each age class except the last, the earliest time that belongs to it."""
    return {f"days_{days}": now - timedelta(days=days) for days in AGES_DAYS}


def _net(moved: Row) -> Decimal:
    net: Decimal = moved["issued"] - moved["redeemed"] + moved["refunded"] + moved["added"] - moved["removed"]
    return net


def _share(part: Decimal, whole: Decimal) -> Decimal | None:
    return round(part / whole, 4) if whole > 0 else None


def _local(quarter: int, zone: tzinfo) -> datetime:
    return datetime.fromtimestamp(quarter * QUARTER_SECONDS, zone)

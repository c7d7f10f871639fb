"""SQLAlchemy Core statements that compute one balance per award from actions and snapshots.

A balance has three sources: the award's actions, its snapshot, and the stored balance. A *partial* is a balance that is
computed from only one of them. `union` combines two partials:

- `points` comes from the newest observation. At the same instant, an action wins over a snapshot, and of two actions
  the one with the greater id wins.
- `opening` is the balance before the oldest action. If there is no action, `opening` is the snapshot's points.
- Totals and counts are sums, so each action must be counted only once. To merge a batch, callers pass only the actions
  that the current transaction has inserted into the ledger.

Partials can be combined in any order, except for two snapshots of the same instant. So merging batches into the stored
balances gives the same rows as aggregating the whole history.

Statements are cached per table, because building a statement takes longer than executing it for a small batch.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from sqlalchemy import (
    BigInteger,
    and_,
    bindparam,
    case,
    cast,
    false,
    func,
    literal,
    literal_column,
    null,
    or_,
    select,
    union_all,
)

from target_crm.records.column_types import Identifier, Instant, Points
from target_crm.records.coverage import Interval, is_inside, overlaps
from target_crm.records.schemas import BATCHED_AT, DELETED_AT, EXTRACTED_AT
from target_crm.sql.functions import any_value, exact, exact_sum, packed, row_number, unpacked
from target_crm.sql.staging import Merge, Replacement, RowUpdate

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from datetime import datetime

    from sqlalchemy import ColumnElement, FromClause, Label, Select, Subquery, Table
    from sqlalchemy.sql.base import ReadOnlyColumnCollection
    from sqlalchemy.sql.functions import FunctionElement

    from target_crm.records.coverage import ReadTimes
    from target_crm.sql.tables import Tables

    Columns = Mapping[str, ColumnElement[Any]] | ReadOnlyColumnCollection[str, Any]
    Combine = Callable[[Select[Any], Select[Any]], Select[Any]]

# Columns whose values never change for the same award.
_OWNER = ("user_id", "perk_id")
# In a partial that comes from a snapshot, these columns have values. All other columns except `award_id` are null or
# zero.
_SNAPSHOT_COLUMNS = (*_OWNER, "points", "as_of", "as_of_source", "updated_at", "opening")
# Total → the effect of the actions that the total counts, and the column that it sums.
_TOTALS = {
    "earned_total": ("earned", "points_added"),
    "redeemed_total": ("redeemed", "points_redeemed"),
    "refunded_total": ("refunded", "points_refunded"),
}
# A partial takes these columns from the newest action. The id must come first, because `packed` sorts by it:
# of two actions at the same instant, the one with the greater id is newer.
_OF_NEWEST = ("action_id", *_OWNER, "points_available")
# The action columns that a balance needs.
_ACTION_COLUMNS = (
    *("award_id", *_OWNER, "action_id", "occurred_at", "effect", "points_available", "loaded_at"),
    *(column for _, column in _TOTALS.values()),
)
_ZERO = cast(literal_column("0"), Points())
_ACTION = literal_column("'action'", Identifier())
_AWARD = literal_column("'award'", Identifier())


@cache
def partials_from_actions(actions: FromClause, *which: ColumnElement[bool]) -> Select[Any]:
    """Compute one partial balance per award from the actions that have an effect.

    Args:
        actions: Rows with the ledger's columns. Each action occurs once.
        which: Conditions that select the actions.
    """
    r = _newest_first(actions, *which, rank=row_number(), before_at=func.lead(actions.c.occurred_at)).c

    def of_newest(column: ColumnElement[Any]) -> ColumnElement[Any]:
        return func.max(case((r.rank == 1, column)))

    def of_oldest(column: ColumnElement[Any]) -> ColumnElement[Any]:
        return func.max(case((r.before_at.is_(None), column)))

    newest = {name: of_newest(r[name]) for name in _OF_NEWEST}
    return _partials(r, newest, of_oldest(r.action_id), of_oldest(exact(r.points_available - change_of(r))))


@cache
def partials_by_packing(actions: FromClause) -> Select[Any]:
    """Return the same rows as `partials_from_actions` without sorting the actions of each award.

    For a whole ledger, this statement is faster. Use it only on engines that compile `packed`.
    """
    a = actions.c

    def of_end(end: Callable[[Any], ColumnElement[Any]], **values: ColumnElement[Any]) -> dict[str, ColumnElement[Any]]:
        row = end(packed(a.occurred_at, *values.values()))
        return {name: unpacked(row, place, value.type) for place, (name, value) in enumerate(values.items(), 1)}

    newest = of_end(func.max, **{name: a[name] for name in _OF_NEWEST})
    oldest = of_end(func.min, action_id=a.action_id, opening=cast(a.points_available - change_of(a), Points()))
    return _partials(a, newest, oldest["action_id"], oldest["opening"]).where(a.effect.is_not(None))


def _partials(
    r: Columns, newest: Columns, first_action_id: ColumnElement[Any], opening: ColumnElement[Any]
) -> Select[Any]:
    """Compute one partial balance per award from the actions in `r`.

    `newest` has the values from each award's newest action.
    """
    return select(
        r["award_id"],
        # The newest action may lack the user or the perk. All actions of an award have the same user and perk, so take
        # a missing value from any other action that has it.
        *(func.coalesce(newest[name], any_value(r[name])).label(name) for name in _OWNER),
        newest["points_available"].label("points"),
        func.max(r["occurred_at"]).label("as_of"),
        cast(_ACTION, Identifier()).label("as_of_source"),
        newest["action_id"].label("last_action_id"),
        *_sums(r),
        cast(func.count(), BigInteger).label("action_count"),
        func.min(r["occurred_at"]).label("first_action_at"),
        func.max(r["occurred_at"]).label("last_action_at"),
        func.max(r["loaded_at"]).label("updated_at"),
        first_action_id.label("first_action_id"),
        opening.label("opening"),
    ).group_by(r["award_id"])


def _newest_first(actions: FromClause, *which: ColumnElement[bool], **functions: FunctionElement[Any]) -> Subquery:
    """Select the actions that have an effect, and add window functions over each award's actions, newest first."""
    order = [actions.c.occurred_at.desc(), actions.c.action_id.desc()]
    return (
        select(*(actions.c[name] for name in _ACTION_COLUMNS))
        .add_columns(
            *(
                function.over(partition_by=actions.c.award_id, order_by=order).label(name)
                for name, function in functions.items()
            )
        )
        .where(actions.c.effect.is_not(None), *which)
        .subquery("newest_first")
    )


def change_of(actions: Columns) -> ColumnElement[Any]:
    """Return an expression for the change that each action makes to the balance."""
    return case(
        (actions["effect"] == literal_column("'earned'"), actions["points_added"]),
        (actions["effect"] == literal_column("'redeemed'"), -actions["points_redeemed"]),
        else_=actions["points_refunded"],
    )


def _sums(actions: Columns) -> list[Label[Any]]:
    """Return an expression for each total. A total is 0 if no action counts towards it."""
    sums = {
        name: exact_sum(case((actions["effect"] == literal_column(f"'{effect}'"), actions[column])))
        for name, (effect, column) in _TOTALS.items()
    }
    return [func.coalesce(total, _ZERO).label(name) for name, total in sums.items()]


@cache
def partials_from_snapshots(awards: FromClause) -> Select[Any]:
    """Compute one partial balance per snapshot with points.

    `awards` may be any table or query with the columns of the table `awards` and at most one row per award.
    """
    c = awards.c
    return select(
        c["_id"].label("award_id"),
        c.user_id,
        c.perk_id,
        c.points,
        func.coalesce(c.updated_at, c[EXTRACTED_AT]).label("as_of"),
        cast(_AWARD, Identifier()).label("as_of_source"),
        cast(null(), Identifier()).label("last_action_id"),
        *(_ZERO.label(name) for name in _TOTALS),
        cast(literal_column("0"), BigInteger).label("action_count"),
        cast(null(), c.updated_at.type).label("first_action_at"),
        cast(null(), c.updated_at.type).label("last_action_at"),
        c[BATCHED_AT].label("updated_at"),
        cast(null(), Identifier()).label("first_action_id"),
        c.points.label("opening"),
    ).where(c.points.is_not(None))


def union(one: Columns, other: Columns) -> dict[str, ColumnElement[Any]]:
    """Combine two partial balances of an award.

    If a partial is missing, all of its columns are null. Of two snapshots from the same instant, the one in `one` wins.

    Returns:
        Column name → expression, for every column except `award_id`.
    """

    def newer(by: str, tie: ColumnElement[bool]) -> ColumnElement[bool]:
        return or_(other[by].is_(None), one[by] > other[by], and_(one[by] == other[by], tie))

    greater_id = one["last_action_id"] > other["last_action_id"]
    is_snapshot, is_action = other["as_of_source"] == _AWARD, one["as_of_source"] == _ACTION
    observed_later = newer("as_of", or_(is_snapshot, and_(is_action, greater_id)))
    acted_later = newer("last_action_at", greater_id)
    has_no_action = and_(one["first_action_at"].is_(None), other["first_action_at"].is_(None))
    acted_earlier = or_(
        other["first_action_at"].is_(None),
        one["first_action_at"] < other["first_action_at"],
        and_(
            one["first_action_at"] == other["first_action_at"],
            one["first_action_id"] < other["first_action_id"],
        ),
    )

    def of_newest(name: str) -> ColumnElement[Any]:
        return case((observed_later, one[name]), else_=other[name])

    def least(name: str) -> ColumnElement[Any]:
        return case((or_(other[name].is_(None), one[name] < other[name]), one[name]), else_=other[name])

    def greatest(name: str) -> ColumnElement[Any]:
        return case((or_(other[name].is_(None), one[name] > other[name]), one[name]), else_=other[name])

    def sum_of(name: str) -> ColumnElement[Any]:
        return func.coalesce(one[name], literal_column("0")) + func.coalesce(other[name], literal_column("0"))

    return {
        **{name: func.coalesce(of_newest(name), one[name], other[name]) for name in _OWNER},
        **{name: of_newest(name) for name in ("points", "as_of", "as_of_source")},
        "last_action_id": case((acted_later, one["last_action_id"]), else_=other["last_action_id"]),
        "first_action_id": case((acted_earlier, one["first_action_id"]), else_=other["first_action_id"]),
        "opening": case((has_no_action, of_newest("opening")), (acted_earlier, one["opening"]), else_=other["opening"]),
        **{name: exact(sum_of(name)) for name in _TOTALS},
        "action_count": sum_of("action_count"),
        "first_action_at": least("first_action_at"),
        "last_action_at": greatest("last_action_at"),
        "updated_at": greatest("updated_at"),
    }


def by_full_join(actions: Select[Any], awards: Select[Any]) -> Select[Any]:
    """Compute one balance per award from the partials of its actions and of its snapshot."""
    rows = awards.subquery("snapshots").c
    # Tables on DuckDB have no key, so a user may have inserted a snapshot twice.
    others = (func.max(column).label(column.name) for column in rows if column.name != "award_id")
    action = actions.subquery("action")
    snapshot = select(rows.award_id, *others).group_by(rows.award_id).subquery("snapshot")
    both = action.join(snapshot, action.c.award_id == snapshot.c.award_id, full=True)
    award_id = func.coalesce(action.c.award_id, snapshot.c.award_id).label("award_id")
    return _combined(award_id, snapshot.c, action.c).select_from(both)


def by_grouping(actions: Select[Any], awards: Select[Any]) -> Select[Any]:
    """Return the same rows as `by_full_join`, for engines that have no full join, or execute it with nested loops."""
    both = union_all(actions, awards).subquery("partials")

    def of(source: str, column: ColumnElement[Any]) -> ColumnElement[Any]:
        is_its = both.c.as_of_source == literal_column(f"'{source}'")
        return func.max(case((is_its, column))).label(f"{source}_{column.name}")

    columns = [column for column in both.c if column.name != "award_id"]
    halves = (
        select(
            both.c.award_id,
            *(of("award", both.c[name]) for name in _SNAPSHOT_COLUMNS),
            *(of("action", each) for each in columns),
        )
        .group_by(both.c.award_id)
        .subquery("halves")
    )
    h = halves.c
    action = {column.name: h[f"action_{column.name}"] for column in columns}
    snapshot = {
        each.name: h[f"award_{each.name}"] if each.name in _SNAPSHOT_COLUMNS else cast(null(), each.type)
        for each in columns
    }
    return _combined(h.award_id, snapshot, action)


def by_left_join(actions: Select[Any], awards: Select[Any]) -> Select[Any]:
    """Return the same rows as `by_full_join`, for an engine that is fastest when it looks up snapshots by their key.

    Only use this if the engine computes `actions` once, although the query refers to it twice.
    """
    action = actions.cte("action")
    snapshot, alone = awards.subquery("snapshot"), awards.subquery("alone")
    both = action.outerjoin(snapshot, snapshot.c.award_id == action.c.award_id)
    acted = _combined(action.c.award_id, snapshot.c, action.c).select_from(both)
    others = select(*(alone.c[column.name] for column in acted.selected_columns))
    return select(union_all(acted, others.where(alone.c.award_id.not_in(select(action.c.award_id)))).subquery("both"))


def _combined(award_id: ColumnElement[Any], snapshot: Columns, action: Columns) -> Select[Any]:
    """Select each award's two partial balances, combined with `union`."""
    return select(award_id, *(column.label(name) for name, column in union(snapshot, action).items()))


@cache
def all_balances(tables: Tables, partials: Select[Any], combine: Combine = by_grouping) -> Select[Any]:
    """Recompute every balance.

    Args:
        tables: The target's tables.
        partials: A query for one partial balance per award, computed from all actions.
        combine: A function that combines this query with the query for the partials of snapshots.
    """
    return combine(partials, partials_from_snapshots(tables.awards))


@cache
def as_of(tables: Tables) -> Select[Any]:
    """Compute every balance as of the parameter `moment`: each award's newest observation and sums up to this time.

    The query leaves out awards that had no observation yet, and awards that were already deleted. The warehouse keeps
    only the newest snapshot of an award, so this query cannot find points that only an earlier snapshot showed.
    """
    moment = bindparam("moment", type_=Instant())
    actions, awards = tables.actions, tables.awards
    snapshot_at = func.coalesce(awards.c.updated_at, awards.c[EXTRACTED_AT])
    acted = partials_from_actions(actions, actions.c.occurred_at <= moment)
    then = by_grouping(acted, partials_from_snapshots(awards).where(snapshot_at <= moment)).subquery("then")
    return (
        select(*(column for column in then.c if column.name != "updated_at"))
        .outerjoin_from(then, awards, awards.c["_id"] == then.c.award_id)
        .where(or_(awards.c[DELETED_AT].is_(None), awards.c[DELETED_AT] > moment))
        .order_by(then.c.award_id)
    )


@cache
def merge(tables: Tables, arrived: Select[Any], work: Table) -> Merge:
    """Merge new partials, at most one per award, into the stored balances. `work` has the columns of a balance."""
    return Merge(tables.award_balances, arrived, union, work)


@cache
def recompute_awards(tables: Tables, named: Select[Any]) -> Replacement:
    """Recompute the balances of some awards from their whole history.

    Engines without transactions need this. If a batch stops between two statements on such an engine, the target loads
    the batch again, and a merge would count its actions twice. The cost grows with the number of actions of these
    awards.

    Args:
        tables: The target's tables.
        named: A query for the ids of the awards.
    """
    actions = partials_from_actions(tables.actions, tables.actions.c.award_id.in_(named))
    snapshots = partials_from_snapshots(tables.awards).where(tables.awards.c["_id"].in_(named))
    return Replacement(tables.award_balances, by_grouping(actions, snapshots), tables.merged)


@cache
def owner_of_awards(awards: Table, staged: Table) -> FromClause:
    """Select the user and perk of each staged award, from the rows of `awards` that have points."""
    c = awards.c
    owner = select(c["_id"].label("award_id"), *(func.max(c[name]).label(name) for name in _OWNER))
    with_points = owner.where(c.points.is_not(None), c["_id"].in_(select(staged.c["_id"])))
    return with_points.group_by(c["_id"]).subquery("owner")


@cache
def fill_owner(table: Table, key: str, owner: FromClause) -> RowUpdate:
    """Fill in a missing user or perk from other rows of the same award."""
    values = {name: func.coalesce(table.c[name], owner.c[name]) for name in _OWNER}
    lacking = or_(*(and_(table.c[name].is_(None), owner.c[name].is_not(None)) for name in _OWNER))
    return RowUpdate(table, values, and_(table.c[key] == owner.c.award_id, lacking))


@cache
def differences(stored: Table, recomputed: Select[Any]) -> Select[Any]:
    """Select the awards whose stored balance differs from the recomputed one.

    Each row has the stored columns, and the recomputed values as `expected_…`. If either balance is missing, its
    columns are null. The comparison ignores `updated_at`.
    """
    expected = recomputed.subquery("expected")
    compared = [name for name in stored.c.keys() if name != "updated_at"]  # noqa: SIM118
    sides = union_all(
        *(
            select(*(rows.c[name] for name in compared), literal_column(side).label("side"))
            for side, rows in (("0", stored), ("1", expected))
        )
    ).subquery("sides")
    # Equal rows of both sides form one group. A group with rows of only one side is a difference.
    s = sides.c
    row = [s[name] for name in compared]
    alone = (
        select(*row, func.min(s.side).label("first_side"), func.max(s.side).label("last_side"))
        .group_by(*row)
        .having(or_(func.count() != 2, func.min(s.side) == func.max(s.side)))
        .subquery("alone")
    )
    d = alone.c
    values = [name for name in compared if name != "award_id"]
    return (
        select(d.award_id)
        .add_columns(*(func.max(case((d.first_side == 0, d[name]))).label(name) for name in values))
        .add_columns(*(func.max(case((d.last_side == 1, d[name]))).label(f"expected_{name}") for name in values))
        .group_by(d.award_id)
        .order_by(d.award_id)
    )


@cache
def gaps(tables: Tables, read: ReadTimes) -> Select[Any]:
    """Select the awards whose chain of actions has gaps.

    For each kind of gap, a row has the number of the award's gaps and the number of all awards' gaps. It also has the
    time of the award's newest gap.

    Two consecutive actions have a gap between them if the balance after the first one, plus the change of the second,
    differs from the balance after the second. Either the points changed without an action, for example by an edit or
    an expiry, or the tap did not read an action between the two.
    """
    a = tables.actions.c
    c = _newest_first(tables.actions, points_before=func.lead(a.points_available), before_at=func.lead(a.occurred_at)).c
    across_hole = (overlaps(c.before_at, c.occurred_at, _literal(hole)) for hole in read.holes)
    inside_covered = (is_inside(c.before_at, c.occurred_at, _literal(each)) for each in read.covered)
    counts = {
        "gaps": func.count(),
        "unread": func.count(case((or_(false(), *across_hole), c.action_id))),
        "covered": func.count(case((or_(false(), *inside_covered), c.action_id))),
    }
    is_gap = exact(c.points_available - c.points_before) != change_of(c)
    found = (
        select(c.award_id, *(cast(count, BigInteger).label(name) for name, count in counts.items()))
        .add_columns(func.max(c.occurred_at).label("gap_at"))
        .where(is_gap)
        .group_by(c.award_id)
        .subquery("found")
    )
    totals = (func.sum(found.c[name]).over().label(f"all_{name}") for name in counts)
    return select(found, *totals).order_by(found.c.award_id)


def _literal(interval: Interval) -> Any:
    return Interval(*(literal(edge, Instant()) for edge in interval))  # type: ignore[arg-type]


@cache
def totals_of_actions(actions: FromClause) -> Select[Any]:
    """Return a single row with the totals over all actions that have an effect. `actions` has the ledger's columns."""
    return select(*_sums(actions.c), func.count().label("action_count")).where(actions.c.effect.is_not(None))


@cache
def totals_of_balances(balances: Table) -> Select[Any]:
    """Return a single row with the sums of all balances' totals."""
    c = balances.c
    sums = [func.coalesce(exact_sum(c[name]), _ZERO).label(name) for name in _TOTALS]
    return select(*sums, func.coalesce(cast(func.sum(c.action_count), BigInteger), 0).label("action_count"))


@cache
def behind_snapshot(tables: Tables) -> Select[Any]:
    """Select the awards whose balance is missing, or older than the snapshot.

    Also select awards whose balance comes from a snapshot, but differs from the points in the stored snapshot.
    """
    balances, awards = tables.award_balances, tables.awards
    snapshot_as_of = func.coalesce(awards.c.updated_at, awards.c[EXTRACTED_AT])
    return (
        select(awards.c["_id"].label("award_id"), balances.c.points, awards.c.points.label("expected_points"))
        .outerjoin_from(awards, balances, balances.c.award_id == awards.c["_id"])
        .where(
            awards.c.points.is_not(None),
            or_(
                balances.c.award_id.is_(None),
                snapshot_as_of > balances.c.as_of,
                and_(balances.c.as_of_source == _AWARD, balances.c.points != awards.c.points),
            ),
        )
        .order_by(awards.c["_id"])
    )


def later_than(balances: Table, limit: datetime) -> Select[Any]:
    """Select the awards whose balance has a later time than `limit`."""
    c = balances.c
    return select(c.award_id, c.as_of).where(c.as_of > literal(limit, Instant())).order_by(c.award_id)

"""Pure: the reduction of actions and snapshots to one balance per award, as SQLAlchemy Core statements.

Everything that says something of a balance is first written as a *partial* balance of one award: its actions (they saw
the balance, and add to the totals), its snapshot (it saw the balance, and adds nothing), the stored balance. `union`
makes one of two. In which order, and how they are grouped, matters only to two snapshots of one instant:

- `points` is a register: the newest sight wins. At the same instant an action wins over a snapshot, and of two actions
  the one with the greater id.
- totals and counts are sums, so each action must come in once: callers pass those that the ledger has just taken.

Hence a batch merged into the stored balances gives the very rows that a fold of the whole history gives.

Statements are built once for their tables: that takes longer than a small batch.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from sqlalchemy import BigInteger, and_, bindparam, case, cast, func, literal_column, null, or_, select, union_all

from target_crm.records.column_types import Identifier, Instant, Points
from target_crm.records.schemas import DELETED_AT, EXTRACTED_AT, LOADED_AT
from target_crm.sql.functions import exact, exact_sum
from target_crm.sql.staging import Merge, Replacement, RowUpdate

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlalchemy import ColumnElement, FromClause, Label, Select, Table
    from sqlalchemy.sql.base import ReadOnlyColumnCollection
    from sqlalchemy.sql.functions import FunctionElement

    from target_crm.sql.tables import Tables

    Columns = Mapping[str, ColumnElement[Any]] | ReadOnlyColumnCollection[str, Any]

# What is the same in all that is ever said of an award.
_OWNER = ("user_id", "perk_id")
# What a snapshot tells.
_SNAPSHOT_COLUMNS = (*_OWNER, "points", "as_of", "as_of_source", "updated_at")
# What an action adds to, by its effect, and where it says how much.
_TOTALS = {
    "earned_total": ("earned", "points_added"),
    "redeemed_total": ("redeemed", "points_redeemed"),
    "refunded_total": ("refunded", "points_refunded"),
}
_ZERO = cast(literal_column("0"), Points())
_ACTION = literal_column("'action'", Identifier())
_AWARD = literal_column("'award'", Identifier())


@cache
def partials_from_actions(actions: FromClause, *which: ColumnElement[bool], chained: bool = False) -> Select[Any]:
    """One partial balance per award of those actions that have an effect; `actions` has the ledger's columns.

    If `chained`, with the gaps in each award's chain of actions: how many there are, and when the newest was. A gap is
    where the balance before an action, and its delta, don't give the balance after: something changed the award without
    an action of its own, as an edit or an expiry does.
    """

    def over_newest_first(function: FunctionElement[Any]) -> ColumnElement[Any]:
        order = [actions.c.occurred_at.desc(), actions.c.action_id.desc()]
        return function.over(partition_by=actions.c.award_id, order_by=order)

    told = ("award_id", *_OWNER, "action_id", "occurred_at", "effect", "points_available", "loaded_at")
    before = over_newest_first(func.lead(actions.c.points_available)).label("points_before")
    ranked = (
        select(*(actions.c[name] for name in (*told, *(column for _, column in _TOTALS.values()))))
        .add_columns(over_newest_first(func.row_number()).label("rank"), *([before] if chained else []))
        .where(actions.c.effect.is_not(None), *which)
        .subquery("ranked")
    )
    r = ranked.c

    def of_newest(column: ColumnElement[Any]) -> ColumnElement[Any]:
        return func.max(case((r.rank == 1, column)))

    return select(
        r.award_id,
        # The newest may leave these out; an award is of one user and one perk, so any other action's will do then.
        *(func.coalesce(of_newest(r[name]), func.max(r[name])).label(name) for name in _OWNER),
        of_newest(r.points_available).label("points"),
        func.max(r.occurred_at).label("as_of"),
        cast(_ACTION, Identifier()).label("as_of_source"),
        of_newest(r.action_id).label("last_action_id"),
        *_sums(r),
        cast(func.count(), BigInteger).label("action_count"),
        func.min(r.occurred_at).label("first_action_at"),
        func.max(r.occurred_at).label("last_action_at"),
        func.max(r.loaded_at).label("updated_at"),
        *(_gaps(r) if chained else []),
    ).group_by(r.award_id)


def _gaps(actions: Columns) -> list[ColumnElement[Any]]:
    """The gaps among actions that tell the `points_before` them."""
    delta = case(
        (actions["effect"] == literal_column("'earned'"), actions["points_added"]),
        (actions["effect"] == literal_column("'redeemed'"), -actions["points_redeemed"]),
        else_=actions["points_refunded"],
    )
    is_gap = exact(actions["points_available"] - actions["points_before"]) != delta
    return [
        cast(func.count(case((is_gap, actions["action_id"]))), BigInteger).label("gaps"),
        func.max(case((is_gap, actions["occurred_at"]))).label("gap_at"),
    ]


def _sums(actions: Columns) -> list[Label[Any]]:
    """What actions add to each total."""
    return [
        exact_sum(case((actions["effect"] == literal_column(f"'{effect}'"), actions[column]), else_=_ZERO)).label(name)
        for name, (effect, column) in _TOTALS.items()
    ]


@cache
def partials_from_snapshots(awards: FromClause) -> Select[Any]:
    """One partial balance per snapshot that tells points; `awards` has that table's columns, and an award once."""
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
        c[LOADED_AT].label("updated_at"),
    ).where(c.points.is_not(None))


def union(one: Columns, other: Columns) -> dict[str, ColumnElement[Any]]:
    """Two partial balances of an award as one: what it says besides `award_id`.

    Of one that is missing all is null. On a full tie `one` wins.
    """

    def newer(by: str, tie: ColumnElement[bool]) -> ColumnElement[bool]:
        return or_(other[by].is_(None), one[by] > other[by], and_(one[by] == other[by], tie))

    greater_id = one["last_action_id"] > other["last_action_id"]
    is_snapshot, is_action = other["as_of_source"] == _AWARD, one["as_of_source"] == _ACTION
    seen_later = newer("as_of", or_(is_snapshot, and_(is_action, greater_id)))
    acted_later = newer("last_action_at", greater_id)

    def of_newest(name: str) -> ColumnElement[Any]:
        return case((seen_later, one[name]), else_=other[name])

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
        **{name: exact(sum_of(name)) for name in _TOTALS},
        "action_count": sum_of("action_count"),
        "first_action_at": least("first_action_at"),
        "last_action_at": greatest("last_action_at"),
        "updated_at": greatest("updated_at"),
    }


def aggregate(actions: Select[Any], awards: Select[Any]) -> Select[Any]:
    """One balance per award of the partials of its actions and of its snapshot; what else actions tell comes along.

    Not by a full join: some engines have none.
    """
    others = [column for column in actions.selected_columns if column.name not in awards.selected_columns]
    nothing = (cast(null(), column.type).label(column.name) for column in others)
    both = union_all(actions, awards.add_columns(*nothing)).subquery("partials")

    def of(source: str, column: ColumnElement[Any]) -> ColumnElement[Any]:
        is_its = both.c.as_of_source == literal_column(f"'{source}'")
        return func.max(case((is_its, column))).label(f"{source}_{column.name}")

    told = [column for column in both.c if column.name != "award_id"]
    halves = (
        select(
            both.c.award_id,
            *(of("award", both.c[name]) for name in _SNAPSHOT_COLUMNS),
            *(of("action", each) for each in told),
        )
        .group_by(both.c.award_id)
        .subquery("halves")
    )
    h = halves.c
    acted = {column.name: h[f"action_{column.name}"] for column in told}
    seen = {
        each.name: h[f"award_{each.name}"] if each.name in _SNAPSHOT_COLUMNS else cast(null(), each.type)
        for each in told
    }
    balance = {**union(seen, acted), **{column.name: acted[column.name] for column in others}}
    return select(h.award_id, *(column.label(name) for name, column in balance.items()))


@cache
def all_balances(tables: Tables, *, chained: bool = False) -> Select[Any]:
    """Every balance afresh, from the whole ledger and all snapshots."""
    return aggregate(partials_from_actions(tables.actions, chained=chained), partials_from_snapshots(tables.awards))


@cache
def as_of(tables: Tables) -> Select[Any]:
    """Every balance as of a `moment`: the newest sight of each award at or before it, and the sums until then.

    Awards that nobody had seen by then are left out, and so are those that were gone. Of an award's snapshots only the
    newest is kept, so what an earlier one had said is not known any more.
    """
    moment = bindparam("moment", type_=Instant())
    actions, awards = tables.actions, tables.awards
    seen_at = func.coalesce(awards.c.updated_at, awards.c[EXTRACTED_AT])
    acted = partials_from_actions(actions, actions.c.occurred_at <= moment)
    then = aggregate(acted, partials_from_snapshots(awards).where(seen_at <= moment)).subquery("then")
    return (
        select(*(column for column in then.c if column.name != "updated_at"))
        .outerjoin_from(then, awards, awards.c["_id"] == then.c.award_id)
        .where(or_(awards.c[DELETED_AT].is_(None), awards.c[DELETED_AT] > moment))
        .order_by(then.c.award_id)
    )


@cache
def merge(tables: Tables, arrived: Select[Any]) -> Merge:
    """Merge partials that have just arrived, one of each award, into the stored balances."""
    return Merge(tables.award_balances, arrived, union, tables.merged)


@cache
def recompute_awards(tables: Tables, named: Select[Any]) -> Replacement:
    """Fold some awards afresh from all that is known of them.

    For where a batch may be cut off between two statements, and is then given again: merging would not know what it
    has merged already. `named` selects the awards' ids; the cost grows with what the ledger has of them.
    """
    actions = partials_from_actions(tables.actions, tables.actions.c.award_id.in_(named))
    snapshots = partials_from_snapshots(tables.awards).where(tables.awards.c["_id"].in_(named))
    return Replacement(tables.award_balances, aggregate(actions, snapshots), tables.merged)


@cache
def owner_of_awards(awards: Table, staged: Table) -> FromClause:
    """Whose the staged awards are, and of which perk, as far as any row of `awards` that tells points says so."""
    c = awards.c
    told = select(c["_id"].label("award_id"), *(func.max(c[name]).label(name) for name in _OWNER))
    telling = told.where(c.points.is_not(None), c["_id"].in_(select(staged.c["_id"])))
    return telling.group_by(c["_id"]).subquery("told")


@cache
def fill_owner(table: Table, key: str, told: FromClause) -> RowUpdate:
    """Let rows that leave out whose an award is, or of which perk, have it from others: that is for life."""
    values = {name: func.coalesce(table.c[name], told.c[name]) for name in _OWNER}
    lacking = or_(*(and_(table.c[name].is_(None), told.c[name].is_not(None)) for name in _OWNER))
    return RowUpdate(table, values, and_(table.c[key] == told.c.award_id, lacking))


@cache
def differences(tables: Tables, examples_max: int) -> Select[Any]:
    """Awards whose stored balance is not what a full fold gives, or whose chain of actions has gaps.

    The first so many of each kind, with what is stored, what is expected, and the gaps; and, in every row, how many
    drifted awards and how many gaps there are in all. It reads the ledger once.
    """
    stored = tables.award_balances
    expected = all_balances(tables, chained=True).subquery("expected")
    compared = [name for name in stored.c.keys() if name != "updated_at"]  # noqa: SIM118
    gaps = [expected.c[name] for name in ("gaps", "gap_at")]
    nothing = [cast(null(), column.type).label(column.name) for column in gaps]
    sides = union_all(
        select(*(stored.c[name] for name in compared), *nothing, literal_column("0").label("side")),
        select(*(expected.c[name] for name in compared), *gaps, literal_column("1").label("side")),
    ).subquery("sides")
    # What both sides say alike becomes one row, and so does what only one of them says.
    s = sides.c
    agree = and_(func.count() == 2, func.min(s.side) != func.max(s.side))
    words = (
        select(s.award_id, s.points, func.min(s.side).label("first_side"), func.max(s.side).label("last_side"))
        .add_columns(
            case((agree, 1), else_=0).label("agree"), *(func.max(s[each.name]).label(each.name) for each in gaps)
        )
        .group_by(*(s[name] for name in compared))
        .subquery("words")
    )
    w = words.c
    found = (
        select(
            w.award_id,
            func.max(case((w.first_side == 0, w.points))).label("points"),
            func.max(case((w.last_side == 1, w.points))).label("expected_points"),
            (1 - func.min(w.agree)).label("drifted"),
            *(func.max(w[column.name]).label(column.name) for column in gaps),
        )
        .group_by(w.award_id)
        .having(or_(func.min(w.agree) == 0, func.max(w.gaps) > 0))
        .subquery("found")
    )
    f = found.c
    has_gaps = case((f.gaps > 0, 1), else_=0)
    places = [func.row_number().over(partition_by=kind, order_by=f.award_id) for kind in (f.drifted, has_gaps)]
    counted = select(
        *f,
        *(place.label(f"place_{number}") for number, place in enumerate(places)),
        func.sum(f.drifted).over().label("all_drifted"),
        func.sum(f.gaps).over().label("all_gaps"),
    ).subquery("counted")
    c, last = counted.c, literal_column(str(examples_max), BigInteger)
    is_first = or_(and_(c.drifted == 1, c.place_0 <= last), and_(c.gaps > 0, c.place_1 <= last))
    return select(counted).where(is_first).order_by(c.award_id)


@cache
def totals_of_actions(actions: FromClause) -> Select[Any]:
    """What all actions that have an effect add up to: one row; `actions` has the ledger's columns."""
    sums = [func.coalesce(each, _ZERO).label(each.name) for each in _sums(actions.c)]
    return select(*sums, func.count().label("action_count")).where(actions.c.effect.is_not(None))


@cache
def totals_of_balances(balances: Table) -> Select[Any]:
    """What all balances add up to: one row."""
    c = balances.c
    sums = [func.coalesce(exact_sum(c[name]), _ZERO).label(name) for name in _TOTALS]
    return select(*sums, func.coalesce(cast(func.sum(c.action_count), BigInteger), 0).label("action_count"))


@cache
def behind_snapshot(tables: Tables) -> Select[Any]:
    """Awards whose snapshot is Pepper's newest word, and yet says other points than the balance."""
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

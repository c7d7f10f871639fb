"""Pure: the reduction of actions and snapshots to one balance per award, as SQLAlchemy Core statements.

Everything that says something of a balance is first written as a *partial* balance of one award: an action (it saw
the balance at its time, and adds to one total), a snapshot (it saw the balance, and adds nothing), a stored balance.
`reduce` merges partials of the same award, and doesn't care about their number, order or grouping:

- `points` is a register: the newest sight wins. At the same instant an action wins over a snapshot, and of two actions
  the one with the greater id.
- totals and counts are sums, so each action must come in once: callers pass those that the ledger has just taken.

Hence a batch merged into the stored balances gives the very rows that a fold of the whole history gives.

Statements are built once for their tables: that takes longer than a small batch.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from sqlalchemy import BigInteger, and_, bindparam, case, cast, func, literal_column, not_, null, or_, select, union_all

from target_crm.columns import Identifier, Instant, Points, exact, exact_sum
from target_crm.schemas import DELETED_AT, EXTRACTED_AT, LOADED_AT
from target_crm.staging import Change

if TYPE_CHECKING:
    from sqlalchemy import ColumnElement, Delete, FromClause, Insert, Select, Table

    from target_crm.tables import Tables

# What is the same in all that is ever said of an award.
_FOR_LIFE = ("user_id", "perk_id")
_TOTALS = ("earned_total", "redeemed_total", "refunded_total")
_ZERO = cast(literal_column("0"), Points())
_ACTION = literal_column("'action'", Identifier())
_AWARD = literal_column("'award'", Identifier())


@cache
def partials_of_actions(actions: FromClause) -> Select[Any]:
    """One partial balance per action that has an effect; `actions` has the ledger's columns."""
    c = actions.c

    def delta(effect: str, column: ColumnElement[Any]) -> ColumnElement[Any]:
        return case((c.effect == literal_column(f"'{effect}'"), column), else_=_ZERO)

    return select(
        c.award_id,
        c.user_id,
        c.perk_id,
        c.points_available.label("points"),
        c.occurred_at.label("as_of"),
        _ACTION.label("as_of_source"),
        c.action_id.label("last_action_id"),
        delta("earned", c.points_added).label("earned_total"),
        delta("redeemed", c.points_redeemed).label("redeemed_total"),
        delta("refunded", c.points_refunded).label("refunded_total"),
        literal_column("1").label("action_count"),
        c.occurred_at.label("first_action_at"),
        c.occurred_at.label("last_action_at"),
        c.loaded_at.label("updated_at"),
        literal_column("1").label("arrival"),
    ).where(c.effect.is_not(None))


@cache
def partials_of_awards(awards: FromClause) -> Select[Any]:
    """One partial balance per snapshot that tells points; `awards` has that table's columns."""
    c = awards.c
    return select(
        c["_id"].label("award_id"),
        c.user_id,
        c.perk_id,
        c.points,
        func.coalesce(c.updated_at, c[EXTRACTED_AT]).label("as_of"),
        _AWARD.label("as_of_source"),
        cast(null(), Identifier()).label("last_action_id"),
        _ZERO.label("earned_total"),
        _ZERO.label("redeemed_total"),
        _ZERO.label("refunded_total"),
        literal_column("0").label("action_count"),
        cast(null(), c.updated_at.type).label("first_action_at"),
        cast(null(), c.updated_at.type).label("last_action_at"),
        c[LOADED_AT].label("updated_at"),
        literal_column("1").label("arrival"),
    ).where(c.points.is_not(None))


def partials_of_balances(balances: Table) -> Select[Any]:
    """Stored balances, which are partials already; on a full tie they give way to what has just arrived."""
    return select(*balances.c, literal_column("0").label("arrival"))


def reduce(balances: Table, *partials: Select[Any]) -> Select[Any]:
    """One balance per award of the partials, in the columns of `balances`."""
    union = union_all(*partials).subquery("partials")
    u = union.c
    newest = func.row_number().over(
        partition_by=u.award_id,
        order_by=[
            u.as_of.desc(),
            # An action wins over a snapshot. There is no empty text in this: on Oracle that would be null, and first.
            case((u.as_of_source == _ACTION, 1), else_=0).desc(),
            case((u.as_of_source == _ACTION, u.last_action_id)).desc(),
            u.arrival.desc(),
        ],
    )
    newest_action = func.row_number().over(
        partition_by=u.award_id,
        order_by=[case((u.last_action_at.is_(None), 1), else_=0), u.last_action_at.desc(), u.last_action_id.desc()],
    )
    ranked = select(*u, newest.label("rank"), newest_action.label("action_rank")).subquery("ranked")
    r = ranked.c

    def of_newest(column: ColumnElement[Any]) -> ColumnElement[Any]:
        return func.max(case((r.rank == 1, column)))

    merged = {
        "award_id": r.award_id,
        # A sight may leave these out; an award is of one user and one perk, so any other sight of them will do then.
        "user_id": func.coalesce(of_newest(r.user_id), func.max(r.user_id)),
        "perk_id": func.coalesce(of_newest(r.perk_id), func.max(r.perk_id)),
        "points": of_newest(r.points),
        "as_of": of_newest(r.as_of),
        "as_of_source": of_newest(r.as_of_source),
        "last_action_id": func.max(case((r.action_rank == 1, r.last_action_id))),
        "earned_total": exact_sum(r.earned_total),
        "redeemed_total": exact_sum(r.redeemed_total),
        "refunded_total": exact_sum(r.refunded_total),
        "action_count": cast(func.sum(r.action_count), BigInteger),
        "first_action_at": func.min(r.first_action_at),
        "last_action_at": func.max(r.last_action_at),
        "updated_at": func.max(r.updated_at),
    }
    return select(*(merged[column.name].label(column.name) for column in balances.c)).group_by(r.award_id)


@cache
def full_fold(tables: Tables) -> Select[Any]:
    """Every balance afresh, from the whole ledger and all snapshots."""
    return reduce(tables.award_balances, partials_of_actions(tables.actions), partials_of_awards(tables.awards))


@cache
def as_of(tables: Tables) -> Select[Any]:
    """Every balance as of a `moment`: the newest sight of each award at or before it, and the sums until then.

    Awards that nobody had seen by then are left out, and so are those that were gone. Of an award's snapshots only the
    newest is kept, so what an earlier one had said is not known any more.
    """
    moment = bindparam("moment", type_=Instant())
    actions, awards = tables.actions, tables.awards
    seen_at = func.coalesce(awards.c.updated_at, awards.c[EXTRACTED_AT])
    then = reduce(
        tables.award_balances,
        partials_of_actions(actions).where(actions.c.occurred_at <= moment),
        partials_of_awards(awards).where(seen_at <= moment),
    ).subquery("then")
    return (
        select(*(column for column in then.c if column.name != "updated_at"))
        .outerjoin_from(then, awards, awards.c["_id"] == then.c.award_id)
        .where(or_(awards.c[DELETED_AT].is_(None), awards.c[DELETED_AT] > moment))
        .order_by(then.c.award_id)
    )


@cache
def merge_statements(tables: Tables, arrived: Select[Any]) -> list[Insert | Delete]:
    """Merge partials that have just arrived into the stored balances; `merged` is empty before."""
    balances = tables.award_balances
    awards = arrived.subquery("arrived")
    stored = partials_of_balances(balances).where(balances.c.award_id.in_(select(awards.c.award_id)))
    return _replace(tables, reduce(balances, arrived, stored))


@cache
def recompute_statements(tables: Tables, named: Select[Any]) -> list[Insert | Delete]:
    """Fold some awards afresh from all that is known of them; `merged` is empty before.

    For where a batch may be cut off between two statements, and is then given again: merging would not know what it
    has merged already. `named` selects the awards' ids; the cost grows with what the ledger has of them.
    """
    actions, awards = tables.actions, tables.awards
    return _replace(
        tables,
        reduce(
            tables.award_balances,
            partials_of_actions(actions).where(actions.c.award_id.in_(named)),
            partials_of_awards(awards).where(awards.c["_id"].in_(named)),
        ),
    )


def _replace(tables: Tables, query: Select[Any]) -> list[Insert | Delete]:
    balances, merged = tables.award_balances, tables.merged
    return [
        merged.insert().from_select(list(merged.c), query),
        balances.delete().where(balances.c.award_id.in_(select(merged.c.award_id))),
        balances.insert().from_select(list(balances.c), select(*merged.c)),
    ]


@cache
def told_of(awards: Table, staged: Table) -> FromClause:
    """Whose the staged awards are, and of which perk, as far as any row of `awards` that tells points says so."""
    c = awards.c
    told = select(c["_id"].label("award_id"), *(func.max(c[name]).label(name) for name in _FOR_LIFE))
    telling = told.where(c.points.is_not(None), c["_id"].in_(select(staged.c["_id"])))
    return telling.group_by(c["_id"]).subquery("told")


@cache
def complete(table: Table, key: str, told: FromClause) -> Change:
    """Let rows that leave out whose an award is, or of which perk, have it from others: that is for life."""
    values = {name: func.coalesce(table.c[name], told.c[name]) for name in _FOR_LIFE}
    lacking = or_(*(and_(table.c[name].is_(None), told.c[name].is_not(None)) for name in _FOR_LIFE))
    return Change(table, values, and_(table.c[key] == told.c.award_id, lacking))


@cache
def rebuild_statements(tables: Tables) -> list[Insert | Delete]:
    """Put a full fold in the place of the stored balances."""
    balances = tables.award_balances
    return [balances.delete(), balances.insert().from_select(list(balances.c), full_fold(tables))]


@cache
def drifted(tables: Tables) -> Select[Any]:
    """Awards whose stored balance is not what a full fold gives: what is stored, what is expected, what differs."""
    stored, expected = tables.award_balances, full_fold(tables).subquery("expected")
    compared = [name for name in stored.c.keys() if name not in {"award_id", "updated_at"}]  # noqa: SIM118
    # Side by side in one column, not in a join: so the fold is named, and computed, but once.
    sides = union_all(
        *(
            select(side.c.award_id, literal_column(number).label("side"), *(side.c[name] for name in compared))
            for side, number in ((stored, "0"), (expected, "1"))
        )
    ).subquery("sides")
    s = sides.c
    alike = (
        or_(func.count(s[name]) == 0, and_(func.count(s[name]) == 2, func.min(s[name]) == func.max(s[name])))
        for name in compared
    )
    agree = and_(func.count() == 2, func.max(s.side) != func.min(s.side), *alike)
    rows = (
        select(
            s.award_id,
            func.max(case((s.side == 0, s.points))).label("points"),
            func.max(case((s.side == 1, s.points))).label("expected_points"),
        )
        .group_by(s.award_id)
        .having(not_(agree))
        .subquery("drifted")
    )
    return select(rows).order_by(rows.c.award_id)


@cache
def totals(partials: FromClause) -> Select[Any]:
    """What partial balances of all awards add up to: one row."""
    c = partials.c
    sums = [func.coalesce(exact_sum(c[name]), _ZERO).label(name) for name in _TOTALS]
    return select(*sums, func.coalesce(cast(func.sum(c.action_count), BigInteger), 0).label("action_count"))


@cache
def contradicted(tables: Tables) -> Select[Any]:
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


@cache
def gaps(tables: Tables) -> Select[Any]:
    """Places in an award's chain of actions where the balance before one, and its delta, don't give the balance after.

    Something changed the award between two actions without an action of its own: a direct edit, an expiry.
    """
    a = tables.actions.c
    delta = case(
        (a.effect == literal_column("'earned'"), a.points_added),
        (a.effect == literal_column("'redeemed'"), -a.points_redeemed),
        else_=a.points_refunded,
    )
    before = func.lag(a.points_available).over(partition_by=a.award_id, order_by=[a.occurred_at, a.action_id])
    chain = (
        select(a.award_id, a.action_id, a.occurred_at, exact(a.points_available - before - delta).label("unexplained"))
        .where(a.effect.is_not(None))
        .subquery("chain")
    )
    return (
        select(chain).where(chain.c.unexplained != literal_column("0")).order_by(chain.c.award_id, chain.c.occurred_at)
    )

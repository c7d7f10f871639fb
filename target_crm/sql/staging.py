"""Statements that move staged rows into their table.

Rows are first copied into a staging table, in the order of arrival. Then the work table `fresh` gets the sequence
numbers of the rows to write: new rows, and rows that will replace stored rows. The statements work on every engine, so
they use neither MERGE nor ON CONFLICT. They are cached per table, because building a statement takes longer than
executing it for a small batch.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any

from sqlalchemy import (
    ColumnElement,
    FromClause,
    and_,
    bindparam,
    case,
    cast,
    false,
    func,
    literal,
    literal_column,
    not_,
    null,
    or_,
    select,
)

from target_crm.records.column_types import Instant, JsonText, LongText
from target_crm.records.schemas import BATCHED_AT, DELETED_AT, EXTRACTED_AT, RANK, SEQ, TABLE_VERSION
from target_crm.sql.functions import row_number

if TYPE_CHECKING:
    from sqlalchemy import Delete, Insert, Join, Select, Table, Update


@dataclass(frozen=True)
class Staged:
    """A staging table, and the table `fresh` with the sequence numbers (`_seq`) of the rows to write."""

    table: Table
    fresh: Table


@dataclass(frozen=True)
class RowUpdate:
    """New values for the rows that meet a condition. The values and the condition may refer to other tables.

    A `RowUpdate` describes an UPDATE … FROM in a form that engines without such a statement can also execute. If the
    update refers to other tables, the updated table must have a key, and each updated row must match exactly one
    combination of rows in those tables.
    """

    table: Table
    values: Mapping[str, ColumnElement[Any]]
    where: ColumnElement[bool]

    @cached_property
    def update(self) -> Update:
        """Return the update as a single UPDATE statement."""
        return self.table.update().values(dict(self.values)).where(self.where)

    @cached_property
    def reads_other_tables(self) -> bool:
        """Whether the values or the condition refer to other tables."""
        return any(each is not self.table for each in select(*self.values.values()).where(self.where).get_final_froms())

    @cached_property
    def new_values(self) -> Select[Any]:
        """Select the parameters of `update_by_key`: the key and new values of each row that meets the condition."""
        keys = (self.table.c[name].label(f"KEY_{place}") for place, name in enumerate(_keys(self.table)))
        values: list[ColumnElement[Any]] = [
            value.label(f"NEW_{place}") for place, value in enumerate(self.values.values())
        ]
        return select(*keys, *values).where(self.where)

    @cached_property
    def update_by_key(self) -> Update:
        """The statement that updates one row.

        Its parameters have upper-case names, so that no parameter has the name of a column.
        """
        keys = (self.table.c[name] == bindparam(f"KEY_{place}") for place, name in enumerate(_keys(self.table)))
        values: dict[str, Any] = {name: bindparam(f"NEW_{place}") for place, name in enumerate(self.values)}
        return self.table.update().values(values).where(*keys)


@dataclass(frozen=True)
class Replacement:
    """Rows, at most one per key, that replace the table's rows with these keys.

    A query may compute the new rows from the rows that they replace. So the new rows are first written to `work`, which
    has the same columns as the table.
    """

    table: Table
    rows: Select[Any]
    work: Table

    @cached_property
    def statements(self) -> list[Insert | Delete]:
        """The statements that replace the rows. `work` must be empty."""
        (key,) = self.table.primary_key.columns
        return [
            self.work.insert().from_select(list(self.rows.selected_columns.keys()), self.rows),
            self.table.delete().where(key.in_(select(self.work.c[key.name]))),
            self.table.insert().from_select(list(self.table.c), select(*self.work.c)),
        ]


@dataclass(frozen=True)
class Merge:
    """Rows to insert, at most one per key. On a key conflict, combine the two rows with `union`.

    Engines with INSERT … ON CONFLICT DO UPDATE can use that statement. All other engines use `replacement`.
    """

    table: Table
    rows: Select[Any]
    union: Callable[[Any, Any], Mapping[str, ColumnElement[Any]]]
    work: Table

    @cached_property
    def replacement(self) -> Replacement:
        """Return this merge as a `Replacement`: the merged rows replace the stored rows."""
        (key,) = self.table.primary_key.columns
        arrived = self.rows.subquery("arrived")
        row = [column.label(name) for name, column in self.union(arrived.c, self.table.c).items()]
        merged = select(arrived.c[key.name], *row).outerjoin_from(arrived, self.table, key == arrived.c[key.name])
        return Replacement(self.table, merged, self.work)


@cache
def fresh_rows(staged: Staged) -> FromClause:
    """Select the staged rows to write, without `_seq`."""
    columns = [column for column in staged.table.c if column.name != SEQ]
    return select(*columns).select_from(_picked(staged)).subquery("fresh_rows")


def _picked(staged: Staged) -> Join:
    """Join the staged rows with `fresh`, so that only the rows to write remain."""
    return staged.table.join(staged.fresh, staged.fresh.c[SEQ] == staged.table.c[SEQ])


@cache
def pick_absent(table: Table, staged: Staged) -> Insert:
    """Fill `fresh` with the first staged row of each key that the table lacks."""
    (key,) = table.primary_key.columns
    rows = staged.table.c
    # With NOT EXISTS, DuckDB would read all keys of the table. In a join, it skips row groups that cannot match.
    with_known = staged.table.outerjoin(table, key == rows[key.name])
    first = select(func.min(rows[SEQ])).select_from(with_known).where(key.is_(None)).group_by(rows[key.name])
    return staged.fresh.insert().from_select([SEQ], first)


# Metadata columns, ignored when comparing rows.
METADATA_COLUMNS = {EXTRACTED_AT, BATCHED_AT, TABLE_VERSION}

Ages = Callable[[FromClause], Sequence[ColumnElement[Any]]]
"""A function that returns, for some rows, the expressions that order the rows by age, most significant first."""


@cache
def pick_newer(table: Table, staged: Staged, ages: Ages) -> Insert:
    """Fill `fresh` with the newest staged row of each key, unless the table has a newer one.

    Of two rows with the same age, the later arrival wins. A row is not written if it differs from the stored row only
    in `_sdc_batched_at`. If the table has no key, all staged rows are written.
    """
    keys = _keys(table)
    if not keys:
        return staged.fresh.insert().from_select([SEQ], select(staged.table.c[SEQ]))
    newest_first = [*(age.desc() for age in ages(staged.table)), staged.table.c[SEQ].desc()]
    rank = row_number().over(partition_by=[staged.table.c[key] for key in keys], order_by=newest_first)
    ranked = select(*staged.table.c, rank.label(RANK)).subquery("ranked")
    is_change = and_(_not_older(ages(ranked), ages(table)), not_(_equal(table, ranked, {BATCHED_AT})))
    winners = (
        select(ranked.c[SEQ])
        .outerjoin_from(ranked, table, _same_key(table, ranked))
        .where(ranked.c[RANK] == 1, or_(table.c[keys[0]].is_(None), is_change))
    )
    return staged.fresh.insert().from_select([SEQ], winners)


@cache
def changed_rows(table: Table, staged: Staged) -> FromClause:
    """Select the rows in `fresh` that are new, or that differ from the table in more than metadata."""
    rows = fresh_rows(staged)
    changed = or_(table.c[_keys(table)[0]].is_(None), not_(_equal(table, rows, METADATA_COLUMNS)))
    return select(rows).outerjoin_from(rows, table, _same_key(table, rows)).where(changed).subquery("changed_rows")


@cache
def replace(table: Table, staged: Staged) -> list[Insert | RowUpdate]:
    """Write the rows in `fresh` to the table. Update the rows whose key exists, and insert all others.

    Columns that the stream's schema does not name keep their values. An older schema or a user has added such columns.
    """
    if not _keys(table):
        return [insert(table, fresh_rows(staged))]
    rows = fresh_rows(staged)
    values = {column.name: rows.c[column.name] for column in table.c if not column.primary_key}
    return [RowUpdate(table, values, _same_key(table, rows)), insert_missing(table, rows)]


def keep_values(table: Table, staged: Staged, columns: Collection[str]) -> RowUpdate:
    """Copy the values of these columns from the table's rows to the staged rows with the same key."""
    return RowUpdate(staged.table, {name: table.c[name] for name in columns}, _same_key(table, staged.table))


@cache
def count_changed(table: Table, staged: Staged) -> Select[tuple[int]]:
    """Count the rows in `fresh` that change more than metadata in the table."""
    rows = changed_rows(table, staged) if _keys(table) else staged.fresh
    return select(func.count()).select_from(rows)


@cache
def count_same(table: Table, staged: Staged) -> Select[tuple[int]]:
    """Count the staged rows that equal the stored row with the same key, apart from metadata."""
    rows = staged.table
    same = and_(_same_key(table, rows), _equal(table, rows, METADATA_COLUMNS)) if _keys(table) else false()
    return select(func.count()).select_from(rows).join(table, same)


@cache
def insert(table: Table, rows: FromClause, *left_out: str) -> Insert:
    """Insert rows with the table's columns. The columns in `left_out` stay null."""
    columns = [cast(null(), column.type) if column.name in left_out else rows.c[column.name] for column in table.c]
    return table.insert().from_select(list(table.c), select(*columns))


def delete_others(table: Table, rows: FromClause) -> Delete:
    """Delete the table's rows that do not occur in `rows`."""
    alike = select(literal_column("1")).where(_same_key(table, rows), _equal(table, rows, _keys(table))).exists()
    return table.delete().where(~alike)


def insert_missing(table: Table, rows: FromClause) -> Insert:
    """Insert the rows whose key does not exist in the table."""
    absent = (
        select(*(rows.c[column.name] for column in table.c))
        .outerjoin_from(rows, table, _same_key(table, rows))
        .where(table.c[_keys(table)[0]].is_(None))
    )
    return table.insert().from_select(list(table.c), absent)


@cache
def count_fresh(staged: Staged) -> Select[tuple[int]]:
    """Count the rows in `fresh`."""
    return select(func.count()).select_from(staged.fresh)


def count_unversioned(table: Table) -> Select[Any]:
    """Count the rows that are not marked as deleted, and how many of them have no version."""
    unversioned = func.count(case((table.c[TABLE_VERSION].is_(None), 1)))
    return select(func.count(), unversioned).select_from(table).where(table.c[DELETED_AT].is_(None))


def activate(table: Table, version: int, *, hard: bool) -> Delete | RowUpdate:
    """Mark rows of older versions, and rows without a version, as deleted. If `hard` is true, delete these rows."""
    older = or_(table.c[TABLE_VERSION].is_(None), table.c[TABLE_VERSION] < version)
    if hard:
        return table.delete().where(older)
    now = literal(datetime.now(UTC), Instant())
    return RowUpdate(table, {DELETED_AT: now}, and_(older, table.c[DELETED_AT].is_(None)))


@cache
def delete_marked(table: Table, staged: Staged) -> Delete:
    """Delete the rows that are marked as deleted, if their keys occur in staged deletions.

    Compare each column of the key alone, because some engines cannot compare several columns with IN, or refer to the
    table in a subquery of DELETE. This may also match a combination that no staged row has, but only in a marked row.
    """
    rows = staged.table
    deletions = rows.c[DELETED_AT].is_not(None)
    in_step = (table.c[key].in_(select(rows.c[key]).where(deletions)) for key in _keys(table))
    return table.delete().where(table.c[DELETED_AT].is_not(None), *in_step)


@cache
def mark_present(table: Table, staged: Staged) -> RowUpdate:
    """Raise the version of rows whose key is staged. Clear their deletion marks, if an ACTIVATE_VERSION has set them.

    A mark from the row's own record says that the source deleted the row. Only a newer record clears such a mark.
    """
    rows = staged.table
    keys = [rows.c[key] for key in _keys(table)]
    versions = select(*keys, func.max(rows.c[TABLE_VERSION]).label(TABLE_VERSION)).where(
        rows.c[TABLE_VERSION].is_not(None)
    )
    seen = versions.group_by(*keys).subquery("seen")
    older = or_(table.c[TABLE_VERSION].is_(None), table.c[TABLE_VERSION] < seen.c[TABLE_VERSION])
    own_mark = case((table.c[DELETED_AT] < table.c[BATCHED_AT], table.c[DELETED_AT]), else_=null())
    values = {TABLE_VERSION: seen.c[TABLE_VERSION], DELETED_AT: own_mark}
    return RowUpdate(table, values, and_(_same_key(table, seen), older))


# The columns of an action that determine how it changes a balance.
BALANCE_COLUMNS = (
    "award_id",
    "effect",
    "occurred_at",
    "points_available",
    "points_added",
    "points_redeemed",
    "points_refunded",
)


@cache
def unknown_lines(ledger: Table, staged: Staged) -> Select[tuple[int]]:
    """Select the input line numbers of the staged actions whose id is not in the ledger."""
    rows = staged.table
    with_known = rows.outerjoin(ledger, ledger.c.action_id == rows.c.action_id)
    return select(rows.c[SEQ]).select_from(with_known).where(ledger.c.action_id.is_(None))


@cache
def pick_completing(ledger: Table, staged: Staged) -> Insert:
    """Fill `fresh` with staged actions that have an `effect`, if the column `effect` of their ledger row is null.

    The column may be null because a field was deselected when the tap first read the action. If several staged actions
    have the same id, take the first one.
    """
    rows = staged.table
    first = (
        select(func.min(rows.c[SEQ]))
        .join_from(rows, ledger, ledger.c.action_id == rows.c.action_id)
        .where(ledger.c.effect.is_(None), rows.c.effect.is_not(None), _agrees(ledger, rows))
        .group_by(rows.c.action_id)
    )
    return staged.fresh.insert().from_select([SEQ], first)


@cache
def keep_erased(ledger: Table, staged: Staged) -> RowUpdate:
    """Set the payload of the staged actions in `fresh` to null, if the payload of their ledger row is null."""
    rows = staged.table
    known = _picked(staged).join(ledger, ledger.c.action_id == rows.c.action_id)
    erased = select(rows.c[SEQ]).select_from(known).where(ledger.c.payload.is_(None)).subquery("erased")
    return RowUpdate(rows, {"payload": null()}, rows.c[SEQ] == erased.c[SEQ])


@cache
def delete_fresh(table: Table, staged: Staged) -> Delete:
    """Delete the table's rows that have the same key as a row in `fresh`."""
    (key,) = table.primary_key.columns
    return table.delete().where(key.in_(select(fresh_rows(staged).c[key.name])))


@cache
def conflicts(ledger: Table, staged: Staged) -> Select[tuple[int, int]]:
    """Select the staged actions that contradict the ledger's action with the same id.

    Each row has the number of the input line, and 1 if the ledger has no payload of this action, otherwise 0.
    """
    rows = staged.table
    return (
        select(rows.c[SEQ], case((ledger.c.payload.is_(None), 1), else_=0))
        .join_from(rows, ledger, ledger.c.action_id == rows.c.action_id)
        .where(_contradicts(ledger, rows))
        .order_by(rows.c[SEQ])
    )


@cache
def count_differing(ledger: Table, staged: Staged) -> Select[tuple[int]]:
    """Count the staged actions that are not in `fresh`, and differ in some column from the ledger's action."""
    rows, fresh = staged.table, staged.fresh
    not_fresh = rows.outerjoin(fresh, fresh.c[SEQ] == rows.c[SEQ])
    both = not_fresh.join(ledger, ledger.c.action_id == rows.c.action_id)
    return (
        select(func.count()).select_from(both).where(fresh.c[SEQ].is_(None), or_(*_differences(ledger, rows).values()))
    )


@cache
def differing_columns(ledger: Table, staged: Staged) -> Select[Any]:
    """Count, for each column, the staged actions whose value differs from the ledger.

    Leave out the actions that contradict the ledger, and actions without an effect that a later staged action has
    replaced (see `pick_completing`).
    """
    rows = staged.table
    written = select(rows.c.action_id, rows.c[SEQ]).select_from(_picked(staged)).subquery("written")
    is_replaced = and_(rows.c.effect.is_(None), rows.c[SEQ] < written.c[SEQ])
    both = rows.join(ledger, ledger.c.action_id == rows.c.action_id)
    return (
        select(
            *(
                func.count(case((differs, rows.c[SEQ]))).label(name)
                for name, differs in _differences(ledger, rows).items()
            )
        )
        .select_from(both.outerjoin(written, written.c.action_id == rows.c.action_id))
        .where(_agrees(ledger, rows), case((is_replaced, 1), else_=0) == 0)
    )


def _differences(ledger: Table, rows: FromClause) -> dict[str, ColumnElement[bool]]:
    """Return, for each column, an expression for whether two actions differ in this column."""
    ignored = {"action_id", "payload", "loaded_at"}
    names = [column.name for column in ledger.c if column.name not in ignored]
    return {name: ledger.c[name].is_distinct_from(rows.c[name]) for name in names}


def _contradicts(ledger: Table, rows: FromClause) -> ColumnElement[bool]:
    """Return whether an action would change a balance in another way than the ledger's action.

    If one of the two lacks a value, that is not a contradiction, because a field may have been deselected.
    """
    return or_(*(ledger.c[name] != rows.c[name] for name in BALANCE_COLUMNS))


def _agrees(ledger: Table, rows: FromClause) -> ColumnElement[bool]:
    """Return whether `_contradicts` is false or null. `NOT _contradicts` would be null if `_contradicts` is null."""
    return case((_contradicts(ledger, rows), 1), else_=0) == 0


def _keys(table: Table) -> list[str]:
    return [column.name for column in table.primary_key.columns]


def _same_key(table: Table, rows: FromClause) -> ColumnElement[bool]:
    return and_(*(table.c[key] == rows.c[key] for key in _keys(table)))


def _equal(table: Table, rows: FromClause, left_out: Collection[str]) -> ColumnElement[bool]:
    """Return whether two rows are equal in all columns except those in `left_out`."""
    names = [column.name for column in table.c if column.name not in left_out]
    return and_(*(_comparable(table.c[name]).is_not_distinct_from(_comparable(rows.c[name])) for name in names))


def _comparable(column: ColumnElement[Any]) -> ColumnElement[Any]:
    """Return the column in a form that can be compared. PostgreSQL cannot compare JSON, so convert it to text."""
    return cast(column, LongText()) if isinstance(column.type, JsonText) else column


def _not_older(ages: Sequence[ColumnElement[Any]], others: Sequence[ColumnElement[Any]]) -> ColumnElement[bool]:
    """Return whether a row is not older than another one.

    An age counts only if all ages before it in the list are equal. Null is older than any value.
    """
    (age, *more_ages), (other, *more_others) = ages, others
    if not more_ages:
        return or_(other.is_(None), age >= other)
    return or_(other.is_(None), age > other, and_(age == other, _not_older(more_ages, more_others)))

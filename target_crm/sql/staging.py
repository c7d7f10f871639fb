"""Pure: statements that move rows from a work table into the table beside it.

Rows are staged first, in the order of arrival. Then `fresh` takes the places of those that go on to be inserted.
No statement is told apart by engine: there is no MERGE and no ON CONFLICT in them. Each is built once for its tables:
that takes longer than a small batch.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any

from sqlalchemy import (
    ColumnElement,
    FromClause,
    and_,
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
from target_crm.records.schemas import DELETED_AT, EXTRACTED_AT, LOADED_AT, RANK, SEQ, VERSION

if TYPE_CHECKING:
    from sqlalchemy import Delete, Insert, Select, Table, Update


@dataclass(frozen=True)
class Staged:
    """A work table, and the places (`_seq`) of those of its rows that go on."""

    table: Table
    fresh: Table


@dataclass(frozen=True)
class RowUpdate:
    """New values for the rows of a table with a key that meet a condition; both may speak of other rows, too.

    What an UPDATE … FROM is, for engines that have it and for those that get to the same rows another way.
    """

    table: Table
    values: Mapping[str, ColumnElement[Any]]
    where: ColumnElement[bool]

    @cached_property
    def update(self) -> Update:
        """The change as one statement."""
        return self.table.update().values(dict(self.values)).where(self.where)


@dataclass(frozen=True)
class Replacement:
    """Rows for a table, at most one of each key, in the place of those that it has with these keys.

    They may well be made of the ones that they replace; so `work`, a table of the same columns, takes them first.
    """

    table: Table
    rows: Select[Any]
    work: Table

    @cached_property
    def statements(self) -> list[Insert | Delete]:
        """What does so, where `work` is empty."""
        (key,) = self.table.primary_key.columns
        return [
            self.work.insert().from_select(list(self.rows.selected_columns.keys()), self.rows),
            self.table.delete().where(key.in_(select(self.work.c[key.name]))),
            self.table.insert().from_select(list(self.table.c), select(*self.work.c)),
        ]


@dataclass(frozen=True)
class Merge:
    """Rows for a table, at most one of each key; where it has the key, `union` makes what is beside it of the two.

    What an INSERT … ON CONFLICT DO UPDATE is, for engines that have it, and a replacement for the others.
    """

    table: Table
    rows: Select[Any]
    union: Callable[[Any, Any], Mapping[str, ColumnElement[Any]]]
    work: Table

    @cached_property
    def replacement(self) -> Replacement:
        """The rows as they are after the merge."""
        (key,) = self.table.primary_key.columns
        arrived = self.rows.subquery("arrived")
        row = [column.label(name) for name, column in self.union(arrived.c, self.table.c).items()]
        merged = select(arrived.c[key.name], *row).outerjoin_from(arrived, self.table, key == arrived.c[key.name])
        return Replacement(self.table, merged, self.work)


@cache
def fresh_rows(staged: Staged) -> FromClause:
    """The rows that go on, without their places."""
    columns = [column for column in staged.table.c if column.name != SEQ]
    same_place = staged.fresh.c[SEQ] == staged.table.c[SEQ]
    return select(*columns).join_from(staged.table, staged.fresh, same_place).subquery("fresh_rows")


@cache
def pick_absent(table: Table, staged: Staged) -> Insert:
    """`fresh` ← the first row of each key that the table lacks."""
    (key,) = table.primary_key.columns
    rows = staged.table.c
    # Not by NOT EXISTS: for that, DuckDB reads all keys that the table has, for a join only parts that may hold these.
    with_known = staged.table.outerjoin(table, key == rows[key.name])
    first = select(func.min(rows[SEQ])).select_from(with_known).where(key.is_(None)).group_by(rows[key.name])
    return staged.fresh.insert().from_select([SEQ], first)


# What is not said by a row, but known of it: two rows that differ in nothing else say the same.
METADATA_COLUMNS = {EXTRACTED_AT, LOADED_AT, VERSION}

Ages = Callable[[FromClause], Sequence[ColumnElement[Any]]]
"""Given rows, the columns that tell which of two is newer, the weightiest first."""


@cache
def pick_newer(table: Table, staged: Staged, ages: Ages) -> Insert:
    """`fresh` ← the newest row of each key, unless the table's is newer still; without a key, all rows.

    At the same age the later arrival wins. A row that is just what the table has is left alone.
    """
    keys = _keys(table)
    if not keys:
        return staged.fresh.insert().from_select([SEQ], select(staged.table.c[SEQ]))
    newest_first = [*(age.desc() for age in ages(staged.table)), staged.table.c[SEQ].desc()]
    rank = func.row_number().over(partition_by=[staged.table.c[key] for key in keys], order_by=newest_first)
    ranked = select(*staged.table.c, rank.label(RANK)).subquery("ranked")
    news = and_(_not_older(ages(ranked), ages(table)), not_(_equal(table, ranked, {LOADED_AT})))
    winners = (
        select(ranked.c[SEQ])
        .outerjoin_from(ranked, table, _same_key(table, ranked))
        .where(ranked.c[RANK] == 1, or_(table.c[keys[0]].is_(None), news))
    )
    return staged.fresh.insert().from_select([SEQ], winners)


@cache
def changed_rows(table: Table, staged: Staged) -> FromClause:
    """The rows that go on and say something else than the table does, or something new."""
    rows = fresh_rows(staged)
    changed = or_(table.c[_keys(table)[0]].is_(None), not_(_equal(table, rows, METADATA_COLUMNS)))
    return select(rows).outerjoin_from(rows, table, _same_key(table, rows)).where(changed).subquery("changed_rows")


@cache
def replace(table: Table, staged: Staged) -> list[Insert | RowUpdate]:
    """Let the rows that go on take the place of those with the same key.

    Columns that the stream's schema doesn't name keep what they hold: an older schema named them, or a person did.
    """
    if not _keys(table):
        return [insert(table, fresh_rows(staged))]
    rows = fresh_rows(staged)
    values = {column.name: rows.c[column.name] for column in table.c if not column.primary_key}
    return [RowUpdate(table, values, _same_key(table, rows)), insert_missing(table, rows)]


@cache
def count_changed(table: Table, staged: Staged) -> Select[tuple[int]]:
    """How many rows go on and change what the table says; the others are only read anew."""
    rows = changed_rows(table, staged) if _keys(table) else staged.fresh
    return select(func.count()).select_from(rows)


@cache
def count_same(table: Table, staged: Staged) -> Select[tuple[int]]:
    """How many staged rows say what the table says."""
    rows = staged.table
    same = and_(_same_key(table, rows), _equal(table, rows, METADATA_COLUMNS)) if _keys(table) else false()
    return select(func.count()).select_from(rows).join(table, same)


@cache
def insert(table: Table, rows: FromClause, *leave_out: str) -> Insert:
    """Insert rows that have the table's columns; those to leave out stay null."""
    columns = [cast(null(), column.type) if column.name in leave_out else rows.c[column.name] for column in table.c]
    return table.insert().from_select(list(table.c), select(*columns))


def delete_others(table: Table, rows: FromClause) -> Delete:
    """Delete the rows of a table that are not among these, with all that they say."""
    alike = select(literal_column("1")).where(_same_key(table, rows), _equal(table, rows, _keys(table))).exists()
    return table.delete().where(~alike)


def insert_missing(table: Table, rows: FromClause) -> Insert:
    """Insert those of these rows whose key the table lacks."""
    absent = (
        select(*(rows.c[column.name] for column in table.c))
        .outerjoin_from(rows, table, _same_key(table, rows))
        .where(table.c[_keys(table)[0]].is_(None))
    )
    return table.insert().from_select(list(table.c), absent)


@cache
def count_fresh(staged: Staged) -> Select[tuple[int]]:
    """How many rows go on."""
    return select(func.count()).select_from(staged.fresh)


def activate(table: Table, version: int, *, hard: bool) -> Delete | RowUpdate:
    """Rows that are not of this version, nor of a newer one, are gone."""
    older = or_(table.c[VERSION].is_(None), table.c[VERSION] < version)
    if hard:
        return table.delete().where(older)
    now = literal(datetime.now(timezone.utc), Instant())
    return RowUpdate(table, {DELETED_AT: now}, and_(older, table.c[DELETED_AT].is_(None)))


@cache
def mark_present(table: Table, staged: Staged) -> RowUpdate:
    """Whatever row a key has, it is of the newest version that the key came with; it is there, hence not gone."""
    rows = staged.table
    keys = [rows.c[key] for key in _keys(table)]
    versions = select(*keys, func.max(rows.c[VERSION]).label(VERSION)).where(rows.c[VERSION].is_not(None))
    seen = versions.group_by(*keys).subquery("seen")
    older = or_(table.c[VERSION].is_(None), table.c[VERSION] < seen.c[VERSION])
    values = {VERSION: seen.c[VERSION], DELETED_AT: null()}
    return RowUpdate(table, values, and_(_same_key(table, seen), older))


@cache
def conflicts(ledger: Table, staged: Staged) -> Select[tuple[int, str]]:
    """The places and payloads of staged actions that say something else than the ledger does under the same id."""
    rows = staged.table
    return (
        select(rows.c[SEQ], _comparable(rows.c.payload))
        .join_from(rows, ledger, ledger.c.action_id == rows.c.action_id)
        .where(ledger.c.content_hash != rows.c.content_hash)
        .order_by(rows.c[SEQ])
    )


def _keys(table: Table) -> list[str]:
    return [column.name for column in table.primary_key.columns]


def _same_key(table: Table, rows: FromClause) -> ColumnElement[bool]:
    return and_(*(table.c[key] == rows.c[key] for key in _keys(table)))


def _equal(table: Table, rows: FromClause, leave_out: Collection[str]) -> ColumnElement[bool]:
    """Whether two rows are equal in all columns but those left out."""
    names = [column.name for column in table.c if column.name not in leave_out]
    return and_(*(_comparable(table.c[name]).is_not_distinct_from(_comparable(rows.c[name])) for name in names))


def _comparable(column: ColumnElement[Any]) -> ColumnElement[Any]:
    """PostgreSQL's JSON has no equality; its text has."""
    return cast(column, LongText()) if isinstance(column.type, JsonText) else column


def _not_older(ages: Sequence[ColumnElement[Any]], others: Sequence[ColumnElement[Any]]) -> ColumnElement[bool]:
    """Lexicographic ≥; an unknown age gives way."""
    (age, *more_ages), (other, *more_others) = ages, others
    if not more_ages:
        return or_(other.is_(None), age >= other)
    return or_(other.is_(None), age > other, and_(age == other, _not_older(more_ages, more_others)))

"""Write one stream's part of a batch to the warehouse, inside the transaction of the batch.

A sink converts records to rows of its table. The batch holds these rows as a `Part`. `write` must change neither the
sink nor the part, because it is called again after a failed transaction. While `write` runs, the reader may already be
filling the next batch.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import TYPE_CHECKING, Any

from sqlalchemy import case, func, or_, select

from pepper_runtime.wording import counted
from target_crm.errors import InputError
from target_crm.records import values
from target_crm.records.actions import INVALID_POINTS, LedgerRow, invalid_points, ledger_row, without_payload
from target_crm.records.deletions import in_steps
from target_crm.records.names import snake_case
from target_crm.records.schemas import EXTRACTED_AT, Shape, word
from target_crm.records.tally import Rejection, Tally
from target_crm.sql import balances, staging, tables

if TYPE_CHECKING:
    from sqlalchemy import ColumnElement, Connection, FromClause, Select, Table

    from target_crm.engines.base import EngineAdapter
    from target_crm.records.deletions import Step
    from target_crm.records.schemas import Stored
    from target_crm.settings import Settings
    from target_crm.warehouse.connection import Warehouse

logger = logging.getLogger("target-crm")

Row = tuple[Any, ...]
Message = Mapping[str, Any]

# The index of `occurred_at` in the rows of `Part.rows`, which begin with the number of the input line.
_OCCURRED_AT = 1 + LedgerRow._fields.index("occurred_at")
# A complete read of one of these streams contains the rows of only one merchant.
_OF_ONE_MERCHANT = frozenset({"awards", "perks", "users"})
# The reason for quarantining an action whose id the ledger already has.
_CONTRADICTION = "the ledger has this _id with another award, effect, time or points"


@dataclass
class Part:
    """One stream's part of a batch."""

    rows: list[Row] = field(default_factory=list)
    """Rows of the sink's staging table: the number of the input line, then the table's columns."""
    present_keys: list[Row] = field(default_factory=list)
    """The keys and versions of invalid records, as rows. The source still has these records, so their stored rows must
    not be deleted."""
    refused: int = 0
    """The number of records that could not be converted."""
    incomplete: list[tuple[Row, Rejection]] = field(default_factory=list)
    """Actions that cannot be inserted, with the reason. An action counts as a duplicate if the ledger has its id."""
    session: Connection | None = None
    """The session in which `rows` are staged ahead, if any."""

    def close(self) -> None:
        """Close the session, because no transaction will read the staged rows."""
        if self.session:
            # A session that cannot be closed is already lost.
            with suppress(Exception):
                self.session.close()


@dataclass(frozen=True)
class WriteResult:
    """What became of a part's rows. The result is valid once the transaction is committed."""

    tally: Tally
    conflicts: Sequence[Rejection] = ()
    """Records for the quarantine. They contradict the ledger, or they are incomplete and the ledger lacks their ids."""
    differing: Mapping[str, int] = field(default_factory=dict)
    """Column → the number of duplicates whose value differs from the ledger's."""


@dataclass(frozen=True)
class Activation:
    """The result of an ACTIVATE_VERSION message."""

    deleted: int = 0
    """The number of rows that were deleted, or marked as deleted."""
    ignored: str = ""
    """The reason why no row was deleted; empty if the message took effect."""
    needs_decision: bool = False
    """Whether an operator has to decide if the rows should be deleted."""


class ReceiptClock:
    """Gives a receipt time to each record without `time_extracted`. Each time is later than the previous one."""

    def __init__(self) -> None:
        self._last = datetime.min.replace(tzinfo=UTC)

    def now(self) -> datetime:
        """Return the current time, or the last returned time plus a microsecond, whichever is later."""
        self._last = max(datetime.now(UTC), self._last + timedelta(microseconds=1))
        return self._last


@dataclass(frozen=True)
class BatchContext:
    """The objects that all sinks of a run share."""

    warehouse: Warehouse
    settings: Settings
    receipts: ReceiptClock = field(default_factory=ReceiptClock)


class StreamSink:
    """Writes the records of one stream to its table.

    Args:
        context: The objects that all sinks share.
        stream: The stream's name. A stream map may have changed it.
        schema: The stream's JSON Schema.
        key_properties: The properties of the stream's key; empty for a stream without a key.
    """

    table: Table
    changes_balances: bool = False
    """Whether balances are computed from this stream."""

    def __init__(
        self, context: BatchContext, stream: str, schema: Mapping[str, Any], key_properties: Sequence[str] | None
    ) -> None:
        self.context = context
        self.stream = stream
        self.schema = schema
        self.key_properties = key_properties
        self.warehouse = context.warehouse
        self.adapter = context.warehouse.adapter
        self.tables = context.warehouse.tables
        if self.changes_balances and (properties := word(schema, "properties")) and "_id" not in properties:
            raise InputError(
                f"stream {stream!r} is not Pepper's: its schema has no _id; rename the stream with a stream map"
            )

    def row(self, record: dict[str, Any], message: Message, loaded_at: datetime) -> Row:
        """Convert a record to a row of the sink's table.

        Raises:
            Invalid: The record cannot be loaded.
        """
        raise NotImplementedError

    def present_keys(self, record: dict[str, Any], message: Message) -> list[Row]:  # noqa: ARG002
        """Return a row with the key and version of an invalid record.

        Return no row if one of them is invalid or missing.
        """
        return []

    def rejection(self, row: Row, reason: str) -> Rejection:
        """Convert a row back to its record, for the quarantine."""
        raise NotImplementedError

    def present_key(self, row: Row) -> list[Row]:  # noqa: ARG002
        """Return a row with only the key and version of a row that the warehouse rejects.

        Return no row if one of them is missing.
        """
        return []

    def write(self, connection: Connection, part: Part) -> WriteResult:
        """Write the rows of a part, and count what became of them."""
        raise NotImplementedError

    def merge_partials(self, connection: Connection, partials: Select[Any]) -> None:
        """Merge partial balances into the stored balances.

        Do nothing on an engine without transactions, where the sink recomputes the balances instead.
        """
        if self.warehouse.is_atomic(connection):
            work = self.warehouse.temporary_if_possible(self.tables.merged)
            self.adapter.merge(connection, balances.merge(self.tables, partials, work))

    def newest_at(self, part: Part) -> datetime | None:  # noqa: ARG002
        """Return when the newest event of a part happened; None for a stream without events."""
        return None

    def activate(self, connection: Connection, version: int) -> Activation:
        """Delete the rows that a version does not contain, or mark them as deleted."""
        raise NotImplementedError


class LedgerSink(StreamSink):
    """Loads `actions`: inserts each action into the ledger once, and merges new actions into the balances."""

    changes_balances = True

    def __init__(
        self, context: BatchContext, stream: str, schema: Mapping[str, Any], key_properties: Sequence[str] | None
    ) -> None:
        super().__init__(context, stream, schema, key_properties)
        self.table = self.tables.actions
        self.staged = self.warehouse.with_temporary(self.tables.staged_actions)

    def stage_ahead(self, part: Part) -> None:
        """Stage the part's rows in a session of their own."""
        if part.rows:
            part.session = self.warehouse.stage_ahead(self.staged.table, part.rows)

    def row(self, record: dict[str, Any], message: Message, loaded_at: datetime) -> Row:  # noqa: ARG002
        """Convert an action to a row of the ledger."""
        return ledger_row(record, loaded_at=loaded_at)

    def activate(self, connection: Connection, version: int) -> Activation:  # noqa: ARG002
        """Delete nothing, because the ledger keeps every action."""
        return Activation(ignored="the ledger keeps every action")

    def rejection(self, row: Row, reason: str) -> Rejection:
        """Return the unchanged action, for the quarantine."""
        line, *columns = row
        return Rejection(self.stream, reason, line, _compact(LedgerRow(*columns).payload))

    def newest_at(self, part: Part) -> datetime | None:
        """Return the time of the part's newest action."""
        return max((row[_OCCURRED_AT] for row in part.rows if row[_OCCURRED_AT]), default=None)

    def write(self, connection: Connection, part: Part) -> WriteResult:
        """Insert new actions, complete stored ones, update the balances, and reject contradictory actions."""
        ledger, staged = self.tables.actions, self.staged
        if connection is not part.session:
            self.adapter.stage(connection, staged.table, part.rows)
        applied, inserted = insert_absent(self.adapter, connection, ledger, staged, len(part.rows), *self._left_out)
        self.merge_partials(connection, balances.partials_from_actions(inserted))
        # Usually no staged row differs from the ledger. Checking this first saves three searches through all rows.
        some_differ = applied < len(part.rows) and connection.scalar(staging.count_differing(ledger, staged))
        if some_differ:
            applied += self._complete(connection)
        if not self.warehouse.is_atomic(connection):
            self.adapter.replace(connection, balances.recompute_awards(self.tables, _column(staged, "award_id")))
        conflicts: list[Rejection] = []
        differing: dict[str, int] = {}
        read = len(part.rows) + len(part.incomplete)
        if part.incomplete:
            # Stage incomplete actions only now, so that they are compared with the ledger, but never inserted.
            self.adapter.load(connection, staged.table, [row for row, _ in part.incomplete])
            unknown = set(connection.scalars(staging.unknown_lines(ledger, staged)))
            conflicts += [rejection for _, rejection in part.incomplete if rejection.input_line in unknown]
        if some_differ or part.incomplete:
            sent = {row[0]: row for row in (*part.rows, *(row for row, _ in part.incomplete))}
            for line, is_erased in connection.execute(staging.conflicts(ledger, staged)):
                action = LedgerRow(*sent[line][1:])
                kept = without_payload(action) if is_erased else action
                conflicts.append(self.rejection((line, *kept), _CONTRADICTION))
            for row in connection.execute(staging.differing_columns(ledger, staged)):
                differing = {name: count for name, count in row._asdict().items() if count}
        clear_staging(self.adapter, connection, staged)
        tally = Tally(
            read=read,
            applied=applied,
            duplicate=read - applied - len(conflicts),
            quarantined=len(conflicts),
        )
        return WriteResult(tally, conflicts, differing)

    @property
    def _left_out(self) -> Sequence[str]:
        return () if self.context.settings.store_payload else ("payload",)

    def _complete(self, connection: Connection) -> int:
        """Replace actions without an effect with staged actions that have an effect. Return how many were replaced.

        The stored action lacks its effect if `metadata` or `type` was deselected when the tap first read the action. No
        balance counts such an action yet. A payload that was erased stays erased.
        """
        ledger, staged = self.tables.actions, self.staged
        self.adapter.empty(connection, staged.fresh)
        self.adapter.execute(connection, staging.pick_completing(ledger, staged))
        completed = connection.scalar(staging.count_fresh(staged)) or 0
        if completed:
            rows = staging.fresh_rows(staged)
            self.adapter.execute(connection, staging.keep_erased(ledger, staged))
            self.adapter.execute(connection, staging.delete_fresh(ledger, staged))
            self.adapter.execute(connection, staging.insert(ledger, rows, *self._left_out))
            self.merge_partials(connection, balances.partials_from_actions(rows))
        return completed


class TableSink(StreamSink):
    """Loads any other stream: upserts its records by key into its own table, or appends them if it has no key."""

    keys: Sequence[str] = ()
    """The stream's key, if it does not depend on the SCHEMA message."""
    fixed: Mapping[str, Any] = {}
    """Properties whose column type does not depend on the SCHEMA message."""
    without_column: Sequence[str] = ()
    """Properties that get no column."""
    fixed_table: str | None = None
    """The name of the table, if it does not depend on other names in the warehouse."""
    _appends_deletions = False

    def __init__(
        self, context: BatchContext, stream: str, schema: Mapping[str, Any], key_properties: Sequence[str] | None
    ) -> None:
        super().__init__(context, stream, schema, key_properties)
        properties = word(schema, "properties")
        if missing := [key for key in key_properties or () if properties and key not in {*properties, *self.fixed}]:
            raise InputError(
                f"stream {stream!r}: key property {missing[0]!r} is not in its schema; select it in the tap"
            )
        self.place(self.fixed_table or snake_case(stream), {}, {})

    def place(self, table: str, recorded: Mapping[str, str], stored: Mapping[str, Stored]) -> None:
        """Set the stream's table and columns.

        Args:
            table: The name of the table.
            recorded: Property → column, for all properties that the stream ever had.
            stored: Column of the existing table → the kind and size of its values.
        """
        schema = self.schema
        if self.without_column:
            properties = (schema.get("properties") or {}).items()
            schema = {
                **schema,
                "properties": {name: each for name, each in properties if name not in self.without_column},
            }
        keys = self.keys or self.key_properties or ()
        limits = self.warehouse.limits
        self.shape = Shape.of(schema, keys, self.fixed, recorded, stored, limits=limits)
        self.table = tables.stream_table(table, self.shape, self.tables.metadata.schema)
        # Use no temporary tables: if another loader widens the table, it also widens the work table.
        self.staged = staging.Staged(tables.staging_of(self.table, limits.name_bytes), self.tables.fresh)

    @property
    def columns(self) -> dict[str, str]:
        """Property → column, for the properties whose column depends on the stream's other properties."""
        return {each.property: each.column for each in self.shape.fields if each.property not in self.fixed}

    @property
    def allow_key_change(self) -> bool:
        """Whether to rebuild the table in the warehouse if its key differs from the key in the SCHEMA message."""
        return self.context.settings.allow_key_change

    @property
    def own_tables(self) -> Sequence[Table]:
        """The stream's table and its staging table."""
        return self.table, self.staged.table

    def row(self, record: dict[str, Any], message: Message, loaded_at: datetime) -> Row:
        """Convert a record to a row of the stream's table."""
        row = self.shape.row(
            record,
            extracted_at=self._extracted_at(message),
            loaded_at=loaded_at,
            version=values.table_version(message.get("version")),
        )
        # `_sdc_deleted_at` is the last column.
        if row[-1] is not None and not self.shape.keys and not self._appends_deletions:
            self._appends_deletions = True
            logger.warning(
                "%s: the stream has no key, so no row can be marked as deleted: deletion records are appended",
                self.stream,
            )
        return row

    def present_keys(self, record: dict[str, Any], message: Message) -> list[Row]:
        """Return a row with only the key and version of an invalid record, if both can be read."""
        version = values.table_version(message.get("version"))
        if version is None or not self.shape.keys:
            return []
        try:
            return [self.shape.key_row(record, version)]
        except values.Invalid:
            return []

    def rejection(self, row: Row, reason: str) -> Rejection:
        """Convert a row back to its record, with the values that the row would store."""
        line, *columns = row
        record, extracted_at = self.shape.record(columns)
        return Rejection(values.without_nul(self.stream), reason, line, values.json_text(record), extracted_at)

    def present_key(self, row: Row) -> list[Row]:
        """Return a row with only the key and version, if the given row has both."""
        line, *columns = row
        key = self.shape.only_key(columns)
        return [(line, *key)] if key else []

    def write(self, connection: Connection, part: Part) -> WriteResult:
        """Replace each stored row for which the part has a newer row, and insert rows with new keys."""
        adapter, table, staged = self.adapter, self.table, self.staged
        adapter.recover(connection, table)
        adapter.recover(connection, staged.table)
        places = {column.name: place for place, column in enumerate(staged.table.columns)}
        steps, superseded = in_steps(part.rows, places, self.shape.keys, EXTRACTED_AT)
        tally = Tally(read=len(superseded), superseded=len(superseded))
        for step in steps:
            tally += self._write_step(connection, step, part.present_keys if step is steps[-1] else ())
        return WriteResult(tally)

    def _write_step(self, connection: Connection, step: Step, present_keys: Sequence[Row]) -> Tally:
        adapter, table, staged = self.adapter, self.table, self.staged
        adapter.prepare(connection, staged.fresh)
        adapter.stage(connection, staged.table, step.rows)
        if step.kept:
            adapter.execute(connection, staging.keep_values(table, staged, step.kept))
        self.complete_staged(connection)
        adapter.execute(connection, staging.pick_newer(table, staged, self.age_columns))
        applied = connection.scalar(staging.count_changed(table, staged)) or 0
        self.merge_balances(connection)
        for statement in staging.replace(table, staged):
            adapter.execute(connection, statement)
        if self.shape.keys and self._hard_delete and any(row[-1] is not None for row in step.rows):
            adapter.execute(connection, staging.delete_marked(table, staged))
        # A column that a user has changed may round a value. Then a row that was just written differs from its staged
        # row, and `count_same` misses it.
        current = max(applied, connection.scalar(staging.count_same(table, staged)) or 0)
        if self.shape.keys:
            adapter.load(connection, staged.table, present_keys)
            adapter.execute(connection, staging.mark_present(table, staged))
        self.complete_known(connection)
        clear_staging(adapter, connection, staged)
        read = len(step.rows)
        return Tally(read=read, applied=applied, duplicate=current - applied, superseded=read - current)

    @staticmethod
    def age_columns(rows: FromClause) -> list[ColumnElement[Any]]:
        """Return the expressions that decide which row of a key is newer, most significant first."""
        return [rows.c[EXTRACTED_AT]]

    def complete_staged(self, connection: Connection) -> None:
        """Fill in missing values in staged rows, from other rows with the same key."""

    def merge_balances(self, connection: Connection) -> None:
        """Before the table changes, merge the changed rows into the balances."""

    def complete_known(self, connection: Connection) -> None:
        """Fill in missing values in stored rows, from the staged rows. Superseded rows may also have such values."""

    def activate(self, connection: Connection, version: int) -> Activation:
        """Set `_sdc_deleted_at` in rows of older versions. With `hard_delete`, delete these rows, except in `awards`.

        Rows have no version if the source sent no version when they were loaded. If more than `max_deleted_fraction` of
        the rows have no version, ignore the message, because the source may now be sending only some of its rows.
        """
        self.adapter.recover(connection, self.table)
        merchants = select(func.count(self.tables.coverage.c.merchant.distinct()))
        if self.stream in _OF_ONE_MERCHANT and (connection.scalar(merchants) or 0) > 1:
            reason = (
                "the schema has several merchants (see _crm_coverage), and this version has the rows of only one; "
                "use one schema per merchant"
            )
            return Activation(ignored=reason, needs_decision=True)
        rows, unversioned = connection.execute(staging.count_unversioned(self.table)).one()
        if unversioned > self.context.settings.max_deleted_fraction * rows:
            reason = (
                f"{unversioned:,} of {counted(rows, 'row')} would be deleted because they have no version; "
                "if these rows were really deleted, raise max_deleted_fraction for one run"
            )
            return Activation(ignored=reason, needs_decision=True)
        statement = staging.activate(self.table, version, hard=self._hard_delete)
        return Activation(self.adapter.execute(connection, statement))

    @property
    def _hard_delete(self) -> bool:
        """Whether to remove deleted rows. Awards stay, because their balances would count again without the mark."""
        return self.context.settings.hard_delete and not self.fixed

    def _extracted_at(self, message: Message) -> datetime:
        extracted_at = values.optional(message.get("time_extracted"), values.instant)
        return extracted_at or self.context.receipts.now()


class AwardSink(TableSink):
    """Loads `awards`: stores Pepper's newest snapshot of each award, and merges it into the balances."""

    changes_balances = True
    keys = ("_id",)
    fixed = tables.AWARD_FIELDS
    # Records with invalid points are quarantined, so this column would always be null.
    without_column = (INVALID_POINTS,)
    fixed_table = "awards"

    def row(self, record: dict[str, Any], message: Message, loaded_at: datetime) -> Row:
        """Convert an award to a row of `awards`.

        If tap-pepper has moved invalid points to `invalid_points`, put them back first.
        """
        return super().row({**record, **invalid_points(record)}, message, loaded_at)

    @staticmethod
    def age_columns(rows: FromClause) -> list[ColumnElement[Any]]:
        """Order snapshots by `updatedAt`, or if a snapshot has none, by the time when the tap read the snapshot.

        A snapshot without points never replaces a snapshot with points, because it contains no balance.
        """
        has_points = case((rows.c.points.is_(None), 0), else_=1)
        return [has_points, func.coalesce(rows.c.updated_at, rows.c[EXTRACTED_AT]), rows.c[EXTRACTED_AT]]

    def complete_staged(self, connection: Connection) -> None:
        """Fill in a missing user or perk from earlier snapshots of the same award, because they never change."""
        staged = self.staged.table
        owner = balances.owner_of_awards(self.table, staged)
        self.adapter.execute(connection, balances.fill_owner(staged, "_id", owner))

    def merge_balances(self, connection: Connection) -> None:
        """Merge changed snapshots into the balances, and also unchanged snapshots without `updatedAt`.

        On an engine without transactions, `complete_known` updates the balances instead.
        """
        self.merge_partials(connection, _changed_snapshots(self.table, self.staged))

    def complete_known(self, connection: Connection) -> None:
        """Fill in a missing user or perk in stored snapshots and balances, from staged snapshots of the same awards.

        On an engine without transactions, recompute the balances of these awards instead.
        """
        owner = balances.owner_of_awards(self.staged.table, self.staged.table)
        self.adapter.execute(connection, balances.fill_owner(self.table, "_id", owner))
        if self.warehouse.is_atomic(connection):
            self.adapter.execute(connection, balances.fill_owner(self.tables.award_balances, "award_id", owner))
        else:
            self.adapter.replace(connection, balances.recompute_awards(self.tables, _column(self.staged, "_id")))


def sink_class(stream: str) -> type[StreamSink]:
    """Return the class of a stream's sink: `LedgerSink` for `actions`, `AwardSink` for `awards`, else `TableSink`."""
    return {"actions": LedgerSink, "awards": AwardSink}.get(stream, TableSink)


def insert_absent(
    adapter: EngineAdapter,
    connection: Connection,
    table: Table,
    staged: staging.Staged,
    staged_count: int,
    *left_out: str,
) -> tuple[int, FromClause]:
    """Insert the first staged row of each key that the table lacks. The columns in `left_out` stay null.

    Returns:
        The number of inserted rows, and a selectable with these rows.
    """
    # On an engine without transactions, this table may still have rows of a failed batch.
    adapter.prepare(connection, staged.fresh)
    adapter.execute(connection, staging.pick_absent(table, staged))
    count = connection.scalar(staging.count_fresh(staged)) or 0
    # Usually all rows are new. In that case, no join is needed.
    inserted = staged.table if count == staged_count else staging.fresh_rows(staged)
    adapter.execute(connection, staging.insert(table, inserted, *left_out))
    return count, inserted


def clear_staging(adapter: EngineAdapter, connection: Connection, staged: staging.Staged) -> None:
    """Empty the work tables. Drop them if they are temporary."""
    adapter.clear(connection, staged.fresh)
    adapter.clear(connection, staged.table)


@cache
def _column(staged: staging.Staged, name: str) -> Select[Any]:
    return select(staged.table.c[name])


@cache
def _changed_snapshots(awards: Table, staged: staging.Staged) -> Select[Any]:
    changed, fresh = staging.changed_rows(awards, staged), staging.fresh_rows(staged)
    is_changed = or_(fresh.c.updated_at.is_(None), fresh.c["_id"].in_(select(changed.c["_id"])))
    return balances.partials_from_snapshots(fresh).where(is_changed)


def _compact(document: str) -> str:
    """Format JSON as a replay formats it, so that a record that is quarantined again gets the same `rejected_id`."""
    try:
        return values.json_text(values.from_json(document))
    except ValueError:
        # An action's payload is stored unchanged. It may have numbers that are too long to decode.
        return document

"""A batch → the warehouse, inside the transaction that the target has opened; and the tallies of what became of it.

A sink turns records into rows as they come, and holds them until they are handed over as a part of a batch. `flush`
writes such a part and counts what becomes of it. It changes neither part nor sink: where a transaction fails, the part
is written again, and the sink may be taking rows of the next batch meanwhile.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta, timezone
from functools import cache
from typing import TYPE_CHECKING, Any

from singer_sdk.sinks import Sink
from sqlalchemy import case, func, or_, select

from target_crm.errors import InputError
from target_crm.records import values
from target_crm.records.actions import LedgerRow, ledger_row
from target_crm.records.schemas import EXTRACTED_AT, Shape, snake_case
from target_crm.records.tally import Rejection, Tally
from target_crm.sql import balances, staging, tables

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sqlalchemy import ColumnElement, Connection, FromClause, Select, Table

    from target_crm.engines.base import EngineAdapter
    from target_crm.loader.target import TargetCrm


# In a row that is held: after the number of its line.
_OCCURRED_AT = 1 + LedgerRow._fields.index("occurred_at")


@dataclass
class Held:
    """What a sink holds of a batch."""

    rows: list[tuple[Any, ...]] = field(default_factory=list)
    """Rows of its work table: the number of the input line, and what the record says."""
    traces: list[tuple[Any, ...]] = field(default_factory=list)
    """What records that were refused still show."""
    refused: int = 0
    """How many those were."""

    @property
    def read(self) -> int:
        """How many records came."""
        return len(self.rows) + self.refused


@dataclass(frozen=True)
class Flushed:
    """What became of a part of a batch once its transaction is committed."""

    tally: Tally
    contradictions: Sequence[Rejection] = ()
    """Records that say something else than the warehouse does, and are quarantined for it."""


class CrmSink(Sink):
    """Rows of one stream on their way into one table."""

    target: TargetCrm

    def __init__(
        self, target: TargetCrm, stream_name: str, schema: dict[str, Any], key_properties: Sequence[str] | None
    ) -> None:
        super().__init__(target, stream_name, schema, key_properties)
        self.target = target
        self.tables = target.warehouse.tables
        self.adapter = target.warehouse.adapter
        self.held = Held()

    def get_validator(self) -> None:
        """None: reading a record into a row is the validation."""
        return

    def accept(self, record: dict[str, Any], message: Mapping[str, Any]) -> None:
        """Hold a record, or hand it to the quarantine."""
        try:
            row = self.row_of(record, message)
        except values.Invalid as reason:
            self.held.refused += 1
            extracted_at = values.optional(message.get("time_extracted"), values.instant)
            self.target.reject(self.stream_name, reason, values.json_text(record), extracted_at)
            self.held.traces += [(self.target.input_line, *trace) for trace in self.traces_of(record, message)]
        else:
            self.held.rows.append((self.target.input_line, *row))

    def row_of(self, record: dict[str, Any], message: Mapping[str, Any]) -> tuple[Any, ...]:
        """A record as a row of the sink's table; raises `values.Invalid`."""
        raise NotImplementedError

    def traces_of(self, record: dict[str, Any], message: Mapping[str, Any]) -> list[tuple[Any, ...]]:  # noqa: ARG002
        """What a record that was refused still shows: that the row of its key is not gone."""
        return []

    def hand_over(self) -> Held:
        """Give away what is held, and begin anew."""
        held, self.held = self.held, Held()
        return held

    def flush(self, connection: Connection, held: Held) -> Flushed:
        """Write a part of a batch, and say what became of its records."""
        refused = Tally(read=held.refused, quarantined=held.refused)
        if not (held.rows or held.traces):
            return Flushed(refused)
        written = self.write(connection, held)
        return replace(written, tally=written.tally + refused)

    def write(self, connection: Connection, held: Held) -> Flushed:
        """Write the rows of a part, and say what became of them."""
        raise NotImplementedError

    def newest_at(self, held: Held) -> datetime | None:  # noqa: ARG002
        """When the newest event of a part happened; None where a stream tells of none."""
        return None

    def activate(self, connection: Connection, version: int) -> int | None:  # noqa: ARG002
        """Rows that the version does not have are gone; returns their number. None: this stream never loses rows."""
        return None

    def process_record(self, record: dict[str, Any], context: dict[str, Any]) -> None:
        """Not how records come: see `accept`."""
        raise NotImplementedError

    def process_batch(self, context: dict[str, Any]) -> None:
        """Not how batches go: see `flush`."""
        raise NotImplementedError


class LedgerSink(CrmSink):
    """`actions`: into the ledger once each, and what the ledger took into the balances."""

    def newest_at(self, held: Held) -> datetime | None:
        """The newest `occurred_at`."""
        return max((row[_OCCURRED_AT] for row in held.rows if row[_OCCURRED_AT]), default=None)

    def row_of(self, record: dict[str, Any], message: Mapping[str, Any]) -> tuple[Any, ...]:  # noqa: ARG002
        """A row of the ledger."""
        return ledger_row(record, loaded_at=self.target.batch_began_at)

    def write(self, connection: Connection, held: Held) -> Flushed:
        """Take into the ledger what it lacks, merge that into the balances, quarantine what contradicts the ledger."""
        ledger, staged = self.tables.actions, self.tables.staged_actions
        leave_out = () if self.target.settings.store_payload else ("payload",)
        applied, news = insert_absent(self.adapter, connection, ledger, staged, held.rows, *leave_out)
        if self.target.warehouse.is_atomic(connection):
            self.adapter.merge(connection, balances.merge(self.tables, balances.partials_from_actions(news)))
        else:
            self.adapter.replace(connection, balances.recompute_awards(self.tables, _named(staged, "award_id")))
        read, contradictions = len(held.rows), []
        if applied < read:
            contradictions = [
                Rejection(self.stream_name, "the ledger has this _id with other content", input_line, _compact(payload))
                for input_line, payload in connection.execute(staging.conflicts(ledger, staged))
            ]
        unstage(self.adapter, connection, staged)
        quarantined = len(contradictions)
        tally = Tally(read, applied, duplicate=read - applied - quarantined, quarantined=quarantined)
        return Flushed(tally, contradictions)


class TableSink(CrmSink):
    """Any other stream: upserted by key into a table of its own, or appended where it has no key."""

    keys: Sequence[str] = ()
    fixed: Mapping[str, Any] = {}

    def setup(self) -> None:
        """Create the stream's table and its work table, or add the columns that they lack."""
        try:
            self.shape = Shape.of(self.original_schema, self.keys or self.key_properties, self.fixed)
        except (AttributeError, TypeError):
            raise InputError(f"stream {self.stream_name!r}: its SCHEMA message holds no JSON Schema") from None
        self.table = tables.stream_table(snake_case(self.stream_name), self.shape, self.tables.metadata.schema)
        self.staged = staging.Staged(tables.staging_of(self.table), self.tables.fresh)
        self.target.warehouse.ensure(self.table, self.staged.table)

    def row_of(self, record: dict[str, Any], message: Mapping[str, Any]) -> tuple[Any, ...]:
        """A row of the stream's table."""
        version = message.get("version")
        return self.shape.row(
            record,
            extracted_at=self._extracted_at(message),
            loaded_at=self.target.batch_began_at,
            version=None if version is None else values.integer(version),
        )

    def traces_of(self, record: dict[str, Any], message: Mapping[str, Any]) -> list[tuple[Any, ...]]:
        """Key and version, where both can be read."""
        try:
            return [self.shape.trace(record, values.integer(message.get("version")))] if self.shape.keys else []
        except values.Invalid:
            return []

    def write(self, connection: Connection, held: Held) -> Flushed:
        """Let the newest row of each key replace an older one."""
        self.stage(connection, held)
        self.adapter.execute(connection, staging.pick_newer(self.table, self.staged, self.ages))
        applied = connection.scalar(staging.count_changed(self.table, self.staged)) or 0
        self.fold(connection)
        for statement in staging.replace(self.table, self.staged):
            self.adapter.execute(connection, statement)
        same = connection.scalar(staging.count_same(self.table, self.staged)) or applied
        self.see(connection, held)
        unstage(self.adapter, connection, self.staged)
        read = len(held.rows)
        return Flushed(Tally(read, applied, duplicate=same - applied, superseded=read - same))

    @staticmethod
    def ages(rows: FromClause) -> list[ColumnElement[Any]]:
        """What makes one row of a key newer than another, the weightiest first."""
        return [rows.c[EXTRACTED_AT]]

    def stage(self, connection: Connection, held: Held) -> None:
        """Put the rows into the work table."""
        self.adapter.recover(connection, self.table)
        self.adapter.recover(connection, self.staged.table)
        _stage(self.adapter, connection, self.staged, held.rows)

    def fold(self, connection: Connection) -> None:
        """What else follows from the rows that are about to change the table."""

    def see(self, connection: Connection, held: Held) -> None:
        """What follows also from rows that give way to others, or were refused: their keys are there."""
        if self.shape.keys:
            self.adapter.load(connection, self.staged.table, held.traces)
            self.adapter.execute(connection, staging.mark_present(self.table, self.staged))

    def activate(self, connection: Connection, version: int) -> int | None:
        """Rows of older versions are gone: `_deleted_at` says since when, or with `hard_delete` they are removed."""
        self.adapter.recover(connection, self.table)
        hard = self.target.settings.hard_delete and not self.fixed
        return self.adapter.execute(connection, staging.activate(self.table, version, hard=hard))

    def _extracted_at(self, message: Mapping[str, Any]) -> datetime:
        extracted_at = message.get("time_extracted")
        try:
            return values.instant(extracted_at) if extracted_at else self.target.tick()
        except values.Invalid as reason:
            raise values.Invalid(f"time_extracted {reason}") from None


class AwardSink(TableSink):
    """`awards`: Pepper's own word on each balance, ordered by Pepper's time; the newest is folded into the balances."""

    keys = ("_id",)
    fixed = tables.AWARD_FIELDS

    @staticmethod
    def ages(rows: FromClause) -> list[ColumnElement[Any]]:
        """By `updatedAt`; a snapshot without one counts as of the time that it was read.

        One without points never takes the place of one with: it says nothing that a balance could follow.
        """
        tells_points = case((rows.c.points.is_(None), 0), else_=1)
        return [tells_points, func.coalesce(rows.c.updated_at, rows.c[EXTRACTED_AT]), rows.c[EXTRACTED_AT]]

    def stage(self, connection: Connection, held: Held) -> None:
        """Put the rows into the work table, with what earlier ones of the same awards have told for life."""
        super().stage(connection, held)
        staged = self.staged.table
        self.adapter.execute(
            connection, balances.fill_owner(staged, "_id", balances.owner_of_awards(self.table, staged))
        )

    def see(self, connection: Connection, held: Held) -> None:
        """Also whose an award is, and of which perk."""
        super().see(connection, held)
        told = balances.owner_of_awards(self.staged.table, self.staged.table)
        self.adapter.execute(connection, balances.fill_owner(self.table, "_id", told))
        if self.target.warehouse.is_atomic(connection):
            self.adapter.execute(connection, balances.fill_owner(self.tables.award_balances, "award_id", told))
        else:
            self.adapter.replace(connection, balances.recompute_awards(self.tables, _named(self.staged, "_id")))

    def fold(self, connection: Connection) -> None:
        """Merge the awards that have changed into the balances, and those that tell their time by being read again."""
        if self.target.warehouse.is_atomic(connection):
            self.adapter.merge(connection, balances.merge(self.tables, _news_of_awards(self.table, self.staged)))


@cache
def _named(staged: staging.Staged, column: str) -> Select[Any]:
    """The awards that a batch names, whether or not it has news of them."""
    return select(staged.table.c[column])


@cache
def _news_of_awards(awards: Table, staged: staging.Staged) -> Select[Any]:
    changing, fresh = staging.changed_rows(awards, staged), staging.fresh_rows(staged)
    news = or_(fresh.c.updated_at.is_(None), fresh.c["_id"].in_(select(changing.c["_id"])))
    return balances.partials_from_snapshots(fresh).where(news)


def _compact(document: str) -> str:
    """JSON as it comes out of a replay, whichever way it came in: the quarantine knows it again."""
    return values.json_text(values.from_json(document))


def insert_absent(
    adapter: EngineAdapter,
    connection: Connection,
    table: Table,
    staged: staging.Staged,
    rows: Sequence[tuple[Any, ...]],
    *leave_out: str,
) -> tuple[int, FromClause]:
    """Stage rows and insert the first of each key that the table lacks; returns how many they were, and which."""
    _stage(adapter, connection, staged, rows)
    adapter.execute(connection, staging.pick_absent(table, staged))
    count = connection.scalar(staging.count_fresh(staged)) or 0
    # Mostly all rows are new, and no join has to find out which.
    fresh = staged.table if count == len(rows) else staging.fresh_rows(staged)
    adapter.execute(connection, staging.insert(table, fresh, *leave_out))
    return count, fresh


def unstage(adapter: EngineAdapter, connection: Connection, staged: staging.Staged) -> None:
    """Leave nothing in the work tables."""
    adapter.empty(connection, staged.fresh)
    adapter.empty(connection, staged.table)


def _stage(
    adapter: EngineAdapter, connection: Connection, staged: staging.Staged, rows: Sequence[tuple[Any, ...]]
) -> None:
    unstage(adapter, connection, staged)
    adapter.load(connection, staged.table, rows)


class Ticker:
    """Receipt times for records that don't tell when they were extracted: each is later than the one before."""

    def __init__(self) -> None:
        self._last = datetime.min.replace(tzinfo=timezone.utc)

    def tick(self) -> datetime:
        """Now, or a microsecond after the last tick, whichever is later."""
        self._last = max(datetime.now(timezone.utc), self._last + timedelta(microseconds=1))
        return self._last

"""Write a batch to the warehouse in one transaction, and count what became of every record."""

from __future__ import annotations

import uuid
from collections import Counter
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING

from singer_sdk.exceptions import InvalidRecord
from sqlalchemy import select

from target_crm.errors import ConnectionLost, RowRefused, WarehouseError
from target_crm.loader.router import StoppedStream
from target_crm.loader.sinks import LedgerSink, Part, clear_staging, insert_absent
from target_crm.records.coverage import describe_holes, merge, summarize
from target_crm.records.tally import Tally
from target_crm.sql import coverage
from target_crm.sql.load_runs import DONE, FAILED, Run

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from sqlalchemy import Connection

    from target_crm.loader.batcher import Batch
    from target_crm.loader.sinks import Activation, Row, StreamSink, WriteResult
    from target_crm.records.coverage import Claims
    from target_crm.records.tally import Rejection
    from target_crm.warehouse.connection import Warehouse

# To find the rows that the warehouse rejects, the writer makes at most this many trials. Each trial writes some rows,
# and rolls back.
TRIALS_MAX = 500


class _PartRefused(WarehouseError):
    """The warehouse rejected the rows of a stream."""

    def __init__(self, sink: StreamSink, reason: WarehouseError) -> None:
        super().__init__(f"stream {sink.stream!r}: {reason}")
        self.sink = sink
        self.reason = str(reason)
        self.is_about_row = isinstance(reason, RowRefused)


class BatchWriter:
    """Writes the batches of one run.

    Args:
        warehouse: The warehouse to load into.
        fail_on_conflict: Raise `InvalidRecord` for a record that contradicts the ledger, instead of quarantining it.
        records_run: Whether to write a row per stream to `load_runs`.
        on_quarantine: Called inside the transaction of each batch, with the records that go to the quarantine.
    """

    def __init__(
        self,
        warehouse: Warehouse,
        *,
        fail_on_conflict: bool,
        records_run: bool = True,
        on_quarantine: Callable[[Sequence[Rejection]], None] | None = None,
    ) -> None:
        self._warehouse = warehouse
        self._fail_on_conflict = fail_on_conflict
        self._records_run = records_run
        self._on_quarantine = on_quarantine
        self.run_id = uuid.uuid4().hex
        self._started_at = datetime.now(UTC)
        self.tallies: dict[str, Tally] = {"": Tally()}
        """Stream → the outcome of its committed records. Malformed lines are counted under an empty name."""
        self.ignored_activations: Counter[str] = Counter()
        """Stream → the number of ACTIVATE_VERSION messages that were ignored, because they might delete too many rows.
        """
        self.stopped: dict[str, StoppedStream] = {}
        """The streams that are no longer loaded, because the warehouse rejected their rows."""
        self.refused: dict[str, str] = {}
        """Stream → the reason why its table may lack rows of this run, or may have older versions of these rows."""
        self._tables = {"": ""}
        self.differing: Counter[str] = Counter()
        """Ledger column → the number of actions that were read again with another value."""
        # The intervals that this run and earlier runs have read, for the merchant of this run.
        self._coverage: Claims = {}

    def unread(self) -> list[str]:
        """Describe the intervals in which actions were never read; empty if this run has read no actions."""
        return [hole for merchant in summarize(self._coverage) for hole in describe_holes(merchant)]

    def add_stream(self, name: str, table: str) -> None:
        """Add a stream to the counts. `load_runs` shows it under its table's name, even if it has no records."""
        self.tallies.setdefault(name, Tally())
        self._tables[name] = table

    def stage(self, batch: Batch) -> None:
        """Stage the batch's actions ahead, in a session of their own.

        If stream maps send two streams to the ledger, stage neither ahead, because both use the same staging table.
        """
        sinks = [sink for sink in batch.parts if isinstance(sink, LedgerSink)]
        if len(sinks) == 1 and sinks[0].stream not in self.stopped:
            sinks[0].stage_ahead(batch.parts[sinks[0]])

    def write(self, batch: Batch) -> None:
        """Commit a batch. Rows that the warehouse rejects go to the quarantine, or their stream is stopped."""
        for sink in batch.parts:
            if sink.stream in self.stopped:
                self._leave_out(batch, sink)
        while True:
            try:
                self.tallies, differing = self._warehouse.commit_once(partial(self._write, batch), batch.session)
            except _PartRefused as refused:
                if self._fail_on_conflict:
                    raise
                self._take_out(batch, refused)
            else:
                self.differing += differing
                return

    def _take_out(self, batch: Batch, refused: _PartRefused) -> None:
        """Remove the rejected rows from a batch. If they cannot be found, remove all rows of their stream."""
        sink, stream = refused.sink, refused.sink.stream
        part = batch.parts[sink]
        found = self._refused_rows(sink, part.rows) if refused.is_about_row else {}
        if not found:
            reason = f"{refused.reason}: change the table, or remove or convert the property with a stream map"
            self.stopped[stream] = StoppedStream(reason)
            self.refused.setdefault(stream, f"stream {stream!r} is not loaded")
            self._leave_out(batch, sink)
            return
        for place, reason in found.items():
            row = part.rows[place]
            batch.rejections.append(sink.rejection(row, reason))
            present_key = sink.present_key(row)
            part.present_keys += present_key
            if not present_key:
                self.refused.setdefault(stream, f"line {row[0]} was quarantined")
        part.refused += len(found)
        part.rows = [row for place, row in enumerate(part.rows) if place not in found]

    def _leave_out(self, batch: Batch, sink: StreamSink) -> None:
        """Remove the rows of a stopped stream from a batch, and count them as skipped."""
        part = batch.parts[sink]
        part.close()
        self.stopped[sink.stream].skipped += len(part.rows) + len(part.incomplete)
        batch.parts[sink] = Part(refused=part.refused)

    def _refused_rows(self, sink: StreamSink, rows: Sequence[Row]) -> dict[int, str]:
        """Find the rows that the warehouse rejects, by repeated halving. Return their indexes and the reasons.

        The result is empty if too many rows are rejected, or if the warehouse cannot roll back.
        """
        with self._warehouse.read() as connection:
            if not self._warehouse.is_atomic(connection):
                return {}
        found: dict[int, str] = {}
        untried = [range(len(rows))]
        for _ in range(TRIALS_MAX):
            if not untried:
                return found
            places = untried.pop()
            reason = self._why_refused(sink, [rows[place] for place in places])
            if reason and len(places) == 1:
                found[places[0]] = reason
            elif reason:
                middle = len(places) // 2
                untried += [places[middle:], places[:middle]]
        return {}

    def _why_refused(self, sink: StreamSink, rows: list[Row]) -> str | None:
        """Write rows and roll back. Return the reason why the warehouse rejects them; None if it accepts them."""
        try:
            with self._warehouse.write() as connection:
                self._write_part(connection, sink, Part(rows))
                connection.rollback()
        except _PartRefused as refused:
            return refused.reason.removeprefix(f"{self._warehouse.name}: ")
        return None

    def _write_part(self, connection: Connection, sink: StreamSink, part: Part) -> WriteResult:
        try:
            with self._warehouse.errors(f"table {sink.table}"):
                return sink.write(connection, part)
        except ConnectionLost:
            raise
        except WarehouseError as reason:
            raise _PartRefused(sink, reason) from reason

    def activate(self, sink: StreamSink, version: int) -> Activation:
        """Delete the rows of a stream that an activated version does not contain, or mark them as deleted."""
        return self._warehouse.commit_once(lambda connection: sink.activate(connection, version))

    def count_ignored_activation(self, stream: str) -> None:
        """Count an ACTIVATE_VERSION that was ignored. The next commit writes the count to `load_runs`."""
        self.ignored_activations[stream] += 1

    def finish(self) -> None:
        """Record in `load_runs` that the run is done."""
        self._warehouse.commit_once(lambda connection: self._record_run(connection, self.tallies, DONE))

    def fail(self) -> None:
        """Record in `load_runs` that the run failed."""
        with self._warehouse.write() as connection:
            self._record_run(connection, self.tallies, FAILED)

    def _write(self, batch: Batch, connection: Connection) -> tuple[dict[str, Tally], Counter[str]]:
        """Write a batch. Return the tallies of the run including this batch, and the batch's differing columns."""
        malformed = sum(not rejection.stream for rejection in batch.rejections)
        tallies = dict(self.tallies)
        tallies[""] += Tally(read=malformed, quarantined=malformed)
        conflicts: list[Rejection] = []
        differing: Counter[str] = Counter()
        for sink, part in batch.parts.items():
            tallies[sink.stream] += Tally(read=part.refused, quarantined=part.refused)
            if part.rows or part.present_keys or part.incomplete:
                result = self._write_part(connection, sink, part)
                tallies[sink.stream] += result.tally
                conflicts += result.conflicts
                differing.update(result.differing)
        if conflicts and self._fail_on_conflict:
            raise InvalidRecord(conflicts[0].where, {})
        self._quarantine(connection, [*batch.rejections, *conflicts])
        if not self.stopped:
            self._record_coverage(connection, batch.coverage)
        if batch.records:
            self._record_run(connection, tallies)
        return tallies, differing

    def _quarantine(self, connection: Connection, rejections: Sequence[Rejection]) -> None:
        if not rejections:
            return
        adapter, tables, now = self._warehouse.adapter, self._warehouse.tables, datetime.now(UTC)
        rows = [(number, *rejection.row(now, self.run_id)) for number, rejection in enumerate(rejections)]
        staged = self._warehouse.with_temporary(tables.staged_rejections)
        adapter.stage(connection, staged.table, rows)
        insert_absent(adapter, connection, tables.rejected_records, staged, len(rows))
        clear_staging(adapter, connection, staged)
        if self._on_quarantine:
            self._on_quarantine(rejections)

    def _record_coverage(self, connection: Connection, claims: Claims) -> None:
        """Record the intervals for which actions were read, in the transaction that commits these actions.

        Call this after the actions are written. On an engine without transactions, a load may stop in between, and an
        interval must not count as covered without its actions.
        """
        if not claims:
            return
        adapter, table = self._warehouse.adapter, self._warehouse.tables.coverage
        recorded = connection.execute(select(table)).all()
        inserted, replaced = coverage.changes(recorded, claims)
        # Insert first, delete later: on an engine without transactions, a load may stop in between. Then an interval is
        # recorded twice, which does no harm.
        adapter.load(connection, table, inserted)
        if replaced:
            adapter.execute(connection, coverage.delete(table, replaced))
        merchants = {scope.merchant for scope in claims}
        read = merge(coverage.recorded(recorded), claims)
        self._coverage = {scope: each for scope, each in read.items() if scope.merchant in merchants}

    def _record_run(self, connection: Connection, tallies: Mapping[str, Tally], exit_state: str | None = None) -> None:
        """Write the run's rows of `load_runs`, in the transaction that commits the counted records."""
        if not self._records_run:
            return
        adapter, load_runs = self._warehouse.adapter, self._warehouse.tables.load_runs
        run = Run(self.run_id, self._started_at, datetime.now(UTC), exit_state)
        adapter.execute(connection, run.delete_earlier(load_runs))
        by_table = {self._tables[stream]: tally for stream, tally in tallies.items()}
        ignored = {self._tables[stream]: count for stream, count in self.ignored_activations.items()}
        adapter.load(connection, load_runs, run.rows(by_table, ignored))
        if exit_state:
            adapter.execute(connection, run.delete_expired(load_runs))

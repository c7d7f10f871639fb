"""Decide when to commit a batch, and when to emit a STATE."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from pepper_runtime import telemetry
from target_crm.loader.sinks import Part
from target_crm.records.coverage import merge

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future

    from sqlalchemy import Connection

    from target_crm.loader.sinks import StreamSink
    from target_crm.records.coverage import Claims
    from target_crm.records.tally import Rejection


@dataclass
class Batch:
    """The rows that one transaction commits, and the STATE to emit after the commit."""

    loaded_at: datetime
    """When the batch began. This is the loading time of all of its rows."""
    parts: dict[StreamSink, Part] = field(default_factory=dict)
    rejections: list[Rejection] = field(default_factory=list)
    state: str | None = None
    coverage: Claims = field(default_factory=dict)
    """The intervals for which actions were read, according to the STATE."""
    records: int = 0
    """The number of records and malformed lines."""
    size_bytes: int = 0
    """The total length of the input lines, in bytes."""

    @property
    def session(self) -> Connection | None:
        """The open session in which actions are staged ahead, if any."""
        sessions = (part.session for part in self.parts.values())
        return next((session for session in sessions if session and not session.closed), None)

    def close(self) -> None:
        """Close the session in which actions are staged ahead, because the batch will not be committed."""
        for part in self.parts.values():
            part.close()

    def part_of(self, sink: StreamSink) -> Part:
        """Return the part of the batch that a sink writes. If the batch has none yet, add an empty part."""
        part = self.parts.get(sink)
        if part is None:
            part = self.parts[sink] = Part()
        return part

    def cover(self, claims: Claims) -> None:
        """Add intervals for which actions were read."""
        self.coverage = merge(self.coverage, claims)

    def count_record(self, line_bytes: int) -> None:
        """Count a record and its bytes, to see when the batch reaches a limit."""
        self.records += 1
        self.size_bytes += line_bytes


class Batcher:
    """Fills and stages one batch while a second thread commits the one before it.

    At most one batch is being committed at a time. If its commit fails, the next call that waits for it raises the
    error, and the run must end. No later batch is committed. A STATE is emitted only after its own batch and all
    earlier ones are committed.

    Args:
        stage: Stages rows of a batch ahead. Called before the previous batch is committed.
        commit: Writes a batch in one transaction. Called in the second thread.
        emit_state: Writes a STATE line. Called in the second thread, after the commit.
        records_max: Commit a batch as soon as it has this many records.
        bytes_max: Commit a batch as soon as its input lines have this many bytes in total.
        wait_seconds: Commit a batch at most this long after its first record or STATE.
        clock: A monotonic clock, in seconds.
    """

    def __init__(
        self,
        stage: Callable[[Batch], None],
        commit: Callable[[Batch], None],
        emit_state: Callable[[str], None],
        *,
        records_max: int,
        bytes_max: int,
        wait_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stage = stage
        self._commit = commit
        self._emit_state = emit_state
        self._records_max = records_max
        self._bytes_max = bytes_max
        self._wait_seconds = wait_seconds
        self._clock = clock
        self._committer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="commit")
        self._in_flight: Future[None] | None = None
        self._batch: Batch | None = None
        self._due_at_seconds = 0.0
        self._emitted_state: str | None = None

    @property
    def batch(self) -> Batch:
        """The batch that is being filled. The first record or STATE begins it."""
        if self._batch is None:
            self._batch = Batch(datetime.now(UTC))
            self._due_at_seconds = self._clock() + self._wait_seconds
        return self._batch

    def commit_if_due(self) -> None:
        """Start committing the current batch if it has reached a limit."""
        batch = self._batch
        if batch and (
            batch.records >= self._records_max
            or batch.size_bytes >= self._bytes_max
            or self._clock() >= self._due_at_seconds
        ):
            self._begin_commit()

    def poll(self) -> None:
        """Raise the error of a finished commit. Start the next commit if it is due. Call this if no input arrives."""
        if self._in_flight and self._in_flight.done():
            self.wait()
        self.commit_if_due()

    def flush(self) -> None:
        """Commit all rows, and return when the commit is done."""
        self._begin_commit()
        self.wait()

    def wait(self) -> None:
        """Wait until the current commit is done, and raise its error."""
        # Drop this reference first: an error in it would keep a cursor open, and the cursor would hold SQLite's lock.
        in_flight, self._in_flight = self._in_flight, None
        if in_flight:
            in_flight.result()

    def _begin_commit(self) -> None:
        batch, self._batch = self._batch, None
        if not batch:
            self.wait()
            return
        telemetry.record_span("decode", batch.loaded_at, {"pepper.rows": batch.records})
        try:
            self._stage(batch)
            self.wait()
        except BaseException:
            batch.close()
            raise
        self._in_flight = self._committer.submit(self._run, batch)

    def _run(self, batch: Batch) -> None:
        if batch.records or batch.coverage:
            self._commit(batch)
        if batch.state is not None and batch.state != self._emitted_state:
            self._emit_state(batch.state)
            self._emitted_state = batch.state

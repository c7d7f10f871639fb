"""The rows of `load_runs`, one per run and stream.

Each row counts the records of one stream in one run, up to the last commit. The transaction that commits the records
also writes the row, so the counts are always right. If a run is killed, `finished_at` and `exit_state` stay null in its
rows.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlalchemy import Delete, Table

    from target_crm.records.tally import Tally

RETENTION = timedelta(days=90)
DONE, FAILED = "done", "failed"


@dataclass(frozen=True)
class Run:
    """A run of target-crm, as it is at the time `now`."""

    run_id: str
    started_at: datetime
    now: datetime
    exit_state: str | None = None
    """`DONE` or `FAILED`; None while the run has not ended."""

    def rows(self, tallies: Mapping[str, Tally], ignored_activations: Mapping[str, int]) -> list[tuple[Any, ...]]:
        """Return a row per stream.

        The keys of both arguments are table names. For malformed lines, the key is an empty string.
        """
        finished_at = self.now if self.exit_state else None
        seconds = Decimal((self.now - self.started_at) // timedelta(milliseconds=1)) / 1000
        return [
            (
                self.run_id,
                table,
                self.started_at,
                finished_at,
                self.exit_state,
                seconds,
                *astuple(tally),
                ignored_activations.get(table, 0),
            )
            for table, tally in tallies.items()
        ]

    def delete_earlier(self, load_runs: Table) -> Delete:
        """Delete the run's own earlier rows."""
        return load_runs.delete().where(load_runs.c.run_id == self.run_id)

    def delete_expired(self, load_runs: Table) -> Delete:
        """Delete the rows of runs that began more than `RETENTION` ago."""
        return load_runs.delete().where(load_runs.c.started_at < self.now - RETENTION)

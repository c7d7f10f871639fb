"""Pure: what a run of target-crm tells of itself: rows of `load_runs`.

A row tells what is committed of one stream. It is written in the transaction that commits it, so the two agree at any
moment. A run that is killed never comes to say how it ended.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from target_crm.records.schemas import snake_case

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlalchemy import Delete, Table

    from target_crm.records.tally import Tally

# How long a run is remembered.
RUNS_KEPT = timedelta(days=90)
DONE, FAILED = "done", "failed"


@dataclass(frozen=True)
class Run:
    """A run of target-crm at one moment."""

    run_id: str
    started_at: datetime
    now: datetime
    exit_state: str | None = None
    """`DONE` or `FAILED`; None while it goes on."""

    def rows(self, tallies: Mapping[str, Tally]) -> list[tuple[Any, ...]]:
        """A row for each stream, by the name of its table, and one for the lines that are of no stream."""
        finished_at = self.now if self.exit_state else None
        seconds = Decimal((self.now - self.started_at) // timedelta(milliseconds=1)) / 1000
        return [
            (
                self.run_id,
                snake_case(stream) if stream else "",
                self.started_at,
                finished_at,
                self.exit_state,
                seconds,
                *astuple(tally),
            )
            for stream, tally in tallies.items()
        ]

    def outdated(self, load_runs: Table) -> Delete:
        """Remove what the run has said before."""
        return load_runs.delete().where(load_runs.c.run_id == self.run_id)

    def forgotten(self, load_runs: Table) -> Delete:
        """Remove the runs that began longer ago than `RUNS_KEPT`."""
        return load_runs.delete().where(load_runs.c.started_at < self.now - RUNS_KEPT)

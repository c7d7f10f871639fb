"""Show the freshness of each stream, the quarantine, drift, and how the last runs ended."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from sqlalchemy import BigInteger, cast, column, func, inspect, select
from sqlalchemy import table as any_table

from pepper_runtime.wording import counted, duration
from target_crm.balances_cli.coverage import Coverage, describe, first_action_at, read_coverage
from target_crm.balances_cli.verify import Check, compare_balances, compare_totals, latest_time
from target_crm.records.column_types import Instant
from target_crm.records.names import ascii_snake_case
from target_crm.records.schemas import BATCHED_AT, DELETED_AT, EXTRACTED_AT
from target_crm.sql.load_runs import DONE
from target_crm.sql.tables import COUNTS
from target_crm.warehouse import migrations
from target_crm.warehouse.stream_names import tables_of_streams

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sqlalchemy import ColumnElement, Connection, FromClause, Select

    from target_crm.sql.tables import Tables
    from target_crm.warehouse.connection import Warehouse

# The number of runs that are shown, newest first.
RUNS_SHOWN = 10


@dataclass(frozen=True)
class Stream:
    """The freshness of a stream's table.

    Attributes:
        newest_at: The time of the newest event. If the stream has no events, the time when its newest row was
            extracted. None if there are no rows.
        lag_seconds: Seconds since `newest_at`. The number grows while nothing happens in Pepper, even if runs continue.
        loaded_at: When the newest row was loaded. None if there are no rows.
        read_at: When a finished run last read the stream, even if no row was new. None if there was no such run.
        rejected: The number of records in quarantine.
    """

    stream: str
    rows: int
    newest_at: datetime | None
    lag_seconds: float | None
    loaded_at: datetime | None
    read_at: datetime | None
    rejected: int


@dataclass(frozen=True)
class Status:
    """The freshness of the data in a warehouse, and the results of the balance checks.

    Attributes:
        now: The time at which the warehouse was checked. Ages refer to this time.
        schema: The schema of the tables. If no schema is set, this is the connection's default schema.
        rejected: The number of records in quarantine, including lines that belong to no stream.
        checks: The comparisons of the balances. Empty if neither actions nor awards have been loaded.
        coverage: The intervals for which actions were read, and the holes.
    """

    now: datetime
    schema: str
    streams: list[Stream]
    rejected: int
    checks: list[Check]
    coverage: Coverage
    runs: list[dict[str, Any]]

    @property
    def drifted(self) -> bool:
        """Whether a check found a difference."""
        return any(check.differing for check in self.checks)


def status(warehouse: Warehouse, *, full: bool = False, now: datetime | None = None) -> Status:
    """Check whether the data in a warehouse is fresh, and whether its balances have drifted. Use one transaction.

    Args:
        warehouse: A warehouse that is set up.
        full: Whether to verify every balance instead of comparing sums.
        now: The current time, from which ages are calculated. The default is the local clock.
    """
    with warehouse.read() as connection:
        return status_in(connection, warehouse.tables, now or datetime.now(UTC), full=full)


def status_in(connection: Connection, tables: Tables, now: datetime, *, full: bool) -> Status:
    """Check a warehouse as `status` does, but within an open read transaction."""
    rejected = _rejected(connection, tables)
    read_at = _read_at(connection, tables)
    has_balances = migrations.has_balances(connection, tables)
    read = read_coverage(connection, tables)
    checks: list[Check] = []
    if has_balances:
        checks = (compare_balances if full else compare_totals)(connection, tables, latest_time(read, now))
    return Status(
        now=now,
        # SQLAlchemy uses a subclass of str, which the JSON encoder refuses.
        schema=str(tables.metadata.schema or connection.dialect.default_schema_name or ""),
        streams=[
            Stream(
                stream=name,
                **(found := dict(connection.execute(query).mappings().one())),
                lag_seconds=(now - found["newest_at"]).total_seconds() if found["newest_at"] else None,
                read_at=read_at.get(name),
                rejected=rejected[name],
            )
            for name, query in _freshness(connection, tables, read_at, has_balances=has_balances).items()
        ],
        rejected=sum(rejected.values()),
        checks=checks,
        coverage=describe(read, first_action_at(connection, tables)),
        runs=[dict(row) for row in connection.execute(_last_runs(tables)).mappings()],
    )


def _rejected(connection: Connection, tables: Tables) -> Counter[str]:
    """Return the number of quarantined records per table. Lines that name no stream count under an empty name."""
    rejected = tables.rejected_records
    table_of = tables_of_streams(connection, tables)
    by_stream: Counter[str] = Counter()
    for stream, count in connection.execute(select(rejected.c.stream, func.count()).group_by(rejected.c.stream)):
        # A stream whose table is not recorded was last loaded by an older version, which recorded no tables.
        by_stream[table_of.get(stream) or (ascii_snake_case(stream) if stream else "")] += count
    return by_stream


def _read_at(connection: Connection, tables: Tables) -> dict[str, datetime]:
    """Return the time when a finished run last read each stream."""
    runs = tables.load_runs.c
    query = select(runs.stream, func.max(runs.finished_at)).where(runs.exit_state == DONE).group_by(runs.stream)
    return {stream: finished_at for stream, finished_at in connection.execute(query) if stream}


def _freshness(
    connection: Connection, tables: Tables, others: Mapping[str, Any], *, has_balances: bool
) -> dict[str, Select[Any]]:
    actions, awards = tables.actions, tables.awards
    queries = {}
    if has_balances:
        happened_at = func.coalesce(awards.c.updated_at, awards.c[EXTRACTED_AT])
        queries = {
            "actions": _newest(actions, actions.c.occurred_at, actions.c.loaded_at),
            "awards": _newest(awards, happened_at, awards.c[BATCHED_AT]).where(awards.c[DELETED_AT].is_(None)),
        }
    for name in sorted(others.keys() - queries.keys()):
        if inspect(connection).has_table(name, schema=tables.metadata.schema):
            times = [column(each, Instant()) for each in (EXTRACTED_AT, BATCHED_AT, DELETED_AT)]
            stream = any_table(name, *times, schema=tables.metadata.schema)
            queries[name] = _newest(stream, *times[:2]).where(stream.c[DELETED_AT].is_(None))
    return queries


def _newest(rows: FromClause, newest: ColumnElement[Any], loaded: ColumnElement[Any]) -> Select[Any]:
    return select(
        func.count().label("rows"), func.max(newest).label("newest_at"), func.max(loaded).label("loaded_at")
    ).select_from(rows)


def _last_runs(tables: Tables) -> Select[Any]:
    runs = tables.load_runs.c
    return (
        select(
            runs.run_id,
            runs.started_at,
            runs.finished_at,
            runs.exit_state,
            func.max(runs.seconds).label("seconds"),
            *(cast(func.sum(runs[name]), BigInteger).label(name) for name in COUNTS),
        )
        .group_by(runs.run_id, runs.started_at, runs.finished_at, runs.exit_state)
        .order_by(runs.started_at.desc(), runs.run_id)
        .limit(RUNS_SHOWN)
    )


def as_text(status: Status) -> str:
    """Format a status for the terminal, as two tables and a line for each check."""
    streams = [
        (
            each.stream,
            f"{each.rows:,}",
            f"{each.newest_at:%Y-%m-%d %H:%M:%S}" if each.newest_at else "-",
            *(ago(status.now, time) for time in (each.newest_at, each.loaded_at, each.read_at)),
            f"{each.rejected:,}",
        )
        for each in status.streams
    ]
    runs = [
        (
            f"{run['started_at']:%Y-%m-%d %H:%M:%S}",
            run["exit_state"] or "unfinished",
            f"{float(run['seconds']):,.1f}",
            *(f"{run[name]:,}" for name in COUNTS),
        )
        for run in status.runs
    ]
    lines = [
        *_table(("stream", "rows", "newest (UTC)", "ago", "loaded ago", "read ago", "rejected"), streams),
        "",
        *_table(("run started (UTC)", "ended", "seconds", *COUNTS), runs),
        "",
        *(f"{check.question}: {f'{check.differing:,} differ' if check.differing else 'OK'}" for check in status.checks),
        f"{counted(status.rejected, 'record')} in quarantine",
        *status.coverage.summary,
        _verdict(status),
    ]
    return "\n".join(lines)


def _verdict(status: Status) -> str:
    if not status.checks:
        return "No balances: neither actions nor awards have been loaded"
    if status.drifted:
        return "DRIFT, run crm-balances verify"
    is_complete = any(check.name == "ledger" for check in status.checks)
    return "No drift" if is_complete else "No drift in the sums; --verify compares every balance"


def ago(now: datetime, time: datetime | None) -> str:
    """Format how long ago a time was, such as `12 min`. A future time gives `in 12 min`, and None gives `-`."""
    if time is None:
        return "-"
    return f"in {duration(time - now)}" if time > now else duration(now - time)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Align the columns of a table: the first one to the left, all others to the right."""
    widths = [max(map(len, cells)) for cells in zip(head, *rows, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if place else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in (head, *rows)
    ]

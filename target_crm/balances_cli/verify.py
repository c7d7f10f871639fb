"""Compare the stored balances with the ledger and the snapshots, or recompute all balances."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from sqlalchemy import func, select

from pepper_runtime.progress import display
from pepper_runtime.wording import counted
from target_crm.balances_cli.coverage import Coverage, describe, first_action_at, read_coverage
from target_crm.records.coverage import read_times
from target_crm.sql import balances
from target_crm.warehouse.migrations import adapter_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sqlalchemy import Connection, RowMapping, Select, Table

    from target_crm.records.coverage import MerchantCoverage, ReadTimes
    from target_crm.sql.tables import Tables
    from target_crm.warehouse.connection import Warehouse

logger = logging.getLogger("crm-balances")

# A check counts all awards that differ, but lists at most this many of them.
EXAMPLES_MAX = 20
# A balance may be this much later than the present, because clocks differ.
AHEAD_MAX = timedelta(days=1)
_FUTURE = "future"


@dataclass(frozen=True)
class Check:
    """The result of a check: what should be equal, how many awards or totals differ, and some examples."""

    name: str
    question: str
    differing: int
    examples: list[dict[str, Any]]


@dataclass(frozen=True)
class Gaps:
    """Balance changes without an action. An edit or an expiry in Pepper can cause such a gap, so a gap is not drift.

    Attributes:
        number: The number of gaps.
        awards: The number of awards with gaps.
        covered: The number of gaps inside covered intervals. In these intervals, no action is missing.
        unread: The number of gaps that overlap a hole in the coverage, where actions were not read.
        examples: The first awards with gaps. Each has the number of its gaps and the time of its newest gap.
    """

    number: int
    awards: int
    covered: int
    unread: int
    examples: list[dict[str, Any]]


@dataclass(frozen=True)
class Verification:
    """The result of `verify`.

    Attributes:
        awards: The number of balances.
        actions: The number of actions in the ledger.
        counted_actions: The number of actions that the balances count. Without drift, these are all actions with an
            effect.
        quarantined: The number of records in quarantine, which are not loaded.
        checks: The comparisons of the balances. A difference in one of them is drift.
        coverage: The intervals for which actions were read, and the holes.
        gaps: Balance changes without an action. None if the check for gaps was not requested.
    """

    awards: int
    actions: int
    counted_actions: int
    quarantined: int
    checks: list[Check]
    coverage: Coverage
    gaps: Gaps | None

    @property
    def drifted(self) -> bool:
        """Whether a check found a difference."""
        return any(check.differing for check in self.checks)

    @property
    def failed(self) -> bool:
        """Whether a balance differs, or the coverage has a hole."""
        return self.drifted or bool(self.coverage.holes)


def begin(step: str) -> None:
    """Log the start of a step that may take a long time. Show the step on the terminal until it is done."""
    logger.info("%s …", step)
    display.update(step)


def verify(warehouse: Warehouse, *, gaps: bool = False) -> Verification:
    """Compare every balance with the whole ledger and with Pepper's snapshots, in one read transaction.

    Args:
        warehouse: The warehouse.
        gaps: Whether to also look for balance changes without an action. This reads the whole ledger once more.
    """
    now = datetime.now(UTC)
    with warehouse.read() as connection:
        tables = warehouse.tables
        counts = balances.totals_of_balances(tables.award_balances).add_columns(func.count().label("award_count"))
        stored = connection.execute(counts).one()
        read = read_coverage(connection, tables)
        return Verification(
            # Start with this step, so that the terminal shows from the beginning what takes so long.
            checks=compare_balances(connection, tables, latest_time(read, now)),
            awards=stored.award_count,
            actions=count_rows(connection, tables.actions),
            counted_actions=stored.action_count,
            quarantined=count_rows(connection, tables.rejected_records),
            coverage=describe(read, first_action_at(connection, tables)),
            gaps=_find_gaps(connection, tables, read_times(read)) if gaps else None,
        )


def latest_time(merchants: Sequence[MerchantCoverage], now: datetime) -> datetime:
    """Return the latest time that a balance may have.

    Use the end of the coverage if it is later than `now`, because Pepper's clock may be ahead of ours. If there is no
    coverage, Pepper's time is unknown, so a balance may have any time.
    """
    ends = [each.intervals[-1].until for each in merchants if each.intervals]
    latest = datetime.max.replace(tzinfo=UTC)
    return min(max([now, *ends]), latest - AHEAD_MAX) + AHEAD_MAX if ends else latest


def compare_balances(connection: Connection, tables: Tables, latest: datetime) -> list[Check]:
    """Compare every balance with the ledger and the snapshots. Find balances with a later time than `latest`."""
    differing = balances.differences(tables.award_balances, adapter_of(connection).all_balances(tables))
    begin("Comparing every balance with the ledger")
    ledger = _check("ledger", "balance = total of ledger and snapshots", connection, differing)
    return [ledger, _compare_snapshots(connection, tables), _compare_times(connection, tables, latest)]


def _find_gaps(connection: Connection, tables: Tables, read: ReadTimes) -> Gaps:
    begin("Looking for balance changes without an action")
    first = balances.gaps(tables, read).add_columns(func.count().over().label("awards")).limit(EXAMPLES_MAX)
    found = connection.execute(first).mappings().all()
    totals = found[0] if found else {"all_gaps": 0, "all_covered": 0, "all_unread": 0, "awards": 0}
    return Gaps(
        number=int(totals["all_gaps"]),
        awards=int(totals["awards"]),
        covered=int(totals["all_covered"]),
        unread=int(totals["all_unread"]),
        examples=[_example(row, "award_id", "gaps", "gap_at") for row in found],
    )


def _check(name: str, question: str, connection: Connection, differing: Select[Any], *shown: str) -> Check:
    """Count the awards that a query finds, and name the first ones.

    Args:
        name: The name of the check.
        question: What should be equal.
        connection: A connection in a transaction.
        differing: The query.
        shown: The columns to show for each award. By default, these are the columns that differ.
    """
    first = differing.add_columns(func.count().over().label("differing")).limit(EXAMPLES_MAX)
    found = connection.execute(first).mappings().all()
    examples = [_example(row, "award_id", *(shown or _differing_columns(row))) for row in found]
    return Check(name, question, found[0]["differing"] if found else 0, examples)


def _differing_columns(row: RowMapping) -> list[str]:
    """Return the columns to show for a balance. If the points are equal, these are the other columns that differ."""
    differing = [name for name in row if f"expected_{name}" in row and row[name] != row[f"expected_{name}"]]
    # If a balance is stored twice, no column differs. Then show the points.
    shown = differing if differing and "points" not in differing else ["points"]
    return [each for name in shown for each in (name, f"expected_{name}")]


def compare_totals(connection: Connection, tables: Tables, latest: datetime) -> list[Check]:
    """Compare the sums of all balances with the ledger's sums. Find balances with a later time than `latest`.

    This is faster than `compare_balances`, but less thorough.
    """
    begin("Comparing the sums of the balances with the sums of the ledger")
    queries = balances.totals_of_balances(tables.award_balances), balances.totals_of_actions(tables.actions)
    stored, expected = (dict(connection.execute(query).mappings().one()) for query in queries)
    examples = [
        {"total": name, "stored": str(stored[name]), "expected": str(expected[name])}
        for name in stored
        if stored[name] != expected[name]
    ]
    totals = Check("totals", "sums of balances = sums of ledger", len(examples), examples)
    return [totals, _compare_snapshots(connection, tables), _compare_times(connection, tables, latest)]


def rebuild(warehouse: Warehouse) -> int:
    """Recompute all balances from the ledger and the snapshots. Return the number of balances.

    On an engine with transactions, this happens in one transaction.
    """
    tables = warehouse.tables
    with warehouse.write() as connection:
        begin("Recomputing all balances from the ledger")
        warehouse.adapter.replace_all(connection, tables.award_balances, warehouse.adapter.all_balances(tables))
        return count_rows(connection, tables.award_balances)


def count_rows(connection: Connection, table: Table) -> int:
    """Return the number of rows in a table."""
    return connection.scalar(select(func.count()).select_from(table)) or 0


def _compare_snapshots(connection: Connection, tables: Tables) -> Check:
    begin("Comparing the balances with Pepper's newer snapshots")
    return _check("snapshot", "balance = Pepper's newer snapshot", connection, balances.behind_snapshot(tables))


def _compare_times(connection: Connection, tables: Tables, latest: datetime) -> Check:
    """Find balances from the future. No change replaces such a balance before its time has come."""
    later = balances.later_than(tables.award_balances, latest)
    return _check(_FUTURE, "balance's time is not in the future", connection, later, "as_of")


def _example(row: RowMapping, *names: str) -> dict[str, Any]:
    return {name: None if row[name] is None else str(row[name]) for name in names}


def as_text(verification: Verification) -> str:
    """Format the checks as a table, with a conclusion."""
    lines = [f"{'check':<42}{'differ':>8}"]
    for check in verification.checks:
        lines.append(f"{check.question:<42}{check.differing:>8,}")
        lines += example_lines(check.examples, check.differing)
    if verification.gaps:
        lines += _gap_lines(verification.gaps, verification.coverage)
    lines += verification.coverage.summary
    if verification.quarantined:
        lines.append(f"{counted(verification.quarantined, 'record')} in quarantine, not loaded: see rejected_records")
    verdict = "OK"
    if any(check.differing for check in verification.checks if check.name != _FUTURE):
        verdict = "DRIFT, run crm-balances rebuild"
    elif verification.drifted:
        verdict = "WRONG TIMES, report these awards to Pepper"
    elif verification.failed:
        verdict = "INCOMPLETE, run crm-balances coverage"
    elif not verification.awards and verification.actions:
        verdict = "none of them changes a balance"
    elif not verification.awards:
        verdict = "nothing loaded yet"
    against = counted(verification.actions, "action")
    lines.append(f"Verified {counted(verification.awards, 'balance')} against {against}: {verdict}")
    return "\n".join(lines)


def example_lines(examples: Sequence[Mapping[str, Any]], awards: int) -> list[str]:
    """Format the lines to print below a check: its examples, and the number of further awards."""
    left_out = awards - len(examples)
    return [
        *("    " + ", ".join(f"{name} {value}" for name, value in each.items()) for each in examples),
        *([f"    … and {counted(left_out, 'more award')}"] if left_out else []),
    ]


def _gap_lines(gaps: Gaps, coverage: Coverage) -> list[str]:
    others = gaps.number - gaps.covered - gaps.unread
    of_whom = " of one of the merchants in this schema" if len(coverage.complete_until) > 1 else ""
    reasons = {
        "without an action, such as edits and expiries in Pepper: no drift": gaps.covered,
        f"across an interval for which actions{of_whom} were never read": gaps.unread,
        "without an action: edits and expiries in Pepper, actions before coverage was recorded, or actions of a type "
        "that was not read": others,
    }
    return [
        f"{'balance before + delta = balance after':<42}{gaps.number:>8,}",
        *example_lines(gaps.examples, gaps.awards),
        *(f"{counted(count, 'balance change')} {reason}" for reason, count in reasons.items() if count),
    ]

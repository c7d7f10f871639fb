"""Compare the stored balances with ledger and snapshots, or recompute them from there."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import func, select

from pepper_runtime.progress import display
from pepper_runtime.wording import counted
from target_crm.balances_cli.coverage import Coverage, describe, first_action_at, read_coverage
from target_crm.records.coverage import read_times
from target_crm.sql import balances

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlalchemy import Connection, RowMapping, Table

    from target_crm.sql.tables import Tables
    from target_crm.warehouse.connection import Warehouse

logger = logging.getLogger("crm-balances")

# How many awards a check names; it counts them all.
EXAMPLES_MAX = 20


@dataclass(frozen=True)
class Check:
    """What should be equal, how many awards or totals differ, and the first of them."""

    name: str
    question: str
    differing: int
    examples: list[dict[str, Any]]


@dataclass(frozen=True)
class Verification:
    """The result of `verify`.

    Attributes:
        awards: The number of balances.
        actions: The number of actions that the balances count. Without drift: all actions with an effect.
        checks: A difference in one of them is drift.
        gaps: Balance changes without an action. An edit or an expiry in Pepper makes one, so a gap is not drift.
        covered_gaps: How many of them happened while everything was read: no action is missing there.
        unread_gaps: How many of them lie across a hole in the coverage: their actions were not read.
        coverage: Which actions were read.
        ledger_rows: The number of all actions, with an effect or without.
    """

    awards: int
    actions: int
    checks: list[Check]
    gaps: Check
    covered_gaps: int
    unread_gaps: int
    coverage: Coverage
    ledger_rows: int

    @property
    def drifted(self) -> bool:
        """Whether a balance differs from ledger and snapshots."""
        return any(check.differing for check in self.checks)

    @property
    def failed(self) -> bool:
        """Whether a balance differs, or actions were never read."""
        return self.drifted or bool(self.coverage.holes)


def begin(step: str) -> None:
    """Log a step that may take long, and show it on the terminal while it lasts."""
    logger.info("%s …", step)
    display.update(step)


def verify(warehouse: Warehouse) -> Verification:
    """Compare every balance with the whole ledger and with Pepper's snapshots, in one read transaction."""
    with warehouse.read() as connection:
        return verify_in(connection, warehouse.tables)


def verify_in(connection: Connection, tables: Tables) -> Verification:
    """Verify within an open read transaction."""
    counts = balances.totals_of_balances(tables.award_balances).add_columns(func.count().label("award_count"))
    stored = connection.execute(counts).one()
    awards, actions = stored.award_count, stored.action_count
    begin(f"Verifying {counted(awards, 'balance')} against {counted(actions, 'action')}")
    read = read_coverage(connection, tables)
    found = connection.execute(balances.differences(tables, EXAMPLES_MAX, read_times(read))).mappings().all()
    drifted = [_example(row, "award_id", "points", "expected_points") for row in found if row["drifted"]]
    gaps = [_example(row, "award_id", "gaps", "gap_at") for row in found if row["gaps"]]
    drifted_count = found[0]["all_drifted"] if found else 0
    gap_counts = {name: (found[0][f"all_{name}"] or 0) if found else 0 for name in balances.GAPS}
    return Verification(
        awards=awards,
        actions=actions,
        checks=[
            Check("ledger", "balance = total of ledger and snapshots", drifted_count, drifted),
            _compare_snapshots(connection, tables),
        ],
        gaps=Check("gaps", "balance before + delta = balance after", gap_counts["gaps"], gaps[:EXAMPLES_MAX]),
        covered_gaps=gap_counts["covered_gaps"],
        unread_gaps=gap_counts["unread_gaps"],
        coverage=describe(read, first_action_at(connection, tables)),
        ledger_rows=count_rows(connection, tables.actions),
    )


def compare_totals(connection: Connection, tables: Tables) -> list[Check]:
    """Compare the sums of all balances with those of the ledger: cheaper than `verify_in`, and finds less drift."""
    begin("Comparing the sums of the balances with those of the ledger")
    queries = balances.totals_of_balances(tables.award_balances), balances.totals_of_actions(tables.actions)
    stored, expected = (dict(connection.execute(query).mappings().one()) for query in queries)
    examples = [
        {"total": name, "stored": str(stored[name]), "expected": str(expected[name])}
        for name in stored
        if stored[name] != expected[name]
    ]
    totals = Check("totals", "sums of balances = sums of ledger", len(examples), examples)
    return [totals, _compare_snapshots(connection, tables)]


def rebuild(warehouse: Warehouse) -> int:
    """Recompute all balances from ledger and snapshots, in one transaction; return their number."""
    tables = warehouse.tables
    with warehouse.write() as connection:
        begin("Recomputing all balances from the ledger")
        warehouse.adapter.replace_all(connection, tables.award_balances, balances.all_balances(tables))
        return count_rows(connection, tables.award_balances)


def count_rows(connection: Connection, table: Table) -> int:
    """Return the number of a table's rows."""
    return connection.scalar(select(func.count()).select_from(table)) or 0


def _compare_snapshots(connection: Connection, tables: Tables) -> Check:
    begin("Comparing the balances with Pepper's newer snapshots")
    behind = balances.behind_snapshot(tables).add_columns(func.count().over().label("differing")).limit(EXAMPLES_MAX)
    found = connection.execute(behind).mappings().all()
    examples = [_example(row, "award_id", "points", "expected_points") for row in found]
    return Check("snapshot", "balance = Pepper's newer snapshot", found[0]["differing"] if found else 0, examples)


def _example(row: RowMapping, *names: str) -> dict[str, Any]:
    return {name: None if row[name] is None else str(row[name]) for name in names}


def as_text(verification: Verification) -> str:
    """Format the checks as a table, with a conclusion."""
    lines = [f"{'check':<42}{'differ':>8}"]
    for check in (*verification.checks, verification.gaps):
        lines.append(f"{check.question:<42}{check.differing:>8,}")
        if check is not verification.gaps:
            lines += [example_line(row) for row in check.examples]
    lines += _gap_lines(verification)
    lines += verification.coverage.summary
    verdict = "OK"
    if verification.drifted:
        verdict = "DRIFT, run crm-balances rebuild"
    elif verification.failed:
        verdict = "INCOMPLETE, run crm-balances coverage"
    elif not verification.awards and verification.ledger_rows:
        verdict = f"none of the {verification.ledger_rows:,} actions in the ledger changes a balance"
    elif not verification.awards:
        verdict = "nothing loaded yet"
    against = counted(verification.actions, "action")
    lines.append(f"Verified {counted(verification.awards, 'balance')} against {against}: {verdict}")
    return "\n".join(lines)


def example_line(example: Mapping[str, Any]) -> str:
    """Format what differs of an award, below the line of its check."""
    return "    " + ", ".join(f"{name} {value}" for name, value in example.items())


def _gap_lines(verification: Verification) -> list[str]:
    covered, unread = verification.covered_gaps, verification.unread_gaps
    others = verification.gaps.differing - covered - unread
    of_whom = " of one of the merchants in this schema" if len(verification.coverage.complete_until) > 1 else ""
    reasons = {
        "without an action, such as edits and expiries in Pepper: no drift": covered,
        f"across a time of which actions{of_whom} were never read": unread,
        "without an action: edits and expiries in Pepper, actions before coverage was recorded, or actions of a type "
        "that was not read": others,
    }
    return [f"{counted(count, 'balance change')} {reason}" for reason, count in reasons.items() if count]

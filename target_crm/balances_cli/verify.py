"""The balances held against ledger and snapshots, and computed afresh from them."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import func, select

from target_crm.sql import balances

if TYPE_CHECKING:
    from sqlalchemy import Connection, RowMapping, Table

    from target_crm.sql.tables import Tables
    from target_crm.warehouse.connection import Warehouse

logger = logging.getLogger("crm-balances")

# How many awards a check names; it counts them all.
EXAMPLES_MAX = 20


@dataclass(frozen=True)
class Check:
    """A question put to the warehouse, how many awards or actions answer no, and the first of them."""

    name: str
    question: str
    differing: int
    examples: list[dict[str, Any]]


@dataclass(frozen=True)
class Proof:
    """What `verify` finds. A gap is not drift: an edit or an expiry in Pepper makes one, and no action.

    `actions` are those that the balances count; where nothing has drifted, all that have an effect.
    """

    awards: int
    actions: int
    checks: list[Check]
    gaps: Check

    @property
    def drifted(self) -> bool:
        """Whether a balance is not what the ledger and the snapshots say."""
        return any(check.differing for check in self.checks)


def verify(warehouse: Warehouse) -> Proof:
    """Hold every balance against a fold of the whole ledger and against Pepper's snapshots, in one reading."""
    with warehouse.read() as connection:
        return prove(connection, warehouse.tables)


def prove(connection: Connection, tables: Tables) -> Proof:
    """The same within a reading that has begun."""
    counts = balances.totals_of_balances(tables.award_balances).add_columns(func.count().label("award_count"))
    stored = connection.execute(counts).one()
    awards, actions = stored.award_count, stored.action_count
    logger.info("holding %s balances against the ledger, of %s actions by their count …", f"{awards:,}", f"{actions:,}")
    found = connection.execute(balances.differences(tables, EXAMPLES_MAX)).mappings().all()
    drifted = [_told(row, "award_id", "points", "expected_points") for row in found if row["drifted"]]
    gaps = [_told(row, "award_id", "gaps", "gap_at") for row in found if row["gaps"]]
    drifted_count, gap_count = (found[0]["all_drifted"], found[0]["all_gaps"] or 0) if found else (0, 0)
    return Proof(
        awards=awards,
        actions=actions,
        checks=[
            Check("fold", "balance = fold of ledger and snapshots", drifted_count, drifted),
            _snapshot_check(connection, tables),
        ],
        gaps=Check("gaps", "balance before + delta = balance after", gap_count, gaps[:EXAMPLES_MAX]),
    )


def glance(connection: Connection, tables: Tables) -> list[Check]:
    """What a look at the sums can tell of drift, without folding the ledger."""
    logger.info("comparing the sums of the balances with those of the ledger …")
    queries = balances.totals_of_balances(tables.award_balances), balances.totals_of_actions(tables.actions)
    stored, expected = (dict(connection.execute(query).mappings().one()) for query in queries)
    examples = [
        {"total": name, "stored": str(stored[name]), "expected": str(expected[name])}
        for name in stored
        if stored[name] != expected[name]
    ]
    totals = Check("totals", "sums of the balances = sums of the ledger", len(examples), examples)
    return [totals, _snapshot_check(connection, tables)]


def rebuild(warehouse: Warehouse) -> int:
    """Fold the whole ledger and all snapshots afresh, in one transaction; returns the number of balances."""
    tables = warehouse.tables
    with warehouse.write() as connection:
        logger.info("folding the whole ledger …")
        warehouse.adapter.replace_all(connection, tables.award_balances, balances.all_balances(tables))
        return count(connection, tables.award_balances)


def count(connection: Connection, table: Table) -> int:
    """The number of a table's rows."""
    return connection.scalar(select(func.count()).select_from(table)) or 0


def _snapshot_check(connection: Connection, tables: Tables) -> Check:
    question = "balance = Pepper's newer snapshot"
    logger.info("%s …", question)
    counted = balances.behind_snapshot(tables).add_columns(func.count().over().label("differing")).limit(EXAMPLES_MAX)
    found = connection.execute(counted).mappings().all()
    examples = [_told(row, "award_id", "points", "expected_points") for row in found]
    return Check("snapshot", question, found[0]["differing"] if found else 0, examples)


def _told(row: RowMapping, *names: str) -> dict[str, Any]:
    return {name: None if row[name] is None else str(row[name]) for name in names}


def as_text(proof: Proof) -> str:
    """A table of the checks, and what follows."""
    lines = [f"{'check':<42}{'differ':>8}"]
    for check in (*proof.checks, proof.gaps):
        lines.append(f"{check.question:<42}{check.differing:>8,}")
        if check is not proof.gaps:
            lines += ["    " + ", ".join(f"{key} {value}" for key, value in row.items()) for row in check.examples]
    if proof.gaps.differing:
        lines.append(f"{proof.gaps.differing:,} changes came without an action, as edits and expiries do: no drift.")

    verdict = "DRIFT: run crm-balances rebuild" if proof.drifted else "all proven" if proof.awards else "none yet"
    lines.append(f"{proof.awards:,} balances from {proof.actions:,} actions: {verdict}")
    return "\n".join(lines)

"""crm-balances: prove the balances, or compute them afresh. Takes the settings of target-crm."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import func, select

from target_crm import balances
from target_crm.errors import CrmError
from target_crm.target import TargetCrm, read_config

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import Connection, Select

    from target_crm.warehouse import Warehouse

# How many awards a check names; it counts them all.
EXAMPLES_MAX = 20
EXIT_WELL, EXIT_DRIFT, EXIT_ERROR = 0, 1, 2


@dataclass(frozen=True)
class Check:
    """A question put to the warehouse, how many awards or actions answer no, and the first of them."""

    name: str
    question: str
    differing: int
    examples: list[dict[str, Any]]


@dataclass(frozen=True)
class Report:
    """What `verify` finds. A gap is not drift: an edit or an expiry in Pepper makes one, and no action."""

    awards: int
    actions: int
    checks: list[Check]
    gaps: Check

    @property
    def drifted(self) -> bool:
        """Whether a balance is not what the ledger and the snapshots say."""
        return any(check.differing for check in self.checks)


def verify(warehouse: Warehouse) -> Report:
    """Hold every balance against a fold of the whole ledger and against Pepper's snapshots, in one reading."""
    tables = warehouse.tables
    with warehouse.read() as connection:
        return Report(
            awards=connection.scalar(select(func.count()).select_from(tables.award_balances)) or 0,
            actions=connection.scalar(select(func.count()).select_from(tables.actions)) or 0,
            checks=[
                _check(connection, "fold", "balance = fold of ledger and snapshots", balances.drifted(tables)),
                _check(connection, "snapshot", "balance = Pepper's newer snapshot", balances.contradicted(tables)),
            ],
            gaps=_check(connection, "gaps", "balance before + delta = balance after", balances.gaps(tables)),
        )


def rebuild(warehouse: Warehouse) -> int:
    """Fold the whole ledger and all snapshots afresh, in one transaction; returns the number of balances."""
    tables = warehouse.tables
    with warehouse.write() as connection:
        for statement in balances.rebuild_statements(tables):
            connection.execute(statement)
        return connection.scalar(select(func.count()).select_from(tables.award_balances)) or 0


def _check(connection: Connection, name: str, question: str, query: Select[Any]) -> Check:
    differing = 0
    examples: list[dict[str, Any]] = []
    for row in connection.execute(query).mappings():
        differing += 1
        if len(examples) < EXAMPLES_MAX:
            examples.append({key: None if value is None else str(value) for key, value in row.items()})
    return Check(name, question, differing, examples)


def _as_text(report: Report) -> str:
    lines = [f"{'check':<42}{'differ':>8}"]
    for check in (*report.checks, report.gaps):
        lines.append(f"{check.question:<42}{check.differing:>8,}")
        if check is not report.gaps:
            lines += ["    " + ", ".join(f"{key} {value}" for key, value in row.items()) for row in check.examples]
    if report.gaps.differing:
        lines.append(f"{report.gaps.differing:,} changes came without an action, as edits and expiries do: no drift.")

    verdict = "DRIFT: run crm-balances rebuild" if report.drifted else "all proven"
    lines.append(f"{report.awards:,} balances from {report.actions:,} actions: {verdict}")
    return "\n".join(lines)


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="crm-balances", description="Prove the balances in the warehouse, or compute them afresh."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in {
        "verify": "hold every balance against its ledger and snapshots; exit code 1 where one drifts",
        "rebuild": "compute every balance afresh from ledger and snapshots, in one transaction",
    }.items():
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("--config", metavar="FILE", help="target-crm's settings; else TARGET_CRM_… variables")
        command.add_argument("--json", action="store_true", help="speak JSON")
    return parser.parse_args(argv)


def run(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code."""
    arguments = _arguments(argv)
    config = read_config(arguments.config) if arguments.config else {}
    warehouse = TargetCrm(config=config, parse_env_config=not arguments.config).warehouse
    if arguments.command == "rebuild":
        count = rebuild(warehouse)
        print(json.dumps({"balances": count}) if arguments.json else f"{count:,} balances computed afresh")
        return EXIT_WELL
    report = verify(warehouse)
    print(json.dumps({**asdict(report), "drifted": report.drifted}) if arguments.json else _as_text(report))
    return EXIT_DRIFT if report.drifted else EXIT_WELL


def main() -> None:
    """The console script: 0 where all is well, 1 on drift, 2 where the question could not be answered."""
    logging.basicConfig(level=logging.WARNING, format="crm-balances: %(message)s")
    try:
        sys.exit(run())
    except CrmError as error:
        print(f"crm-balances: {error}", file=sys.stderr)
    sys.exit(EXIT_ERROR)

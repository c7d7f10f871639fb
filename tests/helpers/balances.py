"""Run crm-balances in this process."""

from __future__ import annotations

from typing import TYPE_CHECKING

from target_crm.balances_cli.cli import crm_balances

if TYPE_CHECKING:
    from collections.abc import Sequence

# `crm-balances ddl` without --schemas prints this if no table is missing.
NOTHING_IS_MISSING = (
    "-- nothing is missing in the target's own tables; --schemas FILE also checks the tables of streams\n"
)


def run_balances(arguments: Sequence[str]) -> int:
    """Run a command and return its exit code. All errors, including usage errors, are raised as exceptions."""
    exit_code: int = crm_balances.main(list(arguments), standalone_mode=False)
    return exit_code

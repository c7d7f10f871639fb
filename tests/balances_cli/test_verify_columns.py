"""`crm-balances verify` compares every column of `award_balances` with the ledger."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.helpers.commands import run_script
from tests.helpers.target import ACTIONS, AWARDS, action, execute, load, snapshot

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("column", "value"),
    [
        pytest.param(column, value, id=column)
        for column, value in {
            "user_id": "'u9'",
            "perk_id": "'p9'",
            "points": "points + 0.0001",
            "as_of": "'2026-10-02 12:00:00.000001'",
            "as_of_source": "'award'",
            "last_action_id": "'a1'",
            "earned_total": "earned_total + 0.0001",
            "redeemed_total": "redeemed_total + 0.0001",
            "refunded_total": "refunded_total + 0.0001",
            "action_count": "action_count + 1",
            "first_action_at": "'2026-10-01 12:00:00.000001'",
            "last_action_at": "'2026-10-02 12:00:00.000001'",
            "first_action_id": "'a2'",
            "opening": "opening + 0.0001",
        }.items()
    ],
)
def test_verify_exits_with_1_and_names_the_award_if_a_column_was_changed(
    sqlite_url: str, tmp_path: Path, column: str, value: str
) -> None:
    load(
        sqlite_url,
        [
            *(AWARDS, snapshot("untouched"), snapshot("changed", 7, at="2026-09-01T00:00:00Z"), ACTIONS),
            action("a1", delta=4, available=9, award="changed", at="2026-10-01T12:00:00Z"),
            action("a2", "REDEEM_PERK", delta=2, available=7, award="changed", at="2026-10-02T12:00:00Z"),
        ],
    )

    execute(sqlite_url, f"UPDATE award_balances SET {column} = {value} WHERE award_id = 'changed'")
    verified = run_script("crm-balances", "verify", cwd=tmp_path, TARGET_CRM_SQLALCHEMY_URL=sqlite_url)

    assert verified.returncode == 1, verified.stderr
    assert "award_id changed, " in verified.stdout
    assert "award_id untouched" not in verified.stdout

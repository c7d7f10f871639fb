"""The demo compares every balance. A fake Meltano loads correct or wrong balances."""

from __future__ import annotations

import re
import stat
import sys
from decimal import Decimal
from typing import TYPE_CHECKING

import pytest

from pepper_sandbox import demo

if TYPE_CHECKING:
    from pathlib import Path

MELTANO = f"""\
#!{sys.executable}
import json, os, sqlite3, sys, urllib.request

print("noise", *sys.argv[1:])
true = json.load(urllib.request.urlopen(os.environ["TAP_PEPPER_API_URL"] + "/_sandbox/balances"))["balances"]
database = sqlite3.connect(os.environ["TARGET_CRM_SQLALCHEMY_URL"].removeprefix("sqlite:///"))
with database:
    database.execute("drop table if exists award_balances")
    database.execute("create table award_balances (award_id, points)")
    database.execute("create table if not exists perks (_id, title)")
    database.executemany("insert into award_balances values (?, ?)", list(true.items()))
    database.execute("create view if not exists user_balances as select award_id as user_id, 'p' as perk_id, points,"
                     " 1 as earned_total, 2 as redeemed_total, 3 as refunded_total from award_balances")
    {{change}}
"""


@pytest.fixture
def fake_meltano(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Return a function that installs a program named `meltano`; run the demo in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(demo, "USERS", 20)

    def write(change: str) -> None:
        program = tmp_path / "meltano"
        program.write_text(MELTANO.format(change=change))
        program.chmod(program.stat().st_mode | stat.S_IXUSR)

    return write


def test_the_demo_succeeds_if_all_balances_match(
    fake_meltano, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_meltano("pass")
    (tmp_path / "output").mkdir()
    (tmp_path / "output" / "crm.db").write_text("left by an earlier demo, not a database")
    assert demo.main() == 0
    printed = capsys.readouterr().out
    assert re.search(r"^Compared [1-9]\d* balances with Pepper's: OK$", printed, re.MULTILINE)
    assert "(deleted perk)" in printed
    assert re.search(r"Advanced time by 3 days: [1-9]\d* new actions", printed)
    assert "noise" not in printed
    assert (tmp_path / "output" / "demo.log").read_text().splitlines() == [
        "noise run perks loyalty",
        "noise run loyalty",
    ]


@pytest.mark.parametrize(
    ("change", "side"),
    [
        pytest.param("update award_balances set points = points + 0.25 where rowid = 1", "Pepper has", id="wrong"),
        pytest.param("delete from award_balances where rowid = 1", "stored nothing", id="missing"),
        pytest.param("insert into award_balances values ('made up', 1)", "Pepper has nothing", id="invented"),
    ],
)
def test_the_demo_fails_if_one_balance_differs(
    fake_meltano, capsys: pytest.CaptureFixture[str], change: str, side: str
) -> None:
    fake_meltano(f'database.execute("{change}")')
    assert demo.main() == 1
    printed = capsys.readouterr().out
    assert "1 of " in printed
    assert side in printed
    assert "OK" not in printed


def test_a_failed_run_prints_the_end_of_its_log(fake_meltano, capsys: pytest.CaptureFixture[str]) -> None:
    fake_meltano('sys.exit("the tap could not reach Pepper")')
    assert demo.main() == 1
    error = capsys.readouterr().err
    assert "exit code 1" in error
    assert "the tap could not reach Pepper" in error


@pytest.mark.usefixtures("fake_meltano")
def test_without_meltano_the_error_says_what_to_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert demo.main() == 1
    assert "demo: meltano not found; run ./dev demo, which installs it" in capsys.readouterr().err


def test_balances_are_compared_as_numbers() -> None:
    assert demo.compare({"a": Decimal("2.50")}, {"a": Decimal("2.5")}) == []
    assert demo.compare({"a": Decimal("2.5001")}, {"a": Decimal("2.5")}) == ["  award a: stored 2.5001, Pepper has 2.5"]


def test_a_table_is_aligned() -> None:
    assert list(demo.table(["user", "points"], [["Guest 0001", 1234], ["b", 2.25]])) == [
        "user          points",
        "──────────  ────────",
        "Guest 0001  1,234.00",
        "b               2.25",
    ]

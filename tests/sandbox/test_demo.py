"""The demo believes nothing: it compares every award, with a stand-in for Meltano that may get them wrong."""

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
    {{twist}}
"""


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Put a program on the PATH under Meltano's name, and the demo into an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(demo, "USERS", 20)

    def write(twist: str) -> None:
        program = tmp_path / "meltano"
        program.write_text(MELTANO.format(twist=twist))
        program.chmod(program.stat().st_mode | stat.S_IXUSR)

    return write


def test_equal_balances_are_a_success(stand_in, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stand_in("pass")
    (tmp_path / "output").mkdir()
    (tmp_path / "output" / "crm.db").write_text("of an earlier demo, and no database")
    assert demo.main() == 0
    printed = capsys.readouterr().out
    assert "awards compared with Pepper: all equal." in printed
    assert "a perk that is gone" in printed
    assert re.search(r"3 days pass: [1-9]\d* more actions", printed)
    assert "noise" not in printed
    assert (tmp_path / "output" / "demo.log").read_text().splitlines() == [
        "noise run perks loyalty",
        "noise run loyalty",
    ]


@pytest.mark.parametrize(
    ("twist", "side"),
    [
        pytest.param("update award_balances set points = points + 0.25 where rowid = 1", "in Pepper", id="wrong"),
        pytest.param("delete from award_balances where rowid = 1", "stored nowhere", id="missing"),
        pytest.param("insert into award_balances values ('made up', 1)", "in Pepper nowhere", id="invented"),
    ],
)
def test_one_wrong_balance_is_a_failure(stand_in, capsys: pytest.CaptureFixture[str], twist: str, side: str) -> None:
    stand_in(f'database.execute("{twist}")')
    assert demo.main() == 1
    printed = capsys.readouterr().out
    assert "1 of " in printed
    assert side in printed
    assert "all equal" not in printed


def test_a_failed_run_shows_the_end_of_its_log(stand_in, capsys: pytest.CaptureFixture[str]) -> None:
    stand_in('sys.exit("the tap could not reach Pepper")')
    assert demo.main() == 1
    complaint = capsys.readouterr().err
    assert "exit code 1" in complaint
    assert "the tap could not reach Pepper" in complaint


@pytest.mark.usefixtures("stand_in")
def test_without_meltano_it_says_what_to_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert demo.main() == 1
    assert "demo: meltano is not on the PATH: run ./dev demo" in capsys.readouterr().err


def test_balances_are_compared_as_numbers_not_as_text() -> None:
    assert demo.compare({"a": Decimal("2.50")}, {"a": Decimal("2.5")}) == []
    assert demo.compare({"a": Decimal("2.5001")}, {"a": Decimal("2.5")}) == ["  award a: stored 2.5001, in Pepper 2.5"]


def test_a_table_is_aligned() -> None:
    assert list(demo.table(["user", "points"], [["Guest 0001", 1234], ["b", 2.25]])) == [
        "user          points",
        "──────────  ────────",
        "Guest 0001  1,234.00",
        "b               2.25",
    ]

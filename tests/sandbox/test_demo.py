"""The demo loads, polls and compares. A fake Meltano writes the balances; `test_meltano` runs the real one."""

from __future__ import annotations

import re
import stat
import sys
from typing import TYPE_CHECKING

import pytest

from pepper_sandbox import demo

if TYPE_CHECKING:
    from pathlib import Path

MELTANO = f"""\
#!{sys.executable}
import json, os, sqlite3, sys, urllib.request

print("noise", *sys.argv[1:], file=sys.stderr)
if sys.argv[1:] == ["invoke", "tap-pepper--audit"]:
    print("all awards")
elif sys.argv[1:] == ["invoke", "target-crm:compare"]:
    assert sys.stdin.read() == "all awards\\n"
    print("Compared 9 awards")
    {{compare}}
else:
    true = json.load(urllib.request.urlopen(os.environ["TAP_PEPPER_API_URL"] + "/_sandbox/balances"))["balances"]
    database = sqlite3.connect(os.environ["TARGET_CRM_SQLALCHEMY_URL"].removeprefix("sqlite:///"))
    with database:
        database.execute("create table if not exists perks (_id, title)")
        database.execute("drop table if exists user_balances")
        database.execute("create table user_balances"
                         " (user_id, perk_id, points, earned_total, redeemed_total, refunded_total)")
        database.executemany("insert into user_balances values (?, 'p', ?, 1, 2, 3)", list(true.items()))
    {{load}}
"""


@pytest.fixture
def fake_meltano(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Return a function that installs a program named `meltano`; run the demo in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(demo, "USERS", 20)

    def write(*, load: str = "pass", compare: str = "pass") -> None:
        program = tmp_path / "meltano"
        program.write_text(MELTANO.format(load=load, compare=compare))
        program.chmod(program.stat().st_mode | stat.S_IXUSR)

    return write


def test_the_demo_succeeds_if_no_balance_differs(
    fake_meltano, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_meltano()
    (tmp_path / "output").mkdir()
    (tmp_path / "output" / "crm.db").write_text("left by an earlier demo, not a database")
    assert demo.main() == 0
    printed = capsys.readouterr().out
    assert "(deleted perk)" in printed
    assert re.search(r"Advanced time by 3 days: [1-9]\d* new actions", printed)
    assert "\nCompared 9 awards\n" in printed
    assert "noise" not in printed
    assert sorted((tmp_path / "output" / "demo.log").read_text().splitlines()) == [
        "noise invoke tap-pepper--audit",
        "noise invoke target-crm:compare",
        "noise run loyalty",
        "noise run perks loyalty",
    ]


def test_the_demo_fails_if_a_balance_differs(fake_meltano, capsys: pytest.CaptureFixture[str]) -> None:
    fake_meltano(compare="sys.exit(1)")
    assert demo.main() == 1
    printed = capsys.readouterr()
    assert printed.out.endswith("Compared 9 awards\n\n")
    assert printed.err == ""


@pytest.mark.parametrize(
    ("failure", "exit_code"),
    [
        pytest.param({"load": 'sys.exit("the tap could not reach Pepper")'}, 1, id="load"),
        pytest.param(
            {"compare": 'print("the tap could not reach Pepper", file=sys.stderr); sys.exit(2)'}, 2, id="compare"
        ),
    ],
)
def test_a_failed_run_prints_the_end_of_its_log(
    fake_meltano, capsys: pytest.CaptureFixture[str], failure: dict[str, str], exit_code: int
) -> None:
    fake_meltano(**failure)
    assert demo.main() == 1
    error = capsys.readouterr().err
    assert f"exit code {exit_code}" in error
    assert "the tap could not reach Pepper" in error


@pytest.mark.usefixtures("fake_meltano")
def test_without_meltano_the_error_says_what_to_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert demo.main() == 1
    assert "demo: meltano not found; run ./dev demo, which installs it" in capsys.readouterr().err


def test_a_table_is_aligned() -> None:
    assert list(demo.table(["user", "points"], [["Guest 0001", 1234], ["b", 2.25]])) == [
        "user          points",
        "──────────  ────────",
        "Guest 0001  1,234.00",
        "b               2.25",
    ]

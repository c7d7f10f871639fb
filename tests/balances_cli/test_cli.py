"""crm-balances verify, rebuild and replay, and errors of all commands."""

from __future__ import annotations

import hashlib
import json
import logging
import subprocess
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from target_crm.balances_cli import cli, replay
from tests.helpers.balances import run_balances
from tests.helpers.commands import RUN_SECONDS_MAX, command, environment, run_script
from tests.helpers.target import (
    ACTIONS,
    AWARDS,
    action,
    execute,
    load,
    load_rejected,
    query,
    record,
    snapshot,
    state,
    table,
)

# w1 and w2: explained by actions. w3: edited in Pepper between two actions. w4: only a snapshot.
HISTORY = [
    AWARDS,
    snapshot("w1", 10, at="2026-10-01T00:00:00Z"),
    snapshot("w4", 0.25, at="2026-10-01T00:00:00Z"),
    ACTIONS,
    action("a1", delta=2, available=12, award="w1", at="2026-10-01T01:00:00Z"),
    action("a2", "REDEEM_PERK", delta=0.5, available=11.5, award="w1", at="2026-10-01T02:00:00Z"),
    action("a3", "AWARD_POINTS_REFUNDED", delta=0.5, available=12, award="w1", at="2026-10-01T03:00:00Z"),
    action("b1", delta=3, available=3, award="w2"),
    action("c1", delta=3, available=3, award="w3", at="2026-10-01T01:00:00Z"),
    action("c2", delta=3, available=10, award="w3", at="2026-10-01T02:00:00Z"),
]


@pytest.fixture
def balances(warehouse_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs crm-balances on a warehouse that holds `HISTORY`; returns the exit code and the output."""
    load(warehouse_url, HISTORY)
    capsys.readouterr()
    monkeypatch.setenv("TARGET_CRM_SQLALCHEMY_URL", warehouse_url)

    def call(*arguments: str) -> tuple[int, str]:
        exit_code = run_balances(arguments)
        return exit_code, capsys.readouterr().out

    return call


def test_verify_counts_an_edit_in_pepper_as_a_gap_not_as_drift(balances: Any) -> None:
    exit_code, output = balances("verify", "--gaps", "--json")

    report = json.loads(output)
    (gap,) = report["gaps"]["examples"]
    assert exit_code == 0
    assert (report["awards"], report["actions"], report["drifted"]) == (4, 6, False)
    assert [(check["name"], check["differing"], check["examples"]) for check in report["checks"]] == [
        ("ledger", 0, []),
        ("snapshot", 0, []),
        ("future", 0, []),
    ]
    assert (report["gaps"]["number"], report["gaps"]["awards"]) == (1, 1)
    assert gap.pop("gap_at").startswith("2026-10-01 02:00:00")
    assert gap == {"award_id": "w3", "gaps": "1"}


def test_verify_prints_a_table(balances: Any) -> None:
    exit_code, output = balances("verify", "--gaps")

    assert exit_code == 0
    assert output.splitlines() == [
        "check                                       differ",
        "balance = total of ledger and snapshots          0",
        "balance = Pepper's newer snapshot                0",
        "balance's time is not in the future              0",
        "balance before + delta = balance after           1",
        "    award_id w3, gaps 1, gap_at 2026-10-01 02:00:00+00:00",
        (
            "1 balance change without an action: edits and expiries in Pepper, actions before coverage was recorded, "
            "or actions of a type that was not read"
        ),
        "Coverage is not recorded yet. It begins with the next run of tap-pepper that emits complete actions.",
        "Verified 4 balances against 6 actions: OK",
    ]


@pytest.mark.parametrize(
    ("tampering", "checks"),
    [
        pytest.param(
            "UPDATE award_balances SET points = points + 1 WHERE award_id = 'w1'",
            {"ledger": [{"award_id": "w1", "points": "13.0000", "expected_points": "12.0000"}]},
            id="points",
        ),
        pytest.param(
            "UPDATE award_balances SET earned_total = 7 WHERE award_id = 'w1'",
            {"ledger": [{"award_id": "w1", "earned_total": "7.0000", "expected_earned_total": "2.0000"}]},
            id="a-total",
        ),
        pytest.param(
            "UPDATE award_balances SET perk_id = NULL WHERE award_id = 'w2'",
            {"ledger": [{"award_id": "w2", "perk_id": None, "expected_perk_id": "p1"}]},
            id="a-perk",
        ),
        pytest.param(
            "DELETE FROM award_balances WHERE award_id = 'w2'",
            {"ledger": [{"award_id": "w2", "points": None, "expected_points": "3.0000"}]},
            id="balance-deleted",
        ),
        pytest.param(
            "DELETE FROM actions WHERE award_id = 'w2'",
            {"ledger": [{"award_id": "w2", "points": "3.0000", "expected_points": None}]},
            id="ledger-row-deleted",
        ),
        pytest.param(
            "UPDATE awards SET points = 8 WHERE _id = 'w4'",
            {
                "ledger": [{"award_id": "w4", "points": "0.2500", "expected_points": "8.0000"}],
                "snapshot": [{"award_id": "w4", "points": "0.2500", "expected_points": "8.0000"}],
            },
            id="snapshot-of-the-same-time-differs",
        ),
        pytest.param(
            "UPDATE awards SET points = 8, updated_at = '2026-10-02 00:00:00.000000+00' WHERE _id = 'w1'",
            {
                "ledger": [{"award_id": "w1", "points": "12.0000", "expected_points": "8.0000"}],
                "snapshot": [{"award_id": "w1", "points": "12.0000", "expected_points": "8.0000"}],
            },
            id="newer-snapshot-differs",
        ),
    ],
)
def test_verify_finds_tampered_balances_and_rebuild_fixes_them(
    balances: Any, warehouse_url: str, tampering: str, checks: dict[str, Any]
) -> None:
    if warehouse_url.startswith("sqlite"):
        tampering = tampering.replace("+00'", "'")
    execute(warehouse_url, tampering)

    exit_code, output = balances("verify", "--json")
    text_exit_code, text = balances("verify")

    found = {check["name"]: check["examples"] for check in json.loads(output)["checks"] if check["differing"]}
    assert found == checks
    assert (exit_code, text_exit_code, json.loads(output)["drifted"]) == (1, 1, True)
    assert text.splitlines()[-1].endswith(" actions: DRIFT, run crm-balances rebuild")
    assert checks["ledger"][0]["award_id"] in text

    assert balances("rebuild")[0] == 0
    assert balances("verify")[0] == 0


def test_rebuild_gives_the_same_rows_as_loading(balances: Any, warehouse_url: str) -> None:
    loaded = table(warehouse_url, "award_balances")
    assert [(row["award_id"], row["points"], row["earned_total"]) for row in loaded] == [
        ("w1", Decimal(12), Decimal(2)),
        ("w2", Decimal(3), Decimal(3)),
        ("w3", Decimal(10), Decimal(6)),
        ("w4", Decimal("0.25"), Decimal(0)),
    ]
    execute(warehouse_url, "DELETE FROM award_balances")

    assert balances("rebuild") == (0, "Recomputed 4 balances\n")
    assert table(warehouse_url, "award_balances") == loaded
    assert balances("rebuild", "--json") == (0, '{"balances":4}\n')


def test_rebuild_on_postgresql_rewrites_only_wrong_rows(new_postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rewriting a million correct balances would bloat the index and the WAL, and block readers."""
    load(new_postgres_url, HISTORY)
    execute(new_postgres_url, "UPDATE award_balances SET points = -1 WHERE award_id = 'w2'")
    where = "SELECT award_id, ctid::text FROM award_balances ORDER BY award_id"
    before = query(new_postgres_url, where)
    monkeypatch.setenv("TARGET_CRM_SQLALCHEMY_URL", new_postgres_url)

    assert run_balances(["rebuild"]) == 0

    moved = {row[0] for row in set(query(new_postgres_url, where)) ^ set(before)}
    assert moved == {"w2"}
    assert run_balances(["verify"]) == 0


def test_rebuild_on_postgresql_fixes_a_duplicate_balance(
    new_postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    load(new_postgres_url, HISTORY)
    execute(new_postgres_url, "ALTER TABLE award_balances DROP CONSTRAINT award_balances_pkey")
    execute(new_postgres_url, "INSERT INTO award_balances SELECT * FROM award_balances WHERE award_id = 'w2'")
    monkeypatch.setenv("TARGET_CRM_SQLALCHEMY_URL", new_postgres_url)

    assert run_balances(["verify"]) == 1
    assert run_balances(["rebuild"]) == 0
    assert run_balances(["verify"]) == 0


def test_loading_continues_after_a_rebuild(balances: Any, warehouse_url: str) -> None:
    balances("rebuild")

    load(warehouse_url, [*HISTORY, action("b2", delta=1, available=4, award="w2", at="2026-10-02T00:00:00Z")])

    assert balances("verify")[0] == 0
    assert table(warehouse_url, "award_balances", "award_id", "points", "action_count")[1] == {
        "award_id": "w2",
        "points": Decimal(4),
        "action_count": 2,
    }


@pytest.mark.parametrize(
    ("ahead_days", "covered_days", "future"),
    [
        pytest.param(0.9, -1, False, id="a-fast-clock"),
        pytest.param(1.1, -1, True, id="later-than-now"),
        pytest.param(5.9, 5, False, id="pepper-ahead"),
        pytest.param(6.1, 5, True, id="later-than-pepper"),
        pytest.param(1.1, None, False, id="without-coverage"),
    ],
)
@pytest.mark.parametrize("is_action", [False, True], ids=["award", "action"])
def test_a_balance_from_the_future_fails_verify_and_status(
    warehouse_url: str,
    capsys: pytest.CaptureFixture[str],
    *,
    ahead_days: float,
    covered_days: float | None,
    future: bool,
    is_action: bool,
) -> None:
    begun, until, at = (
        (datetime.now(UTC) + timedelta(days)).isoformat(timespec="milliseconds")
        for days in (-9, covered_days or 0, ahead_days)
    )
    bookmark = {"replication_key": "when_timestamp", "replication_key_value": until, "covered_from": begun}
    covered = state({"bookmarks": {"actions": {**bookmark, "read": [[begun, until]]}}})
    newest = action("a1", at=at) if is_action else snapshot("w1", at=at)
    load(warehouse_url, [AWARDS, ACTIONS, newest, snapshot("w2"), *([] if covered_days is None else [covered])])
    capsys.readouterr()

    codes = [run_balances([*command, "--url", warehouse_url]) for command in (["verify"], ["status"])]

    assert codes == [future, future]
    lines = capsys.readouterr().out.splitlines()
    assert f"balance's time is not in the future{int(future):>15}" in lines
    wrong = f"    award_id w1, as_of {datetime.fromisoformat(at)}"
    assert [line.startswith(wrong.removesuffix("000+00:00")) for line in lines].count(True) == future
    conclusion = next(line for line in lines if line.startswith("Verified"))
    assert conclusion.endswith("WRONG TIMES, report these awards to Pepper" if future else "OK")
    assert lines[-1].startswith("DRIFT" if future else "No drift")


def test_verify_names_the_first_awards_and_counts_all(
    warehouse_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    load(warehouse_url, [ACTIONS, *(action(f"a{n:02}", award=f"w{n:02}") for n in range(25))])
    execute(warehouse_url, "UPDATE award_balances SET points = -1")
    monkeypatch.setenv("TARGET_CRM_SQLALCHEMY_URL", warehouse_url)

    assert run_balances(["verify", "--json"]) == 1

    fold = json.loads(capsys.readouterr().out)["checks"][0]
    assert (fold["differing"], [row["award_id"] for row in fold["examples"]]) == (25, [f"w{n:02}" for n in range(20)])
    run_balances(["verify"])
    assert capsys.readouterr().out.splitlines()[21:23] == [
        "    award_id w19, points -1.0000, expected_points 2.0000",
        "    … and 5 more awards",
    ]


def test_verify_counts_the_awards_with_gaps_that_it_does_not_name(
    sqlite_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    edits = [
        action(f"a{award:02}-{number}", award=f"w{award:02}", available=10 * number, at=f"2026-10-0{number}T00:00:00Z")
        for award in range(21)
        for number in (1, 2, 3)
    ]
    load(sqlite_url, [ACTIONS, *edits])
    capsys.readouterr()

    assert run_balances(["verify", "--gaps", "--url", sqlite_url]) == 0

    lines = capsys.readouterr().out.splitlines()
    assert lines[4:6] == [
        "balance before + delta = balance after          42",
        "    award_id w00, gaps 2, gap_at 2026-10-03 00:00:00+00:00",
    ]
    assert lines[25] == "    … and 1 more award"


def test_the_json_of_verify_counts_all_actions_and_the_actions_in_balances(
    sqlite_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    notice = record("actions", {"_id": "n1", "type": "USER_UPDATED", "context": {"user": {"_id": "u1"}}})
    load(sqlite_url, [ACTIONS, action("a1"), notice])
    capsys.readouterr()

    run_balances(["verify", "--url", sqlite_url, "--json"])
    printed = json.loads(capsys.readouterr().out)
    run_balances(["verify", "--url", sqlite_url])

    assert (printed["awards"], printed["actions"], printed["counted_actions"]) == (1, 2, 1)
    assert capsys.readouterr().out.splitlines()[-1] == "Verified 1 balance against 2 actions: OK"


def test_verify_counts_the_records_that_are_not_loaded(sqlite_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    load(sqlite_url, [ACTIONS, action("a1"), record("actions", {"type": "ORDER"})])
    capsys.readouterr()

    assert run_balances(["verify", "--url", sqlite_url, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["quarantined"] == 1
    run_balances(["verify", "--url", sqlite_url])
    assert "1 record in quarantine, not loaded: see rejected_records" in capsys.readouterr().out.splitlines()


def test_console_script_takes_a_config_file_and_prints_only_json(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'crm.db'}"
    load(url, HISTORY)
    execute(url, "DELETE FROM award_balances WHERE award_id = 'w1'")
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"sqlalchemy_url": url, "batch_size_rows": 5}))

    result = run_script(
        *("crm-balances", "verify", "--json", "--config", str(config)),
        cwd=tmp_path,
        # With a config file, the environment is not read.
        TARGET_CRM_SQLALCHEMY_URL="nowhere",
    )

    assert result.returncode == 1, result.stderr
    assert json.loads(result.stdout)["checks"][0]["differing"] == 1


@pytest.mark.parametrize(
    ("variables", "arguments", "complaint"),
    [
        pytest.param(
            {"SQLALCHEMY_URL": "postgresql://u:pa55word@127.0.0.1:1/db"},
            ["verify"],
            "postgresql+psycopg://127.0.0.1:1/db: OperationalError: ",
            id="no-warehouse",
        ),
        pytest.param(
            {"SQLALCHEMY_URL": "sqlite:////pa55word/no/such/folder.db"},
            ["rebuild"],
            "no balances in sqlite:////pa55word/no/such/folder.db: target-crm has loaded nothing there",
            id="no-warehouse",
        ),
        pytest.param({"SQLALCHEMY_URL": "pa55word"}, ["verify"], "sqlalchemy_url: not a SQLAlchemy URL", id="no-url"),
        pytest.param(
            {"BATCH_SIZE_ROWS": "pa55word"},
            ["verify"],
            "TARGET_CRM_BATCH_SIZE_ROWS is invalid, expected a whole number",
            id="type",
        ),
        pytest.param(
            {"SQLALCHEMY_URL": "postgresql://u@127.0.0.1:1/db?password=pa55word"},
            ["verify"],
            "postgresql+psycopg://127.0.0.1:1/db: OperationalError: ",
            id="password-in-the-query",
        ),
        pytest.param(
            {"SQLALCHEMY_URL": "postgresql://u:p@ss/pa55word@h:1/db"},
            ["verify"],
            "sqlalchemy_url: has more than one @; percent-encode the password",
            id="password-with-an-at",
        ),
        pytest.param(
            {"SQLALCHEMY_URL": "duckdb://u:pa55word@h//dev/null"},
            ["verify"],
            "duckdb rejects one of the driver options in sqlalchemy_url or options; check their names and values",
            id="password-that-the-driver-repeats",
        ),
        pytest.param(
            {"SQLALCHEMY_URL": "mysql://u:pa55word@127.0.0.1:1/db?sslmode=verify-full"},
            ["verify"],
            "mysql rejects one of the driver options in sqlalchemy_url or options; check their names and values",
            id="an-option-of-another-engine",
        ),
        pytest.param(
            {"STORE_PAYLOAD": "maybe"}, ["verify"], "TARGET_CRM_STORE_PAYLOAD is invalid, expected", id="boolean"
        ),
        pytest.param({}, ["verify", "--config", "none.json"], "config file none.json: No such file", id="no-file"),
    ],
)
def test_error_exits_with_2_and_one_line(
    variables: dict[str, str],
    arguments: list[str],
    complaint: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("sys.argv", ["crm-balances", *arguments])
    monkeypatch.setattr(logging.getLogger(), "handlers", [logging.NullHandler()])
    for name, value in variables.items():
        monkeypatch.setenv(f"TARGET_CRM_{name}", value)

    with pytest.raises(SystemExit) as end:
        cli.main()

    printed = capsys.readouterr()
    assert (end.value.code, printed.out) == (2, "")
    assert printed.err.startswith(f"crm-balances: {complaint}")
    assert printed.err.count("\n") == 1
    assert "pa55word@" not in printed.err
    assert "'pa55word'" not in printed.err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
@pytest.mark.parametrize("level", ["INFO", "DEBUG"])
def test_unexpected_error_exits_with_2(tmp_path: Path, level: str) -> None:
    url = f"sqlite:///{tmp_path / 'crm.db'}"
    load(url, HISTORY)

    with Path("/dev/full").open("w") as full:
        ran = subprocess.run(
            command("crm-balances", "verify"),
            env=environment(TARGET_CRM_SQLALCHEMY_URL=url, TARGET_CRM_LOGLEVEL=level),
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=RUN_SECONDS_MAX,
            check=False,
        )

    assert ran.returncode == 2
    assert "crm-balances: unexpected OSError (No space left on device) at cli.py:" in ran.stderr
    assert ("Traceback" in ran.stderr) is (level == "DEBUG")


def test_replay_with_an_invalid_stream_map_exits_with_2(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'crm.db'}"
    load_rejected(url, [action("r1"), ACTIONS])

    ran = run_script(
        *("crm-balances", "replay"),
        cwd=tmp_path,
        TARGET_CRM_SQLALCHEMY_URL=url,
        TARGET_CRM_STREAM_MAPS='{"actions": {"source": "("}}',
    )

    assert (ran.returncode, ran.stderr) == (2, "crm-balances: Failed to parse expression (.\n")


def test_replayed_records_that_load_leave_the_quarantine(balances: Any, warehouse_url: str) -> None:
    early = action("r1", delta=1, available=1, award="w9")
    load_rejected(
        warehouse_url, [early, ACTIONS, action("r2", delta=1, available=2, award="w9", context={}), "no message"]
    )
    # The user was missing; an operator has fixed the record by hand.
    execute(
        warehouse_url,
        'UPDATE rejected_records SET payload = replace(payload, \'"context":{}\', \'"context":{"user":{"_id":"u1"}}\')',
    )

    assert balances("replay", "--json") == (0, '{"tried":2,"loaded":2,"rejected":1}\n')
    assert balances("replay") == (
        0,
        (
            "Retried 0 records from actions and awards: 0 loaded, 0 still invalid; 1 record in quarantine"
            "; see the column reason of rejected_records\n"
        ),
    )

    (row,) = [row for row in table(warehouse_url, "award_balances") if row["award_id"] == "w9"]
    assert (row["points"], row["earned_total"], row["action_count"]) == (2, 2, 2)
    assert table(warehouse_url, "rejected_records", "payload") == [{"payload": "no message"}]

    load_rejected(warehouse_url, [action("r3", delta=1, available=1, award="w8", context={})])
    assert balances("replay") == (
        0,
        (
            "Retried 1 record from actions and awards: 0 loaded, 1 still invalid; 2 records in quarantine"
            "; see the column reason of rejected_records\n"
        ),
    )


def test_replayed_records_that_fail_again_stay_in_quarantine_once(balances: Any, warehouse_url: str) -> None:
    load_rejected(warehouse_url, [ACTIONS, action("r2", context={}), action("a1", delta=5, available=9)])
    before = table(warehouse_url, "rejected_records")

    assert balances("replay", "--json") == (0, '{"tried":2,"loaded":0,"rejected":2}\n')

    assert table(warehouse_url, "rejected_records") == before


def test_replayed_snapshot_keeps_its_extraction_time(warehouse_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A snapshot without `updatedAt` has the time of its extraction, even if it is quarantined and replayed later."""
    monkeypatch.setenv("TARGET_CRM_SQLALCHEMY_URL", warehouse_url)
    load_rejected(warehouse_url, [snapshot("w1", 5, at=None, read_at="2026-10-01T00:00:00Z")])
    execute(
        warehouse_url,
        "UPDATE rejected_records SET stream = 'awards', extracted_at = '2026-10-01 00:00:00', "
        """payload = '{"_id": "w1", "points": 5}'""",
    )
    load(warehouse_url, [AWARDS, snapshot("w1", 7, at=None, read_at="2026-10-02T00:00:00Z")])

    assert run_balances(["replay"]) == 0

    (stored,) = table(warehouse_url, "award_balances", "points")
    assert stored == {"points": Decimal(7)}


@pytest.mark.parametrize("extracted", [{}, {"time_extracted": "yesterday"}], ids=["no-time", "invalid-time"])
def test_replayed_message_without_a_time_has_the_time_of_its_rejection(
    balances: Any, warehouse_url: str, extracted: dict[str, str]
) -> None:
    early = json.dumps({**json.loads(snapshot("w8", 5, at=None, read_at=None)), **extracted})
    load_rejected(warehouse_url, [early, AWARDS])
    load(warehouse_url, [AWARDS, snapshot("w8", 7, at=None, read_at=None)])

    assert balances("replay", "--json") == (0, '{"tried":1,"loaded":1,"rejected":0}\n')

    assert query(warehouse_url, "SELECT points FROM award_balances WHERE award_id = 'w8'") == [(7,)]


def test_quarantine_keeps_the_extraction_time(warehouse_url: str) -> None:
    load_rejected(warehouse_url, [AWARDS, snapshot("w1", "many", read_at="2026-10-01T00:00:00Z")])

    (refused,) = table(warehouse_url, "rejected_records", "extracted_at")
    assert refused == {"extracted_at": datetime(2026, 10, 1, tzinfo=UTC)}


def test_replay_continues_with_on_invalid_record_fail(
    balances: Any, warehouse_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    load_rejected(warehouse_url, [action("r1", award="w9"), ACTIONS, action("r2", available=True)])
    monkeypatch.setenv("TARGET_CRM_ON_INVALID_RECORD", "fail")

    assert balances("replay", "--json") == (0, '{"tried":2,"loaded":1,"rejected":1}\n')


def test_record_that_fails_for_another_reason_does_not_count_as_loaded(balances: Any, warehouse_url: str) -> None:
    load_rejected(warehouse_url, [action("r1", available=True), ACTIONS])

    assert balances("replay", "--json") == (0, '{"tried":1,"loaded":0,"rejected":1}\n')

    (row,) = table(warehouse_url, "rejected_records", "stream", "reason")
    assert row["stream"] == "actions"
    assert "came before" not in row["reason"]


def test_replay_in_several_pages_tries_each_record_once(
    balances: Any, warehouse_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replay, "REPLAY_ROWS", 3)
    good = [action(f"r{number}", award=f"w{number}") for number in range(7)]
    load_rejected(warehouse_url, [*good, *(action(f"b{number}", available=True) for number in range(4)), ACTIONS])

    assert balances("replay", "--json") == (0, '{"tried":11,"loaded":7,"rejected":4}\n')

    assert {row["action_id"] for row in table(warehouse_url, "actions")} >= {f"r{number}" for number in range(7)}


def test_replay_applies_stream_maps_to_messages_that_were_never_mapped(
    balances: Any, warehouse_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    hidden = json.dumps({"actions": {"context": "{'user': {'_id': md5(context['user']['_id'])}}"}})
    monkeypatch.setenv("TARGET_CRM_STREAM_MAPS", hidden)
    load_rejected(warehouse_url, [action("r1", award="w9"), ACTIONS])

    assert balances("replay", "--json") == (0, '{"tried":1,"loaded":1,"rejected":0}\n')

    (user_id,) = {row["user_id"] for row in table(warehouse_url, "actions") if row["action_id"] == "r1"}
    assert user_id == hashlib.md5(b"u1").hexdigest()


def test_verify_of_an_empty_warehouse_is_an_error(tmp_path: Path) -> None:
    ran = run_script("crm-balances", "verify", "--config", "ENV", cwd=tmp_path)

    assert (ran.returncode, ran.stdout) == (2, "")
    assert "no balances in sqlite:" in ran.stderr
    assert list(tmp_path.iterdir()) == []


def test_actions_that_were_read_without_their_points_change_no_balance(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TARGET_CRM_SQLALCHEMY_URL", sqlite_url)
    visit = record("actions", {"_id": "v1", "type": "VISIT"})
    load(sqlite_url, [ACTIONS, visit, action("a1", metadata=None), action("a2", metadata=None)])
    capsys.readouterr()

    assert run_balances(["verify"]) == 0

    verdict = "Verified 0 balances against 3 actions: none of them changes a balance"
    assert capsys.readouterr().out.splitlines()[-1] == verdict

"""crm-balances status: freshness, quarantine, drift and the last runs."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from target_crm.balances_cli.status import as_text, status
from target_crm.warehouse.connection import Warehouse
from tests.helpers.balances import run_balances
from tests.helpers.target import ACTIONS, AWARDS, action, execute, load, record, schema, snapshot, state

if TYPE_CHECKING:
    from collections.abc import Iterator

PERKS = schema("perks", {"_id": {"type": "string"}}, "_id")
NOW = datetime(2026, 10, 5, 12, tzinfo=UTC)
NO_DRIFT = "No drift in the sums; --verify compares every balance"
MESSAGES = [
    *(ACTIONS, action("a1", at="2026-10-05T11:58:30Z"), action("a2", at="2026-10-04T00:00:00Z", award="w2")),
    *(action("a3", available=True), AWARDS, snapshot("w1", 5, at="2026-10-03T12:00:00Z")),
    *(PERKS, record("perks", {"_id": "p1"}), schema("empty", {"_id": {"type": "string"}}, "_id"), "no message"),
]


@pytest.fixture
def crm(warehouse_url: str) -> Iterator[Warehouse]:
    load(warehouse_url, MESSAGES)
    opened = Warehouse(warehouse_url)
    yield opened
    opened.dispose()


def test_status_shows_the_freshness_of_each_stream(crm: Warehouse) -> None:
    streams = {each.stream: each for each in status(crm, now=NOW).streams}

    assert {name: (each.rows, each.lag_seconds, each.rejected) for name, each in streams.items()} == {
        "actions": (2, 90, 1),
        "awards": (1, 2 * 86_400, 0),
        "empty": (0, None, 0),
        "perks": (1, 12 * 3600, 0),
    }
    assert streams["actions"].newest_at == datetime(2026, 10, 5, 11, 58, 30, tzinfo=UTC)
    assert streams["empty"].loaded_at is None
    for each in streams.values():
        assert each.read_at is not None
        assert each.loaded_at is None or each.loaded_at < each.read_at


def test_status_does_not_count_deleted_rows(crm: Warehouse, warehouse_url: str) -> None:
    execute(warehouse_url, "UPDATE perks SET _sdc_deleted_at = '2026-10-05 00:00:00'")

    (perks,) = [each for each in status(crm, now=NOW).streams if each.stream == "perks"]

    assert (perks.rows, perks.newest_at) == (0, None)


@pytest.mark.parametrize(
    ("tampering", "found_by_sums"),
    [
        pytest.param("UPDATE award_balances SET earned_total = 7 WHERE award_id = 'w1'", True, id="a-total"),
        pytest.param("DELETE FROM award_balances WHERE award_id = 'w2'", True, id="balance-deleted"),
        pytest.param("DELETE FROM actions WHERE action_id = 'a2'", True, id="action-deleted"),
        pytest.param("UPDATE awards SET updated_at = '2026-10-06 00:00:00'", True, id="a-newer-snapshot"),
        pytest.param("UPDATE award_balances SET points = 9 WHERE award_id = 'w2'", False, id="points"),
    ],
)
def test_status_finds_drift_that_changes_sums_and_all_drift_with_verify(
    crm: Warehouse, warehouse_url: str, tampering: str, found_by_sums: bool
) -> None:
    assert not status(crm).drifted
    assert not status(crm, full=True).drifted
    execute(warehouse_url, tampering)

    assert status(crm).drifted is found_by_sums
    assert status(crm, full=True).drifted


@pytest.fixture
def call(
    crm: Warehouse, warehouse_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Any:
    monkeypatch.setenv("TARGET_CRM_SQLALCHEMY_URL", warehouse_url)

    def run(*arguments: str) -> tuple[int, str]:
        capsys.readouterr()
        return run_balances(["status", *arguments]), capsys.readouterr().out

    return run


def test_status_lists_the_last_runs_newest_first(call: Any, warehouse_url: str) -> None:
    load(warehouse_url, [ACTIONS, action("a1", at="2026-10-05T11:58:30Z")])
    for _ in range(10):
        load(warehouse_url, [])

    exit_code, output = call("--json")

    runs = json.loads(output)["runs"]
    assert (exit_code, len(runs)) == (0, 10)
    assert [run["read"] for run in runs] == [0] * 10
    began = [run["started_at"] for run in runs]
    assert began == sorted(began, reverse=True)


def test_status_prints_tables_or_json(call: Any, crm: Warehouse, warehouse_url: str) -> None:
    lines = as_text(status(crm, now=NOW)).splitlines()

    assert [re.split(r"\s{2,}", line)[:4] for line in lines[:5]] == [
        ["stream", "rows", "newest (UTC)", "ago"],
        ["actions", "2", "2026-10-05 11:58:30", "90 s"],
        ["awards", "1", "2026-10-03 12:00:00", "2 days"],
        ["empty", "0", "-", "-"],
        ["perks", "1", "2026-10-05 00:00:00", "12 h"],
    ]
    assert re.split(r"\s{2,}", lines[7])[3:] == ["6", "4", "0", "0", "2"]
    assert [lines[-3], lines[-1]] == ["2 records in quarantine", NO_DRIFT]
    assert call("--verify")[1].splitlines()[-1] == "No drift"

    execute(warehouse_url, "UPDATE award_balances SET earned_total = 7 WHERE award_id = 'w1'")
    exit_code, output = call("--json")
    printed = json.loads(output)
    assert (exit_code, printed["drifted"], printed["rejected"]) == (1, True, 2)
    assert printed["checks"][0]["examples"] == [{"total": "earned_total", "stored": "9.0000", "expected": "4.0000"}]
    assert call("--verify")[1].splitlines()[-1] == "DRIFT, run crm-balances verify"


def test_a_row_in_the_future_has_an_age_in_words(sqlite_url: str) -> None:
    load(sqlite_url, [ACTIONS, action("a1", at="2026-10-05T12:30:00Z")])

    crm = Warehouse(sqlite_url)
    line = as_text(status(crm, now=NOW)).splitlines()[1]
    crm.dispose()

    assert re.split(r"\s{2,}", line)[3] == "in 30 min"


def read(start: datetime, end: datetime, merchant: str = "m1") -> str:
    """A STATE of a run that has read all actions from one time to another."""
    interval = [each.isoformat() for each in (start, end)]
    bookmark = {"replication_key": "when_timestamp", "replication_key_value": interval[1], "covered_from": interval[0]}
    return state({"bookmarks": {"actions": {**bookmark, "read": [interval], "merchant": merchant}}})


def run_status(
    url: str, messages: list[str], capsys: pytest.CaptureFixture[str], *options: str
) -> tuple[int, list[str]]:
    """Load messages, then return the exit code and the output of status."""
    load(url, messages)
    capsys.readouterr()
    return run_balances(["status", "--url", url, *options]), capsys.readouterr().out.splitlines()


@pytest.mark.parametrize(
    ("ages_minutes", "broken"),
    [
        pytest.param([10], [], id="within"),
        pytest.param([20], ["actions were read until 20 min ago"], id="too-old"),
        pytest.param([10, 20], ["actions of merchant m1 were read until 20 min ago"], id="one-of-two-merchants"),
    ],
)
def test_max_age_refers_to_the_end_of_the_coverage_of_each_merchant(
    sqlite_url: str, capsys: pytest.CaptureFixture[str], ages_minutes: list[int], broken: list[str]
) -> None:
    now = datetime.now(UTC)
    states = [
        read(now - timedelta(hours=9), now - timedelta(minutes=minutes), f"m{number}")
        for number, minutes in enumerate(ages_minutes)
    ]

    exit_code, output = run_status(sqlite_url, [ACTIONS, action("a1"), *states], capsys, "--max-age", "15m")

    assert exit_code == bool(broken)
    assert output[-1:] == [f"LIMIT BROKEN: {each}, limit 15 min" for each in broken] or output[-1] == NO_DRIFT


@pytest.mark.parametrize(
    ("finished_minutes_ago", "broken"),
    [
        pytest.param(10, [], id="within"),
        pytest.param(20, ["actions were read until 20 min ago"], id="too-old"),
        pytest.param(None, ["actions were never read by a finished run"], id="no-finished-run"),
    ],
)
def test_coverage_that_ends_in_the_future_does_not_hide_that_the_last_run_is_too_old(
    sqlite_url: str, capsys: pytest.CaptureFixture[str], finished_minutes_ago: int | None, broken: list[str]
) -> None:
    now = datetime.now(UTC)
    load(sqlite_url, [ACTIONS, action("a1"), read(now - timedelta(hours=9), now + timedelta(days=3))])
    finished_at = finished_minutes_ago and now - timedelta(minutes=finished_minutes_ago)
    ended = f"'{finished_at:%Y-%m-%d %H:%M:%S}'" if finished_at else "NULL, exit_state = NULL"
    execute(sqlite_url, f"UPDATE load_runs SET finished_at = {ended}")

    exit_code = run_balances(["status", "--url", sqlite_url, "--max-age", "15m", "--json"])

    assert exit_code == bool(broken)
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert printed["broken_limits"] == [f"{each}, limit 15 min" for each in broken]


def test_max_age_without_coverage_refers_to_finished_runs(sqlite_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_status(sqlite_url, MESSAGES, capsys, "--max-age", "1h")[0] == 0
    execute(sqlite_url, "UPDATE load_runs SET finished_at = '2026-10-05 00:00:00' WHERE stream = 'perks'")
    execute(sqlite_url, "UPDATE load_runs SET exit_state = NULL WHERE stream = 'empty'")

    exit_code, output = run_status(sqlite_url, [], capsys, "--max-age", "1h")

    assert exit_code == 1
    assert [re.sub(r"[0-9]+ (days|h|min) ago", "N ago", line) for line in output[-1:]] == [
        "LIMIT BROKEN: records of perks were read until N ago, limit 60 min"
    ]


def test_max_age_ignores_a_stream_that_is_not_loaded(sqlite_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_status(sqlite_url, [ACTIONS, action("a1")], capsys, "--max-age", "1h")[0] == 0


def test_each_broken_limit_has_a_line_and_the_exit_code_is_1(
    sqlite_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    day = [datetime(2026, 10, number, tzinfo=UTC) for number in range(1, 5)]
    messages = [*MESSAGES, read(day[0], day[1]), read(day[2], day[3])]
    limits = ["--max-age", "90d", "--max-rejected", "1", "--max-holes", "0"]

    exit_code, output = run_status(sqlite_url, messages, capsys, *limits)
    as_json = run_status(sqlite_url, [], capsys, *limits, "--json")
    within = run_status(sqlite_url, [], capsys, "--max-rejected", "2", "--max-holes", "1")

    assert exit_code == 1
    broken = ["2 records in quarantine, limit 1", "1 hole in the coverage, limit 0"]
    assert output[-2:] == [f"LIMIT BROKEN: {each}" for each in broken]
    assert (as_json[0], json.loads(as_json[1][0])["broken_limits"]) == (1, broken)
    assert (within[0], within[1][-1]) == (0, NO_DRIFT)


SAMPLE = re.compile(r'pepper_crm_([a-z_]+)\{schema="main"(?:,([a-z]+)="([^"]*)")?\} ([0-9.e+]+)')


def test_prometheus_format_has_help_type_and_samples_of_each_metric(
    sqlite_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    start, end = datetime(2026, 10, 1, tzinfo=UTC), datetime(2026, 10, 2, tzinfo=UTC)

    exit_code, lines = run_status(sqlite_url, [*MESSAGES, read(start, end)], capsys, "--format", "prometheus")

    samples, name = {}, ""
    for line in lines:
        if line.startswith("# HELP "):
            name = line.split(" ")[2]
            continue
        if line.startswith("# TYPE "):
            assert line == f"# TYPE {name} gauge"
            continue
        found = SAMPLE.fullmatch(line)
        assert found, line
        assert f"pepper_crm_{found[1]}" == name
        samples[found[1], found[3] or ""] = float(found[4])
    assert exit_code == 0
    assert samples["stream_rows", "actions"] == 2
    assert (
        samples["stream_newest_timestamp_seconds", "actions"]
        == datetime(2026, 10, 5, 11, 58, 30, tzinfo=UTC).timestamp()
    )
    assert ("stream_newest_timestamp_seconds", "empty") not in samples
    assert samples["rejected_records", ""] == 2
    assert samples["drifted", ""] == 0
    assert samples["check_differences", "totals"] == 0
    assert samples["coverage_holes", ""] == 0
    assert samples["complete_until_timestamp_seconds", ""] == end.timestamp()
    assert samples["last_run_done", ""] == 1


@pytest.mark.parametrize("command", [["status", "--json"], ["report", "--format", "json"]])
def test_json_names_the_schema(command: list[str], new_postgres_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    load(new_postgres_url, MESSAGES, default_target_schema="shop_b")
    capsys.readouterr()

    assert run_balances([*command, "--url", new_postgres_url, "--schema", "shop_b"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed.get("status", printed)["schema"] == "shop_b"


def test_prometheus_samples_of_two_schemas_differ_in_a_label(
    new_postgres_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    samples = []
    for schema_name in ("", "shop_b"):
        load(new_postgres_url, MESSAGES, default_target_schema=schema_name or None)
        capsys.readouterr()
        run_balances(["status", "--url", new_postgres_url, "--schema", schema_name, "--format", "prometheus"])
        printed = capsys.readouterr().out.splitlines()
        samples.append({line.rpartition(" ")[0] for line in printed if not line.startswith("#")})

    default, shop_b = samples
    assert 'pepper_crm_drifted{schema="public"}' in default
    assert 'pepper_crm_stream_rows{schema="shop_b",stream="actions"}' in shop_b
    assert not default & shop_b
    assert {each.replace('"shop_b"', '"public"') for each in shop_b} == default

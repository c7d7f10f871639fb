"""`load_runs`: one row per run and stream, also of runs that failed or were killed."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from singer_sdk.exceptions import InvalidRecord

from tests.helpers.balances import run_balances
from tests.helpers.target import (
    ACTIONS,
    AWARDS,
    action,
    execute,
    load,
    load_rejected,
    query,
    record,
    running_target,
    schema,
    snapshot,
    state,
    table,
)

if TYPE_CHECKING:
    from pathlib import Path

COUNTS = ("read", "applied", "duplicate", "superseded", "quarantined")
DONE, FAILED, UNFINISHED = ("done", True), ("failed", True), (None, False)


def runs_by_stream(url: str) -> dict[str, tuple[Any, ...]]:
    """Per stream: the exit state, whether there is an end time, and the counts of records."""
    rows = table(url, "load_runs")
    assert all(row["read"] == sum(row[name] for name in COUNTS[1:]) for row in rows)
    return {
        row["stream"]: (row["exit_state"], row["finished_at"] is not None, *(row[name] for name in COUNTS))
        for row in rows
    }


def test_a_run_records_the_tally_of_each_stream(sqlite_url: str) -> None:
    perks = schema("perks-2", {"_id": {"type": "string"}}, "_id")
    messages = [
        *(ACTIONS, action("a1"), action("a1"), action("a1", available=9), action("a2", available=True)),
        *(AWARDS, snapshot("w1", 5), snapshot("w1", 4, at="2026-09-01T00:00:00Z"), perks, "no message", state({})),
    ]

    began = datetime.now(UTC)
    load(sqlite_url, messages)

    assert runs_by_stream(sqlite_url) == {
        "": (*DONE, 1, 0, 0, 0, 1),
        "actions": (*DONE, 4, 1, 1, 0, 2),
        "awards": (*DONE, 2, 1, 0, 1, 0),
        "perks_2": (*DONE, 0, 0, 0, 0, 0),
    }
    runs = table(sqlite_url, "load_runs")
    assert {began <= row["started_at"] <= row["finished_at"] for row in runs} == {True}
    assert {0 < row["seconds"] < 60 for row in runs} == {True}
    rejected_by = {row["run_id"] for row in table(sqlite_url, "rejected_records")}
    assert {row["run_id"] for row in runs} == rejected_by


def test_a_run_without_messages_is_recorded_as_done(sqlite_url: str) -> None:
    load(sqlite_url, [])

    assert runs_by_stream(sqlite_url) == {"": (*DONE, 0, 0, 0, 0, 0)}


def test_a_killed_run_is_recorded_as_unfinished_with_what_it_committed(sqlite_url: str, tmp_path: Path) -> None:
    actions = [action(f"a{number}", award=f"w{number}") for number in range(5)]

    with running_target(sqlite_url, tmp_path, batch_size_rows=2) as target_crm:
        target_crm.send(ACTIONS, *actions[:3], state({"n": 1}), *actions[3:])
        assert target_crm.next_state() == '{"n":1}'
        target_crm.kill()

    assert runs_by_stream(sqlite_url) == {"": (*UNFINISHED, 0, 0, 0, 0, 0), "actions": (*UNFINISHED, 4, 4, 0, 0, 0)}
    assert len(table(sqlite_url, "actions", "action_id")) == 4


def test_a_failed_run_is_recorded_as_failed_with_what_it_committed(sqlite_url: str) -> None:
    messages = [ACTIONS, action("a1"), action("a2"), action("a3"), action("a4", available=True)]

    with pytest.raises(InvalidRecord):
        load(sqlite_url, messages, batch_size_rows=2, on_invalid_record="fail")

    assert runs_by_stream(sqlite_url) == {"": (*FAILED, 0, 0, 0, 0, 0), "actions": (*FAILED, 2, 2, 0, 0, 0)}


def test_a_run_that_fails_at_its_last_commit_is_recorded_as_failed(sqlite_url: str) -> None:
    messages = [ACTIONS, action("a1"), action("a1", available=9)]

    with pytest.raises(InvalidRecord):
        load(sqlite_url, messages, on_invalid_record="fail")

    assert runs_by_stream(sqlite_url) == {"": (*FAILED, 0, 0, 0, 0, 0), "actions": (*FAILED, 0, 0, 0, 0, 0)}


def test_runs_older_than_90_days_are_deleted(warehouse_url: str) -> None:
    for _ in range(2):
        load(warehouse_url, [ACTIONS, action("a1")])
    first, second = query(warehouse_url, "SELECT run_id FROM load_runs WHERE stream = '' ORDER BY started_at")
    for (run_id,), days in ((first, 91), (second, 89)):
        started_at = (datetime.now(UTC) - timedelta(days=days)).strftime("%Y-%m-%d %H:%M:%S.000000")
        execute(warehouse_url, f"UPDATE load_runs SET started_at = '{started_at}' WHERE run_id = '{run_id}'")

    load(warehouse_url, [])

    remaining = {row["run_id"] for row in table(warehouse_url, "load_runs")}
    assert len(remaining) == 2
    assert second[0] in remaining


def test_a_replay_is_not_recorded_as_a_run(sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    load_rejected(sqlite_url, [action("a1"), ACTIONS])
    before = table(sqlite_url, "load_runs")
    monkeypatch.setenv("TARGET_CRM_SQLALCHEMY_URL", sqlite_url)

    assert run_balances(["replay"]) == 0

    assert table(sqlite_url, "load_runs") == before
    assert len(table(sqlite_url, "actions", "action_id")) == 1


def test_a_failure_that_cannot_be_recorded_is_still_raised(sqlite_url: str) -> None:
    load(sqlite_url, [ACTIONS])
    execute(sqlite_url, "DROP TABLE load_runs")

    with pytest.raises(InvalidRecord, match="pointsAvailable is"):
        load(sqlite_url, [ACTIONS, action("a1", available=True)], on_invalid_record="fail")


def test_streams_other_than_peppers_are_recorded_too(sqlite_url: str) -> None:
    load(sqlite_url, [schema("Visits", {"n": {"type": "integer"}}), record("Visits", {"n": 1})])

    assert runs_by_stream(sqlite_url)["visits"] == (*DONE, 1, 1, 0, 0, 0)

"""`load_runs`: what became of each run, also of those that did not come to their end."""

from __future__ import annotations

import io
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

import pytest
from singer_sdk.exceptions import InvalidRecord

from target_crm.loader.target import TargetCrm
from tests.helpers.balances import run_balances
from tests.helpers.target import ACTIONS, AWARDS, action, execute, load, query, record, schema, snapshot, state, table

if TYPE_CHECKING:
    from collections.abc import Sequence

COUNTS = ("read", "applied", "duplicate", "superseded", "quarantined")
DONE, FAILED, UNFINISHED = ("done", True), ("failed", True), (None, False)


def told(url: str) -> dict[str, tuple[Any, ...]]:
    """What the runs say of each stream: how it ended, whether it says when, and the counts."""
    rows = table(url, "load_runs")
    assert all(row["read"] == sum(row[name] for name in COUNTS[1:]) for row in rows)
    return {
        row["stream"]: (row["exit_state"], row["finished_at"] is not None, *(row[name] for name in COUNTS))
        for row in rows
    }


def stop_after(url: str, messages: Sequence[str], **settings: Any) -> None:
    """Read the messages, and then be gone, as a process is that was killed."""
    target = TargetCrm(config={"sqlalchemy_url": url, **settings})
    target.process_lines(io.StringIO("".join(f"{message}\n" for message in messages)))
    target._batcher.wait()
    target.warehouse.dispose()


def test_a_run_tells_what_became_of_each_stream(warehouse_url: str) -> None:
    perks = schema("perks-2", {"_id": {"type": "string"}}, "_id")
    messages = [
        *(ACTIONS, action("a1"), action("a1"), action("a1", available=9), action("a2", available=True)),
        *(AWARDS, snapshot("w1", 5), snapshot("w1", 4, at="2026-09-01T00:00:00Z"), perks, "no message", state({})),
    ]

    began = datetime.now(timezone.utc)
    load(warehouse_url, messages)

    assert told(warehouse_url) == {
        "": (*DONE, 1, 0, 0, 0, 1),
        "actions": (*DONE, 4, 1, 1, 0, 2),
        "awards": (*DONE, 2, 1, 0, 1, 0),
        "perks_2": (*DONE, 0, 0, 0, 0, 0),
    }
    runs = table(warehouse_url, "load_runs")
    assert {began <= row["started_at"] <= row["finished_at"] for row in runs} == {True}
    assert {0 < row["seconds"] < 60 for row in runs} == {True}
    rejected_by = {row["run_id"] for row in table(warehouse_url, "rejected_records")}
    assert {row["run_id"] for row in runs} == rejected_by


def test_a_run_without_any_message_tells_that_it_came_to_its_end(warehouse_url: str) -> None:
    load(warehouse_url, [])

    assert told(warehouse_url) == {"": (*DONE, 0, 0, 0, 0, 0)}


def test_a_run_that_is_killed_tells_what_it_committed_and_not_that_it_is_done(warehouse_url: str) -> None:
    rows = [action(f"a{number}", award=f"w{number}") for number in range(5)]

    stop_after(warehouse_url, [ACTIONS, *rows], batch_size_rows=2)

    assert told(warehouse_url) == {"": (*UNFINISHED, 0, 0, 0, 0, 0), "actions": (*UNFINISHED, 4, 4, 0, 0, 0)}
    assert len(table(warehouse_url, "actions", "action_id")) == 4


def test_a_run_that_fails_says_so_and_counts_what_it_committed_alone(warehouse_url: str) -> None:
    messages = [ACTIONS, action("a1"), action("a2"), action("a3"), action("a4", available=True)]

    with pytest.raises(InvalidRecord):
        load(warehouse_url, messages, batch_size_rows=2, on_invalid_record="fail")

    assert told(warehouse_url) == {"": (*FAILED, 0, 0, 0, 0, 0), "actions": (*FAILED, 2, 2, 0, 0, 0)}


def test_a_run_that_fails_at_its_last_commit_says_so(warehouse_url: str) -> None:
    messages = [ACTIONS, action("a1"), action("a1", available=9)]

    with pytest.raises(InvalidRecord):
        load(warehouse_url, messages, on_invalid_record="fail")

    assert told(warehouse_url) == {"": (*FAILED, 0, 0, 0, 0, 0), "actions": (*FAILED, 0, 0, 0, 0, 0)}


def test_runs_of_long_ago_are_forgotten(warehouse_url: str) -> None:
    for _ in range(2):
        load(warehouse_url, [ACTIONS, action("a1")])
    first, second = query(warehouse_url, "SELECT run_id FROM load_runs WHERE stream = '' ORDER BY started_at")
    for (run_id,), days in ((first, 91), (second, 89)):
        then = (datetime.now(timezone.utc) - timedelta(days=days)).strftime("%Y-%m-%d %H:%M:%S.000000")
        execute(warehouse_url, f"UPDATE load_runs SET started_at = '{then}' WHERE run_id = '{run_id}'")

    load(warehouse_url, [])

    left = {row["run_id"] for row in table(warehouse_url, "load_runs")}
    assert len(left) == 2
    assert second[0] in left


def test_a_replay_is_no_run(warehouse_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    load(warehouse_url, [action("a1"), ACTIONS])
    before = table(warehouse_url, "load_runs")
    monkeypatch.setenv("TARGET_CRM_SQLALCHEMY_URL", warehouse_url)

    assert run_balances(["replay"]) == 0

    assert table(warehouse_url, "load_runs") == before
    assert len(table(warehouse_url, "actions", "action_id")) == 1


def test_a_failure_is_not_hidden_by_a_warehouse_that_does_not_take_it(warehouse_url: str) -> None:
    load(warehouse_url, [ACTIONS])
    execute(warehouse_url, "DROP TABLE load_runs")

    with pytest.raises(InvalidRecord, match="pointsAvailable is"):
        load(warehouse_url, [ACTIONS, action("a1", available=True)], on_invalid_record="fail")


def test_a_stream_that_is_none_of_pepper_s_is_told_too(warehouse_url: str) -> None:
    load(warehouse_url, [schema("Visits", {"n": {"type": "integer"}}), record("Visits", {"n": 1})])

    assert told(warehouse_url)["visits"] == (*DONE, 1, 1, 0, 0, 0)

"""A load from a tap other than Pepper's creates no tables for balances."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import create_engine, inspect

from target_crm.balances_cli.verify import verify
from target_crm.errors import WarehouseError
from target_crm.warehouse.connection import Warehouse, parse_url
from tests.helpers.balances import NOTHING_IS_MISSING, run_balances
from tests.helpers.target import (
    ACTIONS,
    AWARDS,
    TEXT,
    action,
    execute,
    load,
    query,
    record,
    schema,
    snapshot,
    table,
)

if TYPE_CHECKING:
    from pathlib import Path

PEOPLE = schema("people", {"id": TEXT}, "id")
GENERIC = [PEOPLE, record("people", {"id": "1"})]
OF_BALANCES = {"actions", "awards", "award_balances", "user_balances", "award_balance_drift"}


def visible_names(url: str) -> set[str]:
    """The tables and views that are not internal."""
    engine = create_engine(parse_url(url))
    inspector = inspect(engine)
    names = {*inspector.get_table_names(), *inspector.get_view_names()}
    engine.dispose()
    return {name for name in names if not name.startswith("_crm_")}


@pytest.mark.parametrize(
    "messages",
    [
        pytest.param([ACTIONS, action("a1", available=2)], id="actions"),
        pytest.param([AWARDS, snapshot("w1", 2)], id="awards"),
    ],
)
def test_tables_of_balances_are_created_when_one_of_peppers_streams_arrives(
    warehouse_url: str, messages: list[str]
) -> None:
    load(warehouse_url, GENERIC)
    assert visible_names(warehouse_url) == {"people", "load_runs", "rejected_records"}

    load(warehouse_url, messages)

    assert visible_names(warehouse_url) == {"people", "load_runs", "rejected_records", *OF_BALANCES}
    assert table(warehouse_url, "award_balances", "award_id", "points") == [{"award_id": "w1", "points": 2}]
    assert query(warehouse_url, "SELECT user_id, points FROM user_balances") == [("u1", 2)]
    assert not verify(Warehouse(warehouse_url)).drifted


def test_creation_that_was_interrupted_is_finished_by_the_next_run(warehouse_url: str) -> None:
    load(warehouse_url, [ACTIONS, action("a1")])
    for statement in ("DROP VIEW user_balances", "DROP TABLE _crm_merged"):
        execute(warehouse_url, statement)

    load(warehouse_url, [ACTIONS, action("a2", available=4)])

    assert query(warehouse_url, "SELECT user_id, points FROM user_balances") == [("u1", 4)]


@pytest.mark.parametrize(
    "arguments", [["verify"], ["report", "--format", "json"], ["rebuild"], ["as-of", "2026-10-01"]]
)
def test_commands_that_need_balances_say_that_there_are_none(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    load(sqlite_url, GENERIC)
    monkeypatch.setenv("TARGET_CRM_SQLALCHEMY_URL", sqlite_url)

    with pytest.raises(
        WarehouseError, match=r"no balances in sqlite:.*; load Pepper's streams actions or awards there first"
    ):
        run_balances(arguments)


def test_status_shows_other_streams_without_balances(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    load(sqlite_url, GENERIC)
    monkeypatch.setenv("TARGET_CRM_SQLALCHEMY_URL", sqlite_url)

    assert run_balances(["status", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [(each["stream"], each["rows"]) for each in found["streams"]] == [("people", 1)]
    assert (found["checks"], found["drifted"], len(found["runs"])) == ([], False, 1)

    assert run_balances(["status", "--verify"]) == 0
    assert capsys.readouterr().out.endswith("No balances: neither actions nor awards have been loaded\n")


def test_a_replay_without_balances_creates_none(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    load(sqlite_url, [*GENERIC, "no message", record("people", {})])
    monkeypatch.setenv("TARGET_CRM_SQLALCHEMY_URL", sqlite_url)

    assert run_balances(["replay", "--json"]) == 0

    assert json.loads(capsys.readouterr().out) == {"tried": 0, "loaded": 0, "rejected": 2}
    assert visible_names(sqlite_url) == {"people", "load_runs", "rejected_records"}


def test_ddl_for_other_streams_creates_no_balances(
    sqlite_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    schemas = tmp_path / "schemas.jsonl"
    schemas.write_text(f"{PEOPLE}\n")
    monkeypatch.setenv("TARGET_CRM_SQLALCHEMY_URL", sqlite_url)

    assert run_balances(["ddl", "--schemas", str(schemas)]) == 0
    execute_all(sqlite_url, capsys.readouterr().out)
    assert visible_names(sqlite_url) == {"people", "load_runs", "rejected_records"}

    assert run_balances(["ddl"]) == 0
    execute_all(sqlite_url, capsys.readouterr().out)
    assert visible_names(sqlite_url) == {"people", "load_runs", "rejected_records", *OF_BALANCES}
    assert run_balances(["ddl"]) == 0
    assert capsys.readouterr().out == NOTHING_IS_MISSING


def execute_all(url: str, statements: str) -> None:
    for statement in filter(str.strip, statements.split(";\n")):
        execute(url, statement)

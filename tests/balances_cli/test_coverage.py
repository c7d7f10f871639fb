"""What verify, status, coverage and the report say about the intervals for which actions were read."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from target_crm.balances_cli.report.page import as_json, gather, page
from target_crm.errors import WarehouseError
from target_crm.warehouse.connection import Warehouse
from tests.helpers.balances import run_balances
from tests.helpers.target import ACTIONS, AWARDS, action, load, query, snapshot, state

if TYPE_CHECKING:
    from collections.abc import Callable

LOYALTY = ["REWARD_EARNED", "REDEEM_PERK", "AWARD_POINTS_REFUNDED"]


def read(start: str, end: str, **more: Any) -> str:
    """A STATE of a run that has read from one time to another."""
    actions = {"replication_key": "when_timestamp", "replication_key_value": end, "covered_from": start, **more}
    return state({"bookmarks": {"actions": {**actions, "read": [[start, end]]}}})


FIRST = read("2026-10-01T00:00:00Z", "2026-10-10T00:00:00Z")
SECOND = read("2026-10-18T00:00:00Z", "2026-10-20T06:00:05Z")
HISTORY = [
    ACTIONS,
    action("a1", delta=2, available=2, at="2026-10-02T00:00:00Z"),
    # Someone has edited the points before this action.
    action("a2", delta=2, available=9, at="2026-10-03T00:00:00Z"),
    FIRST,
    # Not all actions of w2 were read.
    action("b1", delta=1, available=1, at="2026-10-09T00:00:00Z", award="w2"),
    action("b2", delta=1, available=5, at="2026-10-19T00:00:00Z", award="w2"),
    action("b3", delta=1, available=7, at="2026-10-20T00:00:00Z", award="w2"),
    SECOND,
]
HOLE = "Not verified: actions between 2026-10-10 00:00 and 2026-10-18 00:00 UTC were never read (8 days)."


@pytest.fixture
def balances(sqlite_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Loads messages, then runs crm-balances; returns the exit code and the output."""
    monkeypatch.setenv("TARGET_CRM_SQLALCHEMY_URL", sqlite_url)

    def call(messages: list[str], *arguments: str) -> tuple[int, str]:
        load(sqlite_url, messages)
        capsys.readouterr()
        exit_code = run_balances(arguments)
        return exit_code, capsys.readouterr().out

    return call


def test_verify_fails_for_a_hole_and_says_where(balances: Callable[..., tuple[int, str]]) -> None:
    exit_code, output = balances(HISTORY, "verify", "--gaps")

    assert exit_code == 1
    assert output.splitlines()[-4:] == [
        "2 balance changes without an action, such as edits and expiries in Pepper: no drift",
        "1 balance change across an interval for which actions were never read",
        HOLE,
        "Verified 2 balances against 5 actions: INCOMPLETE, run crm-balances coverage",
    ]


def test_the_json_of_verify_contains_the_coverage(balances: Callable[..., tuple[int, str]]) -> None:
    exit_code, output = balances(HISTORY, "verify", "--gaps", "--json")

    found = json.loads(output)
    assert (exit_code, found["drifted"]) == (1, False)
    assert [found["gaps"][name] for name in ("number", "covered", "unread")] == [3, 2, 1]
    assert found["coverage"]["holes"] == [{"from": "2026-10-10T00:00:00Z", "until": "2026-10-18T00:00:00Z"}]


def test_verify_succeeds_where_the_ledger_is_complete(balances: Callable[..., tuple[int, str]]) -> None:
    exit_code, output = balances(
        [*HISTORY[:4], read("2026-10-09T23:55:00Z", "2026-10-12T00:00:00Z")], "verify", "--gaps"
    )

    assert exit_code == 0
    assert output.splitlines()[-4:] == [
        "1 balance change without an action, such as edits and expiries in Pepper: no drift",
        "Actions are complete from 2026-10-01 00:00 to 2026-10-12 00:00 UTC.",
        "The ledger begins at the first of these times. Sums count only later actions; balances include older points.",
        "Verified 1 balance against 2 actions: OK",
    ]


def test_a_ledger_of_an_older_version_does_not_fail(balances: Callable[..., tuple[int, str]]) -> None:
    before = [ACTIONS, action("o1", at="2026-09-01T00:00:00Z"), action("o2", available=9, at="2026-10-01T00:00:00Z")]
    exit_code, output = balances([*before, FIRST], "verify", "--gaps")

    assert exit_code == 0
    assert output.splitlines()[-4:] == [
        (
            "1 balance change without an action: edits and expiries in Pepper, actions before coverage was recorded, "
            "or actions of a type that was not read"
        ),
        "Actions are complete from 2026-10-01 00:00 to 2026-10-10 00:00 UTC.",
        "Coverage is not recorded before 2026-10-01 00:00 UTC: older actions come from a replay or an older version.",
        "Verified 1 balance against 2 actions: OK",
    ]


def test_an_action_that_changes_no_balance_is_not_counted_as_an_older_action(
    balances: Callable[..., tuple[int, str]],
) -> None:
    before = [ACTIONS, action("o1", at="2026-09-01T00:00:00Z", metadata={})]
    exit_code, output = balances([*before, FIRST], "verify")

    assert exit_code == 0
    assert "older actions" not in output


def test_coverage_lists_intervals_and_holes(balances: Callable[..., tuple[int, str]]) -> None:
    exit_code, output = balances(HISTORY, "coverage", "--json")

    assert exit_code == 0
    assert json.loads(output) == {
        "intervals": [
            {"from": "2026-10-01T00:00:00Z", "until": "2026-10-10T00:00:00Z"},
            {"from": "2026-10-18T00:00:00Z", "until": "2026-10-20T06:00:05Z"},
        ],
        "holes": [{"from": "2026-10-10T00:00:00Z", "until": "2026-10-18T00:00:00Z"}],
    }
    assert balances([], "coverage")[1].splitlines() == [
        "      after (UTC)          until (UTC)            length",
        "read  2026-10-01 00:00     2026-10-10 00:00       9 days",
        "HOLE  2026-10-10 00:00     2026-10-18 00:00       8 days",
        "read  2026-10-18 00:00     2026-10-20 06:00:05    2 days",
        HOLE,
        "To read these actions, run tap-pepper once with the state that crm-balances coverage --state prints.",
    ]


def test_coverage_with_a_filter_is_listed_with_its_types(balances: Callable[..., tuple[int, str]]) -> None:
    filtered = read("2026-10-10T00:00:00Z", "2026-10-18T00:00:00Z", action_types=["REWARD_EARNED"])
    found = json.loads(balances([*HISTORY, filtered], "coverage", "--json")[1])

    assert found["intervals"][1] == {
        "from": "2026-10-10T00:00:00Z",
        "until": "2026-10-18T00:00:00Z",
        "action_types": ["REWARD_EARNED"],
    }
    assert len(found["holes"]) == 1


def test_a_filter_with_all_types_that_balances_need_is_complete(balances: Callable[..., tuple[int, str]]) -> None:
    messages = [ACTIONS, action("a1"), read("2026-10-01T00:00:00Z", "2026-10-02T00:00:00Z", action_types=LOYALTY)]
    exit_code, output = balances(messages, "verify")

    assert exit_code == 0
    assert (
        "Actions of type AWARD_POINTS_REFUNDED, REDEEM_PERK, REWARD_EARNED are complete from 2026-10-01 00:00 to "
        "2026-10-02 00:00 UTC."
    ) in output


def test_a_change_is_no_edit_if_its_action_may_be_of_a_type_that_no_run_reads(
    balances: Callable[..., tuple[int, str]],
) -> None:
    messages = [
        ACTIONS,
        action("r1", "REDEEM_PERK", delta=2, available=8, at="2026-10-02T00:00:00Z"),
        # An action between them, which earned 5, was not read.
        action("r2", "REDEEM_PERK", delta=3, available=10, at="2026-10-03T00:00:00Z"),
        read("2026-10-01T00:00:00Z", "2026-10-04T00:00:00Z", action_types=["REDEEM_PERK"]),
    ]
    exit_code, output = balances(messages, "verify", "--gaps")

    assert exit_code == 0
    assert "no drift" not in output
    assert (
        "1 balance change without an action: edits and expiries in Pepper, actions before coverage was recorded, or "
        "actions of a type that was not read"
    ) in output.splitlines()
    explained = balances([], "explain", "w1")[1]
    assert "edit, expiry, or an action of a type that was not read" in explained
    # From here on all types are read, so the next change is an edit.
    later = [
        action("r3", "REDEEM_PERK", delta=1, available=9, at="2026-10-05T00:00:00Z"),
        action("r4", "REDEEM_PERK", delta=1, available=9, at="2026-10-06T00:00:00Z"),
        read("2026-10-04T00:00:00Z", "2026-10-07T00:00:00Z"),
    ]
    verified = json.loads(balances([ACTIONS, *later], "verify", "--gaps", "--json")[1])
    assert (verified["gaps"]["number"], verified["gaps"]["covered"]) == (2, 1)


def test_a_run_without_a_filter_after_one_with_it_names_the_types_that_were_not_read(
    balances: Callable[..., tuple[int, str]],
) -> None:
    messages = [
        ACTIONS,
        action("r1", "REDEEM_PERK", at="2026-10-12T00:00:00Z"),
        read("2026-10-10T00:00:00Z", "2026-10-14T00:00:00Z", action_types=["REDEEM_PERK"]),
        read("2026-10-15T00:00:00Z", "2026-10-18T00:00:00Z"),
    ]
    _, output = balances(messages, "coverage")

    assert output.splitlines()[-3:] == [
        (
            "Not verified: actions of type AWARD_POINTS_REFUNDED, REWARD_EARNED between 2026-10-10 00:00 and "
            "2026-10-14 00:00 UTC were never read (4 days)."
        ),
        "Not verified: actions between 2026-10-14 00:00 and 2026-10-15 00:00 UTC were never read (24 h).",
        "To read these actions, run tap-pepper once with the state that crm-balances coverage --state prints.",
    ]


def test_each_merchant_has_coverage_of_its_own(balances: Callable[..., tuple[int, str]]) -> None:
    other = read("2026-10-12T00:00:00Z", "2026-10-14T00:00:00Z", merchant="m2")
    exit_code, output = balances([*HISTORY, other], "verify", "--json")

    found = json.loads(output)["coverage"]
    assert exit_code == 1
    assert found["holes"] == [{"from": "2026-10-10T00:00:00Z", "until": "2026-10-18T00:00:00Z", "merchant": ""}]
    assert [each["merchant"] for each in found["intervals"]] == ["", "m2", ""]
    text = balances([], "verify", "--gaps")[1]
    of_one = "of one of the merchants in this schema"
    assert f"1 balance change across an interval for which actions {of_one} were never read" in text.splitlines()
    assert f"actions {of_one} not read until 2026-10-18 00:00:00" in balances([], "explain", "w2")[1]
    assert "Merchant m2: Actions are complete from 2026-10-12 00:00 to 2026-10-14 00:00 UTC." in found["summary"]


def test_many_holes_are_all_named(balances: Callable[..., tuple[int, str]]) -> None:
    def at(number: int) -> str:
        return (datetime(2026, 1, 1, tzinfo=UTC) + timedelta(hours=number)).isoformat()

    exit_code, output = balances([*HISTORY, *(read(at(2 * n), at(2 * n + 1)) for n in range(300))], "verify", "--json")

    assert exit_code == 1
    assert len(json.loads(output)["coverage"]["holes"]) == 301


def test_with_the_state_for_the_oldest_hole_the_tap_reads_the_hole_first(
    balances: Callable[..., tuple[int, str]],
) -> None:
    later = read("2026-10-30T00:00:00Z", "2026-10-31T00:00:00Z", merchant="m1")
    first = read("2026-10-21T00:00:00Z", "2026-10-22T00:00:00Z", merchant="m1")
    exit_code, output = balances([*HISTORY, first, later], "coverage", "--state")

    bookmark = {
        "replication_key": "when_timestamp",
        "replication_key_value": "2026-10-20T06:00:05.000Z",
        "covered_from": "2026-10-18T00:00:00.000Z",
        "covered_until": "2026-10-20T06:00:05.000Z",
        "backfill_from": "2026-10-10T00:00:00.000Z",
        "skipped_start_date": "2026-10-01T00:00:00.000Z",
    }
    found = json.loads(output)
    assert exit_code == 0
    assert found["bookmarks"] == found["singer_state"]["bookmarks"] == {"actions": bookmark}


def test_the_state_for_a_hole_at_the_end_begins_at_the_hole(balances: Callable[..., tuple[int, str]]) -> None:
    filtered = read("2026-10-10T00:00:00Z", "2026-10-11T00:00:00Z", action_types=["ORDER"])
    _, output = balances([ACTIONS, FIRST, filtered], "coverage", "--state")

    bookmark = {"replication_key": "when_timestamp", "replication_key_value": "2026-10-10T00:00:00.000Z"}
    assert json.loads(output)["bookmarks"] == {"actions": bookmark}


def test_the_state_of_a_filtered_ledger_names_the_types(balances: Callable[..., tuple[int, str]]) -> None:
    first, second = (
        read(f"2026-10-{day}T00:00:00Z", f"2026-10-{day + 1}T00:00:00Z", action_types=LOYALTY) for day in (10, 12)
    )
    _, output = balances([ACTIONS, first, second], "coverage", "--state")

    assert json.loads(output)["bookmarks"]["actions"]["action_types"] == sorted(LOYALTY)


def test_the_state_without_a_hole_continues_after_the_last_interval(balances: Callable[..., tuple[int, str]]) -> None:
    older = read("2026-09-30T00:00:00Z", "2026-10-01T00:00:00Z", merchant="")
    newer = read("2026-10-01T00:00:00Z", "2026-10-12T00:00:00Z", merchant="m1")
    _, output = balances([ACTIONS, older, newer], "coverage", "--state")

    bookmark = {
        "replication_key": "when_timestamp",
        "replication_key_value": "2026-10-12T00:00:00.000Z",
        "covered_from": "2026-10-01T00:00:00.000Z",
        "covered_until": "2026-10-12T00:00:00.000Z",
        "merchant": "m1",
    }
    assert json.loads(output)["bookmarks"] == {"actions": bookmark}


def test_if_coverage_ends_in_the_future_the_state_continues_where_the_last_run_began(
    balances: Callable[..., tuple[int, str]], sqlite_url: str
) -> None:
    ahead = datetime.now(UTC) + timedelta(hours=1)
    balances([ACTIONS, action("a1"), read("2026-10-01T00:00:00Z", ahead.isoformat())], "coverage")
    # A later run that reads no action does not show how far the tap has read.
    _, output = balances([ACTIONS], "coverage", "--state")

    ((began_at,),) = query(sqlite_url, "SELECT min(started_at) FROM load_runs WHERE stream = 'actions'")
    found = json.loads(output)["bookmarks"]["actions"]
    assert found["replication_key_value"][:19] == ahead.isoformat()[:19]
    assert found["read_until"][:23] == str(began_at).replace(" ", "T")[:23]


def test_there_is_no_state_without_coverage(balances: Callable[..., tuple[int, str]]) -> None:
    with pytest.raises(WarehouseError, match="no coverage"):
        balances([ACTIONS], "coverage", "--state")


def test_a_warehouse_without_actions_has_no_coverage(balances: Callable[..., tuple[int, str]]) -> None:
    assert balances([AWARDS, snapshot()], "coverage") == (0, "\n")
    assert json.loads(balances([], "coverage", "--json")[1]) == {"intervals": [], "holes": []}


def test_status_and_report_show_holes(balances: Callable[..., tuple[int, str]], sqlite_url: str) -> None:
    exit_code, output = balances(HISTORY, "status")
    assert exit_code == 0
    assert HOLE in output.splitlines()
    assert json.loads(balances([], "status", "--json")[1])["coverage"]["summary"] == [HOLE]

    warehouse = Warehouse(sqlite_url)
    figures = gather(warehouse, now=datetime(2026, 10, 21, tzinfo=UTC))
    warehouse.dispose()
    assert json.loads(as_json(figures))["status"]["coverage"]["summary"] == [HOLE]
    html = page(figures)
    assert HOLE in html
    assert "Verified: every balance" not in html

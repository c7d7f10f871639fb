"""`crm-balances explain` says why an award has its points."""

from __future__ import annotations

import csv
import io
import json
from datetime import timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings

from target_crm.balances_cli.explain import as_text, explain
from target_crm.balances_cli.verify import verify
from target_crm.warehouse.connection import Warehouse
from tests.helpers.commands import run_script
from tests.helpers.deliveries import START, USER_OF, deliver, deliveries
from tests.helpers.report import PERKS, perk
from tests.helpers.target import ACTIONS, AWARDS, action, execute, load, record, snapshot, state, table
from tests.stress import size

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable
    from pathlib import Path

    Run = Callable[..., subprocess.CompletedProcess[str]]


def read(start: str, end: str, **more: Any) -> str:
    """A STATE of a run that has read from one time to another."""
    bookmark = {"replication_key": "when_timestamp", "replication_key_value": end, "covered_from": start}
    return state({"bookmarks": {"actions": {**bookmark, "read": [[start, end]], **more}}})


AT_THE_ARCHES = {
    "context": {"user": {"_id": "u1", "fullName": "Tom Jones"}, "location": {"_id": "l1", "title": "The Arches"}},
    "source": "API_SERVER",
}
# An action from an older system contains neither the change nor the points after the change.
LEGACY = record(
    "actions",
    {
        "_id": "a0",
        "type": "REWARD_EARNED",
        "when": {"timestamp": "2026-10-04T00:00:00Z"},
        "metadata": {"awardId": "w1", "points": 50},
    },
)
HISTORY = [
    *(AWARDS, snapshot("w1", 14, at="2026-10-20T08:00:00Z"), ACTIONS),
    action("a1", delta=3, available=24, at="2026-10-02T09:30:00.250Z", **AT_THE_ARCHES),
    action("a2", "REDEEM_PERK", delta=16, available=8, at="2026-10-03T00:00:00Z", **AT_THE_ARCHES),
    LEGACY,
    read("2026-10-01T00:00:00Z", "2026-10-10T00:00:00Z"),
    action("a3", "AWARD_POINTS_REFUNDED", delta="1.5", available="12.5", at="2026-10-19T00:00:00Z"),
    action("a4", delta=2, available=14, at="2026-10-19T10:00:00Z"),
    read("2026-10-18T00:00:00Z", "2026-10-20T06:00:05Z"),
]


@pytest.fixture
def run(sqlite_url: str, tmp_path: Path) -> Run:
    """Run `crm-balances explain`."""

    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        return run_script("crm-balances", "explain", *arguments, cwd=tmp_path, TARGET_CRM_SQLALCHEMY_URL=sqlite_url)

    return call


def test_a_balance_is_explained_line_by_line(sqlite_url: str, run: Run) -> None:
    load(sqlite_url, HISTORY)

    explained = run("w1", "--timezone", "Europe/London")

    assert explained.returncode == 0, explained.stderr
    assert (
        explained.stdout
        == """\
Award w1 of user u1, perk p1
14 points = 21 opening + 5 earned - 16 redeemed + 1.5 refunded + 2.5 adjusted
time (Europe/London)    what                   location    change  balance  source      action or reason
                        opening balance                                 21              before the oldest action
2026-10-02 10:30:00.25  REWARD_EARNED          The Arches      +3       24  API_SERVER  a1
2026-10-03 01:00:00     REDEEM_PERK            The Arches     -16        8  API_SERVER  a2
2026-10-04 01:00:00     REWARD_EARNED                                                   a0, changes no balance
2026-10-10 01:00:00     HOLE                                                            actions not read until \
2026-10-18 01:00:00 (8 days)
                        no action                              +3       11              actions not read
2026-10-19 01:00:00     AWARD_POINTS_REFUNDED                +1.5     12.5              a3
                        no action                            -0.5       12              edit or expiry in Pepper
2026-10-19 11:00:00     REWARD_EARNED                          +2       14              a4
2026-10-20 09:00:00     Pepper's snapshot                               14
2026-10-20 09:00:00     balance                                         14              Pepper's snapshot
"""
    )


def test_json_and_csv_have_the_same_lines(sqlite_url: str, run: Run) -> None:
    load(sqlite_url, HISTORY)

    (in_json,) = json.loads(run("w1", "--json").stdout, parse_float=Decimal)
    in_csv = list(csv.DictReader(io.StringIO(run("w1", "--csv").stdout)))

    totals = {name: in_json[name] for name in ("points", "opening", "earned_total", "redeemed_total", "adjusted")}
    assert totals == {"points": 14, "opening": 21, "earned_total": 5, "redeemed_total": 16, "adjusted": Decimal("2.5")}
    assert in_json["lines"][1] == {
        "event": "action",
        "at": "2026-10-02T09:30:00.250000Z",
        "after": None,
        "type": "REWARD_EARNED",
        "location_id": "l1",
        "location": "The Arches",
        "change": 3,
        "balance": 24,
        "source": "API_SERVER",
        "action_id": "a1",
        "note": None,
    }
    (hole,) = (line for line in in_json["lines"] if line["event"] == "hole")
    assert (hole["after"], hole["at"]) == ("2026-10-10T00:00:00Z", "2026-10-18T00:00:00Z")
    assert [line["event"] for line in in_csv] == [line["event"] for line in in_json["lines"]]
    assert [line["balance"] for line in in_csv][:3] == ["21.0000", "24.0000", "8.0000"]
    assert "Tom Jones" not in f"{in_json}{in_csv}"


def test_the_awards_of_a_user_are_explained_with_their_sum(sqlite_url: str, run: Run) -> None:
    other_perk = json.loads(snapshot("w3", 100))
    other_perk["record"]["perkId"] = "p2"
    load(sqlite_url, [AWARDS, snapshot("w1", 5), snapshot("w2", 7), json.dumps(other_perk), ACTIONS])
    load(sqlite_url, [ACTIONS, action("b1", award="w4", user="u2"), action("a1", award="w1", available=0.25)])
    execute(sqlite_url, "UPDATE awards SET _sdc_deleted_at = '2026-10-04 00:00:00' WHERE _id = 'w2'")

    of_user, of_perk = (run("--user", "u1", *more) for more in ([], ["--perk", "p2"]))

    *awards, total = of_user.stdout.split("\n\n")
    assert [award.splitlines()[0] for award in awards] == [
        "Award w1 of user u1, perk p1",
        "Award w2 of user u1, perk p1, deleted",
        "Award w3 of user u1, perk p2",
    ]
    assert "2026-10-04 00:00:00  deleted                     left out of user_balances" in awards[1].splitlines()
    assert total == "100.25 points in 2 awards not deleted\n"
    assert of_perk.stdout.splitlines()[:2] == [
        "Award w3 of user u1, perk p2",
        "100 points = 100 opening + 0 earned - 0 redeemed + 0 refunded + 0 adjusted",
    ]


def test_a_perk_is_given_by_id_or_title(sqlite_url: str, run: Run) -> None:
    in_perk = [snapshot(f"w{number}", 5).replace('"p1"', f'"p{number}"') for number in (1, 2, 3)]
    titles = {"p1": "Cashback", "p2": " Cashback ", "p3": "Tea"}
    load(sqlite_url, [AWARDS, *in_perk])

    # The stream perks is not loaded.
    assert run("--user", "u1", "--perk", "Tea").returncode == 1
    assert run("--user", "u1", "--perk", "p3").stdout.startswith("Award w3 ")

    load(sqlite_url, [PERKS, *(perk(perk_id, title) for perk_id, title in titles.items())])

    assert run("--user", "u1", "--perk", "tEA ").stdout == run("--user", "u1", "--perk", "p3").stdout
    both = run("--user", "u1", "--perk", "Cashback").stdout.split("\n\n")
    assert [each.split(" of ")[0] for each in both[:-1]] == ["Award w1", "Award w2"]
    assert both[-1] == "10 points in 2 awards not deleted\n"


@pytest.mark.parametrize(
    ("arguments", "exit_code", "complaint"),
    [
        pytest.param(
            ["w9"],
            1,
            "no balance for award w9 in this warehouse: check the id, and whether its "
            "data was loaded; for a user's id, use --user",
            id="award",
        ),
        pytest.param(["--user", "u9"], 1, "no balance for user u9 in this warehouse: check the id, and", id="user"),
        pytest.param(["--user", "u1", "--perk", "p9"], 1, "no balance for user u1 and perk p9 in this", id="perk"),
        pytest.param(["--user", ""], 2, "is empty, expected an id", id="empty"),
        pytest.param([], 2, "expected AWARD_ID, or --user with or without --perk", id="nothing"),
        pytest.param(["w1", "--user", "u1"], 2, "expected AWARD_ID, or --user", id="award-and-user"),
        pytest.param(["w1", "--json", "--csv"], 2, "--csv and --json are two formats; give one", id="two-formats"),
        pytest.param(["w1", "--timezone", "Mars"], 2, "--timezone Mars: unknown time zone", id="time-zone"),
    ],
)
def test_the_error_is_one_line_if_there_is_nothing_to_explain(
    sqlite_url: str, run: Run, arguments: list[str], exit_code: int, complaint: str
) -> None:
    load(sqlite_url, [AWARDS, snapshot("w1", 5)])

    refused = run(*arguments)

    assert (refused.returncode, refused.stdout) == (exit_code, "")
    (line,) = refused.stderr.splitlines()
    assert complaint in line


def test_a_tampered_balance_is_reported_because_it_does_not_follow_from_its_lines(sqlite_url: str, run: Run) -> None:
    load(sqlite_url, HISTORY)
    execute(sqlite_url, "UPDATE award_balances SET points = points + 1")

    last = run("w1").stdout.splitlines()[-1]

    assert last.endswith("15              the lines above lead to 14: run crm-balances verify")


def test_the_opening_balance_follows_the_holes_before_the_oldest_action(sqlite_url: str, run: Run) -> None:
    later = action("a9", delta=2, available=9, at="2026-10-19T00:00:00Z", award="w9")
    load(sqlite_url, [*HISTORY, ACTIONS, later])

    lines = json.loads(run("w9", "--json").stdout)[0]["lines"]

    assert [line["event"] for line in lines] == ["hole", "opening", "action", "balance"]
    assert lines[1]["note"] == "before the oldest action; may include actions that were not read"
    assert lines[1]["balance"] == 7


@pytest.mark.parametrize(
    ("states", "reason"),
    [
        pytest.param([], "edit or expiry in Pepper, or actions not read", id="coverage-not-recorded"),
        pytest.param(
            [read("2026-10-01T00:00:00Z", "2026-10-05T00:00:00Z")], "edit or expiry in Pepper", id="all-types-read"
        ),
        pytest.param(
            [read("2026-10-01T00:00:00Z", "2026-10-05T00:00:00Z", action_types=["REWARD_EARNED"])],
            "edit, expiry, or an action of a type that was not read",
            id="some-types-read",
        ),
    ],
)
def test_a_change_without_an_action_has_a_reason_that_depends_on_what_was_read(
    sqlite_url: str, run: Run, states: list[str], reason: str
) -> None:
    first = action("a1", delta=3, available=3, at="2026-10-02T00:00:00Z")
    second = action("a2", delta=1, available=9, at="2026-10-03T00:00:00Z")
    load(sqlite_url, [AWARDS, ACTIONS, first, second, *states])

    (explained,) = json.loads(run("w1", "--json").stdout)

    assert [line["note"] for line in explained["lines"] if line["event"] == "adjustment"] == [reason]


@pytest.mark.parametrize(
    ("points", "at", "note"),
    [
        pytest.param(2, "2026-10-01T12:00:00Z", "agrees with the newest action", id="same-time-and-points"),
        pytest.param(
            3, "2026-10-01T12:00:00Z", "same time as the newest action, which takes precedence", id="same-time"
        ),
        pytest.param(3, "2026-10-01T11:59:59.999Z", "older than the newest action", id="older"),
        pytest.param(3, "2026-10-01T12:00:00.001Z", None, id="newer"),
    ],
)
def test_a_snapshot_is_compared_with_the_newest_action(
    sqlite_url: str, run: Run, points: int, at: str, note: str | None
) -> None:
    older = action("a0", at="2026-09-01T00:00:00Z")
    load(sqlite_url, [ACTIONS, older, action("a1"), AWARDS, snapshot("w1", points, at)])

    (explained,) = json.loads(run("w1", "--json").stdout)

    lines = [line for line in explained["lines"] if line["event"] in {"action", "snapshot"}]
    assert [line["note"] for line in lines if line["event"] == "snapshot"] == [note]
    # The snapshot stands after the actions whose points it includes.
    place = 1 if note == "older than the newest action" else 2
    assert lines[place]["event"] == "snapshot"


def test_times_that_a_clock_shows_twice_have_their_offset(sqlite_url: str, run: Run) -> None:
    times = [f"2026-10-25T0{hour}:30:00Z" for hour in (0, 1, 2)]
    load(sqlite_url, [ACTIONS, *(action(f"a{number}", at=at) for number, at in enumerate(times))])

    explained = run("w1", "--timezone", "Europe/London").stdout.splitlines()

    assert [line.split("  ")[0] for line in explained if line.startswith("2026") and "REWARD" in line] == [
        "2026-10-25 01:30:00+01:00",
        "2026-10-25 01:30:00+00:00",
        "2026-10-25 02:30:00",
    ]


def test_a_sum_has_one_sign_before_each_term(sqlite_url: str, run: Run) -> None:
    redeemed = action("a2", "REDEEM_PERK", delta=-1, available=1, at="2026-10-02T00:00:00Z")
    load(sqlite_url, [ACTIONS, action("a1", delta=-2, available=0), redeemed])

    assert run("w1").stdout.splitlines()[1] == "1 point = 2 opening - 2 earned + 1 redeemed + 0 refunded + 0 adjusted"


def test_an_action_without_the_balance_after_it_does_not_count(sqlite_url: str, run: Run) -> None:
    load(sqlite_url, [ACTIONS, action("a1"), action("a2", available=None), LEGACY])

    explained = run("w1").stdout

    assert "a2, not counted: it does not contain the balance\n" in explained
    assert "a0, changes no balance\n" in explained


def test_ids_may_be_pasted_with_spaces(sqlite_url: str, run: Run) -> None:
    load(sqlite_url, [AWARDS, snapshot("w1", 5)])

    expected = run("w1").stdout
    assert expected.startswith("Award w1 of user u1, perk p1\n")
    assert run(" w1 ").stdout == run("--user", "u1 ", "--perk", "\tp1").stdout == expected


@pytest.mark.parametrize("width", [40, 80, 120])
def test_a_terminal_of_any_width_shows_whole_ids_and_numbers(sqlite_url: str, width: int) -> None:
    action_id = "5f1c0ffee0c0ffee0c0ffea1"
    points = "12345678901.2345"
    load(sqlite_url, [ACTIONS, action(action_id, delta=points, available=points, **AT_THE_ARCHES)])
    crm = Warehouse(sqlite_url)
    text = as_text(explain(crm, award_id="w1"), "UTC", width)
    crm.dispose()

    assert "  +12,345,678,901.2345  12,345,678,901.2345" in text
    heading, numbers, *lines = text.splitlines()
    assert (heading, numbers.split(" ")[0]) == ("Award w1 of user u1, perk p1", "12,345,678,901.2345")
    last_column = next(line.index("action") for line in lines if "action" in line)
    assert action_id in "".join(line[last_column:].strip() for line in lines)


@settings(max_examples=size(30, 60))
@given(deliveries())
def test_the_lines_of_any_history_add_up_to_the_stored_balance(sqlite: Warehouse, delivery: Any) -> None:
    _, runs, batch_size_rows = delivery
    instants = [(START + timedelta(seconds=seconds)).isoformat() for seconds in (-1, 1, 2, 3)]
    load(sqlite, [ACTIONS, read(*instants[:2]), read(*instants[2:])])
    deliver(sqlite, runs, batch_size_rows)
    found = [each for user in sorted(set(USER_OF.values())) for each in explain(sqlite, award_id=None, user_id=user)]

    stored = {row["award_id"]: row for row in table(sqlite, "award_balances")}
    assert {each.award_id for each in found} == {award for award, row in stored.items() if row["user_id"]}
    gaps = {"edit or expiry in Pepper": 0, "actions not read": 0}
    for each in found:
        row = stored[each.award_id]
        (opening,) = (line for line in each.lines if line.event == "opening")
        *lines, last = (line for line in each.lines if line is not opening)
        changes = {"action": Decimal(0), "adjustment": Decimal(0), "snapshot": Decimal(0)}
        for line in lines:
            changes[line.event if line.change is not None else "action"] += line.change or 0
        assert last.balance == row["points"] == (opening.balance or 0) + sum(changes.values())
        assert opening.balance == row["opening"]
        assert changes["action"] == row["earned_total"] - row["redeemed_total"] + row["refunded_total"]
        assert changes["adjustment"] == each.adjusted == row["points"] - row["opening"] - changes["action"]
        assert sum(line.event == "action" and line.change is not None for line in lines) == row["action_count"]
        assert last.note in {"Pepper's snapshot", "after the newest action"}
        for line, after in zip(lines, [*lines[1:], last], strict=True):
            if line.event == "adjustment" and after.event == "action" and line.note in gaps:
                gaps[line.note] += 1
    found_by_verify = verify(sqlite, gaps=True).gaps
    assert found_by_verify
    assert list(gaps.values()) == [found_by_verify.covered, found_by_verify.unread]

"""crm-balances compare: messages of awards on standard input against the stored balances."""

from __future__ import annotations

import json
import subprocess
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from pepper_sandbox.server import Sandbox
from pepper_sandbox.world import World
from tests.helpers.commands import RUN_SECONDS_MAX, Pipeline, command, environment, pepper_settings, run_script
from tests.helpers.tap import selection
from tests.helpers.target import (
    ACTIONS,
    AWARDS,
    action,
    activate,
    all_rows,
    execute,
    load,
    record,
    schema,
    snapshot,
    state,
    table,
)

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

# Two awards, and coverage until 2026-10-02.
COVERED = {
    "replication_key": "when_timestamp",
    "replication_key_value": "2026-10-02T00:00:00Z",
    "covered_from": "2026-10-01T00:00:00Z",
}
LOADED = [
    AWARDS,
    snapshot("w1", 5, at="2026-10-01T12:00:00Z"),
    snapshot("w2", 7.5, at="2026-10-01T12:00:00Z"),
    ACTIONS,
    state({"bookmarks": {"actions": COVERED}}),
]
W1, W2 = snapshot("w1", 5, at="2026-10-01T12:00:00Z"), snapshot("w2", "7.50", at="2026-10-01T12:00:00Z")
READ_UNTIL = "2026-10-05T00:00:00Z"


def bookmark(value: str = READ_UNTIL, **more: Any) -> str:
    """The STATE that tap-pepper writes after the last award."""
    awards = {"replication_key": "updatedAt", "replication_key_value": value, **more}
    return state({"bookmarks": {"awards": awards}})


def compare(url: str, messages: Iterable[str], *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    lines = "".join(f"{message}\n" for message in messages)
    return run_script("crm-balances", "compare", *arguments, stdin=lines, TARGET_CRM_SQLALCHEMY_URL=url, **settings)


def result(url: str, *messages: str, **settings: str) -> dict[str, Any]:
    """The JSON that `compare` prints after a complete read of these awards, with the exit code, without zero counts."""
    ran = compare(url, [AWARDS, *messages, bookmark()], "--json", **settings)
    assert ran.returncode in {0, 1}, ran.stderr
    found = json.loads(ran.stdout)
    return {**{name: value for name, value in found.items() if value}, "exit": ran.returncode}


def counts(found: dict[str, Any]) -> dict[str, int]:
    return {name: value for name, value in found.items() if type(value) is int and name not in {"awards", "differing"}}


@pytest.fixture
def url(sqlite_url: str) -> str:
    """A warehouse that holds `LOADED`."""
    load(sqlite_url, LOADED)
    return sqlite_url


@pytest.fixture
def catalog(tmp_path: Path) -> str:
    """A catalog that selects only awards."""
    file = tmp_path / "catalog.json"
    file.write_text(json.dumps(selection("awards")))
    return str(file)


def test_compare_audits_a_warehouse_against_pepper(sqlite_url: str, tmp_path: Path, catalog: str) -> None:
    world = World(seed=20, users=12, days=8, now=datetime(2026, 10, 1, tzinfo=UTC))
    with Sandbox(world) as sandbox:
        pipeline = Pipeline(sandbox, sqlite_url, tmp_path)

        def audit() -> dict[str, Any]:
            awards = subprocess.run(
                command("tap-pepper", "--config", "ENV", "--catalog", catalog),
                env=environment(**pepper_settings(sandbox)),
                capture_output=True,
                text=True,
                timeout=RUN_SECONDS_MAX,
                check=True,
            )
            found = compare(sqlite_url, awards.stdout.splitlines(), "--json")
            return {**json.loads(found.stdout), "exit": found.returncode}

        pipeline.run()
        loaded = audit()
        balances = len(world.balances())
        assert (loaded["exit"], loaded["equal"], loaded["differing"]) == (0, balances, 0)

        sandbox.advance(timedelta(days=2))
        later = audit()
        assert later["exit"] == 0
        assert later["newer_in_pepper"] == len(world.balances()) - later["equal"] > 0

        pipeline.run()
        first, second, third = sorted(world.balances())[:3]
        execute(sqlite_url, f"UPDATE award_balances SET points = points + 1 WHERE award_id = '{first}'")
        execute(sqlite_url, f"DELETE FROM award_balances WHERE award_id = '{second}'")
        execute(sqlite_url, f"UPDATE award_balances SET award_id = 'x' WHERE award_id = '{third}'")
        changed = audit()
        assert changed["exit"] == 1
        assert [(each["verdict"], each["award_id"]) for each in changed["examples"]] == [
            ("different", first),
            ("missing_here", second),
            ("missing_here", third),
            ("missing_in_pepper", "x"),
        ]


@pytest.mark.parametrize(
    ("award", "expected"),
    [
        pytest.param(snapshot("w2", 7.5, at="2026-10-04T00:00:00Z"), {"equal": 2}, id="equal-at-another-time"),
        pytest.param(snapshot("w2", 8, at="2026-10-01T12:00:00Z"), {"equal": 1, "different": 1}, id="different"),
        pytest.param(
            snapshot("w2", 8, at="2026-10-01T11:00:00Z"), {"equal": 1, "different": 1}, id="changed-before-the-balance"
        ),
        pytest.param(
            snapshot("w2", 8, at="2026-10-01T11:00:00Z", read_at="2026-10-01T00:00:00Z"),
            {"equal": 1, "different": 1},
            id="read-by-a-tap-whose-clock-is-behind",
        ),
        pytest.param(
            snapshot("w2", 8, at="2026-10-01T18:00:00Z"),
            {"equal": 1, "different": 1},
            id="changed-at-a-time-of-which-all-actions-were-read",
        ),
        pytest.param(
            snapshot("w2", 8, at="2026-10-02T00:00:01Z"), {"equal": 1, "newer_in_pepper": 1}, id="changed-after-it"
        ),
        pytest.param(snapshot("w2", 8, at=None), {"equal": 1, "different": 1}, id="different-at-an-unknown-time"),
        pytest.param(snapshot("w2", None), {"equal": 1, "different": 1}, id="without-points"),
        pytest.param(
            snapshot("w2", None, at="2026-10-04T00:00:00Z"),
            {"equal": 1, "newer_in_pepper": 1},
            id="without-points-since-the-balance",
        ),
        pytest.param(
            snapshot("w3", None),
            {"equal": 1, "without_points": 1, "missing_in_pepper": 1},
            id="without-points-or-balance",
        ),
        pytest.param(
            record("awards", {"_id": "w2", "_sdc_deleted_at": READ_UNTIL}),
            {"equal": 1, "missing_in_pepper": 1},
            id="deletion",
        ),
        pytest.param(
            snapshot("w3", 1, at="2026-10-01T00:00:00Z"),
            {"equal": 1, "missing_here": 1, "missing_in_pepper": 1},
            id="missing-on-either-side",
        ),
        pytest.param(
            snapshot("w3", 1, at="2026-10-04T00:00:00Z"),
            {"equal": 1, "newer_in_pepper": 1, "missing_in_pepper": 1},
            id="new-in-pepper",
        ),
    ],
)
def test_each_award_is_judged_by_points_and_times(url: str, award: str, expected: dict[str, int]) -> None:
    found = result(url, W1, award)

    differs = bool(expected.keys() & {"different", "missing_here", "missing_in_pepper"})
    assert counts(found) == {**expected, "exit": int(differs)}


def test_text_names_the_awards_that_differ(url: str) -> None:
    ran = compare(url, [AWARDS, W1, snapshot("w2", 8, at="2026-10-01T12:00:00Z"), bookmark()])

    assert ran.returncode == 1
    assert ran.stdout.splitlines() == [
        "award in Pepper and in the warehouse        awards",
        "equal                                            1",
        "different                                        1",
        "    award id w2, stored 7.5, as of 2026-10-01 12:00, pepper 8, updated at 2026-10-01 12:00",
        "missing in the warehouse                         0",
        "missing in Pepper                                0",
        "Actions are complete from 2026-10-01 00:00 to 2026-10-02 00:00 UTC.",
        "Compared 2 awards with Pepper: 1 DIFFER",
    ]


def test_text_counts_the_differing_awards_that_it_does_not_name(url: str) -> None:
    unknown = [snapshot(f"v{number:02}", 5, at="2026-10-01T12:00:00Z") for number in range(23)]

    lines = compare(url, [AWARDS, W1, W2, *unknown, bookmark()]).stdout.splitlines()

    assert lines[3] == "missing in the warehouse                        23"
    assert lines[23:25] == [
        "    award id v19, pepper 5, updated at 2026-10-01 12:00",
        "    … and 3 more awards",
    ]


def test_balances_that_were_loaded_while_pepper_was_read_are_no_difference(url: str) -> None:
    load(
        url,
        [
            ACTIONS,
            action("a1", available=9, at="2026-10-05T00:00:01Z", award="w2"),
            action("a2", available=1, at="2026-10-05T00:00:01Z", award="w3"),
        ],
    )

    found = result(url, W1, W2)

    assert counts(found) == {"equal": 1, "newer_here": 2, "exit": 0}


def test_balances_of_the_future_were_not_loaded_while_pepper_was_read(url: str) -> None:
    load(
        url,
        [
            ACTIONS,
            action("a1", available=99, at="2999-06-01T00:00:00Z", award="w2"),
            action("a2", available=1, at="2999-06-01T00:00:00Z", award="w3"),
        ],
    )

    found = result(url, W1, W2)

    assert counts(found) == {"equal": 1, "different": 1, "missing_in_pepper": 1, "exit": 1}
    assert [(each["award_id"], each["as_of"]) for each in found["examples"]] == [
        ("w2", "2999-06-01T00:00:00Z"),
        ("w3", "2999-06-01T00:00:00Z"),
    ]


def test_balances_whose_awards_were_not_read_do_not_count(url: str) -> None:
    load(url, [ACTIONS, action("a1", available=9, at="2026-10-05T00:00:01Z", award="w2")])

    ran = compare(url, [bookmark("2026-10-04T00:00:00Z"), AWARDS, W1, bookmark()])

    assert ran.returncode == 0
    assert "loaded while" not in ran.stdout
    assert ran.stdout.endswith("Compared 1 award with Pepper: OK\n")
    assert "Comparing 1 award with" in ran.stderr


def test_the_counts_add_up_to_the_awards_compared(url: str) -> None:
    found = result(url, W1, snapshot("w3", 1), snapshot("w4", "?"), snapshot("w5", 1, at="2026-10-04T00:00:00Z"))

    kinds = {"equal": 1, "missing_here": 1, "missing_in_pepper": 1, "unreadable": 1, "newer_in_pepper": 1}
    assert counts(found) == {**kinds, "exit": 1}
    assert found["awards"] == 5


def test_awards_of_another_merchant_cause_an_error_of_one_line(sqlite_url: str) -> None:
    load(sqlite_url, [*LOADED[:-1], state({"bookmarks": {"actions": {**COVERED, "merchant": "a"}}})])

    ran = compare(sqlite_url, [AWARDS, W1, W2, bookmark(merchant="b")])

    assert (ran.returncode, ran.stdout) == (2, "")
    assert "awards: the input and the stored balances belong to different merchants; check --schema" in ran.stderr
    assert sum("different merchants" in line for line in ran.stderr.splitlines()) == 1
    assert compare(sqlite_url, [AWARDS, W1, W2, bookmark(merchant="a")]).returncode == 0


def test_without_recorded_coverage_the_newest_balance_shows_how_far_the_load_is(sqlite_url: str) -> None:
    load(sqlite_url, [AWARDS, W1, snapshot("w2", 7, at="2026-10-03T00:00:00Z")])

    lost = result(
        sqlite_url, snapshot("w1", 6, at="2026-10-02T00:00:00Z"), snapshot("w2", 8, at="2026-10-04T00:00:00Z")
    )

    assert counts(lost) == {"different": 1, "newer_in_pepper": 1, "exit": 1}
    assert lost["loaded_until"] == "2026-10-03T00:00:00Z"


def test_an_empty_warehouse_lacks_every_award(sqlite_url: str) -> None:
    load(sqlite_url, [AWARDS])

    assert counts(result(sqlite_url, W1, W2)) == {"missing_here": 2, "exit": 1}


def test_awards_that_are_marked_as_deleted_here_are_not_missing_in_pepper(url: str) -> None:
    load(url, [AWARDS, record("awards", {"_id": "w2", "_sdc_deleted_at": READ_UNTIL})])

    assert counts(result(url, W1)) == {"equal": 1, "exit": 0}
    # Pepper still has w2, so the warehouse lacks its points.
    assert counts(result(url, W1, W2)) == {"equal": 1, "missing_here": 1, "exit": 1}


def test_the_newest_record_of_an_award_counts(url: str) -> None:
    older, newer = snapshot("w2", 1, at="2026-10-01T11:00:00Z"), snapshot("w2", 7.5, at="2026-10-01T12:00:00Z")
    without_points = snapshot("w2", None, at="2026-10-01T13:00:00Z")
    read_earlier = snapshot("w2", 2, at="2026-10-01T12:00:00Z", read_at="2026-10-04T00:00:00Z")

    for records in ([older, newer], [newer, older], [newer, without_points], [newer, read_earlier]):
        assert counts(result(url, W1, *records)) == {"equal": 2, "exit": 0}


@pytest.mark.parametrize(
    ("messages", "is_complete"),
    [
        pytest.param([bookmark("2026-10-04T00:00:00Z"), AWARDS, W1, bookmark()], False, id="changes-since-a-bookmark"),
        pytest.param(
            [bookmark("2026-10-04T00:00:00Z"), AWARDS, W1, bookmark(refreshed_until=READ_UNTIL)],
            True,
            id="full-refresh",
        ),
        pytest.param(
            [bookmark("2026-10-04T00:00:00Z"), AWARDS, W1, bookmark(refreshed_until="2026-10-01T00:00:00Z")],
            False,
            id="changes-after-a-full-refresh",
        ),
        pytest.param(
            [bookmark("2026-10-04T00:00:00Z"), AWARDS, W1, activate("awards", 7)], True, id="activated-version"
        ),
        pytest.param(
            [state({"bookmarks": {"awards": {"version": 6}}}), AWARDS, W1, bookmark()], True, id="version-as-bookmark"
        ),
    ],
)
def test_balances_are_missing_in_pepper_only_if_all_awards_were_read(
    url: str, messages: list[str], *, is_complete: bool
) -> None:
    ran = compare(url, messages, "--json")

    found = json.loads(ran.stdout)
    assert (found["equal"], found["missing_in_pepper"]) == (1, int(is_complete))
    assert ran.returncode == int(is_complete)
    assert (found["not_compared"] is None) == is_complete
    assert is_complete or "since 2026-10-04T00:00:00Z" in found["not_compared"]


def test_the_text_says_if_the_tap_read_only_changes(url: str) -> None:
    ran = compare(url, [bookmark("2026-10-04T00:00:00Z"), AWARDS, W1, bookmark()])

    assert ran.returncode == 0
    assert "missing in Pepper                                -\n" in ran.stdout
    assert "the tap read only what changed since 2026-10-04T00:00:00Z; run it without a state" in ran.stdout


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        pytest.param([], "no awards were read; select awards", id="empty"),
        pytest.param([AWARDS, bookmark()], "no awards were read; select awards", id="no-award"),
        pytest.param([AWARDS, W1, W2], "no STATE follows the last award in the 3 lines of input", id="no-state"),
        pytest.param([AWARDS, W1, bookmark(), W2], "no STATE follows the last award", id="award-after-the-state"),
        pytest.param(
            [AWARDS, W1, W2, state({"bookmarks": {"awards": {}, "perks": {"version": 1}}})],
            "no STATE follows the last award",
            id="another-stream's-state",
        ),
        pytest.param(
            [bookmark("2026-10-04T00:00:00Z"), AWARDS, W1, W2, bookmark("2026-10-04T00:00:00Z")],
            "no STATE follows the last award",
            id="the-state-of-before",
        ),
        pytest.param(
            [bookmark("2026-10-04T00:00:00Z"), AWARDS, W1, state({"bookmarks": {"perks": {"version": 1}}})],
            "no STATE follows the last award",
            id="a-state-without-awards",
        ),
        pytest.param([AWARDS, W1, W2[:60]], "line 3: the line is not a Singer message", id="truncated-line"),
        pytest.param([W1, bookmark()], "line 1: a record of awards came before its SCHEMA", id="no-schema"),
        pytest.param([AWARDS, W1, '{"type": "RECORD"}'], "line 3: the RECORD message has no stream", id="no-stream"),
        pytest.param(
            [AWARDS, '{"type": "BATCH", "stream": "awards"}'], "line 2: BATCH messages are not supported", id="batch"
        ),
    ],
)
def test_incomplete_input_causes_an_error_of_one_line(url: str, messages: list[str], reason: str) -> None:
    ran = compare(url, messages)

    assert (ran.returncode, ran.stdout) == (2, "")
    assert reason in ran.stderr
    assert ran.stderr.count("\n") == 1
    assert "u1" not in ran.stderr


def test_records_that_cannot_be_read_are_differences_without_their_values(url: str) -> None:
    unreadable = snapshot("w2", "secret", at="2026-10-01T12:00:00Z")
    nameless = record("awards", {"points": 3})

    found = result(url, W1, unreadable, nameless)

    assert counts(found) == {"equal": 1, "unreadable": 2, "exit": 1}
    assert found["examples"] == [
        {"verdict": "unreadable", "award_id": "w2", "reason": "points is text, expected points"},
        {"verdict": "unreadable", "award_id": None, "reason": "_id is missing"},
    ]
    # The record without an id may be any award, so no balance counts as missing in Pepper.
    assert "not_compared" in found


def test_a_balance_whose_award_cannot_be_read_is_not_missing_in_pepper(url: str) -> None:
    assert counts(result(url, W1, snapshot("w2", "?"))) == {"equal": 1, "unreadable": 1, "exit": 1}


def test_properties_that_are_not_compared_need_not_be_valid(url: str) -> None:
    odd = record("awards", {**json.loads(W1)["record"], "type": {"a": "\0"}, "createdAt": "?"})

    assert counts(result(url, odd, W2)) == {"equal": 2, "exit": 0}


def test_other_streams_are_ignored(url: str) -> None:
    perks = schema("perks", {"_id": {"type": "string"}}, "_id")

    found = result(url, W1, perks, record("perks", {"_id": "p1"}), ACTIONS, action("a9", available=1, award="w1"), W2)

    assert counts(found) == {"equal": 2, "other_records": 2, "exit": 0}


def test_awards_are_read_through_the_stream_maps_of_the_target(url: str) -> None:
    renamed = json.dumps({"shop": {"__alias__": "awards"}})
    filtered = json.dumps({"awards": {"__filter__": "_id != 'w2'"}})
    shop = [json.dumps({**json.loads(each), "stream": "shop"}) for each in (AWARDS, W1, W2)]
    bookmarks = state({"bookmarks": {"shop": {"replication_key_value": READ_UNTIL}}})

    aliased = compare(url, [*shop, bookmarks], "--json", TARGET_CRM_STREAM_MAPS=renamed)
    found = result(url, W1, W2, TARGET_CRM_STREAM_MAPS=filtered)

    assert (aliased.returncode, json.loads(aliased.stdout)["equal"]) == (0, 2)
    assert counts(found) == {"equal": 1, "exit": 0}
    assert "stream map" in found["not_compared"]


def test_balances_of_other_merchants_are_not_missing_in_pepper(url: str) -> None:
    other = {**COVERED, "merchant": "b", "replication_key_value": "2026-10-09T00:00:00Z"}
    load(url, [ACTIONS, state({"bookmarks": {"actions": other}})])

    ran = compare(url, [AWARDS, snapshot("w1", 6, at="2026-10-08T00:00:00Z"), bookmark(merchant="b")], "--json")

    found = json.loads(ran.stdout)
    assert (found["different"], found["missing_in_pepper"]) == (1, 0)
    assert found["loaded_until"] == "2026-10-09T00:00:00Z"
    assert found["not_compared"] == "the warehouse has several merchants"


def test_compare_loads_nothing(url: str) -> None:
    before, runs = all_rows(url), table(url, "load_runs")

    found = result(url, W1, snapshot("w2", 9, at="2026-10-04T00:00:00Z"), snapshot("w3", 1), snapshot("w4", "?"))

    assert found["exit"] == 1
    assert (all_rows(url), table(url, "load_runs")) == (before, runs)

"""The coverage in the bookmark of actions: how runs extend it, and how an earlier start_date does."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest

from tests.helpers.tap import Reply, Run, Script, config, listing, run_tap

UNTIL = "2026-10-01T11:59:55.000Z"
FROM, BOOKMARK = "2026-09-30T00:00:00.000Z", "2026-10-01T06:00:00.000Z"
REREAD = "2026-10-01T05:55:00.000Z"
# A STATE contains these values unless a test asks for others.
EMPTY: dict[str, Any] = {"action_types": [], "skipped_start_date": None, "backfill_from": None}
KEYS = ("covered_from", "covered_until", "read", *EMPTY)


def run(state: dict[str, Any] | None = None, *replies: Reply, **settings: Any) -> tuple[Run, list[tuple[str, str]]]:
    """Run the tap. Return its messages, and the windows that it has read, in order."""
    may_fail = settings.pop("may_fail", False)
    with Script(*(replies or (listing(),))) as script:
        ran = run_tap(
            config(script.url, **{"concurrency": 1, **settings}),
            "actions",
            state=without_merchant(state),
            may_fail=may_fail,
        )
    asked = [each.query for each in script.asked]
    return ran, [(query["when.timestamp.gt"], query["when.timestamp.lte"]) for query in asked[1:]]


def without_merchant(state: dict[str, Any] | None) -> dict[str, Any]:
    """Return a copy of a state without the hash of the merchant, so that it fits any server."""
    changed = deepcopy(state or {})
    for bookmark in changed.get("bookmarks", {}).values():
        bookmark.pop("merchant", None)
    return changed


def stored(**coverage: Any) -> dict[str, Any]:
    """Return a state whose bookmark is BOOKMARK, with this coverage."""
    bookmark = {"replication_key": "when_timestamp", "replication_key_value": BOOKMARK, **coverage}
    return {"bookmarks": {"actions": bookmark}}


def action(name: str, at: str) -> dict[str, Any]:
    return {"_id": name, "type": "ORDER", "when": {"timestamp": at}}


def coverage(state: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in state["bookmarks"]["actions"].items() if name in KEYS}


def test_coverage_begins_where_the_first_run_begins_to_read() -> None:
    ran, windows = run(start_date="2026-10-01", window_hours=6)

    assert windows[0][0] == "2026-10-01T00:00:00.000Z"
    assert [coverage(state) for state in ran.states[:2]] == [
        {"covered_from": windows[0][0], "covered_until": until, "read": [[windows[0][0], until]], **EMPTY}
        for until in ("2026-10-01T06:00:00.000Z", UNTIL)
    ]


def test_a_later_run_keeps_the_beginning_and_records_its_own_reads() -> None:
    ran, windows = run(stored(covered_from=FROM, covered_until=BOOKMARK, read=[[FROM, BOOKMARK]]))

    assert windows[0][0] == REREAD
    assert coverage(ran.state) == {"covered_from": FROM, "covered_until": UNTIL, "read": [[REREAD, UNTIL]], **EMPTY}


@pytest.mark.parametrize(
    "earlier",
    [
        pytest.param({}, id="written-by-an-older-version"),
        pytest.param({"covered_from": FROM, "covered_until": "2026-10-01T05:54:59.999Z"}, id="bookmark-set-forward"),
        pytest.param({"covered_from": "yesterday", "covered_until": BOOKMARK}, id="not-a-time"),
        pytest.param({"covered_from": FROM, "action_types": ["ORDER"]}, id="of-other-types"),
    ],
)
def test_a_new_coverage_begins_if_the_run_starts_outside_the_earlier_one(earlier: dict[str, Any]) -> None:
    ran, _ = run(stored(**earlier))

    assert {name: coverage(ran.state)[name] for name in KEYS[:3]} == {
        "covered_from": REREAD,
        "covered_until": UNTIL,
        "read": [[REREAD, UNTIL]],
    }


@pytest.mark.parametrize(
    "earlier",
    [
        pytest.param({"covered_until": "2026-10-01T05:55:00.000Z"}, id="coverage-ends-where-this-run-begins"),
        pytest.param({}, id="without-covered-until"),
        pytest.param({"covered_until": UNTIL}, id="bookmark-set-back"),
    ],
)
def test_the_coverage_continues_if_the_run_starts_inside_it(earlier: dict[str, Any]) -> None:
    ran, _ = run(stored(covered_from=FROM, **earlier))

    assert coverage(ran.state)["covered_from"] == FROM


def test_setting_back_the_bookmark_also_sets_back_the_end_of_the_coverage() -> None:
    ran, windows = run(stored(covered_from=FROM, covered_until="2026-10-01T11:00:00.000Z"), window_hours=1)

    # The first STATE repeats the coverage of the earlier run.
    assert coverage(ran.states[1])["covered_until"] == windows[0][1] == "2026-10-01T06:55:00.000Z"


def test_the_coverage_contains_the_types_that_were_read() -> None:
    filtered, _ = run(action_types=["REWARD_EARNED", "ORDER", "ORDER"], lookback_seconds=0, start_date=FROM)
    assert coverage(filtered.state)["action_types"] == ["ORDER", "REWARD_EARNED"]

    same, _ = run(filtered.state, action_types=["ORDER", "REWARD_EARNED"], lookback_seconds=0)
    assert coverage(same.state)["covered_from"] == FROM


def test_another_filter_begins_a_new_coverage_even_if_meltano_merges_the_states() -> None:
    filtered, _ = run(start_date=FROM, action_types=["ORDER"])
    state = without_merchant(filtered.state)
    state["bookmarks"]["actions"].update(replication_key_value=BOOKMARK)

    all_types, _ = run(state)
    # Meltano updates nested objects key by key.
    state["bookmarks"]["actions"].update(all_types.state["bookmarks"]["actions"])
    again, _ = run(state)

    for ran in (all_types, again):
        assert coverage(ran.state)["covered_from"] == REREAD
        assert coverage(ran.state)["action_types"] == []


def test_an_earlier_start_date_reads_the_missing_part_first() -> None:
    missed = {"_id": "a1", "type": "ORDER", "when": {"timestamp": "2026-09-29T21:00:00.000Z"}}
    ran, windows = run(
        stored(covered_from=FROM, covered_until=BOOKMARK),
        *(listing(), listing(), listing(missed), listing()),
        start_date="2026-09-29T15:00:00Z",
        window_hours=4,
    )

    assert windows == [
        ("2026-09-29T20:00:00.000Z", FROM),
        ("2026-09-29T16:00:00.000Z", "2026-09-29T20:00:00.000Z"),
        ("2026-09-29T15:00:00.000Z", "2026-09-29T16:00:00.000Z"),
        (REREAD, "2026-10-01T09:55:00.000Z"),
        ("2026-10-01T09:55:00.000Z", UNTIL),
    ]
    assert coverage(ran.states[1]) == {
        "covered_from": "2026-09-29T20:00:00.000Z",
        "covered_until": BOOKMARK,
        "read": [["2026-09-29T20:00:00.000Z", FROM]],
        **EMPTY,
    }
    assert ran.bookmarks("actions")[:3] == [BOOKMARK] * 3
    assert coverage(ran.state) == {
        "covered_from": "2026-09-29T15:00:00.000Z",
        "covered_until": UNTIL,
        "read": [["2026-09-29T15:00:00.000Z", FROM], [REREAD, UNTIL]],
        **EMPTY,
    }


def test_a_backfill_emits_its_rows() -> None:
    missed = {"_id": "a1", "type": "ORDER", "when": {"timestamp": "2026-09-29T23:00:00.000Z"}}
    ran, _ = run(
        stored(covered_from=FROM, covered_until=BOOKMARK),
        listing(),
        listing(missed),
        listing(),
        start_date="2026-09-29T22:00Z",
    )

    assert ran.ids("actions") == ["a1"]


def test_an_interrupted_backfill_continues_where_it_stopped() -> None:
    failing = Reply({"message": "no"}, status=403)
    settings = {"start_date": "2026-09-29T15:00:00Z", "window_hours": 4}
    killed, _ = run(stored(covered_from=FROM), listing(), listing(), failing, **settings, may_fail=True)
    assert killed.error

    _, windows = run(killed.state, **settings)

    assert windows[0] == ("2026-09-29T16:00:00.000Z", "2026-09-29T20:00:00.000Z")


def test_a_backfill_stops_at_the_time_limit_after_one_window() -> None:
    slow = Reply(status=429, headers={"Retry-After": "30"})
    ran, windows = run(
        stored(covered_from=FROM),
        listing(),
        slow,
        listing(),
        start_date="2026-09-29",
        window_hours=4,
        max_run_seconds=20,
    )

    assert coverage(ran.state)["covered_from"] == "2026-09-29T20:00:00.000Z"
    assert ran.bookmarks("actions")[-1] == BOOKMARK
    assert len(set(windows)) == 1


def test_a_state_may_request_actions_before_the_coverage() -> None:
    # The backfill starts before the hole, because actions from before the hole may have become visible late.
    backfill = ("2026-09-29T21:55:00.000Z", FROM)
    asking = stored(covered_from=FROM, covered_until=BOOKMARK, backfill_from="2026-09-29T22:00:00.000Z")
    # The old start_date adds nothing to the requested interval, neither in this run nor in the next.
    ran, windows = run(asking, start_date="2026-09-01")
    _, later = run(ran.state, start_date="2026-09-01")

    assert windows[0] == backfill
    assert windows[1][0] == REREAD
    assert coverage(ran.state) == {
        "covered_from": backfill[0],
        "covered_until": UNTIL,
        "read": [list(backfill), [REREAD, UNTIL]],
        **EMPTY,
        "skipped_start_date": "2026-09-01T00:00:00.000Z",
    }
    assert later == [("2026-10-01T11:54:55.000Z", UNTIL)]


def test_requested_actions_are_read_even_after_an_interruption_or_with_another_filter() -> None:
    asking = stored(covered_from=FROM, covered_until=BOOKMARK, backfill_from="2026-09-29T15:00:00.000Z")
    failing = Reply({"message": "no"}, status=403)
    killed, _ = run(asking, listing(), listing(), failing, window_hours=4, may_fail=True)
    _, rest = run(killed.state, window_hours=4)
    _, of_types = run(asking, action_types=["ORDER"], window_hours=24)

    assert rest[:2] == [
        ("2026-09-29T16:00:00.000Z", "2026-09-29T20:00:00.000Z"),
        ("2026-09-29T14:55:00.000Z", "2026-09-29T16:00:00.000Z"),
    ]
    assert min(of_types)[0] == "2026-09-29T14:55:00.000Z"


@pytest.mark.parametrize(
    "earlier",
    [
        pytest.param({}, id="written-by-an-older-version"),
        pytest.param({"covered_from": "2026-09-01T00:00:00.000Z", "action_types": ["ORDER"]}, id="of-other-types"),
        pytest.param({"covered_from": "2026-09-01T00:00:00Z", "covered_until": FROM}, id="bookmark-set-forward"),
    ],
)
def test_a_start_date_that_an_earlier_run_skipped_causes_no_reads(earlier: dict[str, Any]) -> None:
    state = stored(**earlier)
    for _ in range(3):
        ran, windows = run(state, start_date="2026-09-01")
        assert windows[0][0] >= REREAD
        state = ran.state

    _, windows = run(state, start_date="2026-08-31T20:00:00Z")
    assert windows[0][1] == REREAD


def test_an_earlier_start_date_leaves_no_hole_after_an_upgrade() -> None:
    recent = listing(action("a", "2026-10-01T11:57:00.000Z"))
    of_old_version, _ = run(None, listing(), recent, start_date="2026-10-01")
    bookmark = of_old_version.state["bookmarks"]["actions"]
    for name in KEYS:
        del bookmark[name]

    upgraded, windows = run(of_old_version.state, listing(), recent, start_date="2026-10-01")
    backfilled, _ = run(upgraded.state, listing(), listing(), recent, start_date=FROM, window_hours=48)

    ((begins, _),) = windows
    assert upgraded.ids("actions") == ["a"]
    assert coverage(upgraded.state)["read"] == [[begins, UNTIL]]
    assert coverage(backfilled.state)["read"][0] == [FROM, begins]


def test_an_interrupted_backfill_does_not_bring_back_the_rows_to_skip() -> None:
    recent = listing(action("a", "2026-10-01T11:57:00.000Z"))
    seeded, _ = run(None, listing(), recent)
    settings = {"start_date": FROM, "action_types": ["ORDER"], "window_hours": 48}
    failing = Reply({"message": "no"}, status=403)
    killed, _ = run(seeded.state, listing(), listing(), failing, **settings, may_fail=True)
    assert killed.error

    ran, windows = run(killed.state, listing(), recent, **settings)

    assert coverage(ran.state)["read"][-1] == [windows[-1][0], UNTIL]


def test_a_new_start_date_counts_even_if_the_filter_changes_in_the_same_run() -> None:
    earlier = stored(covered_from=FROM, covered_until=BOOKMARK)

    _, windows = run(earlier, start_date="2026-09-28", action_types=["ORDER"], window_hours=240)
    _, unchanged = run(earlier, start_date=FROM, action_types=["ORDER"], window_hours=240)

    assert min(windows)[0] == "2026-09-28T00:00:00.000Z"
    assert min(unchanged)[0] == REREAD


def test_a_new_start_date_counts_even_with_the_state_for_a_hole() -> None:
    asking = stored(
        covered_from=FROM,
        covered_until=BOOKMARK,
        backfill_from="2026-09-29T22:00:00.000Z",
        skipped_start_date="2026-09-29T00:00:00.000Z",
    )
    _, windows = run(asking, start_date="2026-09-28", window_hours=240)
    _, unchanged = run(asking, start_date="2026-09-29", window_hours=240)

    assert min(windows)[0] == "2026-09-28T00:00:00.000Z"
    assert min(unchanged)[0] == "2026-09-29T21:55:00.000Z"


def test_a_lookback_that_begins_before_the_coverage_repeats_nothing() -> None:
    recent = listing(action("a", "2026-10-01T11:57:00.000Z"))
    first, _ = run(None, listing(), recent)

    ran, windows = run(first.state, listing(), recent, lookback_seconds=7200)

    assert windows[0][0] == "2026-10-01T09:59:55.000Z"
    assert ran.ids("actions") == []


def test_an_earlier_start_date_counts_even_if_the_lookback_begins_before_the_coverage() -> None:
    seeded = stored(covered_from="2026-10-01T05:55:20.000Z", covered_until=BOOKMARK, read=[])

    ran, windows = run(seeded, start_date=FROM)

    assert windows[0][1] == "2026-10-01T05:55:20.000Z"
    assert coverage(ran.state)["covered_from"] == FROM


def test_a_start_date_inside_the_coverage_rereads_nothing() -> None:
    first, _ = run(start_date="2026-09-30")
    _, windows = run(first.state, start_date="2026-09-30")

    assert windows == [("2026-10-01T11:54:55.000Z", UNTIL)]


@pytest.mark.parametrize(
    "definition",
    [
        pytest.param({"__filter__": "type == 'ORDER'"}, id="filter"),
        pytest.param({"metadata": None}, id="without-points"),
        pytest.param({"_id": "_id", "type": "type", "__else__": None}, id="without-other-fields"),
    ],
)
def test_a_run_whose_stream_map_drops_actions_or_points_records_no_coverage(definition: dict[str, Any]) -> None:
    recent = listing(action("a", "2026-10-01T11:57:00.000Z"))
    ran, _ = run(stored(covered_from=FROM), listing(), recent, stream_maps={"act*": definition})
    later, _ = run(ran.state, listing(), recent, stream_maps={"act*": definition})

    assert coverage(later.state) == {"covered_from": FROM, "covered_until": UNTIL, "read": [], **EMPTY}
    assert (ran.ids("actions"), later.ids("actions")) == (["a"], [])


def test_a_run_that_flattens_actions_records_no_reads() -> None:
    ran, _ = run(stored(covered_from=FROM), flattening_enabled=True, flattening_max_depth=2)

    assert coverage(ran.state)["read"] == []


def test_a_run_that_hides_points_still_reads_from_an_earlier_start_date() -> None:
    maps = {"actions": {"metadata": None}}
    first, _ = run(start_date="2026-10-01", stream_maps=maps)
    _, windows = run(first.state, start_date=FROM, stream_maps=maps)

    assert min(windows)[0] == FROM


@pytest.mark.parametrize(
    "definition",
    [
        pytest.param({"note": "'x'"}, id="new-field"),
        pytest.param({"context": None}, id="without-user"),
        pytest.param({"type": "type", "metadata": "metadata", "_id": "_id", "__else__": None}, id="same-fields"),
    ],
)
def test_a_run_whose_stream_map_keeps_actions_and_points_records_its_coverage(definition: dict[str, Any]) -> None:
    maps = {"actions": definition, "sers": {"__filter__": "0"}}
    ran, _ = run(stored(covered_from=FROM), stream_maps=maps)

    assert coverage(ran.state)["covered_from"] == FROM


def test_a_first_run_that_fails_before_its_first_window_leaves_a_state_that_the_next_run_accepts() -> None:
    failing = Reply({"message": "no"}, status=403)
    with Script(listing(), failing, listing()) as script:
        failed = run_tap(config(script.url, concurrency=1), "perks", "actions", may_fail=True)
    assert failed.error

    ran, _ = run(failed.state)

    assert ran.error is None


def test_a_run_without_the_stream_actions_records_no_reads() -> None:
    earlier = stored(covered_from=FROM, covered_until=BOOKMARK, read=[[FROM, BOOKMARK]])
    with Script(listing()) as script:
        ran = run_tap(config(script.url), "perks", state=earlier)

    assert coverage(ran.state) == {"covered_from": FROM, "covered_until": BOOKMARK, "read": []}

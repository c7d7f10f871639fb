"""Coverage: which actions were read, recorded with the rows that a STATE covers."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from target_crm.records.coverage import (
    HOLES_MAX,
    Interval,
    Scope,
    between,
    claims_of,
    is_inside,
    overlaps,
    read_times,
    summarize,
    union,
)
from tests.helpers.target import (
    ACTIONS,
    AWARDS,
    action,
    execute,
    load,
    query,
    run_target,
    running_target,
    snapshot,
    state,
    table,
)

if TYPE_CHECKING:
    from pathlib import Path

MIDNIGHT = datetime(2026, 10, 1, tzinfo=UTC)


def hour(number: float) -> str:
    """An hour of the first days of October, as the tap writes it."""
    return (MIDNIGHT + timedelta(hours=number)).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def bookmark(covered_from: Any, until: Any, **more: Any) -> dict[str, Any]:
    """The value of a STATE."""
    actions = {
        "replication_key": "when_timestamp",
        "replication_key_value": until,
        "covered_from": covered_from,
        **more,
    }
    return {"bookmarks": {"actions": actions}}


def read(start: float, end: float, **more: Any) -> str:
    """A STATE of a run that has read from one hour to another."""
    return state(bookmark(hour(0), hour(end), read=[[hour(start), hour(end)]], **more))


def covered(url: str, **scope: Any) -> list[tuple[float, float]]:
    """The recorded intervals of a scope, in hours."""
    wanted = {"merchant": None, "action_types": None, **scope}
    rows = [row for row in table(url, "coverage") if {name: row[name] for name in wanted} == wanted]
    edges = [(row["covered_from"], row["covered_until"]) for row in rows]
    return sorted(tuple((edge - MIDNIGHT) / timedelta(hours=1) for edge in each) for each in edges)


def test_coverage_is_what_the_runs_have_read(warehouse_url: str) -> None:
    load(warehouse_url, [ACTIONS, action("a1"), read(0, 2), action("a2"), read(0, 4), read(0, 5)])
    assert covered(warehouse_url) == [(0, 5)]

    load(warehouse_url, [ACTIONS, action("a3"), read(7, 8)])
    assert covered(warehouse_url) == [(0, 5), (7, 8)]

    load(warehouse_url, [ACTIONS, action("a4"), read(4.5, 7)])
    assert covered(warehouse_url) == [(0, 8)]


def test_a_state_that_does_not_list_what_was_read_covers_everything_since_covered_from(sqlite_url: str) -> None:
    load(sqlite_url, [ACTIONS, action("a1"), state(bookmark(hour(1), hour(3)))])

    assert covered(sqlite_url) == [(1, 3)]


def test_the_states_of_several_runs_in_one_batch_all_count(sqlite_url: str) -> None:
    load(sqlite_url, [ACTIONS, read(0, 1), action("a1"), read(3, 4), read(6, 7)])

    assert covered(sqlite_url) == [(0, 1), (3, 4), (6, 7)]


def test_a_poll_without_actions_moves_coverage_and_writes_once(sqlite_url: str) -> None:
    load(sqlite_url, [ACTIONS, action("a1"), read(0, 1)])
    before = len(query(sqlite_url, "SELECT * FROM _crm_commits"))

    states = load(sqlite_url, [ACTIONS, read(1, 2), read(1, 2), read(1, 3)]).states

    assert covered(sqlite_url) == [(0, 3)]
    # One transaction stores the coverage, and one ends the run.
    assert len(query(sqlite_url, "SELECT * FROM _crm_commits")) == before + 2
    assert len(states) == 1


def test_coverage_is_kept_per_merchant_and_types(sqlite_url: str) -> None:
    load(sqlite_url, [ACTIONS, action("a1"), read(0, 2), read(0, 4, action_types=["B", "A"]), read(0, 5, merchant="m")])

    assert covered(sqlite_url) == [(0, 2)]
    assert covered(sqlite_url, action_types='["A", "B"]') == [(0, 4)]
    assert covered(sqlite_url, merchant="m") == [(0, 5)]


def test_a_warehouse_that_lacks_what_earlier_runs_have_read_has_a_hole(sqlite_url: str) -> None:
    load(sqlite_url, [ACTIONS, action("a1"), read(4, 6)])

    beginning, interval = covered(sqlite_url)
    assert beginning == (0, pytest.approx(0, abs=1e-6))
    assert interval == (4, 6)


def test_a_load_warns_of_times_that_no_run_has_read(sqlite_url: str, caplog: pytest.LogCaptureFixture) -> None:
    load(sqlite_url, [ACTIONS, action("a1"), read(0, 5), read(7, 8), action("a2"), read(5, 7)])
    assert "never read" not in caplog.text

    load(sqlite_url, [ACTIONS, read(10, 11), read(13, 14)])
    assert (
        "actions between 2026-10-01 08:00 and 2026-10-01 10:00 UTC were never read (2 h) (and 1 more interval); "
        "crm-balances coverage shows how to read these actions" in caplog.text
    )

    caplog.clear()
    load(sqlite_url, [ACTIONS, read(0, 9, merchant="another")])
    assert "never read" not in caplog.text
    load(sqlite_url, [ACTIONS, read(8, 13)])
    assert "never read" not in caplog.text


@pytest.mark.parametrize(
    "value",
    [
        pytest.param({"bookmarks": {"actions": {"replication_key_value": hour(3)}}}, id="of-another-tap"),
        pytest.param(bookmark("start", hour(3)), id="not-a-time"),
        pytest.param(bookmark(hour(1), 5), id="bookmark-is-a-number"),
        pytest.param(bookmark(hour(3), hour(1)), id="ends-before-it-begins"),
        pytest.param(bookmark(hour(1), hour(3), replication_key="updatedAt"), id="of-another-time"),
        pytest.param(bookmark(hour(1), hour(3), action_types="ORDER"), id="types-are-text"),
        pytest.param(bookmark(hour(1), hour(3), action_types=[1]), id="a-type-is-a-number"),
        pytest.param(bookmark(hour(1), hour(3), merchant=5), id="merchant-is-a-number"),
        pytest.param(bookmark(hour(1), hour(3), read=[]), id="nothing-was-read"),
        pytest.param(bookmark(hour(1), hour(3), read=None), id="read-is-null"),
        pytest.param(bookmark(hour(1), hour(3), read=[[hour(1)]]), id="read-without-an-end"),
        pytest.param(bookmark(None, hour(3), read=[[hour(1), hour(2)]]), id="without-its-beginning"),
        pytest.param({"bookmarks": {"actions": 5}}, id="bookmark-is-no-object"),
        pytest.param({"bookmarks": []}, id="bookmarks-are-a-list"),
        pytest.param({}, id="empty"),
    ],
)
def test_a_state_in_another_form_than_the_taps_covers_nothing(value: dict[str, Any]) -> None:
    assert claims_of(value) == {}


def test_a_state_covers_nothing_after_its_bookmark(sqlite_url: str) -> None:
    claims = [[hour(1), hour(5)], [hour(6), hour(9)]]

    load(sqlite_url, [ACTIONS, action("a1"), state(bookmark(hour(1), hour(3), read=claims))])

    assert covered(sqlite_url) == [(1, 3)]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        pytest.param({"stream_maps": {"actions": {"__filter__": "type == 'X'"}}}, [], id="filtered"),
        pytest.param({"stream_maps": {"*": {"__filter__": "True"}}}, [], id="filtered-by-a-pattern"),
        pytest.param({"stream_maps": {"actions": {"__alias__": "events"}}}, [], id="to-another-table"),
        pytest.param({"stream_maps": {"actions": {"metadata": None}}}, [], id="without-points"),
        pytest.param({"stream_maps": {"actions": {"note": "'x'"}}}, [(0, 1)], id="changed"),
        pytest.param({"stream_maps": {"awards": {"__filter__": "True"}}}, [(0, 1)], id="of-another-stream"),
    ],
)
def test_coverage_does_not_count_what_a_stream_map_may_drop(
    sqlite_url: str, settings: dict[str, Any], expected: list[tuple[float, float]]
) -> None:
    load(sqlite_url, [ACTIONS, action("a1"), read(0, 1)], **settings)

    assert covered(sqlite_url) == expected


def test_a_run_that_does_not_load_actions_covers_nothing(sqlite_url: str) -> None:
    load(sqlite_url, [AWARDS, snapshot(), read(0, 1)])

    assert covered(sqlite_url) == []


def test_a_batch_that_fails_covers_nothing(warehouse_url: str, tmp_path: Path) -> None:
    load(warehouse_url, [ACTIONS, action("a0", award="w0", user="u0"), read(0, 1)])
    execute(warehouse_url, "CREATE UNIQUE INDEX one_award_per_user ON award_balances (user_id)")

    failed = run_target(
        warehouse_url, tmp_path, ACTIONS, action("a1", award="w1"), action("a2", award="w2"), read(1, 2)
    )

    assert failed.returncode == 1
    assert covered(warehouse_url) == [(0, 1)]


def test_coverage_is_not_ahead_of_the_rows_before_a_state(sqlite_url: str, tmp_path: Path) -> None:
    with running_target(sqlite_url, tmp_path, batch_size_rows=2) as target_crm:
        target_crm.send(ACTIONS, action("a1"), read(0, 1), action("a2"), action("a3"), read(0, 2))
        target_crm.next_state()
        target_crm.kill()
        target_crm.wait()

    assert covered(sqlite_url) == [(0, 1)]


# The arithmetic.

intervals = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=8)


def as_interval(edges: tuple[int, int]) -> Interval:
    return Interval(*(MIDNIGHT + timedelta(hours=edge) for edge in edges))


def points(found: list[Interval]) -> set[int]:
    """The hours in intervals, each of which includes its end but not its beginning."""
    return {
        number
        for each in found
        for number in range(31)
        if each.after < MIDNIGHT + timedelta(hours=number) <= each.until
    }


@pytest.mark.parametrize(
    ("start", "end", "is_across", "is_within"),
    [
        pytest.param(0, 1, False, False, id="ends-where-it-begins"),
        pytest.param(0, 2, True, False, id="ends-in-it"),
        pytest.param(1, 3, True, True, id="as-long-as-it"),
        pytest.param(2, 4, True, False, id="begins-in-it"),
        pytest.param(3, 4, False, False, id="begins-where-it-ends"),
    ],
)
def test_a_balance_change_is_across_an_interval_if_a_moment_of_it_is_inside(
    start: int, end: int, is_across: bool, is_within: bool
) -> None:
    hours = [MIDNIGHT + timedelta(hours=number) for number in range(5)]
    interval = Interval(hours[1], hours[3])
    assert overlaps(hours[start], hours[end], interval) == is_across
    assert is_inside(hours[start], hours[end], interval) == is_within


@given(intervals)
def test_a_union_has_the_same_instants_and_no_two_intervals_touch(edges: list[tuple[int, int]]) -> None:
    given_intervals = [as_interval(each) for each in edges]
    merged = union(given_intervals)

    assert points(merged) == points(given_intervals)
    assert all(one.until < other.after for one, other in pairwise(merged))
    assert all(each.after < each.until for each in merged)


@given(intervals, st.tuples(st.integers(0, 30), st.integers(0, 30)))
def test_holes_are_the_parts_of_a_span_that_no_interval_covers(
    edges: list[tuple[int, int]], span: tuple[int, int]
) -> None:
    merged = union(map(as_interval, edges))
    holes = between(merged, as_interval(span))

    assert points(holes) == points([as_interval(span)]) - points(merged)
    assert holes == union(holes)


LOYALTY = ("AWARD_POINTS_REFUNDED", "REDEEM_PERK", "REWARD_EARNED")
EARNED, REDEEMED = ("REWARD_EARNED",), ("REDEEM_PERK",)
BOTH = REDEEMED + EARNED


@pytest.mark.parametrize(
    ("claims", "expected", "holes", "types"),
    [
        pytest.param({(): [(0, 2), (1, 3)]}, [(0, 3)], [], (), id="no-filter"),
        pytest.param({(): [(0, 2), (4, 6)]}, [(0, 2), (4, 6)], [(2, 4)], (), id="a-hole"),
        pytest.param({LOYALTY: [(0, 2)]}, [(0, 2)], [], LOYALTY, id="only-what-balances-need"),
        pytest.param({EARNED: [(0, 2), (3, 4)]}, [(0, 2), (3, 4)], [(2, 3)], EARNED, id="always-the-same-filter"),
        pytest.param({(): [(0, 2)], EARNED: [(2, 4)]}, [(0, 2)], [(2, 4)], (), id="filtered-later"),
        pytest.param({(): [(0, 2), (4, 6)], EARNED: [(1, 5)]}, [(0, 2), (4, 6)], [(2, 4)], (), id="filtered-between"),
        pytest.param({(): [(2, 4)], EARNED: [(0, 2)]}, [(2, 4)], [(0, 2)], (), id="filtered-earlier"),
        pytest.param({(): [(0, 2)], LOYALTY: [(2, 4)]}, [(0, 4)], [], LOYALTY, id="then-what-balances-need"),
        pytest.param({(): [(0, 2)], ("ORDER",): [(2, 4)]}, [(0, 2)], [(2, 4)], (), id="then-others"),
        pytest.param({EARNED: [(0, 2)], REDEEMED: [(1, 3)]}, [(1, 2)], [(0, 1), (2, 3)], BOTH, id="one-type-each"),
        pytest.param({("ORDER",): [(0, 2)], ("A",): [(2, 3)]}, [], [(0, 3)], (), id="others-each"),
        pytest.param({("ORDER",): [(0, 2)]}, [(0, 2)], [], ("ORDER",), id="only-others"),
    ],
)
def test_a_filter_counts_if_it_includes_the_types_that_balances_need(
    claims: dict[tuple[str, ...], list[tuple[int, int]]],
    expected: list[tuple[int, int]],
    holes: list[tuple[int, int]],
    types: tuple[str, ...],
) -> None:
    read_of = {Scope("m", each): [as_interval(edges) for edges in found] for each, found in claims.items()}

    (found,) = summarize(read_of)

    assert found.intervals == [as_interval(each) for each in expected]
    assert found.holes == [as_interval(each) for each in holes]
    assert found.action_types == types


def test_a_hole_is_divided_only_where_other_types_were_read() -> None:
    redeemed_too = ("ORDER", *REDEEMED)
    claims = {BOTH: [(0, 1), (6, 7)], REDEEMED: [(1, 3)], redeemed_too: [(3, 5)]}

    (found,) = summarize({Scope("m", each): [as_interval(edges) for edges in read] for each, read in claims.items()})

    assert found.parts_of(as_interval((1, 6))) == [(as_interval((1, 5)), EARNED), (as_interval((5, 6)), ())]


def test_the_newest_of_very_many_holes_are_merged_into_one() -> None:
    instants = [as_interval((2 * number, 2 * number + 1)) for number in range(HOLES_MAX + 3)]
    holes = [Interval(one.until, other.after) for one, other in pairwise(instants)]

    found = read_times(summarize({Scope("m"): instants}))

    assert found.holes == (*holes[: HOLES_MAX - 1], Interval(holes[HOLES_MAX - 1].after, holes[-1].until))
    assert found.covered == tuple(between(found.holes, Interval(instants[0].after, instants[-1].until)))


def test_several_merchants_are_recognized() -> None:
    read = [as_interval((0, 1))]

    assert not read_times(summarize({Scope("m"): read})).are_several
    assert read_times(summarize({Scope("m"): read, Scope("m2"): read})).are_several


def test_a_summary_without_coverage_is_empty() -> None:
    assert summarize({}) == summarize({Scope(): []}) == []

"""What one run remembers for the next: enough to emit nothing twice, and nothing that anybody could read."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tap_pepper.state.dedupe import BORDER_ROWS_MAX, DIGEST_CHARS, SAMPLE_KEYS_MAX, Border, Census, HourTally

SINCE, RECENT, OLD = "2026-10-01T11:55:00.000Z", "2026-10-01T11:56:00.000Z", "2026-10-01T11:00:00.000Z"
ROW = {"_id": "a", "points": Decimal("0.25"), "name": "Tom Jones"}


@pytest.mark.parametrize(
    ("row", "instant", "admitted"),
    [
        pytest.param(ROW, RECENT, False, id="as-it-was"),
        pytest.param(dict(reversed(ROW.items())), RECENT, False, id="in-another-order"),
        pytest.param({**ROW, "points": Decimal("0.5")}, RECENT, True, id="changed"),
        pytest.param({**ROW, "_id": "b"}, RECENT, True, id="another"),
    ],
)
def test_the_next_run_admits_what_is_new_or_changed(row: dict[str, object], instant: str, admitted: bool) -> None:
    border = Border()
    assert border.admits(ROW, RECENT, SINCE)
    assert Border(border.text(SINCE)).admits(row, instant, SINCE) is admitted


def test_a_row_without_a_time_is_remembered_for_ever() -> None:
    border = Border()
    for _ in range(3):
        border.admits({"_id": "a"}, None, SINCE)
        border = Border(border.text(SINCE))
        assert not border.admits({"_id": "a"}, None, SINCE)


def test_what_the_next_run_will_not_read_again_is_not_kept() -> None:
    border = Border()
    border.admits(ROW, OLD, SINCE)
    border.admits(ROW, RECENT, SINCE)
    assert len(border.text(SINCE)) == DIGEST_CHARS
    assert border.text("2026-10-01T11:57:00.000Z") == ""


def test_a_run_that_has_not_reached_the_bookmark_keeps_what_is_known_beyond() -> None:
    earlier = Border()
    earlier.admits(ROW, RECENT, SINCE)
    now = Border(earlier.text(SINCE))
    assert not Border(now.text(SINCE)).admits(ROW, RECENT, SINCE)
    now.forget_earlier_runs()
    assert now.text(SINCE) == ""


def test_of_too_many_rows_the_newest_are_remembered() -> None:
    border = Border()
    rows = [({"_id": number}, f"2026-10-01T12:{number // 60 % 60:02}:{number % 60:02}.000Z") for number in range(3000)]
    for row, instant in rows:
        border.admits(row, instant, SINCE)
    text = border.text(SINCE)
    assert len(text) == BORDER_ROWS_MAX * DIGEST_CHARS
    known = Border(text)
    assert [known.admits(row, instant, SINCE) for row, instant in (rows[0], rows[-1])] == [True, False]


@pytest.mark.parametrize("text", [None, 5, "", "short", ["a"], {"a": 1}])
def test_a_border_that_is_none_is_empty(text: object) -> None:
    assert Border(text).admits(ROW, RECENT, SINCE)


def test_nothing_of_a_row_can_be_read_in_the_state() -> None:
    border, census = Border(), Census()
    border.admits(ROW, RECENT, SINCE)
    census.count("tom@example.com")
    kept = json.dumps([border.text(SINCE), census.sample()])
    assert "Tom" not in kept
    assert "tom" not in kept


@given(st.sets(st.integers(), max_size=40), st.sets(st.integers(), max_size=40))
def test_a_census_knows_exactly_how_much_of_a_short_list_is_gone(before: set[int], after: set[int]) -> None:
    first, second = Census(), Census()
    for key in before:
        first.count(key)
    second = Census(first.sample())
    for key in [*after, *after]:
        second.count(key)
    expected = 1.0 if not after else len(before - after) / len(before) if before else 0.0
    assert second.vanished_fraction == expected


@given(st.lists(st.text(alphabet="abcXYZ-_", min_size=16, max_size=16), unique=True), st.randoms())
def test_a_tally_of_an_hour_does_not_depend_on_the_order_and_survives_the_state(marks: list[str], random: Any) -> None:
    first, second = HourTally(), HourTally()
    for mark in marks:
        first.add(mark, "2026-10-01T11")
    random.shuffle(marks)
    for mark in marks:
        second.add(mark, "2026-10-01T11")
    assert HourTally(second.kept("2026-10-01T00")).of("2026-10-01T11") == first.of("2026-10-01T11")
    first.add("another-mark-no1", "2026-10-01T11")
    assert first.of("2026-10-01T11") != second.of("2026-10-01T11")
    assert second.kept("2026-10-01T12") == {}


@pytest.mark.parametrize("kept", [None, [], {"2026-10-01T11": 5}, {"2026-10-01T11": "a:b"}, {"2026-10-01T11": "1:x"}])
def test_a_tally_that_is_none_is_empty(kept: object) -> None:
    assert HourTally(kept).of("2026-10-01T11") == (0, 0)


def test_a_census_estimates_how_much_of_a_long_list_is_gone() -> None:
    first = Census()
    for key in range(20_000):
        first.count(key)
    assert len(first.sample()) == SAMPLE_KEYS_MAX
    second = Census(first.sample())
    for key in range(6_000, 30_000):
        second.count(key)
    assert second.vanished_fraction == pytest.approx(0.3, abs=0.1)

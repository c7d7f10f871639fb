"""What a run remembers for the next one: only hashes, but enough to emit no row twice."""

from __future__ import annotations

import json
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tap_pepper.raw_json import DIGEST_CHARS, digest
from tap_pepper.state.dedupe import RECENT_ROWS_MAX, SAMPLE_CHARS, SAMPLE_KEYS_MAX, KeySample, RecentRows

SINCE, RECENT, OLD = "2026-10-01T11:55:00.000Z", "2026-10-01T11:56:00.000Z", "2026-10-01T11:00:00.000Z"
ROW = {"_id": "a", "points": Decimal("0.25"), "name": "Tom Jones"}


@pytest.mark.parametrize(
    ("row", "instant", "is_new"),
    [
        pytest.param(ROW, RECENT, False, id="unchanged"),
        pytest.param(dict(reversed(ROW.items())), RECENT, False, id="fields-in-another-order"),
        pytest.param({**ROW, "points": Decimal("0.5")}, RECENT, True, id="changed"),
        pytest.param({**ROW, "_id": "b"}, RECENT, True, id="another-row"),
    ],
)
def test_the_next_run_emits_only_new_and_changed_rows(row: dict[str, object], instant: str, is_new: bool) -> None:
    rows = RecentRows()
    assert rows.add(ROW, RECENT, SINCE)
    assert RecentRows(rows.to_state(SINCE)).add(row, instant, SINCE) is is_new


def test_a_row_without_a_time_is_remembered_forever() -> None:
    rows = RecentRows()
    for _ in range(3):
        rows.add({"_id": "a"}, None, SINCE)
        rows = RecentRows(rows.to_state(SINCE))
        assert not rows.add({"_id": "a"}, None, SINCE)


def test_rows_before_the_next_lookback_are_not_kept() -> None:
    rows = RecentRows()
    rows.add(ROW, OLD, SINCE)
    rows.add(ROW, RECENT, SINCE)
    assert len(rows.to_state(SINCE)) == DIGEST_CHARS
    assert rows.to_state("2026-10-01T11:57:00.000Z") == ""


def test_rows_of_earlier_runs_are_kept_until_this_run_has_read_past_them() -> None:
    earlier = RecentRows()
    earlier.add(ROW, RECENT, SINCE)
    current = RecentRows(earlier.to_state(SINCE))
    assert not RecentRows(current.to_state(SINCE)).add(ROW, RECENT, SINCE)
    current.drop_earlier_runs()
    assert current.to_state(SINCE) == ""


def test_only_the_newest_rows_are_kept_if_there_are_too_many() -> None:
    recent = RecentRows()
    rows = [({"_id": number}, f"2026-10-01T12:{number // 60 % 60:02}:{number % 60:02}.000Z") for number in range(3000)]
    for row, instant in rows:
        recent.add(row, instant, SINCE)
    state = recent.to_state(SINCE)
    assert len(state) == RECENT_ROWS_MAX * DIGEST_CHARS
    restored = RecentRows(state)
    assert [restored.add(row, instant, SINCE) for row, instant in (rows[0], rows[-1])] == [True, False]


@pytest.mark.parametrize("state", [None, 5, "", "short", ["a"], {"a": 1}])
def test_invalid_recent_rows_in_the_state_count_as_none(state: object) -> None:
    assert RecentRows(state).add(ROW, RECENT, SINCE)


def test_the_state_contains_no_readable_part_of_a_row() -> None:
    rows, sample = RecentRows(), KeySample()
    rows.add(ROW, RECENT, SINCE)
    sample.add("tom@example.com")
    kept = json.dumps([rows.to_state(SINCE), sample.to_state()])
    assert "Tom" not in kept
    assert "tom" not in kept


@given(st.sets(st.integers(), max_size=40), st.sets(st.integers(), max_size=40))
def test_a_key_sample_gives_the_exact_missing_fraction_of_a_short_list(before: set[int], after: set[int]) -> None:
    first = KeySample()
    for key in before:
        first.add(key)
    second = KeySample(first.to_state())
    for key in [*after, *after]:
        second.add(key)
    expected = 1.0 if not after else len(before - after) / len(before) if before else 0.0
    assert second.missing_fraction == expected


def test_a_key_sample_of_a_long_list_does_not_depend_on_the_order() -> None:
    first, second = KeySample(), KeySample()
    for key in range(3 * SAMPLE_KEYS_MAX):
        first.add(key)
        second.add(3 * SAMPLE_KEYS_MAX - 1 - key)
    assert first.to_state() == second.to_state()


def test_a_key_sample_of_an_earlier_version_is_read() -> None:
    sample = KeySample([digest(key) for key in range(4)])
    for key in range(3):
        sample.add(key)
    assert (sample.missing_fraction, sample.has_all_known) == (0.25, False)
    sample.add(3)
    assert sample.has_all_known


def test_a_key_sample_estimates_the_missing_fraction_of_a_long_list() -> None:
    first = KeySample()
    for key in range(20_000):
        first.add(key)
    assert len(first.to_state()) == SAMPLE_KEYS_MAX * SAMPLE_CHARS
    second = KeySample(first.to_state())
    for key in range(6_000, 30_000):
        second.add(key)
    assert second.missing_fraction == pytest.approx(0.3, abs=0.1)

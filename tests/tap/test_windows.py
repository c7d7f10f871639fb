"""Instants, windows and bookmarks."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from fractions import Fraction
from itertools import islice, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tap_pepper.windows import (
    GROWTH_MAX,
    PAGES_WANTED,
    SHRINK_MAX,
    WINDOW_SECONDS_MIN,
    Window,
    advance_bookmark,
    hour_window,
    hours_due,
    is_at_or_after,
    next_hour,
    next_window_seconds,
    parse_bound,
    resume_after,
    split_into_windows,
    subtract_seconds,
    to_bound,
    to_instant,
    upper_bound,
)

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
YEAR_MS = 365 * 24 * 3600 * 1000
moments = st.integers(20 * YEAR_MS, 120 * YEAR_MS).map(lambda at_ms: EPOCH + timedelta(milliseconds=at_ms))
bounds = moments.map(to_bound)


@pytest.mark.parametrize(
    ("written", "instant"),
    [
        pytest.param("2021-03-05T13:37:52.194Z", "2021-03-05T13:37:52.194Z", id="as-Pepper-writes-it"),
        pytest.param("2021-03-05T13:37:52Z", "2021-03-05T13:37:52.000Z", id="no-fraction"),
        pytest.param("2021-03-05T13:37Z", "2021-03-05T13:37:00.000Z", id="no-seconds"),
        pytest.param("2021-03-05T13:37:52.1Z", "2021-03-05T13:37:52.100Z", id="one-digit"),
        pytest.param("2021-03-05T13:37:52.1940001Z", "2021-03-05T13:37:52.1940001Z", id="finer-digits-are-kept"),
        pytest.param("2021-03-05T13:37:52.194000Z", "2021-03-05T13:37:52.194Z", id="trailing-zeros-are-dropped"),
        pytest.param("2021-03-05T13:37:52.194", "2021-03-05T13:37:52.194Z", id="no-offset-is-UTC"),
        pytest.param("2021-03-05T13:37:52.194+00:00", "2021-03-05T13:37:52.194Z", id="offset-zero"),
        pytest.param("2021-03-05T13:37:52.194+05:30", "2021-03-05T08:07:52.194Z", id="offset-east"),
        pytest.param("2021-03-05T23:37:52.194-0800", "2021-03-06T07:37:52.194Z", id="offset-west-over-midnight"),
        pytest.param("2020-02-29 00:00:00,5z", "2020-02-29T00:00:00.500Z", id="blank-comma-and-small-z"),
    ],
)
def test_timestamps_become_instants(written: str, instant: str) -> None:
    assert to_instant(written) == instant


@pytest.mark.parametrize(
    "value",
    [
        pytest.param(None, id="null"),
        pytest.param(1614951472194, id="number"),
        pytest.param("", id="empty"),
        pytest.param("now", id="a-word"),
        pytest.param("2021-03-05", id="date-only"),
        pytest.param("2024-13-01T00:00:00.000Z", id="month-13"),
        pytest.param("2021-02-29T00:00:00.000Z", id="not-a-leap-year"),
        pytest.param("2021-03-05T25:00:00.000Z", id="hour-25"),
        pytest.param("0001-01-01T00:00:00.000+09:00", id="before-the-calendar"),
        pytest.param("٢٠٢١-03-05T13:37:52.194Z", id="digits-of-another-script"),
    ],
)
def test_invalid_timestamps_have_no_instant(value: object) -> None:
    assert to_instant(value) is None


@given(st.text(max_size=40) | st.from_regex(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:.,+Z-]{0,20}", fullmatch=True))
def test_parsing_never_fails_unexpectedly(text: str) -> None:
    instant = to_instant(text)
    assert instant is None or to_instant(instant) == instant
    try:
        assert len(parse_bound(text)) == len("2021-03-05T13:37:52.194Z")
    except ValueError:
        assert instant is None


@given(
    st.lists(
        st.tuples(moments, st.integers(0, 10**9 - 1), st.sampled_from([9, 12]), st.integers(-14 * 60, 14 * 60)),
        min_size=2,
        max_size=2,
    )
)
def test_instants_sort_as_text_in_order_of_time(drawn: list[tuple[datetime, int, int, int]]) -> None:
    exact, texts = [], []
    for moment, nanoseconds, digits, offset_minutes in drawn:
        base = moment.replace(microsecond=0)
        local = base.astimezone(timezone(timedelta(minutes=offset_minutes)))
        exact.append(Fraction(int(base.timestamp())) + Fraction(nanoseconds, 10**9))
        fraction = f"{nanoseconds:09}".ljust(digits, "0")
        offset = f"{'-' if offset_minutes < 0 else '+'}{abs(offset_minutes) // 60:02}:{abs(offset_minutes) % 60:02}"
        texts.append(to_instant(f"{local.replace(tzinfo=None).isoformat()}.{fraction}{offset}"))
    first, second = texts
    assert first is not None
    assert second is not None
    assert (first[:-1] < second[:-1]) == (exact[0] < exact[1])
    assert (first == second) == (exact[0] == exact[1])


@pytest.mark.parametrize(
    ("written", "bound"),
    [
        pytest.param("2026-01-01", "2026-01-01T00:00:00.000Z", id="date"),
        pytest.param("2026-01-01T06:00:00+02:00", "2026-01-01T04:00:00.000Z", id="date-time"),
        pytest.param("2026-01-01T06:00:00.1239Z", "2026-01-01T06:00:00.123Z", id="finer-than-a-bound"),
        pytest.param("20260101T060000Z", "2026-01-01T06:00:00.000Z", id="basic-form"),
        pytest.param("2026-W01-4", "2026-01-01T00:00:00.000Z", id="week-date"),
    ],
)
def test_a_bound_is_parsed_from_any_form_of_iso_8601(written: str, bound: str) -> None:
    assert parse_bound(written) == bound


@pytest.mark.parametrize(
    "text",
    ["", "now", "yesterday", "12:00", "P1D", "2026-13-01", "1700000000", None, 5, "0001-01-01T00:00:00+02:00"],
)
def test_an_invalid_date_is_not_a_bound(text: object) -> None:
    with pytest.raises(ValueError, match="expected an ISO 8601 date or date-time"):
        parse_bound(text)


@given(bounds, bounds, st.integers(1, 24 * 400))
def test_windows_are_adjacent_and_complete_and_never_too_long(after: str, until: str, hours: int) -> None:
    cut = list(islice(split_into_windows(after, until, lambda: hours * 3600), 2000))
    if after >= until:
        assert cut == []
        return
    assert cut[0].after == after
    assert cut[-1].until == until or len(cut) == 2000
    assert all(first.until == second.after for first, second in pairwise(cut))
    for window in cut:
        length = datetime.fromisoformat(window.until[:-1]) - datetime.fromisoformat(window.after[:-1])
        assert timedelta(0) < length <= timedelta(hours=hours)


lengths = st.floats(WINDOW_SECONDS_MIN, 8784 * 3600)


@given(lengths, st.integers(1, 10**6), st.integers(1, 8784))
def test_the_length_of_a_window_stays_between_its_limits(length: float, pages: int, hours: int) -> None:
    assert WINDOW_SECONDS_MIN <= next_window_seconds(length, pages, hours * 3600) <= hours * 3600


@given(lengths, st.integers(1, 10**6), st.integers(1, 10**6))
def test_more_pages_never_make_a_window_longer(length: float, pages: int, more: int) -> None:
    assert next_window_seconds(length, pages + more, 10**9) <= next_window_seconds(length, pages, 10**9)


@given(lengths, st.integers(1, 10**6))
def test_the_length_of_a_window_changes_gradually(length: float, pages: int) -> None:
    factor = next_window_seconds(length, pages, 10**9) / length
    assert factor <= GROWTH_MAX + 1e-9
    assert factor >= 1 / SHRINK_MAX - 1e-9 or next_window_seconds(length, pages, 10**9) == WINDOW_SECONDS_MIN


@given(st.floats(1e-6, 10), lengths)
def test_windows_adapt_to_the_wanted_number_of_pages(pages_a_second: float, length: float) -> None:
    longest = 24 * 3600.0
    for _ in range(12):
        length = next_window_seconds(length, max(1, round(length * pages_a_second)), longest)
    pages = max(1, round(length * pages_a_second))
    assert PAGES_WANTED / 2 <= pages <= PAGES_WANTED * 2 or length in (longest, WINDOW_SECONDS_MIN)


def test_the_length_is_read_before_each_window() -> None:
    lengths_seconds = iter([3600.0, 60.0, 10**9])
    cut = split_into_windows("2026-10-01T00:00:00.000Z", "2026-10-02T00:00:00.000Z", lambda: next(lengths_seconds))
    assert [window.seconds for window in cut] == [3600, 60, 24 * 3600 - 3660]


@given(bounds, st.integers(1, 10**9), st.integers(1, 72), st.data())
def test_each_millisecond_is_in_exactly_one_window(after: str, span_ms: int, hours: int, data: st.DataObject) -> None:
    start = datetime.fromisoformat(after[:-1]).replace(tzinfo=UTC)
    until = to_bound(start + timedelta(milliseconds=span_ms))
    at_ms = data.draw(st.integers(-2, span_ms + 2))
    instant = to_bound(start + timedelta(milliseconds=at_ms))
    holding = [window for window in split_into_windows(after, until, lambda: hours * 3600) if window.contains(instant)]
    assert len(holding) == (1 if 0 < at_ms <= span_ms else 0)


@pytest.mark.parametrize(
    ("instant", "held"),
    [
        pytest.param("2026-10-01T00:00:00.000Z", False, id="at-the-start"),
        pytest.param("2026-10-01T00:00:00.0000004Z", True, id="a-fraction-of-a-millisecond-after-the-start"),
        pytest.param("2026-10-01T00:00:00.001Z", True, id="a-millisecond-after-the-start"),
        pytest.param("2026-10-02T00:00:00.000Z", True, id="at-the-end"),
        pytest.param("2026-10-02T00:00:00.0009Z", True, id="after-the-end-but-in-its-millisecond"),
        pytest.param("2026-10-02T00:00:00.001Z", False, id="a-millisecond-after-the-end"),
        pytest.param("2026-09-30T23:59:59.9999Z", False, id="just-before-the-start"),
    ],
)
def test_a_window_contains_rows_of_any_precision(instant: str, held: bool) -> None:
    assert Window("2026-10-01T00:00:00.000Z", "2026-10-02T00:00:00.000Z").contains(instant) is held


@given(bounds, st.integers(1, 10**8), st.integers(1, 48), st.integers(0, 999_999))
def test_a_window_contains_an_instant_by_its_exact_and_by_its_truncated_time(
    after: str, span_ms: int, hours: int, micros: int
) -> None:
    start = datetime.fromisoformat(after[:-1]).replace(tzinfo=UTC)
    until = to_bound(start + timedelta(milliseconds=span_ms))
    moment = start + timedelta(milliseconds=span_ms // 2, microseconds=micros)
    instant = to_instant(moment.isoformat())
    assert instant is not None
    for window in split_into_windows(after, until, lambda: hours * 3600):
        exact = window.after[:-1] < instant[:-1] <= window.until[:-1]
        cut = window.after < to_bound(moment) <= window.until
        assert window.contains(instant) or not (exact or cut)


@pytest.mark.parametrize(
    ("read_until", "start", "after"),
    [
        pytest.param(None, None, "2026-10-01T11:55:00.000Z", id="first-run-reads-the-lookback"),
        pytest.param(None, "2026-01-01T00:00:00.000Z", "2026-01-01T00:00:00.000Z", id="first-run-from-start-date"),
        pytest.param("2026-10-01T11:30:00.000Z", None, "2026-10-01T11:25:00.000Z", id="read-until-minus-the-lookback"),
        pytest.param(
            "2026-10-01T11:30:00.000Z",
            "2026-10-01T11:40:00.000Z",
            "2026-10-01T11:25:00.000Z",
            id="start-date-after-the-bookmark",
        ),
        pytest.param(None, "1815-12-10T00:00:00.000Z", "1970-01-01T00:00:00.000Z", id="start-before-everything"),
    ],
)
def test_a_run_resumes_where_it_cannot_miss_an_action(read_until: str | None, start: str | None, after: str) -> None:
    until = "2026-10-01T12:00:00.000Z"
    assert resume_after(read_until=read_until, start=start, until=until, lookback_seconds=300) == after


@given(st.lists(bounds, min_size=1, max_size=8))
def test_a_bookmark_never_goes_back(drained: list[str]) -> None:
    bookmark = None
    for bound in drained:
        before, bookmark = bookmark, advance_bookmark(bookmark, bound)
        assert before is None or bookmark >= before
    assert bookmark == max(drained)


@given(moments, st.integers(0, 10**6))
def test_a_millisecond_is_in_the_window_of_its_hour_only(moment: datetime, hours: int) -> None:
    instant = to_bound(moment)
    assert hour_window(instant[:13]).contains(instant)
    assert not hour_window(to_bound(moment - timedelta(hours=1))[:13]).contains(instant)
    assert not hour_window(to_bound(moment + timedelta(hours=1))[:13]).contains(instant)


@pytest.mark.parametrize(
    ("until", "age_hours", "due"),
    [
        pytest.param("2026-10-01T13:59:59.999Z", 1, ["2026-10-01T11"], id="the-hour-before-is-not-old-enough"),
        pytest.param("2026-10-01T14:00:00.000Z", 1, ["2026-10-01T11", "2026-10-01T12"], id="just-old-enough"),
        pytest.param("2026-10-01T12:30:00.000Z", 1, [], id="none-yet"),
        pytest.param(
            "2026-10-09T00:00:00.000Z", 1, [f"2026-10-01T{hour}" for hour in (11, 12, 13)], id="at-most-three"
        ),
    ],
)
def test_hours_are_due_when_they_are_old_enough(until: str, age_hours: int, due: list[str]) -> None:
    assert hours_due("2026-10-01T11", until, age_hours, 3) == due


@pytest.mark.parametrize(
    ("bound", "hour"),
    [
        pytest.param("2026-10-01T11:00:00.000Z", "2026-10-01T11", id="at-its-beginning"),
        pytest.param("2026-10-01T11:00:00.001Z", "2026-10-01T12", id="just-after"),
        pytest.param("2026-12-31T23:59:59.999Z", "2027-01-01T00", id="over-the-year"),
    ],
)
def test_the_next_hour_begins_at_the_bound_or_after_it(bound: str, hour: str) -> None:
    assert next_hour(bound) == hour


def test_the_upper_bound_is_the_clock_minus_settle_seconds() -> None:
    clock = datetime(2026, 10, 1, 14, 0, 3, 999_999, tzinfo=timezone(timedelta(hours=2)))
    assert upper_bound(clock, 5) == "2026-10-01T11:59:58.999Z"


def test_a_bound_is_never_before_1970() -> None:
    assert subtract_seconds("1970-01-01T00:00:10.000Z", 3600) == "1970-01-01T00:00:00.000Z"


@pytest.mark.parametrize(
    ("instant", "reached"),
    [
        pytest.param("2026-10-01T00:00:00.000Z", True, id="at-the-bound"),
        pytest.param("2026-10-01T00:00:00.0000001Z", True, id="a-fraction-of-a-millisecond-after"),
        pytest.param("2026-09-30T23:59:59.999Z", False, id="before"),
    ],
)
def test_an_instant_is_compared_with_a_bound_exactly(instant: str, reached: bool) -> None:
    assert is_at_or_after(instant, "2026-10-01T00:00:00.000Z") is reached

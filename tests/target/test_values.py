"""Values: what each kind of column takes, and what it refuses without repeating it."""

from __future__ import annotations

from datetime import date, datetime, timezone
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest

from target_crm.records import values

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.mark.parametrize(
    ("convert", "value", "expected"),
    [
        pytest.param(values.identifier, "Ünï-1 ", "Ünï-1 ", id="an-id-is-kept-letter-by-letter"),
        pytest.param(values.identifier, 10**20, "100000000000000000000", id="an-id-of-digits"),
        pytest.param(values.text, "", "", id="empty-text-is-text"),
        pytest.param(values.text, "🎁", "🎁", id="emoji"),
        pytest.param(values.integer, -(2**63) + 1, -(2**63) + 1, id="a-large-integer"),
        pytest.param(values.integer, Decimal("3.0"), 3, id="a-whole-decimal-is-an-integer"),
        pytest.param(values.number, 3, Decimal(3), id="an-integer-is-a-number"),
        pytest.param(values.number, Decimal("1E+300"), Decimal("1E+300"), id="a-huge-number"),
        pytest.param(values.number, Decimal("0E-400"), Decimal(0), id="zero-however-written"),
        pytest.param(values.number, Decimal("0E-99999"), Decimal(0), id="zero-however-long"),
        pytest.param(values.boolean, False, False, id="false"),
        pytest.param(values.day, "2024-02-29", date(2024, 2, 29), id="a-leap-day"),
        pytest.param(
            values.instant,
            "2026-10-25T01:30:00+02:00",
            datetime(2026, 10, 24, 23, 30, tzinfo=timezone.utc),
            id="an-instant-is-in-utc",
        ),
        pytest.param(values.json_text, {"a": [1, Decimal("1.50"), None, "é"]}, '{"a":[1,1.50,null,"é"]}', id="json"),
        pytest.param(values.any_text, "plain", "plain", id="text-among-other-kinds-is-not-quoted"),
        pytest.param(values.any_text, True, "true", id="a-boolean-among-other-kinds"),
        pytest.param(values.any_text, Decimal("1.50"), "1.50", id="a-number-among-other-kinds"),
    ],
)
def test_a_value_of_the_kind_is_taken(convert: Callable[[Any], Any], value: Any, expected: Any) -> None:
    result = convert(value)

    assert result == expected
    assert type(result) is type(expected)


@pytest.mark.parametrize(
    ("convert", "value", "reason"),
    [
        pytest.param(values.identifier, {"secret": 1}, "is an object, expected an id", id="object-as-id"),
        pytest.param(values.text, 5, "is a number, expected text", id="number-as-text"),
        pytest.param(values.text, "secret\0", "holds a NUL character", id="nul"),
        pytest.param(values.any_text, "secret\0", "holds a NUL character", id="nul-among-other-kinds"),
        pytest.param(values.integer, True, "is a boolean, expected a whole number", id="boolean-as-integer"),
        pytest.param(values.integer, "5", "is text, expected a whole number", id="text-as-integer"),
        pytest.param(values.integer, Decimal("1.5"), "is a number, expected a whole number", id="fraction"),
        pytest.param(values.integer, 2**63, "is out of the range of 64 bits", id="65-bits"),
        pytest.param(values.number, False, "is a boolean, expected a number", id="boolean-as-number"),
        pytest.param(values.number, "1.5", "is text, expected a number", id="text-as-number"),
        pytest.param(values.number, Decimal("1E+400"), "is out of range", id="beyond-a-double"),
        pytest.param(values.number, Decimal("NaN"), "is out of range", id="nan"),
        pytest.param(
            values.number,
            Decimal(f"1.{'0' * 16_384}"),
            "has more than 16,383 decimal places",
            id="more-places-than-postgresql-takes",
        ),
        pytest.param(
            values.points, Decimal("Infinity"), "is out of range, expected points below 100,000,000,000", id="∞"
        ),
        pytest.param(
            values.points,
            Decimal("-1E+999999999"),
            "is out of range, expected points below 100,000,000,000",
            id="points-of-a-billion-digits",
        ),
        pytest.param(
            values.integer,
            Decimal("1E+999999999"),
            "is a number, expected a whole number",
            id="an-integer-of-a-billion-digits",
        ),
        pytest.param(values.boolean, 1, "is a number, expected a boolean", id="one-is-not-true"),
        pytest.param(values.boolean, "true", "is text, expected a boolean", id="a-word-is-not-true"),
        pytest.param(values.day, "2023-02-29", "is not an ISO 8601 date", id="no-leap-day"),
        pytest.param(values.day, 5, "is not an ISO 8601 date", id="number-as-date"),
        pytest.param(values.instant, "secret", "is not an ISO 8601 time", id="word-as-time"),
        pytest.param(values.instant, 5, "is a number, expected an ISO 8601 time", id="number-as-time"),
        pytest.param(values.instant, "9999-12-31T23:59:59-01:00", "is not an ISO 8601 time", id="after-the-year-9999"),
    ],
)
def test_another_value_is_refused_in_words_that_do_not_repeat_it(
    convert: Callable[[Any], Any], value: Any, reason: str
) -> None:
    with pytest.raises(values.Invalid) as refusal:
        convert(value)

    assert str(refusal.value) == reason


@pytest.mark.parametrize("zeros", [0, 4, 43, 16_384])
def test_points_are_as_many_places_as_a_warehouse_keeps_however_they_are_written(zeros: int) -> None:
    assert str(values.points(Decimal(f"7.{'0' * zeros}"))) == "7.0000"


@pytest.mark.parametrize(
    ("text", "instant"),
    [
        pytest.param("2026-10-01", "2026-10-01T00:00:00+00:00", id="date"),
        pytest.param("2026-10-01T10:30Z", "2026-10-01T10:30:00+00:00", id="minutes"),
        pytest.param("2026-10-01T10:30+02:00", "2026-10-01T08:30:00+00:00", id="minutes-with-an-offset"),
        pytest.param("2026-10-01 10:30", "2026-10-01T10:30:00+00:00", id="minutes-without"),
    ],
)
def test_a_time_may_be_as_coarse_as_a_day(text: str, instant: str) -> None:
    assert values.instant(text).isoformat() == instant

"""Conversions of JSON values: the values that each kind of column takes, and the reasons for invalid ones."""

from __future__ import annotations

from datetime import UTC, date, datetime
from decimal import Decimal
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from target_crm.records import values

if TYPE_CHECKING:
    from collections.abc import Callable


cents = partial(values.decimal, digits=11, places=2)


@pytest.mark.parametrize(
    ("convert", "value", "expected"),
    [
        pytest.param(values.identifier, "Ünï-1 ", "Ünï-1 ", id="id-is-unchanged"),
        pytest.param(values.identifier, 10**20, "100000000000000000000", id="id-as-number"),
        pytest.param(values.identifier, "x" * 255, "x" * 255, id="longest-id"),
        pytest.param(values.text, "", "", id="empty-text"),
        pytest.param(values.text, "🎁", "🎁", id="emoji"),
        pytest.param(values.integer, -(2**63) + 1, -(2**63) + 1, id="large-integer"),
        pytest.param(values.integer, Decimal("3.0"), 3, id="decimal-without-fraction-as-integer"),
        pytest.param(values.number, 3, Decimal(3), id="integer-as-number"),
        pytest.param(values.number, Decimal("1E+300"), Decimal("1E+300"), id="huge-number"),
        pytest.param(values.number, Decimal("0E-400"), Decimal(0), id="zero-with-an-exponent"),
        pytest.param(values.number, Decimal("0E-99999"), Decimal(0), id="zero-with-a-large-exponent"),
        pytest.param(values.whole, Decimal("1E+37"), 10**37, id="38-digits"),
        pytest.param(cents, Decimal("0.30000000000000004"), Decimal("0.30"), id="noise-of-a-double"),
        pytest.param(values.points, Decimal("0.30000000000000004"), Decimal("0.3"), id="noise-of-points"),
        pytest.param(values.points, "-16.299999999999997", Decimal("-16.3"), id="noise-of-points-in-text"),
        pytest.param(values.double, Decimal("0.1"), Decimal("0.1"), id="double"),
        pytest.param(values.double, 2**53 + 1, Decimal(2**53), id="whole-double"),
        pytest.param(cents, Decimal("-999999999.99"), Decimal("-999999999.99"), id="all-digits-of-a-decimal"),
        pytest.param(values.boolean, False, False, id="false"),
        pytest.param(values.day, "2024-02-29", date(2024, 2, 29), id="leap-day"),
        pytest.param(
            values.instant,
            "2026-10-25T01:30:00+02:00",
            datetime(2026, 10, 24, 23, 30, tzinfo=UTC),
            id="time-is-converted-to-utc",
        ),
        pytest.param(values.json_text, {"a": [1, Decimal("1.50"), None, "é"]}, '{"a":[1,1.50,null,"é"]}', id="json"),
        pytest.param(values.any_text, "plain", "plain", id="any-text-is-not-quoted"),
        pytest.param(values.any_text, True, "true", id="any-boolean"),
        pytest.param(values.any_text, Decimal("1.50"), "1.50", id="any-number"),
    ],
)
def test_a_valid_value_is_converted(convert: Callable[[Any], Any], value: Any, expected: Any) -> None:
    result = convert(value)

    assert result == expected
    assert type(result) is type(expected)


@pytest.mark.parametrize(
    ("convert", "value", "reason"),
    [
        pytest.param(values.identifier, {"secret": 1}, "is an object, expected an id", id="object-as-id"),
        pytest.param(values.text, 5, "is a number, expected text", id="number-as-text"),
        pytest.param(values.text, "secret\0", "holds a NUL character", id="nul"),
        pytest.param(values.any_text, "secret\0", "holds a NUL character", id="any-nul"),
        pytest.param(values.integer, True, "is a boolean, expected a whole number", id="boolean-as-integer"),
        pytest.param(values.integer, "5", "is text, expected a whole number", id="text-as-integer"),
        pytest.param(values.integer, Decimal("1.5"), "has decimal places, expected a whole number", id="fraction"),
        pytest.param(
            values.integer,
            2**63,
            "is out of the range of 64 bits, -9223372036854775808 to 9223372036854775807",
            id="65-bits",
        ),
        pytest.param(values.whole, 10**38, "has more than 38 digits", id="39-digits"),
        pytest.param(cents, Decimal("0.125"), "has more than 2 decimal places", id="half-a-cent"),
        pytest.param(
            cents,
            Decimal("123456789.010000000000000001"),
            "has more than 2 decimal places",
            id="more-digits-than-a-double",
        ),
        pytest.param(
            cents, 10**9, "is out of range, expected at most 9 digits before the point", id="decimal-out-of-range"
        ),
        pytest.param(
            cents,
            Decimal("999999999.999999999"),
            "has more than 2 decimal places",
            id="decimal-rounded-out-of-range",
        ),
        pytest.param(values.number, False, "is a boolean, expected a number", id="boolean-as-number"),
        pytest.param(values.number, "1.5", "is text, expected a number", id="text-as-number"),
        pytest.param(values.number, Decimal("1E+400"), "is out of the range of a double", id="larger-than-a-double"),
        pytest.param(values.number, Decimal("NaN"), "is out of the range of a double", id="nan"),
        pytest.param(
            values.number,
            Decimal(f"1.{'0' * 16_384}"),
            "has more than 16,383 decimal places",
            id="more-places-than-postgresql-allows",
        ),
        pytest.param(
            values.points, Decimal("0.30000000000004"), "has more than 4 decimal places", id="more-than-noise-in-points"
        ),
        pytest.param(values.points, Decimal("0.12345"), "has more than 4 decimal places", id="points-with-five-places"),
        pytest.param(
            values.points,
            Decimal("99999999999.999999"),
            "has more than 4 decimal places",
            id="points-rounded-out-of-range",
        ),
        pytest.param(
            values.points, Decimal("Infinity"), "is out of range, expected points below 100,000,000,000", id="infinity"
        ),
        pytest.param(
            values.points,
            Decimal("-1E+999999999"),
            "is out of range, expected points below 100,000,000,000",
            id="points-with-a-billion-digits",
        ),
        pytest.param(
            values.integer,
            Decimal("1E+999999999"),
            "has more than 38 digits",
            id="integer-with-a-billion-digits",
        ),
        pytest.param(values.boolean, 1, "is a number, expected a boolean", id="number-as-boolean"),
        pytest.param(values.boolean, "true", "is text, expected a boolean", id="text-as-boolean"),
        pytest.param(
            values.day,
            "2023-02-29",
            "is not an ISO 8601 date: day is out of range for month",
            id="29-february-of-a-common-year",
        ),
        pytest.param(values.day, 5, "is a number, expected an ISO 8601 date", id="number-as-date"),
        pytest.param(values.instant, "secret", "is not an ISO 8601 time", id="text-as-time"),
        pytest.param(values.instant, 5, "is a number, expected an ISO 8601 time", id="number-as-time"),
        pytest.param(
            values.instant,
            "9999-12-31T23:59:59-01:00",
            "is before the year 1 or after the year 9999 in UTC",
            id="after-the-year-9999",
        ),
    ],
)
def test_the_reason_for_an_invalid_value_does_not_repeat_it(
    convert: Callable[[Any], Any], value: Any, reason: str
) -> None:
    with pytest.raises(values.Invalid) as error:
        convert(value)

    assert str(error.value) == reason


@pytest.mark.parametrize("zeros", [0, 4, 43, 16_384])
def test_points_have_four_places_however_many_zeros_were_sent(zeros: int) -> None:
    assert str(values.points(Decimal(f"7.{'0' * zeros}"))) == "7.0000"


@pytest.mark.parametrize(
    ("text", "instant"),
    [
        pytest.param("2026-10-01", "2026-10-01T00:00:00+00:00", id="date"),
        pytest.param("2026-10-01T10:30Z", "2026-10-01T10:30:00+00:00", id="minutes"),
        pytest.param("2026-10-01T10:30+02:00", "2026-10-01T08:30:00+00:00", id="minutes-with-an-offset"),
        pytest.param("2026-10-01 10:30", "2026-10-01T10:30:00+00:00", id="minutes-without-an-offset"),
    ],
)
def test_a_time_may_lack_seconds_or_be_a_date(text: str, instant: str) -> None:
    assert values.instant(text).isoformat() == instant

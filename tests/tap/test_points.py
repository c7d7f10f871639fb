"""The conversion of points to numbers."""

from __future__ import annotations

import pytest

from tap_pepper.points import convert_action_points, convert_award_points
from tap_pepper.raw_json import JsonText, Row


def text_of(row: Row) -> dict[str, str]:
    return {name: bytes(value).decode() for name, value in row.items()}


@pytest.mark.parametrize(
    ("points", "number"),
    [
        pytest.param("2.50", "2.50", id="number"),
        pytest.param("1e400", "1e400", id="any-number"),
        pytest.param("null", "null", id="null"),
        pytest.param('"2.50"', "2.50", id="decimal-text"),
        pytest.param('"-7"', "-7", id="negative-text"),
        pytest.param('"12345678901234567890.25"', "12345678901234567890.25", id="many-digits"),
        pytest.param('"+007.10"', "7.10", id="sign-and-zeros-that-JSON-forbids"),
        pytest.param('"00"', "0", id="zeros"),
        pytest.param('"\\u0032"', "2", id="escaped-digit"),
    ],
)
def test_points_become_numbers_with_the_same_digits(points: str, number: str) -> None:
    award = {"points": JsonText(points.encode())}
    convert_award_points(award)
    assert text_of(award) == {"points": number}
    action = {"metadata": JsonText(f'{{"pointsAdded" : {points},"other":"2"}}'.encode())}
    convert_action_points(action)
    assert text_of(action)["metadata"].replace(" ", "") == f'{{"pointsAdded":{number},"other":"2"}}'


@pytest.mark.parametrize("points", ['"many"', '""', '"1e3"', '"NaN"', '"2,50"', "true", "[2]", '{"a":2}'])
def test_other_values_move_to_invalid_points(points: str) -> None:
    award = {"_id": JsonText(b'"a"'), "points": JsonText(points.encode())}
    convert_award_points(award)
    assert text_of(award) == {"_id": '"a"', "invalid_points": f'{{"points":{points}}}'}
    action = {"metadata": JsonText(f'{{"pointsAdded":{points},"pointsAvailable":"3"}}'.encode())}
    convert_action_points(action)
    assert text_of(action) == {
        "metadata": '{"pointsAvailable":3}',
        "invalid_points": f'{{"pointsAdded":{points}}}',
    }


@pytest.mark.parametrize("metadata", ["null", "[]", '"text"', "5", "{}", '{"pointsAdded":5,"x":"5"}'])
def test_metadata_without_text_in_a_points_field_is_not_changed(metadata: str) -> None:
    action = {"metadata": JsonText(metadata.encode())}
    convert_action_points(action)
    assert text_of(action) == {"metadata": metadata}

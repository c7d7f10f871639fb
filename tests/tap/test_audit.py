"""The tallies of actions per hour, which the self-audit compares."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tap_pepper.raw_json import digest, to_json
from tap_pepper.state.audit import Audit, HourTally


@given(st.lists(st.text(alphabet="abcXYZ-_", min_size=16, max_size=16), unique=True), st.randoms())
def test_a_tally_does_not_depend_on_row_order_and_survives_the_state(digests: list[str], random: Any) -> None:
    first, second = HourTally(), HourTally()
    for row_digest in digests:
        first.add(row_digest, "2026-10-01T11")
    random.shuffle(digests)
    for row_digest in digests:
        second.add(row_digest, "2026-10-01T11")
    assert HourTally(second.to_state("2026-10-01T00")).get("2026-10-01T11") == first.get("2026-10-01T11")
    first.add("another-mark-no1", "2026-10-01T11")
    assert first.get("2026-10-01T11") != second.get("2026-10-01T11")
    assert second.to_state("2026-10-01T12") == {}


@pytest.mark.parametrize("state", [None, [], {"2026-10-01T11": 5}, {"2026-10-01T11": "a:b"}, {"2026-10-01T11": "1:x"}])
def test_an_invalid_tally_in_the_state_counts_as_empty(state: object) -> None:
    assert HourTally(state).get("2026-10-01T11") == (0, 0)


@pytest.mark.parametrize(
    ("rows", "second_read", "more_rows"),
    [
        pytest.param(2, 2, None, id="the-same"),
        pytest.param(2, 3, 1, id="one-more"),
        pytest.param(0, 1, 1, id="one-instead-of-none"),
        pytest.param(3, 1, 0, id="fewer"),
    ],
)
def test_a_second_read_counts_the_rows_that_the_first_read_lacked(
    rows: int, second_read: int, more_rows: int | None
) -> None:
    found = [{"_id": to_json(number)} for number in range(3)]
    audit = Audit(None, "", after="2026-10-01T11:00:00.000Z", until="2026-10-01T12:30:00.000Z", age_hours=2)
    for row in found[:rows]:
        audit.record(row, "2026-10-01T11:10:00.000Z")
    assert audit.compare("2026-10-01T11", [digest(row) for row in found[:second_read]]) == more_rows

"""Tallies of the hours of actions, which the self-audit compares."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tap_pepper.state.audit import HourTally


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

"""The time limit and the upper bound, which all streams of a run share."""

from __future__ import annotations

from datetime import timedelta

import pytest

from tap_pepper.run_context import TimeLimit, UpperBound
from tests.helpers.tap import NOW, Script, Waits, client_of, listing


@pytest.mark.parametrize(
    ("wait_seconds", "allowed", "allowed_for_actions"),
    [
        pytest.param(74, True, True, id="within-the-share-of-actions"),
        pytest.param(75, True, False, id="reserved-for-other-streams"),
        pytest.param(100, False, False, id="at-the-limit"),
    ],
)
def test_part_of_the_time_limit_is_reserved_for_other_streams(
    wait_seconds: float, allowed: bool, allowed_for_actions: bool
) -> None:
    limit = TimeLimit(Waits(), 100, actions_share=0.75)
    assert limit.allows(wait_seconds) is allowed
    assert limit.allows_actions(wait_seconds) is allowed_for_actions


def test_without_a_time_limit_any_wait_is_allowed() -> None:
    limit = TimeLimit(Waits(), None, actions_share=0.75)
    assert limit.allows_actions(10**9)


@pytest.mark.parametrize(
    ("local_minutes_ahead", "agreed"),
    [pytest.param(10, "2026-10-01T11:59:55.000Z", id="fast"), pytest.param(-10, "2026-10-01T11:49:55.000Z", id="slow")],
)
def test_the_agreed_bound_follows_the_clock_that_is_behind(local_minutes_ahead: int, agreed: str) -> None:
    with Script(listing()) as script, client_of(script.url) as (client, waits):
        waits.time_of_day = NOW + timedelta(minutes=local_minutes_ahead)
        bound = UpperBound(client, settle_seconds=5)
        assert bound.get("/awards") == "2026-10-01T11:59:55.000Z"
        assert bound.agreed == agreed


def test_pepper_is_asked_for_the_time_only_once() -> None:
    with Script(listing()) as script, client_of(script.url) as (client, _):
        bound = UpperBound(client, settle_seconds=5)
        assert bound.get("/awards") == bound.get("/perks")
    assert [asked.path for asked in script.asked] == ["/awards"]

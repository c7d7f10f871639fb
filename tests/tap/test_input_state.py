"""The bookmarks that a run takes from a state, in the forms that other programs store."""

from __future__ import annotations

from typing import Any

import pytest

from tap_pepper.errors import ConfigError
from tap_pepper.state.input_state import read_bookmarks

KEYS = {
    "actions": ("replication_key_value",),
    "awards": ("replication_key_value", "version"),
    "perks": (),
    "users": ("replication_key_value", "version"),
}
ACTIONS = {"replication_key": "when_timestamp", "replication_key_value": "2026-09-30T12:00:00.000Z"}
LATER = {"replication_key": "when_timestamp", "replication_key_value": "2026-10-01T12:00:00.000Z"}
AWARDS = {"replication_key": "updatedAt", "replication_key_value": "2026-09-30T12:00:00.000Z", "border": "a" * 16}
VALUE = {"bookmarks": {"actions": ACTIONS, "awards": AWARDS}}


@pytest.mark.parametrize(
    "state",
    [
        pytest.param(VALUE, id="value-of-a-state-message"),
        pytest.param({**VALUE, "currently_syncing": None}, id="currently-syncing"),
        pytest.param({"type": "STATE", "value": VALUE}, id="state-message"),
        pytest.param({"singer_state": VALUE}, id="singer-state"),
        pytest.param({"singer_state": {"type": "STATE", "value": VALUE}}, id="message-in-singer-state"),
        pytest.param({"completed": {"singer_state": VALUE}, "partial": {}}, id="meltano-state-get"),
        pytest.param({"completed": {"singer_state": VALUE}, "partial": None}, id="meltano-without-partial"),
        pytest.param({"completed": {}, "partial": {"singer_state": VALUE}}, id="meltano-only-partial"),
        pytest.param({"completed_state": {"singer_state": VALUE}, "partial_state": {}}, id="meltano-long-names"),
        pytest.param({"singer_state": VALUE, "partial_state": {"singer_state": {}}}, id="singer-state-and-partial"),
        pytest.param({"actions": ACTIONS, "awards": AWARDS}, id="only-bookmarks"),
    ],
)
def test_bookmarks_are_found_in_each_common_form(state: dict[str, Any]) -> None:
    assert read_bookmarks(state, KEYS) == VALUE["bookmarks"]


def test_a_partial_state_overrides_the_completed_one_stream_by_stream() -> None:
    partial = {"bookmarks": {"actions": LATER, "awards": {}}}
    state = {"completed": {"singer_state": VALUE}, "partial": {"singer_state": partial}}
    assert read_bookmarks(state, KEYS) == {"actions": LATER, "awards": AWARDS}


@pytest.mark.parametrize(
    "state",
    [
        pytest.param({}, id="object"),
        pytest.param({"bookmarks": {}}, id="bookmarks"),
        pytest.param({"type": "STATE", "value": {}}, id="state-message"),
        pytest.param({"singer_state": {}}, id="singer-state"),
        pytest.param({"completed": {}, "partial": {}}, id="meltano"),
    ],
)
def test_a_state_without_content_has_no_bookmarks(state: dict[str, Any]) -> None:
    assert read_bookmarks(state, KEYS) == {}


@pytest.mark.parametrize(
    "bookmarks",
    [
        pytest.param({"actions": {}, "awards": AWARDS}, id="actions-failed-in-the-first-run"),
        pytest.param({"perks": {}}, id="perks-before-deletions-were-tracked"),
        pytest.param({"perks": {"version": 1, "merchant": "x"}}, id="perks"),
        pytest.param({"actions": ACTIONS, "awards": {"version": 1, "known": ["a"]}}, id="killed-in-a-full-refresh"),
        pytest.param({"actions": {**ACTIONS, "read_until": ACTIONS["replication_key_value"], "audit": {}}}, id="more"),
    ],
)
def test_bookmarks_that_the_tap_has_written_are_kept(bookmarks: dict[str, Any]) -> None:
    assert read_bookmarks({"bookmarks": bookmarks}, KEYS) == bookmarks


EXPECTED = 'expected {"bookmarks": {"actions": {…}}}, as in the last STATE of the previous run'
NEXT_TO_BOOKMARKS = f"'actions' is next to bookmarks, so it would not be read; {EXPECTED}"
WITHOUT_VALUE = (
    "bookmarks.actions has no replication_key_value; restore the last STATE of the previous run, or remove "
    "bookmarks.actions to read the stream from the beginning"
)


@pytest.mark.parametrize(
    ("state", "problem"),
    [
        pytest.param([], EXPECTED, id="list"),
        pytest.param({"bookmarks": 1}, EXPECTED, id="bookmarks-not-an-object"),
        pytest.param({"bookmarks": None}, EXPECTED, id="bookmarks-null"),
        pytest.param({"singer_state": "{}"}, EXPECTED, id="singer-state-as-text"),
        pytest.param({"type": "STATE", "value": None}, EXPECTED, id="message-without-value"),
        pytest.param(
            {"type": "RECORD", "stream": "actions"}, f"'type' is not a stream of tap-pepper; {EXPECTED}", id="record"
        ),
        pytest.param(
            {"currently_syncing": "actions"},
            f"'currently_syncing' is not a stream of tap-pepper; {EXPECTED}",
            id="no-bookmarks",
        ),
        pytest.param(
            {"bookmarks": {"actions": ACTIONS, "orders": {"replication_key_value": "2026-10-01"}}},
            f"'orders' is not a stream of tap-pepper; {EXPECTED}",
            id="unknown-stream",
        ),
        pytest.param(
            {"orders": {"replication_key_value": "2026-10-01"}},
            f"'orders' is not a stream of tap-pepper; {EXPECTED}",
            id="unknown-stream-without-bookmarks",
        ),
        pytest.param(
            {"bookmarks": {"actions": "2026-10-01"}}, f"bookmarks.actions is not an object; {EXPECTED}", id="text"
        ),
        pytest.param({"bookmarks": {}, "actions": ACTIONS}, NEXT_TO_BOOKMARKS, id="bookmark-next-to-bookmarks"),
        pytest.param(
            {"completed": {}, "state": {"bookmarks": {"actions": ACTIONS}}},
            f"'state' is next to completed, so it would not be read; {EXPECTED}",
            id="another-wrapper-next-to-an-empty-one",
        ),
        pytest.param({"bookmarks": {"actions": {"replication_key": "when_timestamp"}}}, WITHOUT_VALUE, id="no-value"),
        pytest.param({"bookmarks": {"actions": {"replication_key_value": None}}}, WITHOUT_VALUE, id="null-value"),
        pytest.param(
            {"bookmarks": {"actions": {"read_until": "2026-10-01T00:00:00.000Z"}}}, WITHOUT_VALUE, id="only-read-until"
        ),
        pytest.param(
            {"bookmarks": {"actions": ACTIONS, "awards": {"replication_key": "updatedAt"}}},
            "bookmarks.awards has no replication_key_value or version; restore the last STATE of the previous run, or "
            "remove bookmarks.awards to read the stream from the beginning",
            id="awards-without-value",
        ),
        pytest.param(
            {"bookmarks": {"actions": {}, "awards": {}}},
            "all bookmarks are empty; to start from the beginning, run without a state",
            id="only-empty-bookmarks",
        ),
    ],
)
def test_any_other_state_is_rejected_in_one_line(state: object, problem: str) -> None:
    with pytest.raises(ConfigError) as refused:
        read_bookmarks(state, KEYS)
    assert str(refused.value) == f"state: {problem}"

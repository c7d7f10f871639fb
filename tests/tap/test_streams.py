"""What the streams emit and keep in the STATE, over real HTTP: against scripted replies, and against the sandbox."""

from __future__ import annotations

import json
import logging
import re
import time
from datetime import timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from pepper_sandbox import faults
from pepper_sandbox.server import Sandbox
from pepper_sandbox.world import World
from tap_pepper.api.response import decode_fields
from tap_pepper.errors import ConfigError, FatalAPIError, PepperError, StreamsFailed
from tap_pepper.raw_json import digest, to_json
from tap_pepper.streams import complete_action
from tests.helpers.guide import REWARD_EARNED
from tests.helpers.tap import (
    NOW,
    PatientTap,
    Reply,
    Run,
    Script,
    config,
    listing,
    run_tap,
    select_fields,
    selection,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from pepper_sandbox.faults import Fault

SETTLED = "2026-10-01T11:59:55.000Z"


def action(name: str, at: str, **fields: object) -> dict[str, Any]:
    return {"_id": name, "type": "ORDER", "when": {"timestamp": at}, **fields}


def state_of(**bookmarks: str) -> dict[str, Any]:
    keys = {"actions": "when_timestamp"}
    return {
        "bookmarks": {
            stream: {"replication_key": keys.get(stream, "updatedAt"), "replication_key_value": value}
            for stream, value in bookmarks.items()
        }
    }


def bookmark_of(run: Run, stream: str) -> dict[str, Any]:
    """A stream's bookmark in the last STATE, without its merchant and coverage."""
    others = {"merchant", "covered_from", "covered_until", "read"}
    return {name: value for name, value in run.state["bookmarks"][stream].items() if name not in others}


def windows_asked(script: Script) -> list[tuple[str, str]]:
    """The window (gt, lte] of each request for actions, except the first request, which asks for the time."""
    actions = [asked.query for asked in script.asked if asked.path == "/actions"]
    return [(query["when.timestamp.gt"], query["when.timestamp.lte"]) for query in actions[1:]]


def run_script(script: Script, *streams: str, **options: Any) -> Run:
    of_the_run = {"state", "catalog", "local_clock", "may_fail"} & options.keys()
    run_options = {name: options.pop(name) for name in of_the_run}
    # The scripted server replies in order, so the tap must send its requests in order.
    return run_tap(config(script.url, **{"concurrency": 1, **options}), *streams, **run_options)


# Actions: windows and bookmarks.


def test_an_action_is_emitted_unchanged_with_its_time_at_the_top_level() -> None:
    with Script(listing(), listing(json.loads(REWARD_EARNED), key="actions")) as script:
        run = run_script(script, "actions", start_date="2021-03-05", window_hours=8784, page_size=1000)
    record = json.loads(json.dumps(run.records("actions")[0], default=float))
    assert record == {**json.loads(REWARD_EARNED), "when_timestamp": "2021-03-05T13:37:52.194Z"}


def test_a_first_run_without_a_start_date_reads_the_lookback() -> None:
    with Script(listing()) as script:
        run = run_script(script, "actions")
    assert windows_asked(script) == [("2026-10-01T11:54:55.000Z", SETTLED)]
    assert bookmark_of(run, "actions") == {
        "replication_key": "when_timestamp",
        "replication_key_value": SETTLED,
        "read_until": None,
        "border": "",
        "audit": None,
        "skipped_start_date": None,
        "backfill_from": None,
        "action_types": [],
    }


def test_merging_a_state_into_an_earlier_one_replaces_all_its_values() -> None:
    row = action("a1", "2026-10-01T11:59:00.000Z")
    with Script(listing(), listing(row)) as script:
        earlier = run_script(script, "actions", start_date="2026-09-01", reconcile_hours=1)
    with Script(listing()) as script:
        refresh = run_script(script, "actions")

    assert bookmark_of(earlier, "actions").keys() <= bookmark_of(refresh, "actions").keys()
    assert not bookmark_of(refresh, "actions")["border"]


def test_a_first_run_reads_adjacent_windows_from_the_start_date() -> None:
    with Script(listing()) as script:
        run = run_script(script, "actions", start_date="2026-09-29T06:00:00+06:00")
    assert windows_asked(script) == [
        ("2026-09-29T00:00:00.000Z", "2026-09-29T06:00:00.000Z"),
        ("2026-09-29T06:00:00.000Z", "2026-09-30T06:00:00.000Z"),
        ("2026-09-30T06:00:00.000Z", "2026-10-01T06:00:00.000Z"),
        ("2026-10-01T06:00:00.000Z", SETTLED),
    ]
    assert run.bookmarks("actions") == [until for _, until in windows_asked(script)]


def test_a_later_run_starts_at_the_bookmark_minus_the_lookback_and_ignores_start_date() -> None:
    with Script(listing()) as script:
        run_script(
            script,
            "actions",
            start_date="2026-10-01T11:50:00Z",
            lookback_seconds=600,
            settle_seconds=30,
            state=state_of(actions="2026-10-01T11:00:00.000Z"),
        )
    assert windows_asked(script) == [("2026-10-01T10:50:00.000Z", "2026-10-01T11:59:30.000Z")]


def test_the_bookmark_never_goes_back() -> None:
    with Script(listing()) as script:
        run = run_script(script, "actions", lookback_seconds=3 * 24 * 3600, state=state_of(actions=SETTLED))
    assert len(windows_asked(script)) == 4
    assert set(run.bookmarks("actions")) == {SETTLED}


def at(clock: str) -> Reply:
    """An empty page that Pepper sends at this time on 1 October."""
    return Reply(headers={"Date": f"Thu, 01 Oct 2026 {clock} GMT"})


def test_runs_continue_where_the_last_one_ended_while_the_bookmark_is_ahead_of_peppers_clock(
    caplog: pytest.LogCaptureFixture,
) -> None:
    ahead = "2026-10-01T15:00:00.000Z"
    with Script(at("12:00:00")) as script:
        first = run_script(script, "actions", state=state_of(actions=ahead))
    assert windows_asked(script) == [("2026-10-01T11:54:55.000Z", SETTLED)]
    assert "a clock is or was wrong" in caplog.text
    with Script(at("14:00:00")) as script:
        second = run_script(script, "actions", state=first.state, local_clock=NOW + timedelta(hours=2))
    assert windows_asked(script) == [("2026-10-01T11:54:55.000Z", "2026-10-01T13:59:55.000Z")]
    with Script(at("16:00:00")) as script:
        third = run_script(script, "actions", state=second.state, local_clock=NOW + timedelta(hours=4))
    assert windows_asked(script) == [("2026-10-01T13:54:55.000Z", "2026-10-01T15:59:55.000Z")]
    assert [bookmark_of(run, "actions")["replication_key_value"] for run in (first, second, third)] == [
        ahead,
        ahead,
        "2026-10-01T15:59:55.000Z",
    ]
    assert bookmark_of(third, "actions")["read_until"] is None


@pytest.mark.parametrize("hours_later", [1, 3, 6])
def test_actions_after_a_run_with_a_fast_server_clock_are_read(hours_later: int) -> None:
    with Script(at("17:00:00")) as script:
        fast = run_script(script, "actions", "awards")
    assert bookmark_of(fast, "actions")["replication_key_value"] == "2026-10-01T16:59:55.000Z"
    now = NOW + timedelta(hours=hours_later)
    with Script(at(f"{now:%H:%M:%S}")) as script:
        run_script(script, "actions", "awards", state=fast.state, local_clock=now)
    assert windows_asked(script)[0][0] == "2026-10-01T11:54:55.000Z"
    assert script.asked[-1].query["updatedAt"] == "2026-10-01T11:54:54.999Z"


def test_a_slow_local_clock_causes_no_repetition() -> None:
    row = action("a", "2026-10-01T11:30:00.000Z")
    slow = NOW - timedelta(hours=1)
    with Script(listing(), listing(row), listing(), listing(row)) as script:
        first = run_script(script, "actions", start_date="2026-10-01T10:00:00Z", local_clock=slow)
        second = run_script(script, "actions", state=first.state, local_clock=slow)
    assert first.ids("actions") == ["a"]
    assert second.ids("actions") == []
    assert second.bookmarks("actions")[-1] == SETTLED


def test_a_start_date_in_the_future_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with Script(listing()) as script:
        run = run_script(script, "actions", start_date="2026-10-02")
    assert run.records("actions") == []
    assert "actions: start_date 2026-10-02T00:00:00.000Z is in the future" in caplog.text


def test_a_run_with_nothing_to_read_logs_why(caplog: pytest.LogCaptureFixture) -> None:
    with Script(listing()) as script:
        run = run_script(script, "actions", state=state_of(actions=SETTLED), start_date=None, lookback_seconds=0)
    assert run.records("actions") == []
    assert f"actions: already read up to {SETTLED}; there is nothing to read" in caplog.text


def test_a_larger_settle_seconds_is_no_wrong_clock(caplog: pytest.LogCaptureFixture) -> None:
    ahead = "2026-10-01T12:00:00.001Z"
    with Script(listing()) as script:
        run_script(script, "actions", state=state_of(actions=SETTLED), settle_seconds=900)
        assert "clock" not in caplog.text
        run_script(script, "actions", state=state_of(actions=ahead), settle_seconds=900)
        assert f"actions: the bookmark {ahead} is ahead of Pepper's clock" in caplog.text


def test_a_first_run_without_start_date_and_lookback_still_writes_a_bookmark() -> None:
    with Script(listing()) as script:
        first = run_script(script, "actions", start_date=None, lookback_seconds=0)
        later = run_script(script, "actions", state=first.state, start_date=None, lookback_seconds=0)
    assert first.bookmarks("actions")[-1] == SETTLED
    assert later.bookmarks("actions")[-1] == SETTLED


def test_the_state_of_another_merchant_is_rejected() -> None:
    with Script(listing()) as script:
        state = run_script(script, "actions").state
        assert "the-grill" not in json.dumps(state)
        with pytest.raises(ConfigError, match="it belongs to another merchant"):
            run_script(script, "actions", state=state, application_id="the-other-grill")
        assert run_script(script, "actions", state=state).bookmarks("actions")


def test_the_upper_bound_is_peppers_clock_at_the_start_of_the_run() -> None:
    dates = [f"Thu, 01 Oct 2026 09:00:{second:02} GMT" for second in range(10, 60, 10)]
    replies = [Reply(headers={"Date": date}) for date in dates]
    with Script(*replies) as script:
        run = run_script(script, "actions", "awards", start_date="2026-09-30")
    assert windows_asked(script)[-1][1] == "2026-10-01T09:00:05.000Z"
    assert run.bookmarks("awards")[-1] == "2026-10-01T09:00:05.000Z"


@pytest.mark.parametrize(
    "broken",
    [pytest.param(2, id="first-window"), pytest.param(3, id="second"), pytest.param(5, id="second-page-of-third")],
)
def test_the_bookmark_stays_at_the_last_complete_window_when_a_page_fails(broken: int) -> None:
    times = {"a": "09-29T01", "b": "09-30T05", "c": "10-01T01", "d": "10-01T02"}
    rows = [action(name, f"2026-{time}:00:00.000Z") for name, time in times.items()]
    replies = [listing(), listing(rows[0]), listing(rows[1]), listing(rows[2], next_key="1"), listing(rows[3])]
    drained = {2: [], 3: ["2026-09-29T06:00:00.000Z"], 5: ["2026-09-29T06:00:00.000Z", "2026-09-30T06:00:00.000Z"]}
    replies[broken - 1] = Reply(status=401)
    with Script(*replies) as script:
        run = run_script(script, "actions", start_date="2026-09-29", may_fail=True)
    assert isinstance(run.error, FatalAPIError)
    assert run.bookmarks("actions") == drained[broken]


def test_the_state_of_a_window_follows_all_of_its_records() -> None:
    first, second = action("a", "2026-09-30T12:00:00.000Z"), action("b", "2026-10-01T11:00:00.000Z")
    with Script(listing(), listing(first), listing(second)) as script:
        run = run_script(script, "actions", start_date="2026-09-30T10:00:00Z")
    line = [m["record"]["_id"] if m["type"] == "RECORD" else m["type"] for m in run.messages]
    assert line == ["SCHEMA", "a", "STATE", "b", "STATE"]


@pytest.mark.parametrize(
    ("at", "emitted"),
    [
        pytest.param("2026-10-01T11:54:55.000Z", False, id="at-the-start-so-in-the-window-before"),
        pytest.param("2026-10-01T11:54:55.000001Z", True, id="a-microsecond-after-the-start"),
        pytest.param("2026-10-01T11:54:55.001Z", True, id="after-the-start"),
        pytest.param("2026-10-01T13:59:55.000+02:00", True, id="at-the-end-in-another-offset"),
        pytest.param("2026-10-01T11:59:55.0009Z", True, id="within-the-last-millisecond"),
        pytest.param("2026-10-01T11:59:55.001Z", False, id="after-the-end-so-in-the-next-window"),
        pytest.param("2026-09-30T12:00:00.000Z", False, id="long-before"),
    ],
)
def test_rows_outside_the_window_are_skipped_when_pepper_ignores_the_filter(at: str, emitted: bool) -> None:
    with Script(listing(), listing(action("a", at))) as script:
        run = run_script(script, "actions")
    assert run.ids("actions") == (["a"] if emitted else [])


@pytest.mark.parametrize(
    ("at", "warned"),
    [
        pytest.param("2026-10-01T11:54:54.500Z", False, id="rounded-at-the-edge"),
        pytest.param("2026-10-01T09:58:00.000Z", True, id="two-hours-earlier"),
        pytest.param("2026-10-01T13:58:00.000Z", True, id="two-hours-later"),
    ],
)
def test_rows_from_outside_the_window_cause_a_warning(at: str, warned: bool, caplog: pytest.LogCaptureFixture) -> None:
    with Script(listing(), listing(action("a", at))) as script:
        run_script(script, "actions")
    assert ("actions: skipped 1 row from outside the windows that the tap asked for" in caplog.text) == warned


@pytest.mark.parametrize(
    "when",
    [
        pytest.param({"when": {"timestamp": "2024-13-01T00:00:00Z"}}, id="no-such-month"),
        pytest.param({"when": {"timestamp": None}}, id="timestamp-null"),
        pytest.param({"when": {}}, id="timestamp-missing"),
        pytest.param({"when": None}, id="when-null"),
        pytest.param({"when": "noon"}, id="when-is-a-text"),
        pytest.param({}, id="when-missing"),
    ],
)
def test_an_action_without_a_valid_time_is_emitted(when: dict[str, object]) -> None:
    row = {"_id": "a", "type": "ORDER", **when}
    with Script(listing(), listing(row)) as script:
        run = run_script(script, "actions")
    assert run.records("actions") == [{**row, "when_timestamp": None}]
    assert run.bookmarks("actions") == [SETTLED]


def test_action_types_are_requested_and_checked() -> None:
    at = "2026-10-01T11:59:00.000Z"
    rows = [action("a", at, type="REDEEM_PERK"), action("b", at, type="ORDER"), action("c", at, type="REWARD_EARNED")]
    with Script(listing(), listing(*rows, {"_id": "d"})) as script:
        run = run_script(script, "actions", action_types=["REWARD_EARNED", "REDEEM_PERK"])
    assert script.asked[1].query["type.in"] == "REWARD_EARNED,REDEEM_PERK"
    assert run.ids("actions") == ["a", "c"]


def test_all_types_are_requested_by_default() -> None:
    with Script(listing()) as script:
        run_script(script, "actions", action_types=[" "])
    assert all("type.in" not in asked.query for asked in script.asked)


def test_an_action_without_an_id_always_gets_the_same_key() -> None:
    at = "2026-10-01T11:59:00.000Z"
    row = {"type": "ORDER", "when": {"timestamp": at}, "metadata": {"points": 0.25, "b": 1}}
    reordered = {"metadata": {"b": 1, "points": 0.25}, "when": {"timestamp": at}, "type": "ORDER"}
    other = {**row, "metadata": {"points": 0.5, "b": 1}}
    with Script(listing(), listing(row, {**row, "_id": None}, {**reordered, "_id": ""}, other)) as script:
        run = run_script(script, "actions")
    # Three of the four rows are the same action, which is emitted once.
    first, differing = run.ids("actions")
    assert first != differing
    assert first.startswith("content-")
    assert len(first) == len("content-") + 64


def test_an_action_without_an_id_keeps_its_key_if_other_fields_change(caplog: pytest.LogCaptureFixture) -> None:
    at = "2026-10-01T11:59:00.000Z"
    row = {
        "type": "REWARD_EARNED",
        "when": {"timestamp": at},
        "metadata": {"awardId": "w", "pointsAdded": 1, "pointsAvailable": 5},
    }
    reread = {**row, "version": "99", "when": {"timestamp": at, "daypart": "LUNCH"}, "context": {"tags": ["new"]}}
    second = {**row, "metadata": {"awardId": "w", "pointsAdded": 1, "pointsAvailable": 6}}
    with Script(listing(), listing(row, reread, second)) as script:
        run = run_script(script, "actions")

    assert len(run.ids("actions")) == 3
    assert len(set(run.ids("actions"))) == 2
    assert "actions: Pepper sent 3 actions without _id" in caplog.text


@pytest.mark.parametrize("number", ["1e99999999999999999999", "9" * 5000], ids=["exponent", "digits"])
def test_an_action_without_an_id_gets_a_key_even_if_a_number_is_out_of_range(number: str) -> None:
    points = f'{{"awardId": "w", "pointsAdded": 1, "pointsAvailable": 1, "x": {number}}}'
    when = '{"timestamp": "2026-10-01T11:59:00.000Z"}'
    row = decode_fields(f'{{"type": "REWARD_EARNED", "when": {when}, "metadata": {points}}}'.encode())
    complete_action(row)
    assert bytes(row["_id"]).startswith(b'"content-')


def test_unknown_fields_of_actions_are_emitted_at_every_level() -> None:
    at = "2026-10-01T11:59:00.000Z"
    row = action("a", at, new={"deep": [1, {"er": None}]}, context={"user": {"_id": "u", "mood": "good"}, "weather": 1})
    row["when"]["moon"] = "full"
    with Script(listing(), listing(row)) as script:
        run = run_script(script, "actions")
    new = row.pop("new")
    assert run.records("actions") == [{**row, "when_timestamp": at, "other_fields": {"new": new}}]


def test_a_field_with_the_name_other_fields_is_kept() -> None:
    at = "2026-10-01T11:59:00.000Z"
    row = action("a", at, other_fields=[2.50], new=1)
    with Script(listing(), listing(row)) as script:
        run = run_script(script, "actions")
    assert run.records("actions")[0]["other_fields"] == {"other_fields": [2.50], "new": 1}


def test_unknown_fields_are_emitted_with_the_catalog_of_an_older_version() -> None:
    def older(entry: dict[str, Any]) -> None:
        del entry["schema"]["properties"]["other_fields"]
        entry["schema"]["additionalProperties"] = True
        entry["metadata"] = [item for item in entry["metadata"] if "other_fields" not in item["breadcrumb"]]

    with Script(listing(), listing(action("a", "2026-10-01T11:59:00.000Z", new=1))) as script:
        run = run_script(script, catalog=selection("actions", change=older))
    assert run.records("actions")[0]["other_fields"] == {"new": 1}
    assert "other_fields" in run.schema("actions")["schema"]["properties"]


def test_deselecting_the_field_when_does_not_affect_the_bookmark() -> None:
    catalog = selection("actions", change=lambda entry: select_fields(entry, "when", "context.user", selected=False))
    row = action("a", "2026-10-01T11:59:00.000Z", context={"user": {"fullName": "Tom Jones"}, "tags": []})
    with Script(listing(), listing(row)) as script:
        run = run_script(script, catalog=catalog)
    assert run.records("actions") == [
        {"_id": "a", "type": "ORDER", "context": {"tags": []}, "when_timestamp": "2026-10-01T11:59:00.000Z"}
    ]
    assert run.bookmarks("actions") == [SETTLED]


def test_stream_maps_change_the_records_but_not_the_bookmark() -> None:
    maps = {"actions": {"__alias__": "events", "when": None, "kind": "type", "__filter__": "type != 'ORDER'"}}
    rows = [action("a", "2026-10-01T11:58:00.000Z"), action("b", "2026-10-01T11:59:00.000Z", type="CHECK_IN")]
    with Script(listing(), listing(*rows)) as script:
        run = run_script(script, "actions", stream_maps=maps)
    (record,) = run.records("events")
    assert (record["_id"], record["kind"], "when" in record) == ("b", "CHECK_IN", False)
    assert run.bookmarks("actions") == [SETTLED]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.decimals(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
TIMES = st.sampled_from(["11:59:00.000Z", "13:58:00+02:00", "noon", ""]).map(lambda at: f"2026-10-01T{at}")
FIELDS = {"_id": st.text(), "context": JSON, "metadata": JSON, "new": JSON}
ACTIONS = st.lists(
    st.fixed_dictionaries(
        {"type": st.text(), "when": st.fixed_dictionaries({"timestamp": TIMES}) | JSON}, optional=FIELDS
    ),
    max_size=5,
)
TO_BYTES = {
    "as-it-is": lambda text: text,
    "indented": lambda text: msgspec.json.format(text, indent=2),
    "escaped": lambda text: re.sub("[^\0-\x7f]", lambda found: json.dumps(found[0])[1:-1], text.decode()).encode(),
}


def with_a_stream_map(script: Script) -> Run:
    return run_script(script, "actions", stream_maps={"actions": {"no such field": None}})


def with_a_nested_deselection(script: Script) -> Run:
    def deselect(entry: dict[str, Any]) -> None:
        select_fields(entry, "when.no such field", selected=False)

    return run_script(script, catalog=selection("actions", change=deselect))


@pytest.mark.parametrize("run_decoded", [with_a_stream_map, with_a_nested_deselection])
@pytest.mark.parametrize("written", list(TO_BYTES))
@settings(max_examples=8)
@given(actions=ACTIONS)
def test_undecoded_and_decoded_rows_give_the_same_records(
    actions: list[dict[str, Any]], written: str, run_decoded: Callable[[Script], Run]
) -> None:
    text = msgspec.json.Encoder(decimal_format="number").encode({"items": actions})
    with Script(listing(), Reply(TO_BYTES[written](text)), listing(), Reply(TO_BYTES[written](text))) as script:
        undecoded, decoded = run_script(script, "actions"), run_decoded(script)
    # Compare the records as text, because 0.5 must not become 0.50.
    assert repr(undecoded.messages[1:]) == repr(decoded.messages[1:])


def test_a_catalog_without_keys_keeps_incremental_replication() -> None:
    def strip(entry: dict[str, Any]) -> None:
        for name in ("key_properties", "replication_key", "replication_method"):
            entry.pop(name)
        for name in ("table-key-properties", "valid-replication-keys", "replication-key"):
            entry["metadata"][0]["metadata"].pop(name, None)
            entry["metadata"][-1]["metadata"].pop(name, None)

    with Script(listing()) as script:
        run = run_script(script, catalog=selection("actions", change=strip))
    assert run.schema("actions")["key_properties"] == ["_id"]
    assert run.bookmarks("actions") == [SETTLED]


@pytest.mark.parametrize("schema", [pytest.param({}, id="empty"), pytest.param({"properties": {"x": {}}}, id="other")])
def test_keys_are_added_to_a_catalog_schema_that_lacks_them(schema: dict[str, Any]) -> None:
    def bare(entry: dict[str, Any]) -> None:
        entry.update(schema=schema, metadata=[item for item in entry["metadata"] if not item["breadcrumb"]])

    at = "2026-10-01T11:59:00.000Z"
    with Script(listing(), listing(action("a", at))) as script:
        run = run_script(script, catalog=selection("actions", change=bare))
    assert {"_id", "when_timestamp"} <= run.schema("actions")["schema"]["properties"].keys()
    assert run.records("actions") == [{"_id": "a", "when_timestamp": at}]


def test_a_catalog_can_neither_deselect_nor_replace_a_key(caplog: pytest.LogCaptureFixture) -> None:
    def deselect(entry: dict[str, Any]) -> None:
        entry["key_properties"] = ["number"]
        for item in entry["metadata"]:
            if item["breadcrumb"] in (["properties", "_id"], ["properties", "when_timestamp"]):
                item["metadata"] = {"inclusion": "available", "selected": False}

    at = "2026-10-01T11:59:00.000Z"
    caplog.set_level("INFO")
    with Script(listing(), listing(action("a", at))) as script:
        run = run_script(script, catalog=selection("actions", change=deselect))

    assert run.schema("actions")["key_properties"] == ["_id"]
    assert [(record["_id"], record["when_timestamp"]) for record in run.records("actions")] == [("a", at)]
    assert "actions: the catalog deselects _id, when_timestamp; still emitted, because the key or the" in caplog.text
    assert "actions: ignored the catalog's key_properties; the key is _id" in caplog.text


def without_sums(entry: dict[str, Any]) -> None:
    for name in ("type", "metadata", "environment"):
        del entry["schema"]["properties"][name]


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(
            lambda entry: select_fields(entry, "type", "metadata", "environment", selected=False), id="select"
        ),
        pytest.param(without_sums, id="schema"),
    ],
)
def test_a_catalog_without_a_field_that_balances_need_causes_a_warning(
    change: Callable[[dict[str, Any]], None], caplog: pytest.LogCaptureFixture
) -> None:
    with Script(listing()) as script:
        run = run_script(script, catalog=selection("actions", change=change))
    assert run.state["bookmarks"]["actions"]["read"] == [], "without these fields, the run does not cover its time"
    assert not {"type", "metadata"} & run.schema("actions")["schema"]["properties"].keys()
    assert (
        "actions: the catalog leaves out type, metadata, without which target-crm cannot keep balances" in caplog.text
    )


@pytest.mark.parametrize("field", ["points", "userId"])
def test_deselecting_a_field_of_awards_that_balances_need_causes_a_warning(
    field: str, caplog: pytest.LogCaptureFixture
) -> None:
    catalog = selection("awards", change=lambda entry: select_fields(entry, field, selected=False))
    with Script(listing()) as script:
        run_script(script, catalog=catalog)
    assert f"awards: the catalog leaves out {field}, without which target-crm cannot keep balances" in caplog.text


@pytest.mark.parametrize("field", ["points", "userId"])
@pytest.mark.parametrize("hidden_by", ["selection", "schema", "stream-map"])
def test_awards_are_read_completely_once_their_balance_fields_are_emitted_again(field: str, hidden_by: str) -> None:
    def hide(entry: dict[str, Any]) -> None:
        if hidden_by == "selection":
            select_fields(entry, field, selected=False)
        elif hidden_by == "schema":
            del entry["schema"]["properties"][field]

    options: dict[str, Any] = {"catalog": selection("awards", change=hide)}
    if hidden_by == "stream-map":
        options["stream_maps"] = {"awards": {field: None}}
    award = {"_id": "w", "userId": "u", "points": 77, "updatedAt": "2026-09-01T00:00:00.000Z"}
    with Script(listing(award)) as script:
        without = run_script(script, **options)
        still = run_script(script, state=without.state, **options)
        again = run_script(script, "awards", state=still.state)
        later = run_script(script, "awards", state=again.state)

    assert [len(each.records("awards")) for each in (without, still, again, later)] == [1, 0, 1, 0]
    assert again.records("awards")[0][field] == award[field]


def test_fields_of_a_stream_that_is_not_selected_cause_no_warning(caplog: pytest.LogCaptureFixture) -> None:
    catalog = selection("actions")
    for entry in catalog["streams"]:
        if entry["tap_stream_id"] != "actions":
            # Meltano writes other streams like this for `select: [actions.*]`.
            select_fields(entry, *entry["schema"]["properties"], selected=False)
    with Script(listing()) as script:
        run_script(script, catalog=catalog)
    assert "deselects" not in caplog.text


def test_deselecting_a_nested_field_that_balances_need_causes_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    def deselect(entry: dict[str, Any]) -> None:
        for names in (("context", "user"), ("context", "tags"), ("metadata", "awardId"), ("metadata", "pointsAdded")):
            breadcrumb = [part for name in names for part in ("properties", name)]
            entry["metadata"] = [each for each in entry["metadata"] if each["breadcrumb"] != breadcrumb]
            entry["metadata"].append({"breadcrumb": breadcrumb, "metadata": {"selected": False}})

    with Script(listing()) as script:
        run_script(script, catalog=selection("actions", change=deselect))

    deselected = "metadata.awardId, metadata.pointsAdded, context.user"
    assert f"actions: the catalog leaves out {deselected}, without which target-crm cannot keep balances" in caplog.text


def test_full_table_replication_reads_everything_and_moves_no_bookmark() -> None:
    def full(entry: dict[str, Any]) -> None:
        entry["replication_method"] = "FULL_TABLE"

    with Script(listing()) as script:
        run = run_script(script, catalog=selection("awards", change=full), state=state_of(awards=SETTLED))
    assert "updatedAt" not in script.asked[-1].query
    assert set(run.bookmarks("awards")) == {SETTLED}


def test_an_unknown_replication_method_is_ignored_with_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def log_based(entry: dict[str, Any]) -> None:
        entry["replication_method"] = "LOG_BASED"

    with Script(listing()) as script:
        run = run_script(script, catalog=selection("awards", change=log_based))
    assert run.bookmarks("awards") == [SETTLED]
    assert "awards: ignored the catalog's replication method, expected INCREMENTAL or FULL_TABLE" in caplog.text


@pytest.mark.parametrize(
    "state",
    [
        pytest.param({"bookmarks": {"actions": {"replication_key_value": "soon"}}}, id="not-a-time"),
        pytest.param({"bookmarks": {"actions": {"replication_key_value": 1759312795}}}, id="a-number"),
        pytest.param({"bookmarks": {"actions": "2026-10-01"}}, id="no-object"),
        pytest.param({"bookmarks": []}, id="no-bookmarks"),
        pytest.param(
            {"bookmarks": {"actions": {"replication_key": "_id", "replication_key_value": "5f"}}}, id="another-key"
        ),
        pytest.param({"bookmarks": {"actions": {"replication_key": "when_timestamp"}}}, id="no-value"),
        pytest.param({"bookmarks": {"orders": {"replication_key_value": SETTLED}}}, id="unknown-stream"),
    ],
)
def test_an_invalid_state_is_rejected(state: dict[str, Any]) -> None:
    with Script(listing()) as script, pytest.raises(ConfigError, match="state: "):
        run_script(script, "actions", state=state)


def test_an_invalid_bookmark_stops_only_its_own_stream() -> None:
    with Script(listing(), listing({"_id": "a"})) as script:
        run = run_script(script, "actions", "awards", state=state_of(actions="soon"), may_fail=True)
    assert isinstance(run.error, ConfigError)
    assert run.ids("awards") == ["a"]


@pytest.mark.parametrize(
    "kept",
    [
        pytest.param({"audit": {"next": "2026-13-45T25"}}, id="audit-of-an-invalid-hour"),
        pytest.param({"audit": {"next": "0001-01-01T00"}}, id="audit-from-the-earliest-hour"),
        pytest.param({"audit": {"next": "9999-12-31T23"}}, id="audit-at-the-latest-hour"),
        pytest.param({"audit": {"next": None, "until": 5, "hours": {"x": "y", "z": 7}}}, id="audit-of-other-shape"),
        pytest.param({"read_until": 5, "border": ["a"]}, id="border-of-other-shape"),
        pytest.param({"read_until": "9999-12-31T23:59:59Z", "border": "a"}, id="read-in-the-future"),
        pytest.param({"refreshed_until": "9999-12-31T23:59:59Z", "version": "1"}, id="refreshed-in-the-future"),
    ],
)
def test_invalid_extra_values_in_a_bookmark_stop_no_run(kept: dict[str, Any]) -> None:
    state = state_of(actions="2026-10-01T11:55:00.000Z", awards="2026-10-01T11:55:00.000Z")
    for bookmark in state["bookmarks"].values():
        bookmark.update(kept)
    with Script(listing()) as script:
        run = run_script(script, "actions", "awards", state=state, reconcile_hours=1, awards_full_refresh_days=366)
    assert (run.bookmarks("actions")[-1], run.bookmarks("awards")[-1]) == (SETTLED, SETTLED)


def test_each_window_is_logged_without_personal_data(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    row = action("a", "2026-10-01T11:59:00.000Z", context={"user": {"fullName": "Tom Jones"}})
    with Script(listing(), listing(row, next_key="1"), listing(action("b", "2026-09-01T00:00:00.000Z"))) as script:
        run_script(script, "actions")
    assert (
        "actions: 1 record, 2 pages, window 2026-10-01 11:54:55 to 11:59:55, "
        "1 skipped (already emitted or outside the window)"
    ) in caplog.text
    assert "Tom Jones" not in caplog.text


FULL_PAGES = [listing({"_id": str(number)}, {"_id": f"{number}x"}, next_key=str(number)) for number in range(9)]


@pytest.mark.parametrize(
    "pages", [pytest.param(FULL_PAGES, id="much-to-read"), pytest.param([listing()], id="nothing-to-read")]
)
def test_the_connection_test_reads_each_stream_once_and_moves_no_bookmark(
    pages: list[Reply], caplog: pytest.LogCaptureFixture
) -> None:
    with Script(*pages) as script:
        tap = PatientTap(config=config(script.url, start_date="2020-01-01"))
        assert tap.run_connection_test()
        tap.client.close()
    assert [asked.path for asked in script.asked] == ["/actions", "/actions", "/awards", "/perks"]
    assert "replication_key" not in json.dumps(tap.state)
    assert "unhandled" not in caplog.text


# Awards, perks and users.


def test_an_award_has_five_fields_by_default() -> None:
    row = {
        "_id": "a",
        "points": 2,
        "userId": "u",
        "perkId": "p",
        "updatedAt": "2026-09-01T02:00:00+02:00",
        "perk": {"title": "Coffee"},
        "tenantId": "t",
        "unheard": "of",
    }
    with Script(listing(), listing(row)) as script:
        run = run_script(script, "awards")
    record = {"_id": "a", "points": 2, "userId": "u", "perkId": "p", "updatedAt": "2026-09-01T00:00:00.000Z"}
    assert run.records("awards") == [record]
    assert set(run.schema("awards")["schema"]["properties"]) == {*record, "invalid_points"}


def test_hidden_and_additional_fields_of_an_award_are_emitted_if_selected() -> None:
    def more(entry: dict[str, Any]) -> None:
        select_fields(entry, "perk")
        entry["schema"]["properties"]["colour"] = {"type": ["string", "null"]}

    row = {"_id": "a", "perk": {"title": "Coffee"}, "tenantId": "t", "colour": "red", "unheard": "of"}
    with Script(listing(), listing(row)) as script:
        run = run_script(script, catalog=selection("awards", change=more))
    assert run.records("awards") == [{"_id": "a", "perk": {"title": "Coffee"}, "colour": "red"}]
    assert {"perk", "colour"} < set(run.schema("awards")["schema"]["properties"])


@pytest.mark.parametrize("points", ["2", "-3", "0.10", "12345678901234567890.25", '"7"', '"0.250"', "1e3", "null"])
def test_points_keep_every_digit(points: str) -> None:
    body = b'{"items": [{"_id": "a", "points": ' + points.encode() + b"}]}"
    with Script(listing(), Reply(body)) as script:
        run = run_script(script, "awards")
    expected = json.loads(points.strip('"'), parse_float=Decimal)
    assert [(record["points"], str(record["points"])) for record in run.records("awards")] == [
        (expected, str(expected))
    ]


def test_points_that_are_not_a_number_are_emitted_in_their_own_property() -> None:
    award = {"_id": "a", "points": "many", "updatedAt": "2026-09-01T00:00:00.000Z"}
    metadata = {"awardId": "a", "pointsAvailable": "2.50", "pointsAdded": "some"}
    row = action("b", "2026-10-01T11:59:00.000Z", type="REWARD_EARNED", metadata=metadata)
    chosen = selection("actions", "awards", change=lambda entry: select_fields(entry, "invalid_points", selected=False))
    with Script(listing(), listing(row), listing(award)) as script:
        run = run_script(script, catalog=chosen)
    (emitted,) = run.records("actions")
    assert emitted["metadata"] == {"awardId": "a", "pointsAvailable": Decimal("2.50")}
    assert emitted["invalid_points"] == {"pointsAdded": "some"}
    assert run.records("awards") == [
        {"_id": "a", "updatedAt": award["updatedAt"], "invalid_points": {"points": "many"}}
    ]


def test_the_first_run_reads_all_awards_whatever_the_start_date() -> None:
    old = {"_id": "a", "updatedAt": "2019-01-01T00:00:00.000Z"}
    with Script(listing(), listing(old)) as script:
        run = run_script(script, "awards", start_date="2026-09-01")
    assert script.asked[1].query == {"limit": "100"}
    assert run.records("awards") == [old]
    assert bookmark_of(run, "awards") == {
        "replication_key": "updatedAt",
        "replication_key_value": SETTLED,
        "read_until": None,
        "border": "",
        "lacking": [],
    }


def test_an_award_that_changes_back_is_emitted_each_time() -> None:
    emitted: list[list[int]] = []
    state = None
    for points in (5, 3, 5, 5):
        with Script(listing(), listing({"_id": "a", "points": points})) as script:
            run = run_script(script, "awards", state=state)
        emitted.append([record["points"] for record in run.records("awards")])
        state = run.state
    assert emitted == [[5], [3], [5], []]


@pytest.mark.parametrize(
    ("stream", "parameter"),
    [pytest.param("awards", "updatedAt", id="awards"), pytest.param("users", "updatedAfter", id="users")],
)
def test_later_runs_request_changes_since_the_bookmark_minus_the_lookback(stream: str, parameter: str) -> None:
    with Script(listing()) as script:
        run = run_script(script, stream, state=state_of(**{stream: "2026-10-01T11:00:00.000Z"}))
    assert script.asked[1].query == {"limit": "100", parameter: "2026-10-01T10:54:59.999Z"}
    assert run.bookmarks(stream)[-1] == SETTLED


@pytest.mark.parametrize(
    ("updated_at", "emitted"),
    [
        pytest.param("2026-10-01T10:54:59.999Z", False, id="before-the-bound"),
        pytest.param("2026-10-01T10:54:59.9999Z", False, id="just-before-the-bound"),
        pytest.param("2026-10-01T10:55:00.000Z", True, id="at-the-bound"),
        pytest.param("2026-10-01T11:59:59.000Z", True, id="not-settled-yet"),
        pytest.param("2026-10-01T10:55:00+00:00", True, id="in-another-form"),
        pytest.param(None, True, id="null"),
        pytest.param("recently", True, id="not-a-time"),
    ],
)
def test_unchanged_awards_are_skipped_when_pepper_ignores_the_filter(updated_at: str | None, emitted: bool) -> None:
    with Script(listing(), listing({"_id": "a", "updatedAt": updated_at}, {"_id": "b"})) as script:
        run = run_script(script, "awards", state=state_of(awards="2026-10-01T11:00:00.000Z"))
    assert run.ids("awards") == (["a", "b"] if emitted else ["b"])


def test_the_bookmark_of_awards_does_not_pass_the_upper_bound() -> None:
    newer = {"_id": "a", "updatedAt": "2026-10-01T12:00:30.000Z"}
    with Script(listing(), listing(newer)) as script:
        run = run_script(script, "awards")
    assert run.bookmarks("awards")[-1] == SETTLED


def test_a_failed_read_of_awards_moves_no_bookmark() -> None:
    before = "2026-10-01T11:00:00.000Z"
    with Script(listing(), listing({"_id": "a"}, next_key="1"), Reply(status=403)) as script:
        run = run_script(script, "awards", state=state_of(awards=before), may_fail=True)
    assert run.ids("awards") == ["a"]
    assert set(run.bookmarks("awards")) == {before}


USER = {
    "_id": "u",
    "firstName": "Tom",
    "lastName": "Jones",
    "fullName": "Tom Jones",
    "contacts": [{"value": "tom@example.com"}],
    "credentials": [{"id": "tom@example.com"}],
    "email": "tom@example.com",
    "state": "ACTIVE",
    "updatedAt": "2026-09-01T00:00:00.000Z",
}


def test_users_are_read_only_with_the_setting() -> None:
    with Script(listing()) as script:
        run_tap(config(script.url))
    assert {asked.path for asked in script.asked} == {"/actions", "/awards", "/perks"}
    with Script(listing()) as script:
        run_tap(config(script.url, include_users=True))
    assert {asked.path for asked in script.asked} == {"/actions", "/awards", "/perks", "/users"}


def test_users_in_the_catalog_without_the_setting_give_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    with Script(listing()) as script:
        run_script(script, catalog=selection("actions", "users"))
        assert {asked.path for asked in script.asked} == {"/actions"}
        warning = "users: selected in the catalog but not read; set include_users to read it"
        assert [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING] == [warning]
        caplog.clear()
        run_script(script, catalog=selection("actions"))
        assert not any(r.levelno == logging.WARNING for r in caplog.records)


@pytest.mark.parametrize("selected", [None, True, False])
def test_a_catalog_without_metadata_keeps_the_default_fields(selected: bool | None) -> None:
    catalog = selection("awards", "users")
    for entry in catalog["streams"]:
        del entry["metadata"]
        if selected is not None:
            entry["selected"] = selected and entry["tap_stream_id"] in {"awards", "users"}
    award = {"_id": "a", "points": 1, "tenantId": "t", "perk": {}, "updatedAt": SETTLED}
    with Script(listing(), listing(award), listing(USER)) as script:
        chosen = {"streams": [entry for entry in catalog["streams"] if entry["tap_stream_id"] in {"awards", "users"}]}
        run = run_script(script, catalog=chosen, include_users=True)
    if selected is False:
        assert script.asked == []
        return
    assert run.records("awards") == [{"_id": "a", "points": 1, "updatedAt": SETTLED}]
    assert run.records("users") == [{"_id": "u", "state": "ACTIVE", "updatedAt": "2026-09-01T00:00:00.000Z"}]


@pytest.mark.parametrize(
    "metadata", [pytest.param(True, id="as-discovered"), pytest.param(False, id="without-metadata")]
)
def test_selected_users_contain_no_personal_data_by_default(metadata: bool) -> None:
    def bare(entry: dict[str, Any]) -> None:
        entry["metadata"] = [item for item in entry["metadata"] if metadata or not item["breadcrumb"]]

    with Script(listing(), listing(USER)) as script:
        run = run_script(script, catalog=selection("users", change=bare), include_users=True)
    assert run.records("users") == [{"_id": "u", "state": "ACTIVE", "updatedAt": "2026-09-01T00:00:00.000Z"}]
    assert "fullName" not in run.schema("users")["schema"]["properties"]


def test_credentials_need_the_setting_and_the_selection() -> None:
    catalog = selection("users", change=lambda entry: select_fields(entry, "credentials"))
    with Script(listing(), listing(USER)) as script:
        run = run_script(script, catalog=catalog, include_users=True, include_credentials=True)
    assert script.asked[-1].query["include"] == "credentials"
    assert run.records("users")[0]["credentials"] == USER["credentials"]
    with Script(listing(), listing(USER)) as script:
        run_script(script, catalog=catalog, include_users=True)
    assert "include" not in script.asked[-1].query


def test_perks_are_emitted_completely_and_have_no_bookmark() -> None:
    declared, other = {"_id": "p", "type": "STAMP_CARD"}, {"terms": {"en": "…"}, "rules": [1, 2.50]}
    with Script(listing(declared | other)) as script:
        run = run_script(script, "perks")
    assert run.records("perks") == [{**declared, "other_fields": other}]
    assert run.bookmarks("perks") == []


AWARD_TIMES = ("09-29T00:00:00", "09-30T00:00:00", "09-30T12:00:00", "10-01T00:00:00")


def changed(name: str, at: str) -> dict[str, Any]:
    return {"_id": name, "points": 1, "updatedAt": f"2026-{at}.000Z"}


@pytest.mark.parametrize(
    ("rows", "is_repeated"),
    [
        pytest.param([changed("a", "09-01T00:00:00"), changed("b", "08-01T00:00:00"), changed("c", "09-03T00:00:00")],
                     False, id="sorted-by-id"),
        pytest.param([changed("c", "08-01T00:00:00"), changed("a", "09-01T00:00:00"), changed("b", "09-03T00:00:00")],
                     True, id="oldest-first"),
        pytest.param([changed("b", "09-03T00:00:00"), changed("a", "09-01T00:00:00"), changed("c", "08-01T00:00:00")],
                     True, id="newest-first"),
        pytest.param([changed("a", "09-01T00:00:00"), changed("b", "10-01T12:00:01"), changed("c", "08-01T00:00:00")],
                     True, id="changed-while-read"),
        pytest.param([changed("a", "09-01T00:00:00"), changed("b", "09-03T00:00:00")], False, id="only-two-rows"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("full_refresh_days", [0, 7])
def test_all_awards_are_read_a_second_time_if_they_may_have_moved_between_pages(
    rows: list[dict[str, Any]], is_repeated: bool, full_refresh_days: int
) -> None:
    options = {"awards_full_refresh_days": full_refresh_days}
    pages = [listing(), listing(*rows[:2], next_key="1"), listing(*rows[2:])]
    runs: list[Run] = []
    asked: list[bool] = []
    for _ in range(3):
        with Script(*pages) as script:
            runs.append(run_script(script, "awards", state=runs[-1].state if runs else None, **options))
        asked.append("updatedAt" in script.asked[1].query)

    assert asked == [False, not is_repeated, True]
    assert runs[1].ids("awards") == ([row["_id"] for row in rows] if is_repeated else [])
    assert runs[2].ids("awards") == []


def test_awards_on_one_page_cannot_move() -> None:
    rows = [changed("c", "08-01T00:00:00"), changed("a", "09-01T00:00:00"), changed("b", "10-01T12:00:01")]
    with Script(listing(), listing(*rows)) as script:
        first = run_script(script, "awards")
    with Script(listing(), listing()) as script:
        run_script(script, "awards", state=first.state)
    assert "updatedAt" in script.asked[1].query


def test_changes_are_read_a_second_time_if_they_may_have_moved_between_pages() -> None:
    """Award c changed before a did, but a moved to the last page meanwhile, so that c was on no page."""
    since = "2026-09-28T00:00:00.000Z"
    a, b, c, d = (changed(name, at) for name, at in zip("abcd", AWARD_TIMES, strict=True))
    moved = changed("a", "10-01T12:00:01")
    with Script(listing(), listing(a, b, next_key="1"), listing(d, moved)) as script:
        first = run_script(script, "awards", state=state_of(awards=since))
    with Script(listing(), listing(b, c, d, moved)) as script:
        second = run_script(script, "awards", state=first.state)
    asked_since = script.asked[1].query["updatedAt"]
    with Script(listing(), listing()) as script:
        run_script(script, "awards", state=second.state)

    assert asked_since < "2026-09-28"
    assert "c" in second.ids("awards")
    assert script.asked[1].query["updatedAt"] == "2026-10-01T11:54:54.999Z"


def test_batch_config_is_ignored() -> None:
    with Script(listing(action("a", "2026-10-01T11:59:00.000Z"))) as script:
        run = run_script(script, "actions", batch_config={"encoding": {"format": "jsonl"}, "storage": {"root": "/tmp"}})
    assert {m["type"] for m in run.messages} == {"SCHEMA", "RECORD", "STATE"}


# Rows are not emitted twice.


def test_an_action_in_the_lookback_is_emitted_again_only_if_it_changed() -> None:
    first, second = action("a", "2026-10-01T11:58:00.000Z"), action("b", "2026-10-01T11:58:30.000Z")
    late, changed = action("c", "2026-10-01T11:57:00.000Z"), {**second, "type": "REFUND"}
    with Script(listing(), listing(first, second), listing(), listing(late, first, changed)) as script:
        before = run_script(script, "actions")
        after = run_script(script, "actions", state=before.state)
    assert before.ids("actions") == ["a", "b"]
    assert [(record["_id"], record["type"]) for record in after.records("actions")] == [("c", "ORDER"), ("b", "REFUND")]


@pytest.mark.parametrize("stream", ["awards", "users"])
def test_a_row_in_the_lookback_is_emitted_again_only_if_it_changed(stream: str) -> None:
    rows = [{"_id": name, "updatedAt": "2026-10-01T11:58:00.000Z", "points": 1} for name in "ab"]
    changed = {**rows[1], "state": "X", "points": 2}
    with Script(listing(), listing(*rows), listing(), listing(rows[0], changed)) as script:
        before = run_script(script, stream)
        after = run_script(script, stream, state=before.state)
    assert before.ids(stream) == ["a", "b"]
    assert after.ids(stream) == ["b"]


def test_rows_emitted_before_a_failure_are_emitted_again() -> None:
    row = {"_id": "a", "updatedAt": "2026-10-01T11:58:00.000Z"}
    with Script(listing(), listing(row, next_key="1"), Reply(status=403), listing(), listing(row)) as script:
        failed = run_script(script, "awards", may_fail=True)
        after = run_script(script, "awards", state=failed.states[-1] if failed.states else None)
    assert failed.ids("awards") == after.ids("awards") == ["a"]


# Deletions.


def dated(*rows: dict[str, Any], at: str) -> Reply:
    return Reply({"items": list(rows)}, headers={"Date": f"Thu, 01 Oct 2026 {at} GMT"})


def versions(run: Run, stream: str) -> list[tuple[str, int | None]]:
    """The records and ACTIVATE_VERSION messages of a stream, in order, with their versions."""
    return [
        (message["type"] if message["type"] != "RECORD" else message["record"]["_id"], message.get("version"))
        for message in run.messages
        if message.get("stream") == stream and message["type"] != "SCHEMA"
    ]


P, Q, R = ({"_id": name} for name in "pqr")
NOON_MS = 1790856000000


def read_perks(*walks: Reply, state: dict[str, Any] | None = None, **settings: Any) -> list[Run]:
    """Run the tap once per reply, each time with the state of the run before."""
    runs: list[Run] = []
    with Script(*walks) as script:
        for _ in walks:
            runs.append(run_script(script, "perks", state=runs[-1].state if runs else state, **settings))
    return runs


def test_perks_missing_from_two_reads_in_a_row_are_deleted() -> None:
    walks = [dated(P, Q, at="12:00:00"), dated(P, at="12:00:05"), dated(P, at="12:00:10"), dated(P, R, at="12:00:15")]
    first, second, third, fourth = read_perks(*walks)
    assert versions(first, "perks") == [("p", NOON_MS), ("q", NOON_MS)]
    # A target deletes rows with an older version. Here q still has the active version, because only one read lacks q.
    assert versions(second, "perks") == [("p", NOON_MS), ("ACTIVATE_VERSION", NOON_MS)]
    assert versions(third, "perks") == [("p", NOON_MS + 10_000), ("ACTIVATE_VERSION", NOON_MS + 10_000)]
    assert versions(fourth, "perks") == [
        ("p", NOON_MS + 10_000),
        ("r", NOON_MS + 10_000),
        ("ACTIVATE_VERSION", NOON_MS + 10_000),
    ]


def test_a_read_activates_its_own_version_unless_an_earlier_read_lacked_rows() -> None:
    walks = [
        dated(P, at="12:00:00"),
        dated(P, Q, at="12:00:05"),
        dated(P, Q, R, at="12:00:10"),
        dated(Q, R, at="12:00:15"),
    ]
    _, *later = read_perks(*walks)
    for run in later:
        *records, (message, activated) = versions(run, "perks")
        assert message == "ACTIVATE_VERSION"
        assert {version for _, version in records} == {activated}


def test_two_perks_that_vanish_one_after_the_other_are_each_deleted_after_two_reads() -> None:
    walks = [
        dated(P, Q, R, at="12:00:00"),
        dated(P, Q, at="12:00:05"),
        dated(P, at="12:00:10"),
        dated(P, at="12:00:15"),
    ]
    _, second, third, fourth = read_perks(*walks)
    assert versions(second, "perks")[-1] == ("ACTIVATE_VERSION", NOON_MS)
    # If the version of this read were activated, q would be deleted as well.
    assert versions(third, "perks") == [("p", NOON_MS + 10_000), ("ACTIVATE_VERSION", NOON_MS)]
    assert versions(fourth, "perks") == [("p", NOON_MS + 10_000), ("ACTIVATE_VERSION", NOON_MS + 10_000)]


def test_rows_that_only_a_killed_read_emitted_are_deleted_later() -> None:
    _, second = read_perks(dated(P, at="12:00:00"), dated(P, at="12:00:05"))
    with Script(listing(P, Q, next_key="1"), Reply(status=403)) as script:
        killed = run_script(script, "perks", state=second.state, may_fail=True)
    assert versions(killed, "perks") == [("p", NOON_MS), ("q", NOON_MS)]
    # Continue from the last STATE that the killed run wrote before its rows.
    first_row = next(n for n, message in enumerate(killed.messages) if message["type"] == "RECORD")
    state = [message["value"] for message in killed.messages[:first_row] if message["type"] == "STATE"][-1]
    fourth, fifth = read_perks(dated(P, at="12:00:10"), dated(P, at="12:00:15"), state=state)
    assert versions(fourth, "perks")[-1] == ("ACTIVATE_VERSION", NOON_MS)
    assert versions(fifth, "perks")[-1] == ("ACTIVATE_VERSION", NOON_MS + 10_000)


def test_a_list_longer_than_its_sample_activates_the_version_of_the_previous_read() -> None:
    perks = sorted(({"_id": f"perk-{number}"} for number in range(1100)), key=lambda perk: digest(to_json(perk["_id"])))
    # The last perk is not in the sample.
    walks = [
        dated(*perks[:count], at=f"12:00:{second}") for second, count in enumerate([1100, 1100, 1099, 1099], start=10)
    ]
    activated = [dict(versions(run, "perks")).get("ACTIVATE_VERSION") for run in read_perks(*walks)]
    assert activated == [None, NOON_MS + 10_000, NOON_MS + 10_000, NOON_MS + 12_000]


def test_a_read_that_lacks_too_many_rows_does_not_count_for_deletion() -> None:
    walks = [dated(P, Q, at="12:00:00"), dated(at="12:00:05"), dated(P, Q, at="12:00:10"), dated(P, Q, at="12:00:15")]
    activated = [dict(versions(run, "perks")).get("ACTIVATE_VERSION") for run in read_perks(*walks)]
    assert activated == [None, None, NOON_MS, NOON_MS + 10_000]


def test_a_version_never_goes_back() -> None:
    *_, third = read_perks(dated(P, Q, at="12:00:00"), dated(P, at="12:00:05"), dated(P, at="11:00:00"))
    assert versions(third, "perks") == [("p", NOON_MS + 1), ("ACTIVATE_VERSION", NOON_MS + 1)]


def test_an_incomplete_read_deletes_nothing() -> None:
    with Script(listing(P, next_key="1"), Reply(status=403)) as script:
        run = run_script(script, "perks", may_fail=True)
    assert [kind for kind, _ in versions(run, "perks")] == ["p"]


@pytest.mark.parametrize(
    ("fraction", "left", "activated"),
    [
        pytest.param(0.5, [P], True, id="half-of-the-rows-missing"),
        pytest.param(0.4, [P], False, id="more-rows-missing-than-allowed"),
        pytest.param(0.5, [R], False, id="replaced-by-other-rows"),
        pytest.param(0.5, [], False, id="no-rows"),
        pytest.param(1.0, [], True, id="no-rows-but-allowed"),
    ],
)
def test_too_many_deletions_at_once_are_not_reported(
    fraction: float, left: list[dict[str, Any]], activated: bool, caplog: pytest.LogCaptureFixture
) -> None:
    with Script(listing(P, Q), listing(*left), listing(P, Q)) as script:
        first = run_script(script, "perks", max_deleted_fraction=fraction)
        second = run_script(script, "perks", max_deleted_fraction=fraction, state=first.state)
        third = run_script(script, "perks", max_deleted_fraction=fraction, state=second.state)
    assert ("ACTIVATE_VERSION" in dict(versions(second, "perks"))) is activated
    assert ("more than max_deleted_fraction; no deletions reported" in caplog.text) is not activated
    assert versions(third, "perks")[-1][0] == "ACTIVATE_VERSION"


def test_an_empty_first_read_of_perks_deletes_nothing_and_logs_no_warning(caplog: pytest.LogCaptureFixture) -> None:
    with Script(listing()) as script:
        assert versions(run_script(script, "perks"), "perks") == []
    assert "missing" not in caplog.text


def test_a_due_full_refresh_of_awards_deletes_missing_awards() -> None:
    old = "2026-09-01T00:00:00.000Z"
    kept, gone = ({"_id": name, "updatedAt": old} for name in ("kept", "gone"))
    with Script(listing(), listing(kept, gone)) as script:
        seeded = run_script(script, "awards", awards_full_refresh_days=7)
    assert versions(seeded, "awards") == [(name, NOON_MS) for name in ("kept", "gone")]

    new = {"_id": "new", "updatedAt": "2026-10-02T11:00:00.000Z"}
    a_day_later = {"Date": "Fri, 02 Oct 2026 12:00:00 GMT"}
    with Script(Reply(headers=dict(a_day_later)), Reply({"items": [new]}, headers=dict(a_day_later))) as script:
        followed = run_script(script, "awards", awards_full_refresh_days=7, state=seeded.state)
    assert "updatedAt" in script.asked[-1].query
    assert versions(followed, "awards") == [("new", NOON_MS)]

    state, week_ms = followed.state, 7 * 24 * 3600 * 1000
    refreshes = [("Thu, 08 Oct 2026 12:00:00 GMT", NOON_MS), ("Thu, 15 Oct 2026 12:00:00 GMT", NOON_MS + week_ms)]
    for date, activated in refreshes:
        with Script(Reply(headers={"Date": date}), Reply({"items": [kept, new]}, headers={"Date": date})) as script:
            run = run_script(script, "awards", awards_full_refresh_days=7, state=state)
        assert "updatedAt" not in script.asked[-1].query
        # The second refresh directly follows the first one, so it keeps the version.
        assert versions(run, "awards") == [
            ("kept", NOON_MS + week_ms),
            ("new", NOON_MS + week_ms),
            ("ACTIVATE_VERSION", activated),
        ]
        state = run.state


def test_an_award_that_appears_between_full_refreshes_is_not_deleted_by_the_next_one() -> None:
    state = None
    walks = [
        ("01", [P]),
        ("02", [{**Q, "updatedAt": "2026-10-02T11:00:00.000Z"}]),
        ("08", [P]),
        ("09", []),
        ("15", [P]),
    ]
    for day, rows in walks:
        date = {"Date": f"Thu, {day} Oct 2026 12:00:00 GMT"}
        with Script(Reply(headers=dict(date)), Reply({"items": rows}, headers=dict(date))) as script:
            run = run_script(script, "awards", awards_full_refresh_days=7, state=state)
        state = run.state
        if day == "08":
            assert versions(run, "awards")[-1] == ("ACTIVATE_VERSION", NOON_MS)
    assert versions(run, "awards")[-1] == ("ACTIVATE_VERSION", NOON_MS + 7 * 24 * 3600 * 1000)


def test_without_a_full_refresh_awards_have_no_version() -> None:
    with Script(listing(), listing({"_id": "a"})) as script:
        assert versions(run_script(script, "awards"), "awards") == [("a", None)]


# The time limit.


def test_a_run_out_of_time_stops_after_a_window_and_the_next_run_continues_there(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    pause = Reply(status=429, headers={"Retry-After": "40"})
    with Script(listing(), pause, listing(), listing()) as script:
        run = run_script(script, "actions", "awards", start_date="2026-09-25", max_run_seconds=40)
    assert run.bookmarks("actions")[-1] == "2026-09-25T06:00:00.000Z"
    assert {asked.path for asked in script.asked} == {"/actions"}
    (message,) = [line.getMessage() for line in caplog.records if "max_run_seconds" in line.getMessage()]
    assert message == (
        "max_run_seconds reached: actions read up to 2026-09-25T06:00:00.000Z, awards not started; "
        "the next run continues there"
    )
    with Script(listing()) as script:
        after = run_script(script, "actions", state=run.state)
    assert windows_asked(script)[0][0] == "2026-09-25T05:55:00.000Z"
    assert after.bookmarks("actions")[-1] == SETTLED


def test_a_run_does_not_wait_beyond_its_time_limit(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    pause = Reply(status=429, headers={"Retry-After": "200"})
    with Script(listing(), listing(), pause) as script:
        run = run_script(script, "actions", start_date="2026-09-25", max_run_seconds=60)
    assert set(run.bookmarks("actions")) == {"2026-09-25T06:00:00.000Z"}
    assert "because Pepper asked to wait; the next run continues there" in caplog.text


def test_a_run_without_progress_waits_as_long_as_pepper_asks() -> None:
    pause = Reply(status=429, headers={"Retry-After": "200"})
    with Script(listing(), pause, listing()) as script:
        run = run_script(script, "actions", start_date="2026-09-25", max_run_seconds=60)
    assert run.bookmarks("actions") == ["2026-09-25T06:00:00.000Z"]


def test_every_run_gets_further_than_the_last_one_however_long_the_lookback_takes() -> None:
    pause = Reply(status=429, headers={"Retry-After": "40"})
    bookmark = "2026-09-30T12:00:00.000Z"
    replies = [listing(), pause, listing(), pause, listing(), pause, listing()]
    with Script(*replies) as script:
        run = run_script(
            script, "actions", state=state_of(actions=bookmark), lookback_seconds=3 * 24 * 3600, max_run_seconds=20
        )
    assert bookmark < run.bookmarks("actions")[-1] < SETTLED


@pytest.mark.parametrize(
    ("bookmark", "waited"),
    [pytest.param("2026-10-01T11:00:00.000Z", False, id="a-poll"), pytest.param(None, True, id="a-full-load")],
)
def test_a_long_wait_ends_a_poll_of_awards_but_not_the_first_full_read(
    bookmark: str | None, waited: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    pause = Reply(status=429, headers={"Retry-After": "200"})
    state = state_of(awards=bookmark) if bookmark else None
    with Script(listing(), listing({"_id": "a"}, next_key="1"), pause, listing({"_id": "b"})) as script:
        run = run_script(script, "awards", state=state, max_run_seconds=60)
    assert run.ids("awards") == (["a", "b"] if waited else ["a"])
    assert run.bookmarks("awards")[-1] == (SETTLED if waited else bookmark)
    logged = "max_run_seconds reached: awards not read, because Pepper asked to wait; the next run continues there"
    assert (logged in caplog.text) is not waited
    warning = "awards: not read, because Pepper asked to wait longer than max_run_seconds"
    assert ([each.levelname for each in caplog.records if each.message == warning] == ["WARNING"]) is not waited


def test_the_audit_is_postponed_when_there_is_no_time_for_it(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    audit = {"next": "2026-10-01T05", "until": "2026-10-01T11:25:00.000Z", "hours": {}}
    state = state_of(actions="2026-10-01T11:30:00.000Z")
    state["bookmarks"]["actions"]["audit"] = audit
    pause = Reply(status=429, headers={"Retry-After": "40"})
    with Script(listing(), pause, listing()) as script:
        run = run_script(script, "actions", state=state, reconcile_hours=1, max_run_seconds=20)
    assert bookmark_of(run, "actions")["audit"]["next"] == "2026-10-01T05"
    assert "actions audited up to 2026-10-01T05; the next run continues there" in caplog.text


def test_a_backfill_leaves_time_for_awards() -> None:
    pause = Reply(status=429, headers={"Retry-After": "40"})
    with Script(listing(), listing(), pause, listing()) as script:
        run = run_script(script, "actions", "awards", start_date="2026-09-25", max_run_seconds=50)
    assert run.bookmarks("actions")[-1] < SETTLED
    assert run.bookmarks("awards")[-1] == SETTLED


# Self-audit.


def polls_with_audit(world: World, polls: int, **settings: object) -> list[Run]:
    """Poll every half hour, each time with the state of the poll before."""
    runs: list[Run] = []
    with Sandbox(world) as sandbox:
        for _ in range(polls):
            world.advance(timedelta(minutes=30))
            state = runs[-1].state if runs else state_of(actions=SETTLED)
            options = settings_of(sandbox, start_date=None, lookback_seconds=60, **settings)
            runs.append(run_tap(options, "actions", state=state, local_clock=world.now))
    return runs


def test_the_audit_emits_actions_that_arrived_later_than_the_lookback(caplog: pytest.LogCaptureFixture) -> None:
    late = World(seed=3, users=200, days=1, now=NOW, late_fraction=0.2, late_seconds_max=3000)
    without = {name for run in polls_with_audit(late, 10) for name in run.ids("actions")}
    world = World(seed=3, users=200, days=1, now=NOW, late_fraction=0.2, late_seconds_max=3000)
    with_audit = {name for run in polls_with_audit(world, 10, reconcile_hours=1) for name in run.ids("actions")}
    due = {row["_id"] for row in world.actions(after=NOW, until=NOW + timedelta(hours=3))}
    assert due - without
    assert due <= with_audit
    assert "actions arrived later than lookback_seconds; emitting the hour again" in caplog.text


def test_the_audit_reads_each_hour_once_and_emits_nothing_if_nothing_is_late(
    caplog: pytest.LogCaptureFixture,
) -> None:
    world = World(seed=3, users=100, days=1, now=NOW, late_fraction=0)
    runs = polls_with_audit(world, 10, reconcile_hours=2)
    ids = [name for run in runs for name in run.ids("actions")]
    assert len(ids) == len(set(ids)) > 10
    assert "arrived later" not in caplog.text
    audit = runs[-1].state["bookmarks"]["actions"]["audit"]
    assert audit["next"] == "2026-10-01T14"
    assert min(audit["hours"]) >= "2026-10-01T14"


def test_the_audit_ignores_changes_and_repetitions_within_the_lookback(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tap_pepper.state.dedupe.RECENT_ROWS_MAX", 0)
    first = action("a", "2026-10-01T11:56:00.000Z")
    changed, second = {**first, "type": "REFUND"}, action("b", "2026-10-01T11:57:00.000Z")
    with Script(listing(), listing(first, second)) as script:
        before = state_of(actions="2026-10-01T10:59:59.999Z")
        state = run_script(script, "actions", state=before, reconcile_hours=1).state
    later = {"Date": "Thu, 01 Oct 2026 14:00:00 GMT"}
    page = Reply({"items": [changed, second]}, headers=dict(later))
    with Script(Reply(headers=dict(later)), page) as script:
        run = run_script(script, "actions", state=state, reconcile_hours=1, local_clock=NOW + timedelta(hours=2))
    assert run.ids("actions") == ["a", "b"]
    assert "emitting the hour again" not in caplog.text
    assert bookmark_of(run, "actions")["audit"]["next"] == "2026-10-01T12"


@pytest.mark.parametrize("repeated_in", ["first-read", "second-read"])
def test_the_audit_counts_a_row_once_even_if_pages_repeat_it(
    repeated_in: str, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [action("a", "2026-10-01T11:30:00.000Z"), action("b", "2026-10-01T11:40:00.000Z")]
    first_read, second_read = (
        [*rows, rows[0]] if repeated_in == each else rows for each in ("first-read", "second-read")
    )
    with Script(listing(), listing(*first_read)) as script:
        before = state_of(actions="2026-10-01T10:59:59.999Z")
        state = run_script(script, "actions", state=before, reconcile_hours=1).state
    later = {"Date": "Thu, 01 Oct 2026 14:00:00 GMT"}
    page = Reply({"items": second_read}, headers=dict(later))
    with Script(Reply(headers=dict(later)), page) as script:
        run = run_script(script, "actions", state=state, reconcile_hours=1, local_clock=NOW + timedelta(hours=2))
    assert run.ids("actions") == []
    assert "emitting the hour again" not in caplog.text
    assert bookmark_of(run, "actions")["audit"]["next"] == "2026-10-01T12"


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"lookback_seconds": 60}, id="shorter-lookback"),
        pytest.param({"action_types": ["REWARD_EARNED"]}, id="another-filter"),
        pytest.param({}, id="fewer-fields"),
    ],
)
def test_a_change_of_settings_does_not_look_like_late_actions(
    change: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    def deselect(entry: dict[str, Any]) -> None:
        select_fields(entry, "environment", selected=False)

    caplog.set_level(logging.INFO)
    world = World(seed=3, users=200, days=1, now=NOW, late_fraction=0)
    state = state_of(actions=SETTLED)
    options: dict[str, Any] = {"lookback_seconds": 3600, "reconcile_hours": 1}
    catalog = selection("actions")
    with Sandbox(world) as sandbox:
        for poll in range(8):
            world.advance(timedelta(minutes=30))
            if poll == 3:
                options |= change
                catalog = catalog if change else selection("actions", change=deselect)
            settings = settings_of(sandbox, start_date=None, **options)
            state = run_tap(settings, catalog=catalog, state=state, local_clock=world.now).state
    assert "later than lookback_seconds" not in caplog.text
    # The hours that were still due when the settings changed are emitted again without a comparison.
    assert "audit of 2026-10-01 " in caplog.text
    assert state["bookmarks"]["actions"]["audit"]["next"] == "2026-10-01T14"


# Independence of the streams.


def test_an_error_stops_only_its_own_stream_and_is_raised_at_the_end() -> None:
    with Script(Reply(status=403), listing(), listing({"_id": "a"}), listing({"_id": "p"})) as script:
        run = run_script(script, may_fail=True)
    assert str(run.error).startswith("actions first request: Pepper answered 403")
    assert (run.ids("awards"), run.ids("perks")) == (["a"], ["p"])


def test_several_failures_are_all_reported() -> None:
    with Script(Reply(status=403), Reply(status=404), listing({"_id": "p"})) as script:
        run = run_script(script, may_fail=True)
    assert isinstance(run.error, StreamsFailed)
    assert [name for name, _ in run.error.failures] == ["actions", "awards"]
    assert run.ids("perks") == ["p"]


def test_a_rejected_token_is_not_tried_on_other_streams() -> None:
    with Script(Reply(status=401)) as script:
        run = run_script(script, may_fail=True)
    assert "Pepper answered 401" in str(run.error)
    assert len(script.asked) == 1


def test_a_failing_stream_map_stops_only_its_own_stream() -> None:
    row = action("a", "2026-10-01T11:59:00.000Z")
    with Script(listing(), listing(row), listing({"_id": "b"})) as script:
        run = run_script(script, may_fail=True, stream_maps={"actions": {"x": "1 / 0"}})
    assert str(run.error) == "actions: a stream map fails: ZeroDivisionError"
    assert run.ids("awards") == ["b"]


def test_no_request_is_sent_after_a_stream_map_has_failed(world: World) -> None:
    with Sandbox(world) as sandbox:
        maps = {"actions": {"x": "1 / 0"}}
        run = run_tap(settings_of(sandbox, stream_maps=maps, page_size=1), "actions", may_fail=True)
        assert "a stream map fails" in str(run.error)
        requests = len(sandbox.requests)
        time.sleep(0.2)
        assert len(sandbox.requests) == requests


def test_every_record_fits_its_schema_without_undeclared_properties() -> None:
    world = World(seed=7, users=20, days=3, now=NOW)
    with Sandbox(world, faults=[faults.points_as_strings(), faults.fields_unknown()]) as sandbox:
        every = selection("actions", "awards", "perks", "users")
        for entry in every["streams"]:
            select_fields(entry, *entry["schema"]["properties"])
        given = settings_of(sandbox, start_date="2026-09-25", include_users=True, include_credentials=True)
        run = run_tap(given, catalog=every)
    for stream in ("actions", "awards", "perks", "users"):
        schema = run.schema(stream)["schema"]
        validator = Draft202012Validator({**schema, "additionalProperties": False})
        records = run.records(stream)
        assert records
        assert all(validator.is_valid(json.loads(json.dumps(record, default=float))) for record in records)
        assert any("sparkle" in record["other_fields"] for record in records)
        assert not any("invalid_points" in record for record in records)


def test_actions_are_read_first() -> None:
    with Script(listing()) as script:
        run = run_script(script)
    assert [m["stream"] for m in run.messages if m["type"] == "SCHEMA"] == ["actions", "awards", "perks"]


# Logs and metrics.


def test_unknown_fields_are_logged_once_per_run_without_values(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    rows = [action(name, "2026-10-01T11:59:00.000Z", sparkle="Tom Jones", **{"tom@example.com": 1}) for name in "abc"]
    with Script(listing(), listing(*rows)) as script:
        run_script(script, "actions")
    (message,) = [line.getMessage() for line in caplog.records if "not in the schema" in line.getMessage()]
    assert message == "actions: fields that are not in the schema are in other_fields: (unusual name), sparkle"


def test_unknown_fields_of_awards_are_logged_as_dropped(caplog: pytest.LogCaptureFixture) -> None:
    row = {"_id": "a", "sparkle": 1}
    with Script(listing(), listing(row), listing(), listing(row)) as script:
        default = run_script(script, "awards")
        warning = "awards: dropped fields that are not in the schema: sparkle; select other_fields to keep them"
        assert warning in caplog.text
        chosen = selection("awards", change=lambda entry: select_fields(entry, "other_fields"))
        selected = run_script(script, catalog=chosen)
    assert default.records("awards") == [{"_id": "a"}]
    assert selected.records("awards") == [{"_id": "a", "other_fields": {"sparkle": 1}}]


@pytest.mark.parametrize("stream", ["actions", "awards", "perks"])
def test_an_unknown_field_is_logged_in_the_first_run_that_sees_it(
    stream: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)

    def logged(state: dict[str, Any] | None, **fields: Any) -> tuple[dict[str, Any], list[str]]:
        caplog.clear()
        row = action("a", "2026-10-01T11:59:00.000Z", **fields) if stream == "actions" else {"_id": "a", **fields}
        with Script(*([] if stream == "perks" else [listing()]), listing(row)) as script:
            run = run_script(script, stream, state=state)
        lines = [line.getMessage() for line in caplog.records if "not in the schema" in line.getMessage()]
        return run.states[-1], [line.partition("other_fields: ")[2] or line for line in lines]

    first, in_first = logged(None, **{"sparkle": 1, "tom@example.com": 1})
    second, in_second = logged(first, **{"sparkle": 1, "ann@example.com": 1})
    _, in_third = logged(second, sparkle=1, glow=1)

    assert len(in_first) == len(in_third) == 1
    assert "(unusual name), sparkle" in in_first[0]
    assert in_second == []
    assert "glow" in in_third[0]
    assert "sparkle" not in in_third[0]
    assert "@" not in json.dumps(first)


def test_the_state_remembers_a_bounded_number_of_unknown_fields() -> None:
    row = {"_id": "a", **{f"field_{number}": number for number in range(300)}}
    with Script(listing(row)) as script:
        run = run_script(script, "perks")
    assert len(run.states[-1]["bookmarks"]["perks"]["unknown_fields"]) == 100


def test_pages_retries_waits_and_lag_are_logged_as_metrics(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with Script(listing(), Reply(status=429, headers={"Retry-After": "7"}), listing()) as script:
        run_script(script, "actions")
    points = [json.loads(line.getMessage().split("METRIC: ")[1]) for line in caplog.records if "METRIC" in line.msg]
    measured = {point["metric"]: point["value"] for point in points if point["tags"].get("stream") == "actions"}
    names = ("page_count", "http_request_retry_count", "http_wait_seconds", "bookmark_lag_seconds")
    assert [measured[name] for name in names] == [2, 1, 7.0, 5.0]


def test_metrics_are_also_logged_for_a_failed_stream(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    busy = Reply(status=429, headers={"Retry-After": "7"})
    row = action("a", "2026-10-01T11:59:00.000Z", sparkle=1)
    with Script(listing(), busy, listing(row, next_key="1"), Reply(status=403)) as script:
        run = run_script(script, "actions", may_fail=True)
    assert isinstance(run.error, FatalAPIError)
    assert '"metric":"http_request_retry_count","value":1' in caplog.text
    assert "fields that are not in the schema are in other_fields: sparkle" in caplog.text


def test_a_long_run_logs_how_far_behind_it_is(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with Script(listing()) as script:
        run_script(script, "actions", start_date="2026-10-01T00:00:00Z")
    assert "actions: 0 records, 1 page, window 2026-10-01 00:00:00 to 06:00:00, 6 h left to read" in caplog.text


# Against the sandbox.


@pytest.fixture
def world() -> World:
    return World(seed=7, users=30, days=5, now=NOW)


def settings_of(sandbox: Sandbox, **settings: object) -> dict[str, Any]:
    return config(
        sandbox.url,
        **{
            "auth_token": sandbox.token,
            "application_id": sandbox.application_id,
            "start_date": "2026-09-25",
            **settings,
        },
    )


def visible(world: World, until: timedelta = timedelta(seconds=5)) -> set[str]:
    return {row["_id"] for row in world.actions(until=world.now - until)}


VARIANTS = [
    pytest.param([], id="as-documented"),
    pytest.param([faults.filters_ignored("when.timestamp", "type", "updatedAt", "updatedAfter")], id="filters-ignored"),
    pytest.param([faults.limit_capped(7)], id="limit-capped"),
    pytest.param([faults.limit_ignored()], id="limit-ignored"),
    pytest.param([faults.listed_as("items")], id="listed-as-items"),
    pytest.param([faults.last_next_key(None)], id="nextKey-null"),
    pytest.param([faults.last_next_key("")], id="nextKey-empty"),
    pytest.param([faults.last_row_repeated()], id="last-row-repeated"),
    pytest.param([faults.empty_page_between()], id="empty-pages-between"),
    pytest.param([faults.rows_shuffled()], id="rows-shuffled"),
    pytest.param([faults.newest_first().on("/actions")], id="newest-first"),
    pytest.param([faults.updated_at_exclusive()], id="updatedAt-exclusive"),
    pytest.param([faults.server_error().nth(1, 4, 5)], id="some-503"),
    pytest.param([faults.rate_limited(2).nth(2, 3)], id="some-429"),
    pytest.param([faults.rate_limited_until(2).nth(2)], id="a-429-until-a-date"),
    pytest.param([faults.html_page().nth(3)], id="a-page-of-html"),
    pytest.param([faults.gzip_cut().nth(2, 5)], id="gzip-cut"),
    pytest.param([faults.connection_cut().nth(2, 5)], id="connection-cut"),
    pytest.param([faults.connection_reset().nth(1, 4)], id="connection-reset"),
    pytest.param([faults.clock_missing()], id="no-clock"),
    pytest.param([faults.field_missing("context")], id="no-context"),
    pytest.param([faults.field_set("metadata", None)], id="metadata-null"),
    pytest.param([faults.field_missing("when.timezone")], id="no-timezone"),
    pytest.param([faults.points_as_strings()], id="points-as-strings"),
]


@pytest.mark.parametrize("injected", VARIANTS)
def test_two_runs_emit_everything_in_every_variant_of_the_api(world: World, injected: list[Fault]) -> None:
    with Sandbox(world, faults=injected) as sandbox:
        settings = settings_of(sandbox, page_size=40)
        seeded = run_tap(settings)
        assert set(seeded.ids("actions")) == visible(world)
        assert {row["_id"]: Decimal(row["points"]) for row in seeded.records("awards")} == world.balances()
        assert {row["_id"] for row in seeded.records("perks")} == {row["_id"] for row in world.perks()}

        world.advance(timedelta(hours=6))
        followed = run_tap({**settings, "start_date": None}, state=seeded.state, local_clock=world.now)
    assert set(seeded.ids("actions") + followed.ids("actions")) == visible(world)
    points = {row["_id"]: Decimal(row["points"]) for row in seeded.records("awards") + followed.records("awards")}
    assert points == world.balances()
    assert len(followed.ids("awards")) < len(points)


def test_a_backfill_needs_no_more_windows_when_pepper_ignores_the_filter(world: World) -> None:
    asked = []
    for injected in ([], [faults.filters_ignored("when.timestamp")]):
        with Sandbox(world, faults=injected) as sandbox:
            run = run_tap(settings_of(sandbox, page_size=5), "actions")
            assert set(run.ids("actions")) == visible(world)
            asked.append(sum(request.parameter("startKey") is None for request in sandbox.requests))
    as_documented, ignored = asked
    assert ignored <= as_documented


def test_polls_every_five_minutes_miss_no_late_action() -> None:
    world = World(seed=3, users=200, days=1, now=NOW, late_fraction=0.3, late_seconds_max=240)
    seen: set[str] = set()
    with Sandbox(world) as sandbox:
        settings = settings_of(sandbox, start_date="2026-10-01T12:00:00Z")
        state: dict[str, Any] = state_of(actions="2026-10-01T12:00:00.000Z")
        for _ in range(36):
            world.advance(timedelta(minutes=5))
            run = run_tap(settings, "actions", state=state, local_clock=world.now)
            seen |= set(run.ids("actions"))
            state = run.state
    due = {row["_id"] for row in world.actions(after=NOW, until=world.now - timedelta(seconds=5))}
    assert len(due) > 10
    assert due <= seen


@pytest.mark.parametrize(
    "skew_seconds", [pytest.param(-3600, id="an-hour-behind"), pytest.param(3600, id="an-hour-ahead")]
)
def test_a_wrong_local_clock_does_not_change_what_is_read(world: World, skew_seconds: int) -> None:
    with Sandbox(world) as sandbox:
        run = run_tap(settings_of(sandbox), "actions", local_clock=NOW + timedelta(seconds=skew_seconds))
    assert set(run.ids("actions")) == visible(world)
    assert run.bookmarks("actions")[-1] == SETTLED


@pytest.mark.parametrize("request_number", [2, 3, 5, 8])
def test_the_next_run_completes_a_failed_run(world: World, request_number: int) -> None:
    with Sandbox(world, faults=[faults.unauthorized().nth(request_number)]) as sandbox:
        died = run_tap(settings_of(sandbox, page_size=10), may_fail=True)
        assert isinstance(died.error, PepperError)
        sandbox.faults = ()
        finished = run_tap(settings_of(sandbox, page_size=10), state=died.states[-1] if died.states else {})
    assert set(died.ids("actions") + finished.ids("actions")) == visible(world)
    assert finished.ids("awards")

"""The row of an action, its effect on a balance, and the reason if an action is invalid."""

from __future__ import annotations

import copy
import json
import re
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from target_crm.records import values
from target_crm.records.actions import LedgerRow, decode_action, ledger_row, location_title
from target_crm.records.values import Invalid
from tests.helpers.guide import AWARD_POINTS_REFUNDED, REDEEM_PERK, REWARD_EARNED

LOADED_AT = datetime(2026, 10, 5, tzinfo=UTC)
HEAD, TAIL = b'{"type":"RECORD","stream":"actions","record":', b',"time_extracted":"2026-10-05T00:00:00Z"}'


def row_of(record: dict[str, Any]) -> LedgerRow:
    """The row of a record. The record's line must give the same row, or no row if the record is invalid."""
    document = json.dumps(record).encode()
    decoded = decode_action(HEAD + document + TAIL)
    try:
        row = ledger_row(values.from_json(document), loaded_at=LOADED_AT)
    except Invalid:
        assert decoded is None
        raise
    assert decoded
    assert decoded[:-1] == row[:-2]
    return row


def earned(**changes: Any) -> dict[str, Any]:
    """The guide's first example with changed fields: `a__b` names field `b` of object `a`; None removes a field."""
    record = copy.deepcopy(json.loads(REWARD_EARNED))
    for path, value in changes.items():
        *parents, name = path.split("__")
        target = record
        for parent in parents:
            target = target[parent]
        if value is None:
            del target[name]
        else:
            target[name] = value
    return record


def expected_row(**changes: Any) -> dict[str, Any]:
    expected = {
        "action_id": "xxxx",
        "type": "REWARD_EARNED",
        "tenant_id": "xxxx",
        "user_id": "xxxx",
        "award_id": "xxxxx",
        "perk_id": "xxxxx",
        "location_id": "xxx",
        "occurred_at": datetime(2021, 3, 5, 13, 37, 52, 194000, tzinfo=UTC),
        "effect": "earned",
        "points_available": Decimal(2),
        "points_added": Decimal(2),
        "points_redeemed": None,
        "points_refunded": None,
        "source": "API_SERVER",
        "environment": "BETA",
        "loaded_at": LOADED_AT,
    }
    return {**expected, **changes}


@pytest.mark.parametrize(
    ("example", "expected"),
    [
        pytest.param("{}", expected_row(), id="REWARD_EARNED"),
        pytest.param(
            REDEEM_PERK,
            expected_row(
                type="REDEEM_PERK",
                award_id="xxx",
                perk_id="xxx",
                effect="redeemed",
                points_available=Decimal(5),
                points_added=None,
                points_redeemed=Decimal(16),
            ),
            id="REDEEM_PERK",
        ),
        pytest.param(
            AWARD_POINTS_REFUNDED,
            expected_row(
                type="AWARD_POINTS_REFUNDED",
                award_id="xxx",
                perk_id="xxx",
                effect="refunded",
                points_available=Decimal(15),
                points_added=None,
                points_refunded=Decimal(5),
            ),
            id="AWARD_POINTS_REFUNDED",
        ),
    ],
)
def test_the_examples_of_peppers_guide_become_rows(example: str, expected: dict[str, Any]) -> None:
    record = {**json.loads(REWARD_EARNED), **json.loads(example)}

    result = row_of(record)._asdict()

    assert json.loads(result.pop("payload")) == record
    assert result == expected


def test_the_payload_keeps_every_digit_that_pepper_sent() -> None:
    record = values.from_json(REWARD_EARNED.replace("51.5045788", "51.50457880"))

    assert '"geo":[-0.0970637,51.50457880]' in ledger_row(record, loaded_at=LOADED_AT).payload


@pytest.mark.parametrize(
    ("changes", "effect"),
    [
        pytest.param({"metadata__pointsAdded": None}, None, id="no-delta"),
        pytest.param({"metadata__pointsAvailable": None}, None, id="no-points-available"),
        pytest.param({"metadata": {}}, None, id="empty-metadata"),
        pytest.param({"metadata": None}, None, id="no-metadata"),
        pytest.param({"metadata": []}, None, id="metadata-is-a-list"),
        pytest.param({"metadata": {"awardId": "w1", "points": 2}}, None, id="other-names-in-metadata"),
        pytest.param({"type": "REDEEM_PERK"}, None, id="delta-of-another-type"),
        pytest.param({"type": "ORDER_PLACED"}, None, id="unknown-type"),
        pytest.param({"type": "reward_earned"}, None, id="types-are-case-sensitive"),
        pytest.param({"type": None}, None, id="no-type"),
        pytest.param({"type": 7}, None, id="type-is-not-text"),
        pytest.param({"metadata__pointsAdded": 0}, "earned", id="delta-of-zero"),
        pytest.param({"metadata__pointsAvailable": -3}, "earned", id="negative-points-available"),
        pytest.param({"metadata__perkId": None}, "earned", id="no-perk"),
        pytest.param({"context__location": None}, "earned", id="no-location"),
        pytest.param({"tenantId": None}, "earned", id="tenant-only-in-context"),
        pytest.param({"when__timezone": None, "when__year": None}, "earned", id="only-a-timestamp"),
    ],
)
def test_an_action_has_an_effect_only_with_points_available_and_the_delta_of_its_type(
    changes: dict[str, Any], effect: str | None
) -> None:
    assert row_of(earned(**changes)).effect == effect


def test_null_metadata_context_and_when_count_as_missing() -> None:
    result = row_of({"_id": "a1", "type": "REWARD_EARNED", "metadata": None, "context": None, "when": None})

    assert (result.effect, result.user_id, result.award_id, result.occurred_at) == (None, None, None, None)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        pytest.param({"_id": None}, "_id is null, expected an id", id="no-id"),
        pytest.param({"_id": ""}, "_id is empty, expected an id", id="empty-id"),
        pytest.param({"_id": True}, "_id is a boolean, expected an id", id="boolean-id"),
        pytest.param({"_id": 1.5}, "_id is a number, expected an id", id="fraction-as-id"),
        pytest.param({"_id": "x" * 256}, "_id has 256 characters, expected at most 255", id="long-id"),
        pytest.param({"_id": "a\0"}, "_id holds a NUL character", id="id-with-nul"),
        pytest.param({"context": None}, "context.user._id is missing", id="no-context"),
        pytest.param({"context__user": None}, "context.user._id is missing", id="no-user"),
        pytest.param({"context__user": "u1"}, "context.user._id is missing", id="user-is-text"),
        pytest.param({"metadata__awardId": None}, "metadata.awardId is missing", id="no-award"),
        pytest.param({"metadata__awardId": ""}, "metadata.awardId is empty, expected an id", id="empty-award"),
        pytest.param({"when": None}, "when.timestamp is missing", id="no-time"),
        pytest.param(
            {"when__timestamp": "2021-02-29T00:00:00Z"},
            "when.timestamp is not an ISO 8601 time: day is out of range for month",
            id="29-february-of-a-common-year",
        ),
        pytest.param(
            {"when__timestamp": "2024-13-01T00:00:00Z"},
            "when.timestamp is not an ISO 8601 time: month must be in 1..12",
            id="13th-month",
        ),
        pytest.param(
            {"when__timestamp": 1614951472194}, "when.timestamp is a number, expected an ISO 8601 time", id="epoch"
        ),
        pytest.param(
            {"when__timestamp": "0001-01-01T00:00:00+10:00"},
            "when.timestamp is before the year 1 or after the year 9999 in UTC",
            id="before-the-year-1-in-UTC",
        ),
        pytest.param(
            {"metadata__pointsAdded": True}, "metadata.pointsAdded is a boolean, expected points", id="boolean-points"
        ),
        pytest.param({"metadata__pointsAdded": "two"}, "metadata.pointsAdded is text, expected points", id="text"),
        pytest.param(
            {"invalid_points": {"pointsAdded": "two"}},
            "metadata.pointsAdded is text, expected points",
            id="text-that-the-tap-has-moved",
        ),
        pytest.param({"metadata__pointsAdded": "NaN"}, "metadata.pointsAdded is text, expected points", id="NaN"),
        pytest.param({"metadata__pointsAdded": "1e3"}, "metadata.pointsAdded is text, expected points", id="exponent"),
        pytest.param(
            {"metadata__pointsAdded": " 2"}, "metadata.pointsAdded is text, expected points", id="leading-space"
        ),
        pytest.param({"metadata__pointsAdded": ""}, "metadata.pointsAdded is text, expected points", id="empty-text"),
        pytest.param(
            {"metadata__pointsAvailable": [2]}, "metadata.pointsAvailable is a list, expected points", id="list"
        ),
        pytest.param(
            {"metadata__pointsAvailable": 10**11},
            "metadata.pointsAvailable is out of range, expected points below 100,000,000,000",
            id="overflow",
        ),
        pytest.param(
            {"metadata__pointsAvailable": -(10**11)},
            "metadata.pointsAvailable is out of range, expected points below 100,000,000,000",
            id="negative-overflow",
        ),
        pytest.param(
            {"metadata__pointsAvailable": 1.00001},
            "metadata.pointsAvailable has more than 4 decimal places",
            id="five-places",
        ),
        pytest.param(
            {"metadata__pointsAvailable": "1.00000000000000000000000000000000001"},
            "metadata.pointsAvailable has more than 4 decimal places",
            id="more-places-than-the-decimal-context",
        ),
    ],
)
def test_an_action_with_an_effect_is_invalid_without_id_user_award_time_and_points(
    changes: dict[str, Any], reason: str
) -> None:
    with pytest.raises(Invalid) as error:
        row_of(earned(**changes))

    assert str(error.value) == reason


def test_the_reason_does_not_repeat_the_value() -> None:
    with pytest.raises(Invalid) as error:
        row_of(earned(metadata__pointsAdded="Tom Jones"))

    assert "Tom" not in str(error.value)


@pytest.mark.parametrize(
    ("sent", "points"),
    [
        pytest.param("0", Decimal(0), id="zero"),
        pytest.param("0.25", Decimal("0.25"), id="a-quarter"),
        pytest.param("0.1", Decimal("0.1"), id="a-tenth"),
        pytest.param('"0.25"', Decimal("0.25"), id="text"),
        pytest.param('"16"', Decimal(16), id="whole-number-as-text"),
        pytest.param('"-3"', Decimal(-3), id="negative-text"),
        pytest.param("2.50000", Decimal("2.5"), id="trailing-zeros"),
        pytest.param("1e3", Decimal(1000), id="exponent"),
        pytest.param("99999999999.9999", Decimal("99999999999.9999"), id="maximum"),
        pytest.param("-99999999999.9999", Decimal("-99999999999.9999"), id="minimum"),
    ],
)
def test_points_are_exact_whether_sent_as_number_or_text(sent: str, points: Decimal) -> None:
    record = values.from_json(REWARD_EARNED.replace('"pointsAvailable": 2', f'"pointsAvailable": {sent}'))

    assert ledger_row(record, loaded_at=LOADED_AT).points_available == points


def test_ids_sent_as_whole_numbers_become_text() -> None:
    result = row_of(earned(_id=12, context__user___id=34, metadata__awardId=56, metadata__perkId=78))

    assert result[:6] == ("12", "REWARD_EARNED", "xxxx", "34", "56", "78")


@pytest.mark.parametrize(
    ("timestamp", "instant"),
    [
        pytest.param("2021-03-05T13:37:52.194Z", datetime(2021, 3, 5, 13, 37, 52, 194000, tzinfo=UTC), id="utc"),
        pytest.param("2021-03-05T13:37:52", datetime(2021, 3, 5, 13, 37, 52, tzinfo=UTC), id="no-offset-is-utc"),
        pytest.param("2021-03-05T13:37:52+05:30", datetime(2021, 3, 5, 8, 7, 52, tzinfo=UTC), id="offset"),
        pytest.param(
            "2021-03-05T23:37:52-01:00",
            datetime(2021, 3, 6, 0, 37, 52, tzinfo=UTC),
            id="offset-into-the-next-day",
        ),
        pytest.param(
            "2021-03-05T13:37:52.194123Z",
            datetime(2021, 3, 5, 13, 37, 52, 194123, tzinfo=UTC),
            id="microseconds",
        ),
        pytest.param(
            "2021-06-05T13:37:52.194Z",
            datetime(2021, 6, 5, 13, 37, 52, 194000, tzinfo=UTC),
            id="in-summer",
        ),
    ],
)
def test_the_time_follows_from_the_timestamp_not_from_the_timezone_field(timestamp: str, instant: datetime) -> None:
    occurred_at = row_of(earned(when__timestamp=timestamp)).occurred_at

    assert occurred_at == instant
    assert occurred_at is not None
    assert occurred_at.utcoffset() == timedelta(0)


def test_when_timestamp_replaces_a_deselected_when() -> None:
    result = row_of(earned(when=None, when_timestamp="2021-03-05T13:37:52.194Z"))

    assert result.occurred_at == datetime(2021, 3, 5, 13, 37, 52, 194000, tzinfo=UTC)


def test_an_action_without_effect_keeps_its_valid_fields() -> None:
    record = {"_id": "a1", "type": "CHECK_IN", "when": {"timestamp": "soon"}, "context": {"user": {"_id": "u1"}}}

    result = row_of({**record, "tenantId": ["t"], "metadata": {"awardId": 5, "pointsAvailable": "many"}})

    assert result[:10] == ("a1", "CHECK_IN", None, "u1", "5", None, None, None, None, None)


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"metadata__pointsAdded": 2.0}, id="points-as-decimal"),
        pytest.param({"metadata__pointsAdded": "2.00"}, id="points-as-text"),
        pytest.param({"when__timestamp": "2021-03-05T14:37:52.194000+01:00"}, id="same-time-with-another-offset"),
        pytest.param({"when__timestamp": "2021-03-05 13:37:52.194 UTC"}, id="same-time-not-as-RFC-3339"),
        pytest.param({"context__user__fullName": "Tom Smith"}, id="another-user-name"),
        pytest.param({"context__location__tags": ["open"]}, id="another-tag-of-the-location"),
        pytest.param({"somethingNew": {"x": 1}}, id="unknown-field"),
        pytest.param({"metadata__loyaltyEarned": None}, id="field-without-a-column"),
    ],
)
def test_the_columns_do_not_depend_on_notation_and_fields_without_a_column(changes: dict[str, Any]) -> None:
    assert row_of(earned(**changes))._replace(payload="") == row_of(earned())._replace(payload="")


TITLE, POINTS = b'"Arches"', b'"pointsAdded": 2'
LINE = HEAD + REWARD_EARNED.encode() + TAIL


@pytest.mark.parametrize(
    "title",
    [
        pytest.param(rb'"\"quoted\" \u00fc \ud83c\udf81"', id="escapes"),
        pytest.param(rb'"C:\\u0000"', id="escaped-backslash-before-u0000"),
        pytest.param('"größe 🎁"'.encode(), id="not-ascii"),
        pytest.param(b"123456789012345678901234567890.50", id="long-number"),
        pytest.param(b"9" * 5000, id="more-digits-than-an-integer"),
        pytest.param(b"1e9999999999999999999", id="larger-than-a-decimal"),
        pytest.param(b'{"a": [1, {}], "a": -0}', id="repeated-name"),
    ],
)
def test_the_payload_is_the_unchanged_record(title: bytes) -> None:
    line = LINE.replace(TITLE, title)

    row = decode_action(line)

    assert row
    assert row[:4] == ("xxxx", "REWARD_EARNED", "xxxx", "xxxx")
    assert row[-1].encode() == line.removeprefix(HEAD).removesuffix(TAIL).strip()


@pytest.mark.parametrize(
    "line",
    [
        pytest.param(LINE.replace(b"RECORD", b"STATE"), id="another-type"),
        pytest.param(LINE.replace(b'"actions"', b'"awards"'), id="another-stream"),
        pytest.param(LINE.replace(b'"actions"', b"1"), id="stream-is-a-number"),
        pytest.param(b'{"type":"RECORD","stream":"actions"}', id="no-record"),
        pytest.param(HEAD + b"[]" + TAIL, id="record-is-a-list"),
        pytest.param(LINE[:-1], id="cut-off"),
        pytest.param(b"", id="empty"),
        pytest.param(LINE.replace(TITLE, b'"\xff"'), id="not-utf-8"),
        pytest.param(LINE.replace(TITLE, rb'"\ud800"'), id="half-of-a-surrogate-pair"),
        pytest.param(LINE.replace(TITLE, rb'"\u0000"'), id="nul"),
        pytest.param(LINE.replace(TITLE, b"NaN"), id="nan"),
        pytest.param(LINE.replace(TITLE, b"[" * 100_000 + b"]" * 100_000), id="nested-too-deeply"),
        pytest.param(LINE.replace(POINTS, b'"pointsAdded": ' + b"9" * 5000), id="points-of-5000-digits"),
        pytest.param(LINE.replace(POINTS, b'"pointsAdded": 1e9999999999999999999'), id="points-larger-than-a-decimal"),
        pytest.param(LINE.replace(POINTS, b'"pointsAdded": "two"'), id="invalid-action"),
    ],
)
def test_any_other_line_is_left_to_the_reader(line: bytes) -> None:
    assert decode_action(line) is None


# Whole values, so that two changes never join to a number that no decimal holds.
VALUE = re.compile(rb'(?<=: )(?:"[^"]*"|[-+.\w]+)')
VALUES = st.sampled_from(
    [
        *(b"null", b"true", b"[]", b"{}", b"NaN", b"-0", b"1e3", b"1E-5", b"2.50", b"7", b"1.00001", b"9" * 40),
        *(b'""', b'"5"', b'"2.50"', b'"1e3"', b'" 2"', b'"NaN"', b'"x"', b'"%s"' % (b"x" * 256), '"größe"'.encode()),
        *(rb'"\u0000"', rb'"\ud800"', rb'"\\u0000"', b'"\xff"', b'"\x00"', b'"2026-10-01"', b"1e400", b"9" * 400),
    ]
)
# More members of the record. Of a repeated name, the last counts.
MEMBERS = st.sampled_from(
    [
        *(b"", b',"metadata":5', b',"metadata":null', b',"context":{}', b',"context":{"user":5}', b',"when":""'),
        *(b',"when":{"timestamp":5}', b',"invalid_points":{"pointsAdded":"x"}', b',"invalid_points":7', b',"type":7'),
        *(b',"_id":12', b',"when":null,"when_timestamp":"2026-10-01 12:00:00 UTC"', b',"unknown"'),
    ]
)


@settings(max_examples=500)
@given(st.lists(st.tuples(st.integers(0, 1000), VALUES), max_size=3), MEMBERS)
def test_a_line_gives_the_row_of_its_decoded_record(changes: list[tuple[int, bytes]], members: bytes) -> None:
    document = REWARD_EARNED.encode()
    for place, value in changes:
        places = list(VALUE.finditer(document))
        start, end = places[place % len(places)].span()
        document = document[:start] + value + document[end:]
    line = HEAD + document.strip().removesuffix(b"}") + members + b"}" + TAIL

    decoded = decode_action(line)

    try:
        expected = ledger_row(values.from_json(line)["record"], loaded_at=LOADED_AT)
    except ValueError:
        assert decoded is None
    else:
        if decoded is None:
            # A NUL in a member whose name is repeated later.
            assert rb"\u0000" in line
            return
        assert decoded[:-1] == expected[:-2]
        assert values.from_json(decoded[-1]) == values.from_json(expected.payload)


@pytest.mark.parametrize(
    ("payload", "title"),
    [
        pytest.param('{"context": {"location": {"title": "Arches"}}}', "Arches", id="text"),
        pytest.param({"context": {"location": {"title": "Arches"}}}, "Arches", id="decoded"),
        pytest.param('{"context": {"location": {"title": ""}}}', None, id="empty"),
        pytest.param('{"context": {"location": {"title": 5}}}', None, id="a-number"),
        pytest.param('{"context": {"location": null}}', None, id="no-location"),
        pytest.param("{", None, id="not-json"),
    ],
)
def test_the_title_of_a_location_is_taken_from_the_payload(payload: object, title: str | None) -> None:
    assert location_title(payload) == title

"""Actions: what becomes a row of the ledger, what of it changes a balance, and what is refused, and why."""

from __future__ import annotations

import copy
import json
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import msgspec
import pytest

from target_crm.records.actions import LedgerRow, ledger_row
from target_crm.records.values import Invalid
from tests.helpers.guide import AWARD_POINTS_REFUNDED, REDEEM_PERK, REWARD_EARNED

LOADED_AT = datetime(2026, 10, 5, tzinfo=timezone.utc)
_decode = msgspec.json.Decoder(float_hook=Decimal).decode


def read(record: dict[str, Any]) -> LedgerRow:
    """The record as it comes out of a line of JSON, as a row."""
    return ledger_row(_decode(json.dumps(record)), loaded_at=LOADED_AT)


def earned(**changes: Any) -> dict[str, Any]:
    """Pepper's first example, with some of its fields replaced; `metadata__x` is a field inside, None leaves it out."""
    record = copy.deepcopy(json.loads(REWARD_EARNED))
    for path, value in changes.items():
        *parents, name = path.split("__")
        place = record
        for parent in parents:
            place = place[parent]
        if value is None:
            del place[name]
        else:
            place[name] = value
    return record


def row(**changes: Any) -> dict[str, Any]:
    expected = {
        "action_id": "xxxx",
        "type": "REWARD_EARNED",
        "tenant_id": "xxxx",
        "user_id": "xxxx",
        "award_id": "xxxxx",
        "perk_id": "xxxxx",
        "location_id": "xxx",
        "occurred_at": datetime(2021, 3, 5, 13, 37, 52, 194000, tzinfo=timezone.utc),
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
        pytest.param("{}", row(), id="REWARD_EARNED"),
        pytest.param(
            REDEEM_PERK,
            row(
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
            row(
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
def test_peppers_own_examples_become_rows(example: str, expected: dict[str, Any]) -> None:
    record = {**json.loads(REWARD_EARNED), **json.loads(example)}

    result = read(record)._asdict()

    assert json.loads(result.pop("payload")) == record
    assert len(result.pop("content_hash")) == 32
    assert result == expected


def test_the_payload_keeps_every_digit_that_pepper_sent() -> None:
    record = _decode(REWARD_EARNED.replace("51.5045788", "51.50457880"))

    assert '"geo":[-0.0970637,51.50457880]' in ledger_row(record, loaded_at=LOADED_AT).payload


@pytest.mark.parametrize(
    ("changes", "effect"),
    [
        pytest.param({"metadata__pointsAdded": None}, None, id="legacy-no-delta"),
        pytest.param({"metadata__pointsAvailable": None}, None, id="legacy-no-balance"),
        pytest.param({"metadata": {}}, None, id="legacy-empty-metadata"),
        pytest.param({"metadata": None}, None, id="legacy-no-metadata"),
        pytest.param({"metadata": []}, None, id="legacy-metadata-is-a-list"),
        pytest.param({"metadata": {"awardId": "w1", "points": 2}}, None, id="legacy-other-names"),
        pytest.param({"type": "REDEEM_PERK"}, None, id="the-delta-of-another-type-does-not-count"),
        pytest.param({"type": "ORDER_PLACED"}, None, id="another-type-with-points"),
        pytest.param({"type": "reward_earned"}, None, id="types-are-case-sensitive"),
        pytest.param({"type": None}, None, id="no-type"),
        pytest.param({"type": 7}, None, id="a-type-that-is-not-text"),
        pytest.param({"metadata__pointsAdded": 0}, "earned", id="a-delta-of-zero-is-a-delta"),
        pytest.param({"metadata__pointsAvailable": -3}, "earned", id="a-balance-below-zero-is-a-balance"),
        pytest.param({"metadata__perkId": None}, "earned", id="no-perk"),
        pytest.param({"context__location": None}, "earned", id="not-at-a-location"),
        pytest.param({"tenantId": None}, "earned", id="tenant-in-the-context-alone"),
        pytest.param({"when__timezone": None, "when__year": None}, "earned", id="only-a-timestamp"),
    ],
)
def test_an_action_has_an_effect_only_with_its_points_block(changes: dict[str, Any], effect: str | None) -> None:
    assert read(earned(**changes)).effect == effect


def test_null_metadata_and_context_are_as_good_as_none() -> None:
    result = read({"_id": "a1", "type": "REWARD_EARNED", "metadata": None, "context": None, "when": None})

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
        pytest.param({"context": None}, "context.user._id is null, expected an id", id="no-context"),
        pytest.param({"context__user": None}, "context.user._id is null, expected an id", id="no-user"),
        pytest.param({"context__user": "u1"}, "context.user._id is null, expected an id", id="user-is-text"),
        pytest.param({"metadata__awardId": None}, "metadata.awardId is null, expected an id", id="no-award"),
        pytest.param({"metadata__awardId": ""}, "metadata.awardId is empty, expected an id", id="empty-award"),
        pytest.param({"when": None}, "when.timestamp is missing or not an ISO 8601 time", id="no-time"),
        pytest.param(
            {"when__timestamp": "2021-02-29T00:00:00Z"},
            "when.timestamp is missing or not an ISO 8601 time",
            id="29-february-of-no-leap-year",
        ),
        pytest.param(
            {"when__timestamp": "2024-13-01T00:00:00Z"},
            "when.timestamp is missing or not an ISO 8601 time",
            id="13th-month",
        ),
        pytest.param(
            {"when__timestamp": 1614951472194}, "when.timestamp is missing or not an ISO 8601 time", id="epoch"
        ),
        pytest.param(
            {"when__timestamp": "0001-01-01T00:00:00+10:00"},
            "when.timestamp is missing or not an ISO 8601 time",
            id="before-the-year-1-in-UTC",
        ),
        pytest.param(
            {"metadata__pointsAdded": True}, "metadata.pointsAdded is a boolean, expected points", id="boolean-points"
        ),
        pytest.param({"metadata__pointsAdded": "two"}, "metadata.pointsAdded is text, expected points", id="a-word"),
        pytest.param({"metadata__pointsAdded": "NaN"}, "metadata.pointsAdded is text, expected points", id="NaN"),
        pytest.param({"metadata__pointsAdded": "1e3"}, "metadata.pointsAdded is text, expected points", id="exponent"),
        pytest.param({"metadata__pointsAdded": " 2"}, "metadata.pointsAdded is text, expected points", id="blank"),
        pytest.param({"metadata__pointsAdded": ""}, "metadata.pointsAdded is text, expected points", id="no-digits"),
        pytest.param(
            {"metadata__pointsAvailable": [2]}, "metadata.pointsAvailable is a list, expected points", id="a-list"
        ),
        pytest.param(
            {"metadata__pointsAvailable": 10**11},
            "metadata.pointsAvailable is out of range, expected points below 100,000,000,000",
            id="overflow",
        ),
        pytest.param(
            {"metadata__pointsAvailable": -(10**11)},
            "metadata.pointsAvailable is out of range, expected points below 100,000,000,000",
            id="overflow-below-zero",
        ),
        pytest.param(
            {"metadata__pointsAvailable": 1.00001},
            "metadata.pointsAvailable has more than 4 decimal places",
            id="five-places",
        ),
        pytest.param(
            {"metadata__pointsAvailable": "1.00000000000000000000000000000000001"},
            "metadata.pointsAvailable has more than 4 decimal places",
            id="more-places-than-arithmetic-has-digits",
        ),
    ],
)
def test_an_effect_without_whose_which_when_or_how_much_is_refused(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(Invalid) as refusal:
        read(earned(**changes))

    assert str(refusal.value) == reason


def test_a_refusal_repeats_nothing_of_the_record() -> None:
    with pytest.raises(Invalid) as refusal:
        read(earned(metadata__pointsAdded="Tom Jones"))

    assert "Tom" not in str(refusal.value)


@pytest.mark.parametrize(
    ("sent", "points"),
    [
        pytest.param("0", Decimal(0), id="zero"),
        pytest.param("0.25", Decimal("0.25"), id="a-quarter"),
        pytest.param("0.1", Decimal("0.1"), id="a-tenth-is-no-binary-float"),
        pytest.param('"0.25"', Decimal("0.25"), id="text"),
        pytest.param('"16"', Decimal(16), id="text-of-a-whole-number"),
        pytest.param('"-3"', Decimal(-3), id="text-below-zero"),
        pytest.param("2.50000", Decimal("2.5"), id="five-places-of-which-one-counts"),
        pytest.param("1e3", Decimal(1000), id="exponent"),
        pytest.param("99999999999.9999", Decimal("99999999999.9999"), id="the-most"),
        pytest.param("-99999999999.9999", Decimal("-99999999999.9999"), id="the-least"),
    ],
)
def test_points_are_exact_however_they_are_sent(sent: str, points: Decimal) -> None:
    record = _decode(REWARD_EARNED.replace('"pointsAvailable": 2', f'"pointsAvailable": {sent}'))

    assert ledger_row(record, loaded_at=LOADED_AT).points_available == points


def test_ids_that_are_whole_numbers_are_their_digits() -> None:
    result = read(earned(_id=12, context__user___id=34, metadata__awardId=56, metadata__perkId=78))

    assert result[:6] == ("12", "REWARD_EARNED", "xxxx", "34", "56", "78")


@pytest.mark.parametrize(
    ("timestamp", "instant"),
    [
        pytest.param(
            "2021-03-05T13:37:52.194Z", datetime(2021, 3, 5, 13, 37, 52, 194000, tzinfo=timezone.utc), id="utc"
        ),
        pytest.param(
            "2021-03-05T13:37:52", datetime(2021, 3, 5, 13, 37, 52, tzinfo=timezone.utc), id="no-offset-is-utc"
        ),
        pytest.param("2021-03-05T13:37:52+05:30", datetime(2021, 3, 5, 8, 7, 52, tzinfo=timezone.utc), id="offset"),
        pytest.param(
            "2021-03-05T23:37:52-01:00",
            datetime(2021, 3, 6, 0, 37, 52, tzinfo=timezone.utc),
            id="offset-into-the-next-day",
        ),
        pytest.param(
            "2021-03-05T13:37:52.194123Z",
            datetime(2021, 3, 5, 13, 37, 52, 194123, tzinfo=timezone.utc),
            id="microseconds",
        ),
        pytest.param(
            "2021-06-05T13:37:52.194Z",
            datetime(2021, 6, 5, 13, 37, 52, 194000, tzinfo=timezone.utc),
            id="summer-time-is-moot",
        ),
    ],
)
def test_the_instant_is_the_timestamps_own_whatever_the_timezone_says(timestamp: str, instant: datetime) -> None:
    occurred_at = read(earned(when__timestamp=timestamp)).occurred_at

    assert occurred_at == instant
    assert occurred_at is not None
    assert occurred_at.utcoffset() == timedelta(0)


def test_the_taps_top_level_time_stands_in_for_a_deselected_one() -> None:
    result = read(earned(when=None, when_timestamp="2021-03-05T13:37:52.194Z"))

    assert result.occurred_at == datetime(2021, 3, 5, 13, 37, 52, 194000, tzinfo=timezone.utc)


def test_an_action_without_effect_is_kept_with_what_can_be_read_of_it() -> None:
    record = {"_id": "a1", "type": "CHECK_IN", "when": {"timestamp": "soon"}, "context": {"user": {"_id": "u1"}}}

    result = read({**record, "tenantId": ["t"], "metadata": {"awardId": 5, "pointsAvailable": "many"}})

    assert result[:10] == ("a1", "CHECK_IN", None, "u1", "5", None, None, None, None, None)


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"metadata__pointsAdded": 2.0}, id="points-as-a-decimal"),
        pytest.param({"metadata__pointsAdded": "2.00"}, id="points-as-text"),
        pytest.param({"when__timestamp": "2021-03-05T14:37:52.194000+01:00"}, id="the-same-instant-elsewhere"),
        pytest.param({"context__user__fullName": "Tom Smith"}, id="the-user-has-another-name"),
        pytest.param({"context__location__tags": ["open"]}, id="the-location-has-a-tag"),
        pytest.param({"somethingNew": {"x": 1}}, id="an-unknown-field"),
        pytest.param({"metadata__loyaltyEarned": None}, id="a-field-that-the-ledger-does-not-keep"),
    ],
)
def test_the_same_content_written_differently_is_the_same_action(changes: dict[str, Any]) -> None:
    assert read(earned(**changes)).content_hash == read(earned()).content_hash


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"metadata__pointsAdded": 3}, id="delta"),
        pytest.param({"metadata__pointsAvailable": 20}, id="balance"),
        pytest.param({"metadata__pointsAvailable": None}, id="no-balance"),
        pytest.param({"metadata__awardId": "xxx"}, id="award"),
        pytest.param({"context__user___id": "yyyy"}, id="user"),
        pytest.param({"when__timestamp": "2021-03-05T13:37:52.195Z"}, id="time"),
        pytest.param({"type": "REDEEM_PERK"}, id="type"),
        pytest.param({"environment": None}, id="environment"),
    ],
)
def test_other_content_is_another_action(changes: dict[str, Any]) -> None:
    assert read(earned(**changes)).content_hash != read(earned()).content_hash


def test_texts_that_look_alike_end_to_end_are_other_content() -> None:
    one, other = earned(source="A\x1fB", environment="C"), earned(source="A", environment="B\x1fC")
    assert read(one).content_hash != read(other).content_hash

"""The fast path: it decodes an action as the full decoder does, or returns None."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from target_crm.records import values
from target_crm.records.actions import LedgerRow, ledger_row
from target_crm.records.fast_path import decode_typical_action
from tests.helpers.guide import AWARD_POINTS_REFUNDED, REDEEM_PERK, REWARD_EARNED

LOADED_AT = datetime(2026, 10, 5, tzinfo=UTC)
HEAD, TAIL = b'{"type":"RECORD","stream":"actions","record":', b',"time_extracted":"2026-10-05T00:00:00Z"}'


def decode(line: bytes) -> LedgerRow | None:
    """The row from the fast path."""
    row = decode_typical_action(line)
    return row and LedgerRow(*row, loaded_at=LOADED_AT)


def assert_same_as_full_decoder(line: bytes) -> None:
    """The fast path returns None or the full decoder's row; the JSON of the payload may be formatted differently."""
    row = decode(line)
    if row:
        expected = ledger_row(values.from_json(line)["record"], loaded_at=LOADED_AT)
        assert row._replace(payload=expected.payload) == expected
        assert values.from_json(row.payload) == values.from_json(expected.payload)


ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**12), 10**12),
    st.floats(allow_nan=False),
    st.text(max_size=3),
    st.sampled_from(
        ["", "x" * 255, "x" * 256, "5", "2.50", "1e3", " 2", "NaN", "a\0", "\ud800", "größe", 10**30, -0.0]
    ),
    st.lists(st.integers(), max_size=1),
    st.dictionaries(st.sampled_from(["_id", "timestamp", "awardId"]), st.text(max_size=2), max_size=2),
)
INSTANTS = st.sampled_from(
    [
        "2026-10-01T12:00:00.000Z",
        "2026-10-01T12:00:00",
        "2026-10-01T12:00+02:00",
        "2026-10-01",
        "2026-10-01t12:00:00.123456789z",
        "2026-10-01T12:00:00.1234567+00:00",
        "2026-02-29T00:00:00Z",
        "0001-01-01T00:00:00+10:00",
        "2026-10-01T24:00:00Z",
        "2026-10-01T23:59:60Z",
        1_790_000_000,
    ]
)


def mostly(usual: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """The usual value in four of five cases, else an odd one."""
    return st.integers(0, 4).flatmap(lambda number: usual if number else ODD)


def parts(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Usually an object, which may lack any of its fields."""
    return mostly(st.fixed_dictionaries({}, optional=fields))


IDS, POINTS = mostly(st.sampled_from(["a", "b", "5f1d7a3c9b1e8a0012345678", ""])), mostly(st.integers(-5, 50))
RECORDS = st.fixed_dictionaries(
    {"_id": IDS},
    optional={
        "type": mostly(st.sampled_from(["REWARD_EARNED", "REDEEM_PERK", "AWARD_POINTS_REFUNDED", "CHECK_IN"])),
        "when": parts(timestamp=INSTANTS),
        "when_timestamp": INSTANTS,
        "tenantId": IDS,
        "source": mostly(st.just("API_SERVER")),
        "environment": mostly(st.just("BETA")),
        "unknown": ODD,
        "invalid_points": mostly(st.none() | st.fixed_dictionaries({"pointsAdded": ODD})),
        "context": parts(user=parts(_id=IDS), tenant=parts(_id=IDS), location=parts(_id=IDS, geo=ODD)),
        "metadata": parts(
            awardId=IDS,
            perkId=IDS,
            pointsAvailable=POINTS,
            pointsAdded=POINTS,
            pointsRedeemed=POINTS,
            pointsRefunded=POINTS,
        ),
    },
)


@settings(max_examples=1000, deadline=None)
@given(RECORDS, st.booleans(), st.sampled_from([(",", ":"), (", ", ": ")]))
def test_any_record_is_decoded_as_by_the_full_decoder_or_left_to_it(
    record: dict[str, Any], escaped: bool, separators: tuple[str, str]
) -> None:
    document = json.dumps(record, ensure_ascii=escaped, separators=separators)
    line = HEAD + document.encode(errors="replace") + TAIL

    try:
        assert_same_as_full_decoder(line)
    except values.Invalid:
        pytest.fail("the fast path decodes a line that the full decoder calls invalid")


EXAMPLES = [{**json.loads(REWARD_EARNED), **json.loads(each)} for each in ("{}", REDEEM_PERK, AWARD_POINTS_REFUNDED)]
LINES = [
    HEAD + json.dumps(each, ensure_ascii=False).encode() + TAIL
    for each in (
        *EXAMPLES,
        {**EXAMPLES[0], "title": "größe 🎁"},
        {**EXAMPLES[0], "metadata": {"pointsAvailable": None}},
        {"_id": "a", "when": {"timestamp": "2026-10-01T12:00:00Z"}, "type": "CHECK_IN"},
    )
]


@pytest.mark.parametrize("line", LINES)
def test_a_typical_action_takes_the_fast_path(line: bytes) -> None:
    assert decode(line)
    assert_same_as_full_decoder(line)


@pytest.mark.parametrize(
    "line",
    [
        LINES[0].replace(b"RECORD", b"STATE"),
        LINES[0].replace(b'"actions"', b'"awards"'),
        b'{"type":"STATE","value":{}}',
        b"not JSON",
        b"",
    ],
)
def test_lines_that_are_no_action_are_left_to_the_full_decoder(line: bytes) -> None:
    assert decode_typical_action(line) is None


FRAGMENTS = st.sampled_from(
    [
        *(bytes([byte]) for byte in b'"\\\x00\x1f\x7f\xff {}[],:\n-01.e'),
        *(b"\\u0000", b"\\ud800", b"\xc3\xa4", b"\xed\xa0\x80"),
        *(
            b"9" * 5000,
            b"1e999999999999999999",
            b"15e999999999999999999",
            b"1E-5",
            b"NaN",
            b"Infinity",
            b"null",
            b"true",
        ),
        *(b'"_id":"b",', b'"metadata":{},', b'"record":{},', b'"type":1,', b"[" * 2000),
    ]
)


@settings(max_examples=3000, deadline=None)
@given(st.sampled_from(LINES), st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 12), FRAGMENTS), max_size=2))
def test_any_corrupted_line_is_decoded_as_by_the_full_decoder_or_left_to_it(
    line: bytes, changes: list[tuple[int, int, bytes]]
) -> None:
    for place, length, fragment in changes:
        start = place % len(line)
        line = line[:start] + fragment + line[start + length :]

    try:
        assert_same_as_full_decoder(line)
    except ValueError:
        pytest.fail("the fast path decodes a line that the full decoder calls invalid")

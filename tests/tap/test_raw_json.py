"""Rows as JSON text: decoding keeps every digit, and equal content has equal canonical text."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import msgspec
import pytest

from tap_pepper.raw_json import Row, canonical_json, decode_row, from_json, to_json

WRITTEN = b'{"_id": "a", "when": {"at": "x", "b": [0.10, 7]}, "name": "T\\u00f6m"}'


def read(written: bytes) -> Row:
    return msgspec.json.decode(written, type=Row)


def test_decoding_a_row_keeps_every_digit() -> None:
    row = decode_row(read(WRITTEN))
    assert row == {"_id": "a", "when": {"at": "x", "b": [Decimal("0.10"), 7]}, "name": "Töm"}
    assert str(row["when"]["b"][0]) == "0.10"


@pytest.mark.parametrize("value", [None, True, 7, 2**70, "Töm", Decimal("0.10"), [{"a": None}]])
def test_a_value_survives_encoding_and_decoding(value: Any) -> None:
    assert repr(from_json(to_json(value))) == repr(value)


def test_none_decodes_to_none() -> None:
    assert from_json(None) is None


@pytest.mark.parametrize(
    ("written", "same"),
    [
        pytest.param(WRITTEN, True, id="unchanged"),
        pytest.param(
            b'{"name":"T\xc3\xb6m","when":{"b":[0.10,7],"at":"x"},"_id":"a"}', True, id="other-order-and-escapes"
        ),
        pytest.param(WRITTEN.replace(b"0.10", b"0.1"), False, id="with-fewer-digits"),
        pytest.param(WRITTEN.replace(b"[0.10, 7]", b"[7, 0.10]"), False, id="with-a-reversed-list"),
    ],
)
def test_equal_content_has_equal_canonical_text(written: bytes, same: bool) -> None:
    assert (canonical_json(read(written)) == canonical_json(read(WRITTEN))) is same


@pytest.mark.parametrize("number", [b"1e9999999999999999999", b"1" * 5000, b"1" * 40])
def test_numbers_out_of_range_have_a_canonical_text(number: bytes) -> None:
    row = read(b'{"_id":"a","points":%s}' % number)
    assert canonical_json(row) == canonical_json(row)
    assert number in canonical_json(row)

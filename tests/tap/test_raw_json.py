"""Rows as JSON text: what is taken apart is what was written, and one content has one text."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import msgspec
import pytest

from tap_pepper.api.raw_json import Row, canonical, plain, text_of, value_of

WRITTEN = b'{"_id": "a", "when": {"at": "x", "b": [0.10, 7]}, "name": "T\\u00f6m"}'


def read(written: bytes) -> Row:
    return msgspec.json.decode(written, type=Row)


def test_a_row_taken_apart_keeps_its_digits() -> None:
    row = plain(read(WRITTEN))
    assert row == {"_id": "a", "when": {"at": "x", "b": [Decimal("0.10"), 7]}, "name": "Töm"}
    assert str(row["when"]["b"][0]) == "0.10"


@pytest.mark.parametrize("value", [None, True, 7, 2**70, "Töm", Decimal("0.10"), [{"a": None}]])
def test_a_value_is_what_its_text_holds(value: Any) -> None:
    assert repr(value_of(text_of(value))) == repr(value)


def test_no_text_holds_nothing() -> None:
    assert value_of(None) is None


@pytest.mark.parametrize(
    ("written", "same"),
    [
        pytest.param(WRITTEN, True, id="as-it-was"),
        pytest.param(b'{"name":"T\xc3\xb6m","when":{"b":[0.10,7],"at":"x"},"_id":"a"}', True, id="in-another-form"),
        pytest.param(WRITTEN.replace(b"0.10", b"0.1"), False, id="with-a-digit-less"),
        pytest.param(WRITTEN.replace(b"[0.10, 7]", b"[7, 0.10]"), False, id="with-a-list-the-other-way-round"),
    ],
)
def test_one_content_has_one_text(written: bytes, same: bool) -> None:
    assert (canonical(read(written)) == canonical(read(WRITTEN))) is same


@pytest.mark.parametrize("number", [b"1e9999999999999999999", b"1" * 5000, b"1" * 40])
def test_numbers_beyond_reason_have_a_text_too(number: bytes) -> None:
    row = read(b'{"_id":"a","points":%s}' % number)
    assert canonical(row) == canonical(row)
    assert number in canonical(row)

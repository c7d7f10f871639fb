"""A row as it came: what its fields hold stays JSON text until someone has to look inside.

Most rows only pass through. To take them apart and put them together again would cost more than all else that is done
with them, and each digit would have to survive it.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Any, Final

import msgspec

JsonText = msgspec.Raw
Row = dict[str, JsonText]
"""`{"_id": '"5f…"', "when": '{"timestamp": "2026-…"}', …}`"""

_encoder: Final = msgspec.json.Encoder(decimal_format="number")
_sorting_encoder: Final = msgspec.json.Encoder(decimal_format="number", order="sorted")
_decoder: Final = msgspec.json.Decoder(float_hook=Decimal)


def text_of(value: object) -> JsonText:
    """A value as JSON text."""
    return JsonText(_encoder.encode(value))


def value_of(text: bytes | JsonText | None) -> Any:
    """What JSON text holds, numbers with a point as Decimal; None where there is no text.

    Raises:
        msgspec.DecodeError: It is not JSON, or holds a whole number of thousands of digits.
        ArithmeticError: It holds a number beyond all exponents.
        RecursionError: It is nested beyond reason.
    """
    return None if text is None else _decoder.decode(text)


def plain(row: Row) -> dict[str, Any]:
    """A row taken apart to the last value; errors as of `value_of`."""
    taken_apart: dict[str, Any] = value_of(_encoder.encode(row))
    return taken_apart


def canonical(content: object) -> bytes:
    """One text for one content, however its fields were ordered, spaced or escaped.

    Args:
        content: A row, or any value that JSON can hold.
    """
    text = _encoder.encode(content)
    try:
        return _sorting_encoder.encode(value_of(text))
    except (msgspec.DecodeError, ArithmeticError):
        # Numbers beyond reason are for the loader to refuse.
        return text

"""Convert points to numbers.

Pepper sends points as a number or as text. If the schema allowed both, targets other than target-crm would create a
text column.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

import msgspec

from tap_pepper.raw_json import JsonText, Row, from_json, to_json

if TYPE_CHECKING:
    from collections.abc import Iterable

INVALID_POINTS: Final = "invalid_points"
"""The property for points that are neither numbers nor numeric text: a JSON object, keyed by field name."""
METADATA_FIELDS: Final = ("pointsAvailable", "pointsAdded", "pointsRedeemed", "pointsRefunded", "loyaltyEarned")

_NUMERIC_TEXT: Final = re.compile(r"(?P<sign>[+-]?)0*(?P<digits>[0-9]{1,40}(?:\.[0-9]{1,40})?)", re.ASCII)
_Number = int | float | None


class _Metadata(msgspec.Struct):
    """Metadata whose points are already numbers. Decoding it as this class is faster than checking each field."""

    points_available: _Number = msgspec.field(name="pointsAvailable", default=None)
    points_added: _Number = msgspec.field(name="pointsAdded", default=None)
    points_redeemed: _Number = msgspec.field(name="pointsRedeemed", default=None)
    points_refunded: _Number = msgspec.field(name="pointsRefunded", default=None)
    loyalty_earned: _Number = msgspec.field(name="loyaltyEarned", default=None)


_decode_numeric_metadata: Final = msgspec.json.Decoder(_Metadata | None).decode
_decode_fields: Final = msgspec.json.Decoder(Row).decode


def convert_award_points(row: Row) -> None:
    """Convert an award's points to a number, in place. Move invalid points to `INVALID_POINTS`."""
    if invalid := _convert(row, ("points",)):
        row[INVALID_POINTS] = to_json(invalid)


def convert_action_points(row: Row) -> None:
    """Convert the points in an action's metadata to numbers, in place. Move invalid points to `INVALID_POINTS`."""
    metadata = row.get("metadata")
    if metadata is None:
        return
    try:
        _decode_numeric_metadata(metadata)
    except msgspec.DecodeError:
        pass
    else:
        return
    try:
        fields = _decode_fields(metadata)
    except msgspec.DecodeError:
        # Metadata that is not an object has no points.
        return
    if invalid := _convert(fields, METADATA_FIELDS):
        row[INVALID_POINTS] = to_json(invalid)
    row["metadata"] = to_json(fields)


def _convert(fields: Row, names: Iterable[str]) -> Row:
    """Turn numeric text into a number with the same digits, and leave numbers and null unchanged.

    Returns:
        The values that are none of these, by field name. They are removed from `fields`.
    """
    invalid = {}
    for name in names:
        text = bytes(fields.get(name, b"null"))
        if text[:1].isdigit() or text[:1] in b"-n":
            continue
        value = from_json(text) if text[:1] == b'"' else None
        found = _NUMERIC_TEXT.fullmatch(value) if isinstance(value, str) else None
        if found:
            fields[name] = JsonText(f"{found['sign'].replace('+', '')}{found['digits']}".encode())
        else:
            invalid[name] = fields.pop(name)
    return invalid

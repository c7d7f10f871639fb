"""Keep the fields of rows as JSON text, so that the tap decodes only the few fields that it needs.

Most fields only pass through the tap. Decoding them and encoding them again would take longer than everything else that
the tap does with a row.
"""

from __future__ import annotations

from base64 import urlsafe_b64encode
from decimal import Decimal
from hashlib import blake2b
from typing import Any, Final

import msgspec

JsonText = msgspec.Raw
Row = dict[str, JsonText]
"""`{"_id": '"5f…"', "when": '{"timestamp": "2026-…"}', …}`"""

DIGEST_BYTES: Final = 12
DIGEST_CHARS: Final = DIGEST_BYTES * 4 // 3

_encoder: Final = msgspec.json.Encoder(decimal_format="number")
_sorting_encoder: Final = msgspec.json.Encoder(decimal_format="number", order="sorted")
_decoder: Final = msgspec.json.Decoder(float_hook=Decimal)


def to_json(value: object) -> JsonText:
    """Encode a value as JSON text."""
    return JsonText(_encoder.encode(value))


def from_json(text: bytes | JsonText | None) -> Any:
    """Decode JSON text. Numbers with a decimal point or an exponent become Decimal, and None stays None.

    Raises:
        msgspec.DecodeError: The text is not JSON, or contains an integer with thousands of digits.
        ArithmeticError: The text contains a number whose exponent is out of range.
        RecursionError: The text is nested too deeply.
    """
    return None if text is None else _decoder.decode(text)


def decode_row(row: Row) -> dict[str, Any]:
    """Decode all fields of a row. This raises the same errors as `from_json`."""
    decoded: dict[str, Any] = from_json(_encoder.encode(row))
    return decoded


def canonical_json(content: object) -> bytes:
    """Encode a row or value as text that does not depend on the order of keys, on spaces or on escapes.

    The only exception is a value that contains a number out of range.
    """
    text = _encoder.encode(content)
    try:
        return _sorting_encoder.encode(from_json(text))
    except (msgspec.DecodeError, ArithmeticError):
        # A number is out of range. The tap passes it on, and the target quarantines the record.
        return text


def digest(content: object) -> str:
    """Return a fingerprint of `DIGEST_CHARS` characters; equal content has equal fingerprints."""
    return urlsafe_b64encode(blake2b(canonical_json(content), digest_size=DIGEST_BYTES).digest()).decode()

"""Pure: a Pepper action → a row of the ledger, or `Invalid` with the reason for refusing it.

The three loyalty actions report the change of an award and the balance after it::

    {"_id": "5f1…", "type": "REDEEM_PERK", "when": {"timestamp": "2026-10-01T12:00:00.000Z"},
     "context": {"user": {"_id": "5e0…"}},
     "metadata": {"awardId": "5e7…", "perkId": "5d2…", "pointsAvailable": 5, "pointsRedeemed": 16}}

One that lacks either number is *legacy*: an older system sends notices of the same name. Legacy actions and actions of
other types are kept with a null effect, and never change a balance.
"""

from __future__ import annotations

import hashlib
from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from target_crm.records import values
from target_crm.records.values import Invalid

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from decimal import Decimal

_T = TypeVar("_T")
_EMPTY: dict[str, Any] = {}
_SEPARATOR = "\x1f"
# Copied for each action, which is faster than creating one.
_DIGEST = hashlib.blake2b(digest_size=16)

# The property of points that are not numbers: see `invalid_points`.
INVALID_POINTS = "invalid_points"
# Pepper's type → the effect on a balance, and the field with the delta.
EFFECTS = {
    "REWARD_EARNED": ("earned", "pointsAdded"),
    "REDEEM_PERK": ("redeemed", "pointsRedeemed"),
    "AWARD_POINTS_REFUNDED": ("refunded", "pointsRefunded"),
}


class LedgerRow(NamedTuple):
    """A row of `actions`, in the order of the table's columns."""

    action_id: str
    type: str | None
    tenant_id: str | None
    user_id: str | None
    award_id: str | None
    perk_id: str | None
    location_id: str | None
    occurred_at: datetime | None
    effect: str | None
    points_available: Decimal | None
    points_added: Decimal | None
    points_redeemed: Decimal | None
    points_refunded: Decimal | None
    source: str | None
    environment: str | None
    content_hash: str
    payload: str
    loaded_at: datetime


def ledger_row(record: Mapping[str, Any], *, loaded_at: datetime) -> LedgerRow:
    """Convert an action to a row.

    `content_hash` covers every column but `payload`: an action read again with, say, a user's new name is the same
    action; one with other points is not.

    Raises:
        Invalid: The action would change a balance, but lacks its id, award, user, time or points.
    """
    action_id = _required(record.get("_id"), values.identifier, "_id")
    action_type = values.optional(record.get("type"), values.text)
    context, metadata, when = (_object(record.get(name)) for name in ("context", "metadata", "when"))
    metadata = {**metadata, **invalid_points(record)}
    user_id, award_id = _object(context.get("user")).get("_id"), metadata.get("awardId")
    occurred_at = values.optional(when.get("timestamp"), values.instant) or values.optional(
        record.get("when_timestamp"), values.instant
    )
    effect, delta_name = EFFECTS.get(action_type or "", (None, ""))
    if effect and (metadata.get("pointsAvailable") is None or metadata.get(delta_name) is None):
        effect = None
    if effect:
        for name in ("pointsAvailable", delta_name):
            _required(metadata[name], values.points, f"metadata.{name}")
        _required(award_id, values.identifier, "metadata.awardId")
        _required(user_id, values.identifier, "context.user._id")
        if occurred_at is None:
            raise Invalid("when.timestamp is missing or not an ISO 8601 time")
    tenant_id = values.optional(record.get("tenantId"), values.identifier)
    content = (
        action_id,
        action_type,
        tenant_id or values.optional(_object(context.get("tenant")).get("_id"), values.identifier),
        values.optional(user_id, values.identifier),
        values.optional(award_id, values.identifier),
        values.optional(metadata.get("perkId"), values.identifier),
        values.optional(_object(context.get("location")).get("_id"), values.identifier),
        occurred_at,
        effect,
        values.optional(metadata.get("pointsAvailable"), values.points),
        values.optional(metadata.get("pointsAdded"), values.points),
        values.optional(metadata.get("pointsRedeemed"), values.points),
        values.optional(metadata.get("pointsRefunded"), values.points),
        values.optional(record.get("source"), values.text),
        values.optional(record.get("environment"), values.text),
    )
    return LedgerRow(
        *content,
        content_hash=content_hash(content),
        payload=_required(record, values.json_document, "the record"),
        loaded_at=loaded_at,
    )


def invalid_points(record: Mapping[str, Any]) -> Mapping[str, Any]:
    """The points that tap-pepper has moved out of their fields because they are not numbers, by field."""
    return _object(record.get(INVALID_POINTS))


def _object(value: Any) -> Mapping[str, Any]:
    """The value as an object; an empty one if it is missing or of another type."""
    return value if isinstance(value, dict) else _EMPTY


def _required(value: Any, convert: Callable[[Any], _T], name: str) -> _T:
    try:
        return convert(value)
    except Invalid as reason:
        raise Invalid(f"{name} {reason}") from None


def content_hash(content: tuple[Any, ...]) -> str:
    """A hash of a row's values. 2, 2.0 and "2" are the same points and give the same hash."""
    texts = ["\0" if value is None else value if type(value) is str else _text(value) for value in content]
    joined = _SEPARATOR.join(texts)
    if joined.count(_SEPARATOR) >= len(texts):
        # A value holds the separator, so that joined texts could be ambiguous; literals are not.
        joined = repr(texts)
    digest = _DIGEST.copy()
    digest.update(joined.encode())
    return digest.hexdigest()


def _text(value: Decimal | datetime) -> str:
    text = str(value)
    return text if isinstance(value, datetime) or text.isdigit() else format(value.normalize() + 0, "f")

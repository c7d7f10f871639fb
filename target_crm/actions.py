"""Pure: a Pepper action → a row of the ledger, or `Invalid` with the reason for refusing it.

The three loyalty actions report what they did to an award, and the balance that was left::

    {"_id": "5f1…", "type": "REDEEM_PERK", "when": {"timestamp": "2026-10-01T12:00:00.000Z"},
     "context": {"user": {"_id": "5e0…"}},
     "metadata": {"awardId": "5e7…", "perkId": "5d2…", "pointsAvailable": 5, "pointsRedeemed": 16}}

One that lacks either number is *legacy*: a notice of the same name from an older system. It is kept, as is every action
of any other type, with a null effect, and never touches a balance.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, NamedTuple

from target_crm import values
from target_crm.values import Invalid

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from datetime import datetime
    from decimal import Decimal

# Pepper's type → what it does to a balance, and where it says by how much.
EFFECTS = {
    "REWARD_EARNED": ("earned", "pointsAdded"),
    "REDEEM_PERK": ("redeemed", "pointsRedeemed"),
    "AWARD_POINTS_REFUNDED": ("refunded", "pointsRefunded"),
}


class LedgerRow(NamedTuple):
    """A row of `actions`, in the table's order of columns."""

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
    """Read an action; raise `Invalid` where it would change a balance but doesn't say whose, which or when.

    `content_hash` covers all that the ledger keeps but `payload`: an action that is read again with, say, a user's new
    name in it is the same action; one with other points is not.
    """
    read = _Reader(record)
    action_id = _required(record.get("_id"), values.identifier, "_id")
    action_type = read.optional(values.text, "type")
    effect, delta_name = EFFECTS.get(action_type or "", (None, ""))
    metadata = record.get("metadata")
    block = metadata if isinstance(metadata, dict) else {}
    if effect and (block.get("pointsAvailable") is None or block.get(delta_name) is None):
        effect = None
    if effect:
        for name in ("pointsAvailable", delta_name):
            _required(block[name], values.points, f"metadata.{name}")
        _required(block.get("awardId"), values.identifier, "metadata.awardId")
        _required(read.at("context", "user", "_id"), values.identifier, "context.user._id")
    occurred_at = read.optional(values.instant, "when", "timestamp") or read.optional(values.instant, "when_timestamp")
    if effect and occurred_at is None:
        raise Invalid("when.timestamp is missing or not an ISO 8601 time")
    content = (
        action_id,
        action_type,
        read.optional(values.identifier, "tenantId") or read.optional(values.identifier, "context", "tenant", "_id"),
        read.optional(values.identifier, "context", "user", "_id"),
        read.optional(values.identifier, "metadata", "awardId"),
        read.optional(values.identifier, "metadata", "perkId"),
        read.optional(values.identifier, "context", "location", "_id"),
        occurred_at,
        effect,
        read.optional(values.points, "metadata", "pointsAvailable"),
        read.optional(values.points, "metadata", "pointsAdded"),
        read.optional(values.points, "metadata", "pointsRedeemed"),
        read.optional(values.points, "metadata", "pointsRefunded"),
        read.optional(values.text, "source"),
        read.optional(values.text, "environment"),
    )
    return LedgerRow(*content, content_hash=_hash(content), payload=values.json_text(record), loaded_at=loaded_at)


class _Reader:
    """Reads an action's fields by path; a missing parent, or one of an unexpected kind, reads as null."""

    def __init__(self, record: Mapping[str, Any]) -> None:
        self._record = record

    def at(self, *path: str) -> Any:
        value: Any = self._record
        for name in path:
            if not isinstance(value, dict):
                return None
            value = value.get(name)
        return value

    def optional(self, convert: Callable[[Any], Any], *path: str) -> Any:
        value = self.at(*path)
        if value is None:
            return None
        try:
            return convert(value)
        except Invalid:
            return None


def _required(value: Any, convert: Callable[[Any], Any], name: str) -> Any:
    try:
        return convert(value)
    except Invalid as reason:
        raise Invalid(f"{name} {reason}") from None


def _hash(content: tuple[Any, ...]) -> str:
    """Equal for equal content: 2, 2.0 and "2" are the same points."""
    words = (
        "\0" if value is None else format(value.normalize(), "f") if hasattr(value, "normalize") else str(value)
        for value in content
    )
    return hashlib.blake2b("\x1f".join(words).encode(), digest_size=16).hexdigest()

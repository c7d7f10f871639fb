"""Pure: a Pepper action → a row of the ledger, or `Invalid` with the reason for refusing it.

The three loyalty actions report the change of an award and the balance after it::

    {"_id": "5f1…", "type": "REDEEM_PERK", "when": {"timestamp": "2026-10-01T12:00:00.000Z"},
     "context": {"user": {"_id": "5e0…"}},
     "metadata": {"awardId": "5e7…", "perkId": "5d2…", "pointsAvailable": 5, "pointsRedeemed": 16}}

One that lacks either number is *legacy*: an older system sends notices of the same name. Legacy actions and actions of
other types are kept with a null effect, and never change a balance.
"""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import msgspec

from target_crm.records import values
from target_crm.records.values import Invalid

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from datetime import datetime

_T = TypeVar("_T")
# The property with the points that tap-pepper has moved out of `metadata` because they are not numbers.
INVALID_POINTS = "invalid_points"
# Properties of `metadata`, in the order of the ledger's columns.
_POINTS = ("pointsAvailable", "pointsAdded", "pointsRedeemed", "pointsRefunded")
_METADATA = ("awardId", "perkId", *_POINTS)
# Pepper's type → the effect on a balance, and the place in `_POINTS` of the change.
EFFECTS = {"REWARD_EARNED": ("earned", 1), "REDEEM_PERK": ("redeemed", 2), "AWARD_POINTS_REFUNDED": ("refunded", 3)}


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
    payload: str
    loaded_at: datetime


# JSON values other than an object. Where an object is expected, they count as an empty one.
_NoObject = str | int | float | bool | list[Any] | None


class _Reference(msgspec.Struct, frozen=True, gc=False):
    id: Any = msgspec.field(name="_id", default=None)


class _Context(msgspec.Struct, frozen=True, gc=False):
    tenant: _Reference | _NoObject = None
    user: _Reference | _NoObject = None
    location: _Reference | _NoObject = None


class _When(msgspec.Struct, frozen=True, gc=False):
    timestamp: Any = None


class _Metadata(msgspec.Struct, rename="camel", frozen=True, gc=False):
    """The properties in `_METADATA`, in this order."""

    award_id: Any = None
    perk_id: Any = None
    points_available: Any = None
    points_added: Any = None
    points_redeemed: Any = None
    points_refunded: Any = None


class _Action(msgspec.Struct, rename="camel", frozen=True, gc=False):
    """The properties that columns are made of. The decoder skips all others, which saves most of its time."""

    id: Any = msgspec.field(name="_id", default=None)
    type: Any = None
    when: _When | _NoObject = None
    when_timestamp: Any = msgspec.field(name="when_timestamp", default=None)
    tenant_id: Any = None
    context: _Context | _NoObject = None
    metadata: _Metadata | _NoObject = None
    source: Any = None
    environment: Any = None
    invalid_points: dict[str, Any] | _NoObject = msgspec.field(name=INVALID_POINTS, default=None)


class _Message(msgspec.Struct, frozen=True, gc=False):
    type: str = ""
    stream: str = ""
    record: msgspec.Raw = msgspec.Raw()


_NO_CONTEXT, _NO_WHEN, _NO_METADATA = _Context(), _When(), _Metadata()
_message = msgspec.json.Decoder(_Message).decode
_action = msgspec.json.Decoder(_Action, float_hook=Decimal).decode


class Incomplete(Invalid):
    """An action that would change a balance, but lacks its award, user or time: perhaps it is deselected.

    Attributes:
        columns: The action's columns all the same, to compare it with the ledger.
    """

    def __init__(self, reason: str, columns: tuple[Any, ...]) -> None:
        super().__init__(reason)
        self.columns = columns


def decode_action(line: bytes) -> tuple[Any, ...] | None:
    """Decode a RECORD message of `actions` into a ledger row without `loaded_at`. The payload is the record's own JSON.

    Return None for any other line, and for an action that is invalid: `ledger_row` gives the reason.
    """
    try:
        message = _message(line)
        if message.type != "RECORD" or message.stream != "actions":
            return None
        if not line.isascii():
            # Texts that are skipped may be no UTF-8.
            line.decode()
        return *_columns(_action(message.record)), values.json_without_nul(str(message.record, "utf-8"))
    except (msgspec.DecodeError, ValueError, ArithmeticError, RecursionError):
        return None


def ledger_row(record: Mapping[str, Any], *, loaded_at: datetime) -> LedgerRow:
    """Convert an action that has been decoded already to a row.

    Raises:
        Invalid: The action would change a balance, but lacks its id, award, user, time or points.
        Incomplete: It lacks no more than award, user or time, and none of them is invalid.
    """
    lack = None
    try:
        columns = _columns(msgspec.convert(record, _Action))
    except Incomplete as reason:
        lack, columns = reason, reason.columns
    row = LedgerRow._make((*columns, _required(record, values.json_document, "the record"), loaded_at))
    if lack:
        raise Incomplete(str(lack), row)
    return row


def invalid_points(record: Mapping[str, Any]) -> Mapping[str, Any]:
    """The points that tap-pepper has moved out of a record because they are not numbers, by property."""
    moved = record.get(INVALID_POINTS)
    return moved if isinstance(moved, dict) else {}


def _columns(action: _Action) -> tuple[Any, ...]:
    """The columns from `action_id` to `environment`. A value that its column cannot hold is null, unless it counts."""
    context = action.context if isinstance(action.context, _Context) else _NO_CONTEXT
    when = action.when if isinstance(action.when, _When) else _NO_WHEN
    metadata = action.metadata if isinstance(action.metadata, _Metadata) else _NO_METADATA
    sent = msgspec.structs.astuple(metadata)
    if isinstance(action.invalid_points, dict):
        sent = tuple(action.invalid_points.get(*each) for each in zip(_METADATA, sent, strict=True))
    sent_award_id, sent_perk_id, *sent_points = sent
    sent_user_id = _id_of(context.user)
    action_id = _required(action.id, values.identifier, "_id")
    action_type = values.optional(action.type, values.text)
    user_id = values.optional(sent_user_id, values.identifier)
    award_id = values.optional(sent_award_id, values.identifier)
    occurred_at = values.optional(when.timestamp, values.instant) or values.optional(
        action.when_timestamp, values.instant
    )
    points = [values.optional(each, values.points) for each in sent_points]
    effect, place = EFFECTS.get(action_type or "", (None, 0))
    if effect and (sent_points[0] is None or sent_points[place] is None):
        effect = None
    columns = (
        action_id,
        action_type,
        values.optional(action.tenant_id, values.identifier)
        or values.optional(_id_of(context.tenant), values.identifier),
        user_id,
        award_id,
        values.optional(sent_perk_id, values.identifier),
        values.optional(_id_of(context.location), values.identifier),
        occurred_at,
        effect,
        *points,
        values.optional(action.source, values.text),
        values.optional(action.environment, values.text),
    )
    if effect and (points[0] is None or points[place] is None or not (award_id and user_id and occurred_at)):
        # These raise the reason; they have failed above.
        for each in (0, place):
            _required(sent_points[each], values.points, f"metadata.{_POINTS[each]}")
        sent_time = action.when_timestamp if when.timestamp is None else when.timestamp
        try:
            _required(sent_award_id, values.identifier, "metadata.awardId")
            _required(sent_user_id, values.identifier, "context.user._id")
            raise Invalid("when.timestamp is missing or not an ISO 8601 time")
        except Invalid as reason:
            lacked = (sent_award_id, award_id), (sent_user_id, user_id), (sent_time, occurred_at)
            if all(sent is None or value for sent, value in lacked):
                raise Incomplete(str(reason), columns) from None
            raise
    return columns


def _id_of(reference: object) -> Any:
    return reference.id if isinstance(reference, _Reference) else None


def _required(value: Any, convert: Callable[[Any], _T], name: str) -> _T:
    try:
        return convert(value)
    except Invalid as reason:
        raise Invalid(f"{name} {reason}") from None

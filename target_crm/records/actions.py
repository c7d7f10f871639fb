"""Convert a Pepper action to a row of the ledger, or raise `Invalid` with the reason.

There are three types of loyalty action. Each one reports a change in an award's points, and the balance after the
change::

    {"_id": "5f1…", "type": "REDEEM_PERK", "when": {"timestamp": "2026-10-01T12:00:00.000Z"},
     "context": {"user": {"_id": "5e0…"}},
     "metadata": {"awardId": "5e7…", "perkId": "5d2…", "pointsAvailable": 5, "pointsRedeemed": 16}}

An older system sends notices of the same types, but without the change or the balance. They are called *legacy*
actions. The ledger keeps legacy actions, and actions of other types, with a null effect. An action with a null effect
never changes a balance.
"""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, TypeVar

import msgspec

from target_crm.records import values
from target_crm.records.column_types import ID_CHARS_MAX
from target_crm.records.values import Invalid

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_T = TypeVar("_T")
# tap-pepper moves points that are not numbers from `metadata` to this property.
INVALID_POINTS = "invalid_points"
# Properties of `metadata`, in the order of the ledger's columns.
_POINTS = ("pointsAvailable", "pointsAdded", "pointsRedeemed", "pointsRefunded")
_METADATA = ("awardId", "perkId", *_POINTS)
# Pepper's type → the effect on a balance, and the index in `_POINTS` of the property with the change.
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


_Id = Annotated[str, msgspec.Meta(min_length=1, max_length=ID_CHARS_MAX)]


class _Reference(msgspec.Struct, frozen=True, gc=False):
    id: _Id | None = msgspec.field(name="_id", default=None)


class _Context(msgspec.Struct, frozen=True, gc=False):
    tenant: _Reference | None = None
    user: _Reference | None = None
    location: _Reference | None = None


class _When(msgspec.Struct, frozen=True, gc=False):
    timestamp: datetime | None = None


class _Metadata(msgspec.Struct, rename="camel", frozen=True, gc=False):
    award_id: _Id | None = None
    perk_id: _Id | None = None
    # `values.points` converts these four properties. The type `Decimal` would also accept strings such as `NaN`, which
    # are not points.
    points_available: Any = None
    points_added: Any = None
    points_redeemed: Any = None
    points_refunded: Any = None


class _Action(msgspec.Struct, rename="camel", frozen=True, gc=False):
    """The properties that a ledger row needs. Decoding is fast because the decoder skips all other properties."""

    id: _Id = msgspec.field(name="_id")
    type: str | None = None
    when: _When | None = None
    when_timestamp: datetime | None = msgspec.field(name="when_timestamp", default=None)
    tenant_id: _Id | None = None
    context: _Context | None = None
    metadata: _Metadata | None = None
    source: str | None = None
    environment: str | None = None
    # Decoding fails for an action with this property. `_convert` then decides whether the action is invalid.
    invalid_points: None = msgspec.field(name=INVALID_POINTS, default=None)


class _Message(msgspec.Struct, frozen=True, gc=False):
    type: str = ""
    stream: str = ""
    record: msgspec.Raw = msgspec.Raw()


_NO_REFERENCE, _NO_CONTEXT, _NO_WHEN, _NO_METADATA = _Reference(), _Context(), _When(), _Metadata()
_message = msgspec.json.Decoder(_Message).decode
_action = msgspec.json.Decoder(_Action, float_hook=Decimal).decode


class Incomplete(Invalid):
    """An action that would change a balance, but lacks its award, user or time.

    The missing field may have been deselected. The sink compares the action with the ledger, but never inserts it.

    Attributes:
        columns: The action's columns, with null for each missing value.
    """

    def __init__(self, reason: str, columns: tuple[Any, ...]) -> None:
        super().__init__(reason)
        self.columns = columns


def decode_action(line: bytes) -> tuple[Any, ...] | None:
    """Decode a RECORD message of `actions` into a ledger row without `loaded_at`. The payload is the unchanged record.

    Return None for any other line, and for an invalid action. `ledger_row` gives the reason why an action is invalid.
    """
    try:
        message = _message(line)
        if message.type != "RECORD" or message.stream != "actions":
            return None
        # Check the whole record, because the decoder skips some strings without checking that they are valid UTF-8.
        payload = values.json_without_nul(str(message.record, "utf-8"))
        try:
            columns = _columns(_action(message.record))
        except (msgspec.ValidationError, Invalid):
            columns = _convert(_object(values.from_json(message.record)))
    except (msgspec.DecodeError, ValueError, ArithmeticError, RecursionError):
        return None
    return *columns, payload


def ledger_row(record: Mapping[str, Any], *, loaded_at: datetime) -> LedgerRow:
    """Convert an action, as decoded JSON, to a row of the ledger.

    Raises:
        Invalid: The action has no valid id, another value that a balance needs is invalid, or the record contains a
            NUL character.
        Incomplete: The action would change a balance, but its award, user or time is missing.
    """
    lack = None
    try:
        columns = _convert(record)
    except Incomplete as reason:
        lack, columns = reason, reason.columns
    row = LedgerRow._make((*columns, _required(record, values.json_document, "the record"), loaded_at))
    if lack:
        raise Incomplete(str(lack), row)
    return row


def without_payload(row: LedgerRow) -> LedgerRow:
    """Replace the payload of an action by one that contains only the values of the ledger's other columns."""
    points = (row.points_available, row.points_added, row.points_redeemed, row.points_refunded)
    kept = {
        "_id": row.action_id,
        "type": row.type,
        "tenantId": row.tenant_id,
        "context": {"user": {"_id": row.user_id}, "location": {"_id": row.location_id}},
        "when": {"timestamp": row.occurred_at},
        "metadata": dict(zip(_METADATA, (row.award_id, row.perk_id, *points), strict=True)),
        "source": row.source,
        "environment": row.environment,
    }
    return row._replace(payload=values.json_text(kept))


def invalid_points(record: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the properties that tap-pepper has moved to `invalid_points`, because their points are not numbers."""
    return _object(record.get(INVALID_POINTS))


def location_title(payload: Any) -> str | None:
    """Return the location's title in an action's payload.

    On engines with a JSON type, the driver may already have decoded the payload.
    """
    try:
        document = values.from_json(payload) if isinstance(payload, str) else payload
        title = document["context"]["location"]["title"]
    except (ValueError, LookupError, TypeError):
        return None
    return title if isinstance(title, str) and title else None


def _columns(action: _Action) -> tuple[Any, ...]:
    """Return the columns from `action_id` to `environment`."""
    context = action.context or _NO_CONTEXT
    metadata = action.metadata or _NO_METADATA
    user_id = (context.user or _NO_REFERENCE).id
    occurred_at = (action.when or _NO_WHEN).timestamp or action.when_timestamp
    if occurred_at and occurred_at.tzinfo is not UTC:
        occurred_at = values.in_utc(occurred_at)
    points = [
        None if sent is None else values.points(sent)
        for sent in (
            metadata.points_available,
            metadata.points_added,
            metadata.points_redeemed,
            metadata.points_refunded,
        )
    ]
    effect, place = EFFECTS.get(action.type or "", (None, 0))
    if points[0] is None or points[place] is None:
        effect = None
    columns = (
        action.id,
        action.type,
        action.tenant_id or (context.tenant or _NO_REFERENCE).id,
        user_id,
        metadata.award_id,
        metadata.perk_id,
        (context.location or _NO_REFERENCE).id,
        occurred_at,
        effect,
        *points,
        action.source,
        action.environment,
    )
    if effect and not (metadata.award_id and user_id and occurred_at):
        needed = {"metadata.awardId": metadata.award_id, "context.user._id": user_id, "when.timestamp": occurred_at}
        raise Incomplete(f"{next(name for name in needed if not needed[name])} is missing", columns)
    return columns


def _convert(record: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return the columns of any action, even if it has numeric ids, or times that are not in the format of RFC 3339.

    A value that does not fit its column becomes null. If a balance needs the value, raise `Invalid` instead.
    """
    context, when = _object(record.get("context")), _object(record.get("when"))
    sent = {**_object(record.get("metadata")), **invalid_points(record)}
    tenant_id, sent_user_id, location_id = (
        _object(context.get(name)).get("_id") for name in ("tenant", "user", "location")
    )
    action = _Action(
        id=_required(record.get("_id"), values.identifier, "_id"),
        type=values.optional(record.get("type"), values.text),
        when=_When(values.optional(when.get("timestamp"), values.instant)),
        when_timestamp=values.optional(record.get("when_timestamp"), values.instant),
        tenant_id=values.optional(record.get("tenantId"), values.identifier),
        context=_Context(
            *(_Reference(values.optional(each, values.identifier)) for each in (tenant_id, sent_user_id, location_id))
        ),
        metadata=_Metadata(
            *(values.optional(sent.get(name), values.identifier) for name in ("awardId", "perkId")),
            *(values.optional(sent.get(name), values.points) for name in _POINTS),
        ),
        source=values.optional(record.get("source"), values.text),
        environment=values.optional(record.get("environment"), values.text),
    )
    effect, place = EFFECTS.get(action.type or "", (None, 0))
    counted = _POINTS[0], _POINTS[place]
    if effect and all(sent.get(name) is not None for name in counted):
        for name in counted:
            _required(sent[name], values.points, f"metadata.{name}")
    try:
        return _columns(action)
    except Incomplete as incomplete:
        sent_time = record.get("when_timestamp") if when.get("timestamp") is None else when["timestamp"]
        if sent_time is not None and incomplete.columns[LedgerRow._fields.index("occurred_at")] is None:
            _required(sent_time, values.instant, "when.timestamp")
        for value, name in ((sent.get("awardId"), "metadata.awardId"), (sent_user_id, "context.user._id")):
            if value is not None:
                _required(value, values.identifier, name)
        raise


def _object(value: Any) -> dict[str, Any]:
    """Return the value if it is a JSON object, and otherwise an empty object."""
    return value if isinstance(value, dict) else {}


def _required(value: Any, convert: Callable[[Any], _T], name: str) -> _T:
    try:
        return convert(value)
    except Invalid as reason:
        raise Invalid(f"{name} {reason}") from None

"""The streams, one declaration per endpoint."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import msgspec

from tap_pepper.base_stream import OTHER_FIELDS
from tap_pepper.points import INVALID_POINTS, convert_action_points, convert_award_points
from tap_pepper.raw_json import JsonText, Row, canonical_json, from_json, to_json
from tap_pepper.replication import ChangesStream, FullTableStream, WindowedStream
from tap_pepper.windows import to_instant

if TYPE_CHECKING:
    from tap_pepper.base_stream import PepperStream
    from tap_pepper.windows import Window


class Perks(FullTableStream):
    """Templates of awards."""

    name = "perks"
    path = "/perks"


class Awards(ChangesStream):
    """Each user's copies of perks, with the points on them."""

    name = "awards"
    path = "/awards"
    since_parameter = "updatedAt"
    hidden_fields = ("tenantId", "perk", OTHER_FIELDS)
    automatic_fields = (INVALID_POINTS,)
    balance_fields = ("points",)

    @property
    def full_refresh_days(self) -> int:
        """Return the setting `awards_full_refresh_days`."""
        return self.run.settings.awards_full_refresh_days

    def complete_row(self, row: Row) -> str | None:
        """Complete a row as other streams do, and convert its points to a number."""
        convert_award_points(row)
        return super().complete_row(row)


class Users(ChangesStream):
    """The merchant's users. They are personal data, so the stream exists only with the setting `include_users`."""

    name = "users"
    path = "/users"
    since_parameter = "updatedAfter"
    is_personal = True
    hidden_fields = ("firstName", "lastName", "fullName", "contacts", "credentials", OTHER_FIELDS)

    def query(self) -> dict[str, str]:
        """Request credentials only if the setting `include_credentials` is true."""
        return {"include": "credentials"} if self.run.settings.include_credentials else {}


class Actions(WindowedStream):
    """Events of all types: a user earned points, redeemed them, checked in or ordered."""

    name = "actions"
    path = "/actions"
    replication_key = "when_timestamp"
    automatic_fields = (INVALID_POINTS,)
    balance_fields = (
        "type",
        "context.user._id",
        "metadata.awardId",
        "metadata.pointsAvailable",
        "metadata.pointsAdded",
        "metadata.pointsRedeemed",
        "metadata.pointsRefunded",
    )

    def window_query(self, window: Window) -> dict[str, str]:
        """Return a filter on time, and on the types in `action_types`."""
        query = {"when.timestamp.gt": window.after, "when.timestamp.lte": window.until}
        if types := self.run.settings.action_types:
            query["type.in"] = ",".join(types)
        return query

    def check_row(self, row: Row, window: Window) -> tuple[bool, str | None]:
        """Check type and time, because Pepper may ignore the filter."""
        types = self.run.settings.action_types
        if types and from_json(row.get("type")) not in types:
            return False, None
        instant = complete_action(row)
        # Convert the points only now, so that an `_id` made from the content is the same as in older versions of the
        # tap.
        convert_action_points(row)
        return instant is None or window.contains(instant), instant


STREAMS: tuple[type[PepperStream], ...] = (Actions, Awards, Perks, Users)


class _When(msgspec.Struct):
    """The part of an action's `when` that the tap reads."""

    timestamp: object = None


_when_decoder = msgspec.json.Decoder(_When)
_NO_ID = (None, JsonText(b"null"), JsonText(b'""'))


def complete_action(row: Row) -> str | None:
    """Add an action's time at the top level, as `when_timestamp`, and an `_id` if it has none.

    The generated `_id` is a hash of the content, so it is the same in every run.

    Returns:
        The time as an instant; None if `when.timestamp` is missing or invalid. The tap also emits such an action, and
        the target decides what to do with it.
    """
    if row.get("_id") in _NO_ID:
        content = {name: text for name, text in row.items() if name != "_id"}
        row["_id"] = to_json(f"content-{hashlib.sha256(canonical_json(content)).hexdigest()}")
    try:
        instant = to_instant(_when_decoder.decode(row["when"]).timestamp)
    except (KeyError, msgspec.DecodeError):
        instant = None
    row["when_timestamp"] = to_json(instant)
    return instant

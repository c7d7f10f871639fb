"""Declare the streams, one class per endpoint."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import msgspec

from pepper_runtime.wording import counted
from tap_pepper.base_stream import OTHER_FIELDS
from tap_pepper.points import INVALID_POINTS, METADATA_FIELDS, convert_action_points, convert_award_points
from tap_pepper.raw_json import JsonText, Row, canonical_json, from_json, to_json
from tap_pepper.replication import ChangesStream, FullTableStream, WindowedStream
from tap_pepper.windows import to_instant

if TYPE_CHECKING:
    from tap_pepper.base_stream import PepperStream
    from tap_pepper.windows import Window


class Perks(FullTableStream):
    """The merchant's perks, which are templates for awards."""

    name = "perks"
    path = "/perks"


class Awards(ChangesStream):
    """The users' copies of perks, each with its points."""

    name = "awards"
    path = "/awards"
    since_parameter = "updatedAt"
    hidden_fields = ("tenantId", "perk", OTHER_FIELDS)
    automatic_fields = (INVALID_POINTS,)
    balance_fields = ("points", "userId")

    @property
    def full_refresh_days(self) -> int:
        """Return the setting `awards_full_refresh_days`."""
        return self.run.settings.awards_full_refresh_days

    def complete_row(self, row: Row) -> str | None:
        """Convert the row's `updatedAt` to an instant, and its points to a number."""
        convert_award_points(row)
        return super().complete_row(row)


class Users(ChangesStream):
    """The merchant's users. The rows are personal data, so the stream exists only if `include_users` is true."""

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
    sum_fields = (
        "type",
        "metadata.awardId",
        "metadata.pointsAvailable",
        "metadata.pointsAdded",
        "metadata.pointsRedeemed",
        "metadata.pointsRefunded",
    )
    balance_fields = (*sum_fields, "context.user._id")

    _without_id = 0

    def window_query(self, window: Window) -> dict[str, str]:
        """Filter by the window's start and end, and by type if `action_types` is set."""
        query = {"when.timestamp.gt": window.after, "when.timestamp.lte": window.until}
        if types := self.run.settings.action_types:
            query["type.in"] = ",".join(types)
        return query

    def check_row(self, row: Row, window: Window) -> tuple[bool, str | None]:
        """Complete the action, and check its type and time, because Pepper may ignore the filter."""
        types = self.run.settings.action_types
        if types and from_json(row.get("type")) not in types:
            return False, None
        convert_action_points(row)
        has_no_id = row.get("_id") in _NO_ID
        instant = complete_action(row)
        belongs = instant is None or window.contains(instant)
        self._without_id += belongs and has_no_id
        return belongs, instant

    def log_summary(self, failure: Exception | None) -> None:
        """Also warn of actions without `_id`."""
        super().log_summary(failure)
        if self._without_id:
            self.logger.warning(
                "%s: Pepper sent %s without _id; the tap made keys from their award, time, type and points",
                self.name,
                counted(self._without_id, "action"),
            )


STREAMS: tuple[type[PepperStream], ...] = (Actions, Awards, Perks, Users)


class _When(msgspec.Struct):
    """The part of an action's `when` that the tap reads."""

    timestamp: object = None


_when_decoder = msgspec.json.Decoder(_When)
_metadata_decoder = msgspec.json.Decoder(Row)
_NO_ID = (None, JsonText(b"null"), JsonText(b'""'))


def complete_action(row: Row) -> str | None:
    """Add the top-level field `when_timestamp` to an action, and an `_id` if the action has none.

    The generated `_id` is a hash, so it is the same in every run.

    Returns:
        The time as an instant; None if `when.timestamp` is missing or invalid. The tap also emits such an action, and
        the target decides what to do with it.
    """
    try:
        instant = to_instant(_when_decoder.decode(row["when"]).timestamp)
    except (KeyError, msgspec.DecodeError):
        instant = None
    if row.get("_id") in _NO_ID:
        row["_id"] = to_json(f"content-{hashlib.sha256(canonical_json(_identity(row, instant))).hexdigest()}")
    row["when_timestamp"] = to_json(instant)
    return instant


def _identity(row: Row, instant: str | None) -> object:
    """Return the fields that distinguish an action without `_id` from other actions.

    For a change to an award, these are only the fields that belong to the event. Other fields, such as the name of the
    location, may differ when the tap reads the action again, and a new key would count the action twice.
    """
    try:
        metadata = _metadata_decoder.decode(row["metadata"])
    except (KeyError, msgspec.DecodeError):
        metadata = {}
    if instant and metadata.get("awardId") not in _NO_ID and metadata.get("pointsAvailable") not in _NO_ID:
        return [row.get("type"), instant, metadata["awardId"], *map(metadata.get, METADATA_FIELDS)]
    return {name: text for name, text in row.items() if name != "_id"}

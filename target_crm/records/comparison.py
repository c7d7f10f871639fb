"""Compare awards in Pepper with their balances in the warehouse, and check whether a tap has sent all awards."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Any, NamedTuple

from target_crm.records.values import instant, optional

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime
    from decimal import Decimal

    from target_crm.records.coverage import Interval


class Verdict(StrEnum):
    """The result of comparing one award."""

    EQUAL = "equal"
    DIFFERENT = "different"
    MISSING_HERE = "missing_here"
    MISSING_IN_PEPPER = "missing_in_pepper"
    UNREADABLE = "unreadable"
    NEWER_IN_PEPPER = "newer_in_pepper"
    NEWER_HERE = "newer_here"
    WITHOUT_POINTS = "without_points"


DIFFERENCES = (Verdict.DIFFERENT, Verdict.MISSING_HERE, Verdict.MISSING_IN_PEPPER, Verdict.UNREADABLE)


class Observation(NamedTuple):
    """An award in Pepper, as the tap read it."""

    counts: bool
    """Whether the award has points, or is deleted."""
    at: datetime
    """When the award last changed. If Pepper does not report this time, the time when the tap read the award."""
    extracted_at: datetime
    is_dated: bool
    """Whether Pepper reported when the award last changed."""
    points: Decimal | None
    """The award's points; None if it has none, or is deleted."""
    is_deleted: bool = False

    def replaces(self, other: Observation) -> bool:
        """Return whether the target would keep this record instead of `other`, an earlier record of the same award."""
        return self[:3] >= other[:3]


class Stored(NamedTuple):
    """A balance in the warehouse."""

    points: Decimal
    as_of: datetime
    is_deleted: bool


def judge(pepper: Observation, stored: Stored | None, loaded_until: datetime | None, meanwhile: Interval) -> Verdict:
    """Compare an award in Pepper with its balance, if it has one.

    Args:
        pepper: The award in Pepper.
        stored: The balance in the warehouse.
        loaded_until: Changes in Pepper after this time may not be loaded yet. None if nothing is loaded.
        meanwhile: The interval since the tap began to read awards. An award may have changed in this interval after the
            tap had read it, and another run may have loaded this change.
    """
    balance = stored if stored and not stored.is_deleted else None
    if pepper.points is None and not (balance and (balance.points or pepper.is_deleted)):
        return Verdict.WITHOUT_POINTS
    if balance:
        if balance.points == pepper.points:
            return Verdict.EQUAL
        if max(pepper.at, meanwhile.after) < balance.as_of <= meanwhile.until:
            return Verdict.NEWER_HERE
    newest_known = max(filter(None, (loaded_until, stored and stored.as_of)), default=None)
    if pepper.is_dated and newest_known and pepper.at > newest_known:
        return Verdict.NEWER_IN_PEPPER
    if not balance:
        return Verdict.MISSING_HERE
    return Verdict.MISSING_IN_PEPPER if pepper.is_deleted else Verdict.DIFFERENT


def judge_absent(stored: Stored, meanwhile: Interval) -> Verdict | None:
    """Judge a balance whose award is missing in Pepper. Return None if the award is already marked as deleted."""
    if stored.is_deleted:
        return None
    return Verdict.NEWER_HERE if meanwhile.after < stored.as_of <= meanwhile.until else Verdict.MISSING_IN_PEPPER


class AwardsRead:
    """Finds out whether a tap has sent all awards, from the STATE and ACTIVATE_VERSION messages around the awards.

    Before a tap reads, it emits the state that it was started with. After the last award, it emits another bookmark, or
    ACTIVATE_VERSION. A tap that starts with a bookmark for awards reads only changes, unless it refreshes all awards.

    =============================  ================================================  =====================
    bookmark before first award    after the last award                              read
    =============================  ================================================  =====================
    none, or without a value       another bookmark, or ACTIVATE_VERSION             all awards
    a value                        ACTIVATE_VERSION                                  all awards
    a value                        a bookmark whose `refreshed_until` is its value   all awards
    a value                        another bookmark                                  changes since the value
    any                            none, or the same bookmark                        the tap stopped early
    =============================  ================================================  =====================
    """

    def __init__(self) -> None:
        self._bookmarks: Mapping[str, Any] = {}
        # Source stream → its bookmark before the first award.
        self._before: dict[str, Mapping[str, Any]] = {}
        self._unfinished: set[str] = set()
        self._activated: set[str] = set()

    def add_record(self, source: str) -> None:
        """Note that the tap has sent an award."""
        if source not in self._before:
            self._before[source] = self._bookmark(source)
        self._unfinished.add(source)

    def add_state(self, state: object) -> None:
        """Note the bookmarks in a STATE message."""
        bookmarks = state.get("bookmarks") if isinstance(state, dict) else None
        self._bookmarks = bookmarks if isinstance(bookmarks, dict) else {}
        self._unfinished = {each for each in self._unfinished if self._bookmark(each) in ({}, self._before[each])}

    def add_activation(self, source: str) -> None:
        """Note an ACTIVATE_VERSION message. It means that the tap has sent all awards of this source."""
        self._unfinished.discard(source)
        self._activated.add(source)

    def _bookmark(self, source: str) -> Mapping[str, Any]:
        bookmark = self._bookmarks.get(source)
        return bookmark if isinstance(bookmark, dict) else {}

    @property
    def is_finished(self) -> bool:
        """Whether the tap has sent the last award."""
        return not self._unfinished

    @property
    def changes_since(self) -> str | None:
        """The bookmark with which the tap started, if it read only later changes. None if it read all awards."""
        for source, before in self._before.items():
            now = self._bookmark(source)
            is_refresh = "refreshed_until" in now and now["refreshed_until"] == now.get("replication_key_value")
            if (since := before.get("replication_key_value")) and not is_refresh and source not in self._activated:
                return str(since)
        return None

    @property
    def until(self) -> datetime | None:
        """The new bookmark, a time on Pepper's clock. It is earlier than the time when the tap read the first award.

        None if the tap sent no bookmark.
        """
        bookmarks = [self._bookmark(each).get("replication_key_value") for each in self._before]
        return min(filter(None, (optional(each, instant) for each in bookmarks)), default=None)

    @property
    def merchants(self) -> set[str]:
        """The hashes of the merchants, from the tap's bookmarks."""
        return {str(merchant) for each in self._before if (merchant := self._bookmark(each).get("merchant"))}
